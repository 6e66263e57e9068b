"""Matrices to nearly orthogonal ones, many of a shape at once."""

from __future__ import annotations

import torch
from torch import Tensor

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
STEPS, EPS = 5, 1e-7
# Steps on the Gram matrix before it is made anew from the matrix: its small eigenvalues are squares, which in bfloat16
# drown after a few steps. With 3 the result is as near to doubles as without; with 5 it is of no use.
ON_GRAM = 3
LONG = 1.5  # long side over short, from which steps on the Gram matrix multiply less


def orthogonalised(x: Tensor, steps: int = STEPS, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    """x = U S V^T (matrices, rows, columns) to about U V^T, with singular values of 0.7 to 1.2, in `dtype`.

    Steps of X = (a + b A + c A^2) X with A = X X^T, of the shorter side: Jordan et al. 2024, "Muon: an optimizer for
    hidden layers in neural networks". A matrix of zeros stays one; one with nan becomes nan whole.
    """
    tall = x.shape[-2] > x.shape[-1]
    x = (x.mT if tall else x).to(dtype)
    x = x / x.float().square().sum((-2, -1), keepdim=True).sqrt().clamp(min=EPS).to(dtype)
    if _on_gram(*x.shape[-2:]):
        for start in range(0, steps, ON_GRAM):
            x = _product(x @ x.mT, min(ON_GRAM, steps - start)) @ x
    else:
        for _ in range(steps):
            x = torch.baddbmm(x, _polynomial(x @ x.mT), x, beta=COEFFICIENTS[0])
    return x.mT if tall else x


def _on_gram(short: int, long: int) -> bool:
    return long > LONG * short


def _polynomial(gram: Tensor) -> Tensor:
    """b A + c A^2."""
    return torch.baddbmm(gram, gram, gram, beta=COEFFICIENTS[1], alpha=COEFFICIENTS[2])


def _product(gram: Tensor, steps: int) -> Tensor:
    """The product of the factors (a + P) of so many steps, all from A: the next one's is (a + P) A (a + P)."""
    a = COEFFICIENTS[0]
    p = _polynomial(gram)
    product = p.clone()
    product.diagonal(dim1=-2, dim2=-1).add_(a)
    for _ in range(steps - 1):
        half = torch.baddbmm(gram, p, gram, beta=a)
        gram = torch.baddbmm(half, half, p, beta=a)
        p = _polynomial(gram)
        product = torch.baddbmm(product, p, product, beta=a)
    return product  # (matrices, short, short)


def work(rows: int, columns: int) -> int:
    """Multiplications of `STEPS` steps on one matrix, to share matrices out by."""
    short, long = sorted((rows, columns))
    if not _on_gram(short, long):
        return STEPS * short * short * (2 * long + short)
    rounds = -(-STEPS // ON_GRAM)
    # Of each round A and its product with X; of each step A^2, and but for a round's first step (a + P) A (a + P)
    # and the product: 1 + 3 multiplications of the shorter side.
    return short * short * (2 * rounds * long + (STEPS + 3 * (STEPS - rounds)) * short)
