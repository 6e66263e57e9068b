"""What Muon computes and sends in a step: matrices made nearly orthogonal, shared out over the ranks that share states.

    X = a X + (b A + c A^2) X,  A = X X^T      4 steps of Newton-Schulz, in bfloat16 (Jordan et al. 2024)

Each matrix goes to one of the ranks that share states, and a step waits for the busiest. Rows travel to the owners and
back in bfloat16, in two all-to-alls. Tensor ranks gather all matrices whole, and each works on all of them; replicas
work alike.
"""

from __future__ import annotations

import heapq
import math
from functools import lru_cache

from thrifty.cost.compute import Rank, product_seconds
from thrifty.cost.held import Held, local_size, part_of
from thrifty.cost.params import block_shapes
from thrifty.spec.job import ModelShape
from thrifty.spec.recipe import Layout

STEPS = 4
# Steps on the Gram matrix before it is made anew from the matrix: its small eigenvalues are squares, which in bfloat16
# drown after a few steps. With 2 singular values end as without; with 3 some shoot up, with 5 it is of no use.
ON_GRAM = 2
LONG = 1.5  # long side over short, from which steps on the Gram matrix multiply less
ELEMENT = 2  # bytes of bfloat16

Matrix = tuple[int, int]  # rows, columns


def work(rows: int, columns: int) -> int:
    """Multiplications that make one matrix orthogonal; steps of a long matrix are taken on its Gram matrix."""
    return sum(m * n * k * times for m, n, k, times in products(rows, columns))


@lru_cache(maxsize=1024)
def products(rows: int, columns: int) -> tuple[tuple[int, int, int, int], ...]:
    """The products (m, n, k, how many) of one matrix, as `optim/newton_schulz.py` does them."""
    short, long = sorted((rows, columns))
    if long <= LONG * short:
        return (short, short, long, STEPS), (short, short, short, STEPS), (short, long, short, STEPS)
    rounds = -(-STEPS // ON_GRAM)
    squares = STEPS + 3 * (STEPS - rounds)
    return (short, short, long, rounds), (short, long, short, rounds), (short, short, short, squares)


@lru_cache(maxsize=4096)
def owners(matrices: tuple[Matrix, ...], ranks: int) -> tuple[int, ...]:
    """Which rank takes each matrix: the largest first, always to the rank with the least to do so far."""
    taken = [0] * len(matrices)
    heap = [(0, rank) for rank in range(ranks)]
    for place in sorted(range(len(matrices)), key=lambda at: -work(*matrices[at])):
        busy, rank = heap[0]
        taken[place] = rank
        heapq.heapreplace(heap, (busy + work(*matrices[place]), rank))
    return tuple(taken)


def matrices_of(shape: ModelShape, piece: Held) -> tuple[Matrix, ...]:
    """Matrices of a stage's blocks, whole, in the order of the module."""
    return tuple(
        (size[0], size[1]) for layer in piece.layers for _, size in block_shapes(shape, layer) if len(size) == 2
    )


@lru_cache(maxsize=4096)
def seconds(matrices: tuple[Matrix, ...], ranks: int, rank: Rank) -> float:
    """Time of the busiest of the ranks that share the matrices out.

    Args:
        rank: with the rate of bfloat16.
    """
    each = {size: sum(product_seconds(m, n, k, rank, ELEMENT) * t for m, n, k, t in products(*size))
            for size in dict.fromkeys(matrices)}  # fmt: skip
    busy = [0.0] * ranks
    for size, owner in zip(matrices, owners(matrices, ranks), strict=True):
        busy[owner] += each[size]
    return max(busy)


@lru_cache(maxsize=4096)
def messages(matrices: tuple[Matrix, ...], ranks: int, at: int) -> tuple[tuple[float, float], tuple[float, float]]:
    """(handed in, sent to others) in bytes of one rank: rows of momenta to the owners, then rows of results back."""
    rows = rest = whole = mine = 0
    for (height, width), owner in zip(matrices, owners(matrices, ranks), strict=True):
        held = part_of(height, ranks, at) * width
        rows += held
        rest += 0 if owner == at else held
        whole += height * width if owner == at else 0
        mine += height * width - held if owner == at else 0
    return (float(ELEMENT * rows), float(ELEMENT * rest)), (float(ELEMENT * whole), float(ELEMENT * mine))


def gathered_values(shape: ModelShape, layout: Layout, piece: Held) -> int:
    """Values that one tensor rank holds of its stage's matrices, before they are split over data ranks."""
    return sum(
        math.prod(local_size(name, size, shape, layout.tensor, layout.expert))
        for layer in piece.layers
        for name, size in block_shapes(shape, layer)
        if len(size) == 2
    )
