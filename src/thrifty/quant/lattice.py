"""The lattice E8: eight whole numbers with an even sum, or eight halves of odd numbers whose floors have one.

It packs spheres closest in eight dimensions. The nearest point is found as in Conway and Sloane, "Fast quantizing and
decoding algorithms for lattice quantizers and codes", IEEE Trans. IT-28 (1982): round, and where the sum is odd let the
coordinate that gives least go to its other neighbour; do so for both cosets, and take the nearer point.

A vector's eight coordinates come as eight tensors, so that all arithmetic is by whole vectors of them. A code of b bits
holds a coordinate's floor, from -2^(b-1) on. The last coordinate's lowest bit follows from the even sum: in its place
stands which coset it is. So eight values take 8 b bits exactly.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce

import torch
from torch import Tensor


def nearest_e8(values: Sequence[Tensor], bits: int) -> tuple[list[Tensor], list[Tensor]]:
    """Points nearest to the eight `values` among those whose floors have codes of `bits`; and the codes, as floats."""
    whole, far = _nearest_d8(values, bits)
    below, other = _nearest_d8([value - 0.5 for value in values], bits)
    half = torch.where(other < far, 1.0, 0.0)
    floors = [(1.0 - half) * a + half * b for a, b in zip(whole, below, strict=True)]
    codes = [floor + 2 ** (bits - 1) for floor in floors]
    codes[7] = 2 * (codes[7] * 0.5).floor() + half
    return [floor + 0.5 * half for floor in floors], codes


def _nearest_d8(values: Sequence[Tensor], bits: int) -> tuple[list[Tensor], Tensor]:
    """The nearest whole numbers with an even sum within -2^(b-1) .. 2^(b-1) - 1, and the squared distance."""
    low, high = -(2.0 ** (bits - 1)), 2.0 ** (bits - 1) - 1
    near = [value.round().clamp(low, high) for value in values]
    off = [value - whole for value, whole in zip(values, near, strict=True)]
    # The other neighbour lies on the value's side, but at an end of the range on the inner one.
    way = [
        torch.where(whole >= high, -1.0, torch.where((whole <= low) | (error >= 0), 1.0, -1.0))
        for whole, error in zip(near, off, strict=True)
    ]
    cost = [1 - 2 * error * side for error, side in zip(off, way, strict=True)]  # (off - way)^2 - off^2
    least = reduce(torch.minimum, cost)
    total = sum(near)
    odd = total - 2 * (total * 0.5).floor()
    left = odd  # 1 until a coordinate has been moved
    points = []
    for whole, side, price in zip(near, way, cost, strict=True):
        moved = torch.where(price <= least, left, 0.0)
        left = left - moved
        points.append(whole + moved * side)
    return points, sum(error.square() for error in off) + odd * least


def lattice_values(codes: Sequence[Tensor], bits: int) -> list[Tensor]:
    """The points, as fp32, that eight tensors of uint8 codes stand for."""
    *first, last = codes
    half = (last & 1).float() * 0.5
    even = reduce(torch.bitwise_xor, first) & 1
    floors = [*first, (last & 0xFE) | even]
    return [floor.float() + (half - 2 ** (bits - 1)) for floor in floors]
