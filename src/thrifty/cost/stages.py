"""Which layers each part of a pipeline holds, and which parts each rank: even, or so that the slowest has least to do.

A pipeline of p ranks with v chunks each cuts the model into p v parts. They are dealt round, part c to rank c mod p
(Narayanan et al. 2021, arXiv:2104.04473), or under `zbv` there and back, parts r and 2p - 1 - r to rank r (Qi et al.
2024, arXiv:2405.15362).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

from thrifty.spec.recipe import Layout


def placement(layout: Layout) -> tuple[tuple[int, ...], ...]:
    """The parts of each pipeline rank, in the order of the model."""
    p, v = layout.pipeline, layout.interleave
    if layout.schedule == "zbv":
        return tuple((rank, 2 * p - 1 - rank) for rank in range(p))
    return tuple(tuple(rank + p * chunk for chunk in range(v)) for rank in range(p))


def even(layers: int, parts: int) -> tuple[range, ...]:
    """Layers in equal runs; the first ones hold one more where it does not come out even.

    >>> even(5, 2)
    (range(0, 3), range(3, 5))
    """
    ends = [-(-layers * part // parts) for part in range(parts + 1)]
    return tuple(range(begin, end) for begin, end in zip(ends, ends[1:], strict=False))


