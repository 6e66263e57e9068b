"""Matrices to nearly orthogonal ones, many of a shape at once.

Four steps of our own polynomials do what five of Jordan's do, for less: they are the best of their degree for the range
that the steps before leave (as arXiv:2505.16932), and matrices start from a tighter bound of their largest singular
value (as arXiv:2506.10935), which A^2 of the first step gives for nothing: the norm of Frobenius is 14 times too large
for a random matrix of 768, and each step can stretch small values by 8 at most.

Tried, and left out: products of symmetric matrices by halves (blocks of 192 to 384 multiply more slowly, and mirroring
takes what is left: up to 30% of one matrix, 15% or nothing of several); more than two steps on one Gram matrix.
"""

from __future__ import annotations

import math
from functools import cache

import torch
from torch import Tensor

from thrifty.cost.muon import LONG, ON_GRAM, STEPS

Coefficients = tuple[float, float, float]
EPS = 1e-7
# Where singular values end, of those that do not begin too small. A wider range would reach smaller ones (0.7: by a
# tenth), but its first polynomial all but cancels some large ones, and in bfloat16 those end anywhere.
LEAST, MOST = 0.82, 1.17
# Between the largest value and the end of the next polynomial's range, for what bfloat16 rounds: beyond that end they
# shoot up. With 1.02 at the beginning alone, five steps end at 14000.
ROOM = 1.04


@cache
def schedule(steps: int) -> tuple[Coefficients, ...]:
    """a, b, c of each step X = a X + b A X + c A^2 X, with A = X X^T, whose composition maps [l, 1] into [0.82, 1.17].

    Of the smallest l that so many steps bring there. Each is the odd quintic nearest to 1 on the range that its
    forerunners leave, and a little more.
    """
    low, high = 1e-9, 1.0
    for _ in range(60):
        middle = math.sqrt(low * high)
        found, off = _composed(middle, steps)
        low, high = (middle, high) if (1 - off) / (1 + off) < LEAST / MOST else (low, middle)
    last = MOST / (1 + off)
    return (*found[:-1], (found[-1][0] * last, found[-1][1] * last, found[-1][2] * last))


def _composed(least: float, steps: int) -> tuple[list[Coefficients], float]:
    """The best quintics for [least, 1], one after the other, and how far from 1 the last one's values are."""
    low, high, off, found = least, 1.0, 0.0, []
    for _ in range(steps):
        quintic, off = _nearest_to_one(low, high)
        found.append(quintic)
        low, high = 1 - off, ROOM * (1 + off)
    return found, off


def _nearest_to_one(low: float, high: float) -> tuple[Coefficients, float]:
    """Remez' exchange: the odd quintic whose errors on [low, high] are equal, in turn above and below, four times."""
    if low > 0.99999 * high:
        return (1.875 / high, -1.25 / high**3, 0.375 / high**5), 0.0
    inner, outer = (3 * low + high) / 4, (low + 3 * high) / 4
    for _ in range(50):
        rows = [[x, x**3, x**5, sign] for x, sign in ((low, 1.0), (inner, -1.0), (outer, 1.0), (high, -1.0))]
        a, b, c, off = torch.linalg.solve(torch.tensor(rows, dtype=torch.float64), torch.ones(4).double()).tolist()
        root = math.sqrt(9 * b * b - 20 * a * c)
        before, inner, outer = inner, math.sqrt((-3 * b - root) / (10 * c)), math.sqrt((-3 * b + root) / (10 * c))
        if abs(inner - before) < 1e-14:
            break
    return (a, b, c), abs(off)


def orthogonalised(
    x: Tensor, steps: int = STEPS, coefficients: Coefficients | None = None, dtype: torch.dtype = torch.bfloat16
) -> Tensor:
    """x = U S V^T (matrices, rows, columns) to about U V^T, with singular values of 0.8 to 1.2, in `dtype`.

    Args:
        coefficients: of every step, as of Jordan et al. 2024 (3.4445, -4.7750, 2.0315), from the norm of Frobenius; by
            default the best for so many steps.

    A matrix of zeros stays one; one with nan becomes nan whole.

    In bfloat16, the 1st and 10th percentile of singular values and the largest, after four steps and after five of
    Jordan's by torch, of matrices whose values are random or fall geometrically to 1/100 or 1/1000:

        768 x 768    random  0.811 0.825 1.171   0.300 0.708 1.203
                     1/100   0.819 0.829 1.171   0.536 0.685 1.203
                     1/1000  0.170 0.339 1.170   0.063 0.129 1.203
        768 x 2304   random  0.818 0.828 1.176   0.682 0.742 1.137
                     1/100   0.821 0.836 1.189   0.535 0.685 1.203
                     1/1000  0.209 0.354 1.192   0.082 0.137 1.203
    """
    tall = x.shape[-2] > x.shape[-1]
    x = (x.mT if tall else x).to(dtype)
    norm = torch.linalg.vector_norm(x, dim=(-2, -1), keepdim=True, dtype=torch.promote_types(dtype, torch.float32))
    x = x / norm.clamp(min=EPS).to(dtype)
    todo = list(schedule(steps) if coefficients is None else (coefficients,) * steps)
    at_once = _at_once(steps) if _on_gram(*x.shape[-2:]) else 1
    for start in range(0, steps, at_once):
        gram = x @ x.mT
        first, *others = todo[start : start + at_once]
        if start == 0 and coefficients is None:
            x, gram, p = _tightened(x, gram, first)
        else:
            p = _polynomial(gram, first)
        x = _product(gram, p, first, others) @ x if others else torch.baddbmm(x, p, x, beta=first[0])
    return x.mT if tall else x


def _on_gram(short: int, long: int) -> bool:
    return long > LONG * short


def _at_once(steps: int) -> int:
    """Steps on one Gram matrix: rounds as equal as can be."""
    return -(-steps // -(-steps // ON_GRAM))


def _tightened(x: Tensor, gram: Tensor, step: Coefficients) -> tuple[Tensor, Tensor, Tensor]:
    """X and A through a bound of the largest singular value, (sum of s^8)^(1/8), and b A + c A^2."""
    square = gram @ gram
    wide = torch.promote_types(x.dtype, torch.float32)
    norm = torch.linalg.vector_norm(square, dim=(-2, -1), keepdim=True, dtype=wide)
    by = (1 / (norm.sqrt().sqrt().clamp(min=EPS) * ROOM)).to(x.dtype)  # of x; rounded before it is squared for A
    of_gram = by.to(wide).square()
    p = (step[1] * of_gram) * gram + (step[2] * of_gram.square()) * square
    return x.mul_(by), (gram * of_gram).to(x.dtype), p.to(x.dtype)


def _polynomial(gram: Tensor, step: Coefficients) -> Tensor:
    """b A + c A^2."""
    return torch.baddbmm(gram, gram, gram, beta=step[1], alpha=step[2])


def _product(gram: Tensor, p: Tensor, step: Coefficients, others: list[Coefficients]) -> Tensor:
    """The product of the factors (a + P) of all steps, from A and the first P: the next A is (a + P) A (a + P)."""
    a = step[0]
    product = p.clone()
    product.diagonal(dim1=-2, dim2=-1).add_(a)
    for step in others:
        half = torch.baddbmm(gram, p, gram, beta=a)
        gram = torch.baddbmm(half, half, p, beta=a)
        p, a = _polynomial(gram, step), step[0]
        product = torch.baddbmm(product, p, product, beta=a)
    return product  # (matrices, short, short)
