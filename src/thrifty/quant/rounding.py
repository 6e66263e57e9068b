"""Random numbers that are a function of a seed and a place: the same on every layout, device and kernel."""

from __future__ import annotations

import torch
from torch import Tensor

GOLDEN = -1640531527  # 2^32 / golden ratio, as a signed 32-bit integer


def mix(h: Tensor) -> Tensor:
    """The 32-bit finaliser of MurmurHash3 (Appleby, public domain) on int32: every input bit moves every output bit."""
    # Shifts of signed integers drag the sign along; the masks take it out again.
    h = h ^ ((h >> 16) & 0xFFFF)
    h = h * -2048144789
    h = h ^ ((h >> 13) & 0x7FFFF)
    h = h * -1028477387
    return h ^ ((h >> 16) & 0xFFFF)


def _signed(word: int) -> int:
    return ((word & 0xFFFFFFFF) ^ 0x80000000) - 0x80000000


def dithered_bfloat16(x: Tensor, u: Tensor) -> Tensor:
    """fp32 as bfloat16: the next one away from zero with as much chance as it is near, given u in [0, 1) spread evenly.

    Added to the bits that go, u carries into those that stay just so often.
    """
    bits = x.view(torch.int32) + (u * 65536.0).to(torch.int32)
    rounded = (bits & -0x10000).view(torch.float32)
    return torch.where(x - x == 0, rounded, x).to(torch.bfloat16)


def row_keys(rows: int, first: int, seed: int, device: torch.device | str = "cpu") -> Tensor:
    """One int32 key for each of the rows `first`, `first` + 1, ... of a tensor; the seed has up to 64 bits."""
    places = torch.arange(first, first + rows, dtype=torch.int64, device=device)
    low = (((places & 0xFFFFFFFF) ^ 0x80000000) - 0x80000000).to(torch.int32)
    high = (places >> 32).to(torch.int32)
    keys = mix(low ^ _signed(seed))
    return mix(mix(keys ^ high) + _signed(seed >> 32))  # (rows,)


def uniforms(keys: Tensor, columns: int) -> Tensor:
    """Numbers in [0, 1) on a grid of 2^-24, one for every column of every row."""
    column = torch.arange(columns, dtype=torch.int32, device=keys.device)
    h = mix(keys[:, None] ^ mix(column * GOLDEN)[None, :])
    return ((h >> 8) & 0xFFFFFF).float() * 2.0**-24  # (rows, columns)
