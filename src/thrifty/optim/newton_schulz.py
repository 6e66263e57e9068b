"""Matrices to nearly orthogonal ones, many of a shape at once."""

from __future__ import annotations

import torch
from torch import Tensor

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
STEPS, EPS = 5, 1e-7


def orthogonalised(x: Tensor, steps: int = STEPS, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    """x = U S V^T (matrices, rows, columns) to about U V^T, with singular values of 0.7 to 1.2, in `dtype`.

    Steps of X = a X + (b A + c A^2) X with A = X X^T, of the shorter side: Jordan et al. 2024, "Muon: an optimizer for
    hidden layers in neural networks". A matrix of zeros stays one; one with nan becomes nan whole.
    """
    a, b, c = COEFFICIENTS
    tall = x.shape[-2] > x.shape[-1]
    x = (x.mT if tall else x).to(dtype)
    x = x / x.float().square().sum((-2, -1), keepdim=True).sqrt().clamp(min=EPS).to(dtype)
    for _ in range(steps):
        gram = x @ x.mT  # (matrices, shorter, shorter)
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


def work(rows: int, columns: int) -> int:
    """Multiplications of a step on one matrix, to share matrices out by."""
    short, long = sorted((rows, columns))
    return short * short * (2 * long + short)
