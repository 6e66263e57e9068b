"""The lattice E8: eight whole numbers with an even sum, or eight halves of odd numbers whose floors have one.

It packs spheres closest in eight dimensions. The nearest point is found as in Conway and Sloane, "Fast quantizing and
decoding algorithms for lattice quantizers and codes", IEEE Trans. IT-28 (1982): round, and where the sum is odd let the
coordinate that gives least go to its other neighbour; do so for both cosets, and take the nearer point.

The eight coordinates of a vector lie along one dimension of a tensor, and vectors along the last, so that arithmetic is
by whole runs of vectors. A code of b bits holds a coordinate's floor, from -2^(b-1) on. The last one's lowest bit
follows from the even sum: in its place stands which coset it is. So eight values take 8 b bits exactly.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from thrifty.quant.fuse import COMPILE_FROM, can_compile, fused


def nearest_e8(x: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Points nearest to the columns of fp32 x (rows, 8, vectors), whose floors fit codes of `bits`, and codes.

    Both as floats, of the same shape.
    """
    shape = x.shape
    x = x.transpose(0, 1).reshape(1, 8, -1)
    floors, far = _nearest_d8(x, bits)
    other, near = _nearest_d8(x - 0.5, bits)
    half = near < far  # (rows, 1, vectors)
    floors = torch.where(half, other, floors)
    half = half.to(x.dtype)
    codes = floors + 2 ** (bits - 1)
    codes[:, 7:] = (codes[:, 7:] * 0.5).floor_() * 2 + half
    return _back(floors + half * 0.5, shape), _back(codes, shape)


def _back(x: Tensor, shape: torch.Size) -> Tensor:
    return x.view(8, shape[0], shape[2]).transpose(0, 1).contiguous()


def _nearest_d8(x: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """The nearest whole numbers with an even sum within -2^(b-1) .. 2^(b-1) - 1, and the squared distance."""
    rounded, moved = _rounded, _moved
    if x.numel() >= COMPILE_FROM and can_compile(x.device.type):
        rounded, moved = _fused_rounded(bits), _fused_moved()
        torch._dynamo.mark_dynamic(x, 2)
    near, side, gain, off = rounded(x, -(2.0 ** (bits - 1)), 2.0 ** (bits - 1) - 1)
    most = gain.amax(1, keepdim=True)
    total = near.sum(1, keepdim=True)
    odd = total - (total * 0.5).floor() * 2
    return moved(near, side, gain, most, odd), off.sum(1, keepdim=True) + odd * (1 - 2 * most)  # (off-side)^2 - off^2


def _rounded(x: Tensor, low: float, high: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Nearest whole numbers, the way to the other neighbour, how near that is, and squared errors."""
    near = x.round().clamp(low, high)
    off = x - near
    # The other neighbour lies on the value's side, but at an end of the range on the inner one.
    side = torch.where(x.clamp(low + 0.25, high - 0.25) >= near, 1.0, -1.0)
    # The place in the last three bits tells equal gains apart, so that exactly one is the largest.
    place = torch.arange(8, dtype=torch.int32, device=x.device)[:, None]
    gain = (((off * side).view(torch.int32) & -8) | place).view(torch.float32)
    return near, side, gain, off.square()


def _moved(near: Tensor, side: Tensor, gain: Tensor, most: Tensor, odd: Tensor) -> Tensor:
    """Where the sum is odd, the coordinate with most to gain at its other neighbour."""
    return near + torch.where(gain >= most, side, 0.0) * odd


@cache
def _fused_rounded(bits: int):
    return fused(lambda x, low, high: _rounded(x, low, high), f"rounded_{bits}")


@cache
def _fused_moved():
    return fused(lambda near, side, gain, most, odd: _moved(near, side, gain, most, odd), "moved")


def lattice_values(codes: Tensor, bits: int) -> Tensor:
    """The points (rows, 8, vectors), as fp32, that uint8 codes of that shape stand for."""
    first, last = codes[:, :7], codes[:, 7:]
    even = (first & 1).sum(1, keepdim=True, dtype=torch.uint8) & 1
    floors = torch.cat([first, (last & 0xFE) | even], 1)
    return floors.float() + ((last & 1).float() * 0.5 - 2 ** (bits - 1))
