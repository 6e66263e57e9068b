"""Codes of 1 to 8 bits, packed into bytes along rows.

A row is cut into equal runs that lie over each other in the bytes: the first half of a row of 4-bit codes fills the low
nibbles, the second half the high ones. Whole vectors move then, where neighbours in a byte would need shuffles. Widths
that do not divide 8 are sums of those that do: 3 bits are a plane of 2 and a plane of 1.
"""

from __future__ import annotations

import torch
from torch import Tensor

PLANES = {1: (1,), 2: (2,), 3: (2, 1), 4: (4,), 5: (4, 1), 6: (4, 2), 7: (4, 2, 1), 8: (8,)}


def planes(bits: int) -> tuple[int, ...]:
    """Widths of the planes that make codes of `bits`, lowest bits first; bits above 8 are whole bytes and a rest."""
    whole, rest = divmod(bits, 8)
    return (8,) * whole + (PLANES[rest] if rest else ())


def packed_bytes(columns: int, bits: int) -> int:
    """Bytes of a row of `columns` codes; `columns` is a multiple of 8."""
    return columns * bits // 8


def pack(codes: Tensor, bits: int) -> Tensor:
    """Codes (rows, columns) below 2^bits as bytes (rows, columns * bits / 8).

    `columns` is a multiple of 8, so that every plane ends on a whole byte. Codes are of any integer dtype, or, up to 8
    bits, whole numbers in fp32: compilers make whole vectors of their sums, and less of shifts of bytes.
    """
    floats = codes.dtype.is_floating_point
    packed = []
    for width in planes(bits):
        bits -= width
        plane, size = codes, 2**width
        if bits and floats:
            codes = (codes * (1 / size)).floor()
            plane = plane - codes * size
        elif bits:
            codes, plane = codes >> width, codes & (size - 1)
        packed.append(_joined(plane, width))
    return packed[0] if len(packed) == 1 else torch.cat(packed, 1)


def _joined(plane: Tensor, width: int) -> Tensor:
    """The runs of a plane over each other in bytes."""
    floats = plane.dtype.is_floating_point
    byte, *above = (plane if floats else plane.to(torch.uint8)).chunk(8 // width, 1)
    for place, run in enumerate(above, 1):
        byte = byte + run * float(2 ** (place * width)) if floats else byte | (run << (place * width))
    return byte.to(torch.uint8)


def unpack_runs(packed: Tensor, bits: int, columns: int, dtype: torch.dtype = torch.uint8) -> list[Tensor]:
    """The codes of a row in order, in runs of equal length that lie apart in the bytes."""
    widths = planes(bits)
    runs = max(8 // width for width in widths)
    length = columns // runs
    codes: list[Tensor] = []
    shift, start = 0, 0
    for width in widths:
        over = runs // (8 // width)  # runs of the result in one run of this plane
        for index in range(runs):
            place, part = divmod(index, over)
            piece = packed[:, start + part * length : start + (part + 1) * length]
            if width < 8:
                piece = (piece >> (place * width)) & (2**width - 1)
            piece = piece.to(dtype)
            if shift:
                codes[index] = codes[index] | (piece << shift)
            else:
                codes.append(piece)
        shift, start = shift + width, start + columns * width // 8
    return codes


def unpack(packed: Tensor, bits: int, columns: int, dtype: torch.dtype = torch.uint8) -> Tensor:
    """Codes (rows, columns) from the bytes that `pack` made of them."""
    return torch.cat(unpack_runs(packed, bits, columns, dtype), 1)
