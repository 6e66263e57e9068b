"""Rows to scales and packed codes, and back: plain torch, fused by `torch.compile` where that pays.

What a row becomes, in every format:

- all zero, or no magnitude of `SMALLEST` or above: scale 0, decodes to zeros. (Scales stay normal numbers.)
- inf or nan anywhere: scale nan, decodes to nan whole, so that a broken gradient stays visible.
- finite and huge: finite back; scales saturate before the largest level overflows fp32.
"""

from __future__ import annotations

import math
from functools import cache

import torch
from torch import Tensor

from thrifty.quant.e8 import lattice_values, nearest_e8
from thrifty.quant.fuse import fused
from thrifty.quant.packing import pack, unpack_runs
from thrifty.quant.rounding import uniforms
from thrifty.spec.formats import BlockFormat

SMALLEST = 2.0**-100
LARGEST = 3.3e38  # below the largest bfloat16 and fp32, with room for the rounding of a scale
# Centroids of a bell curve's bins lie nearer to zero than their middles: found on Gaussian and Laplace at 2 to 4 bits.
SHRINK = 0.04
FLOATS = {"fp8_e4m3": torch.float8_e4m3fn, "fp8_e5m2": torch.float8_e5m2}


def encode_rows(x: Tensor, form: BlockFormat, keys: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Scales (rows, scales) bfloat16 and packed codes (rows, bytes) of rows (rows, block) of any float dtype.

    Args:
        keys: for stochastic rounding, one int32 a row; else round to nearest.
    """
    x, top, marks = guarded(x)
    scales, codes = _KINDS[form.kind](x, top, form, keys)
    return marked(scales, marks), pack(codes, form.bits)


def guarded(x: Tensor) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor]]:
    """Rows as fp32 that arithmetic can bear, their largest magnitudes, and which are of use and which sound."""
    x = x.float()
    top = x.abs().amax(1, keepdim=True)  # (rows, 1)
    sound = top < float("inf")  # false for nan too
    used = sound & (top >= SMALLEST)
    return torch.where(used, x, 0.0), torch.where(used, top, 1.0), (used, sound)


def marked(scales: Tensor, marks: tuple[Tensor, Tensor]) -> Tensor:
    """Scales (rows, scales) as bfloat16: 0 of rows without use, nan of broken ones."""
    used, sound = marks
    return torch.where(used, scales, torch.where(sound, 0.0, float("nan"))).to(torch.bfloat16)


def decode_rows(scales: Tensor, packed: Tensor, form: BlockFormat, block: int, dtype: torch.dtype) -> Tensor:
    """Values (rows, block) that the codes stand for."""
    scales = scales.float()
    if form.kind == "float":
        return (packed.view(FLOATS[form.name]).float() * scales).to(dtype)
    if form.kind == "lattice":
        codes = torch.cat(unpack_runs(packed, form.bits, block), 1).view(-1, 8, block // 8)
        return (lattice_values(codes, form.bits).view(-1, block) * scales).to(dtype)
    runs = [_value(codes, scales, form).to(dtype) for codes in unpack_runs(packed, form.bits, block)]
    return runs[0] if len(runs) == 1 else torch.cat(runs, 1)


def _value(codes: Tensor, scales: Tensor, form: BlockFormat) -> Tensor:
    """What codes stand for, in float arithmetic alone: a choice between integers would not be vectorised."""
    if form.kind == "uniform":
        value = codes.float() - (form.top + 1)
        if form.step:
            value = value - value.clamp(-SHRINK, SHRINK)
        return value * scales
    if form.kind == "root":
        return (codes.float() * scales + scales).square()
    if form.kind == "square":
        whole = codes.float() - whole_top(form)
        return whole * whole.abs() * scales
    sign = 1.0 - 2.0 * (codes >> (form.bits - 1)).float()
    if form.kind == "sign":
        return sign * scales
    upper = (codes & 1).float()
    if form.kind == "means":
        return sign * ((1.0 - upper) * scales[:, :1] + upper * scales[:, 1:])
    a, b, *rest = form.levels
    level = (1.0 - upper) * a + upper * b
    if rest:
        outer = ((codes >> 1) & 1).float()
        level = (1.0 - outer) * level + outer * ((1.0 - upper) * rest[0] + upper * rest[1])
    return sign * level * scales


def stored(scale: Tensor, most: float) -> Tensor:
    """The scale as it will be read: rounded to bfloat16, saturated before `most` times it overflows."""
    bits = scale.clamp(max=LARGEST / most).view(torch.int32)
    # By hand: a compiler that fuses both casts leaves the rounding out, and codes would be made for another scale.
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) & -0x10000).view(torch.float32)


def stored_above(scale: Tensor, most: float) -> Tensor:
    """As `stored`, but rounded up, so that no value lies beyond the largest level."""
    bits = scale.clamp(max=LARGEST / most).view(torch.int32)
    return ((bits + 0xFFFF) & -0x10000).view(torch.float32)


def rms(x: Tensor, top: Tensor) -> Tensor:
    """Root of the mean square, through values of at most 1 so that no square overflows or vanishes."""
    return top * (x * (1 / top)).square().mean(1, keepdim=True).sqrt()


def _uniform(x: Tensor, top: Tensor, form: BlockFormat, keys: Tensor | None) -> tuple[Tensor, Tensor]:
    """s = max|x| / top, or step * rms; q = round(x / s)."""
    scale = rms(x, top) * form.step if form.step else top * (1 / form.top)
    if keys is not None:
        # A scale rounded down would clip the maximum, which stochastic rounding must not do.
        scale = scale * (1 + 2.0**-8)
    scale = stored(scale, form.top)
    q = x * (1 / scale)
    q = q.round() if keys is None else (q + uniforms(keys, x.shape[1])).floor()
    return scale, q.clamp(-form.top, form.top) + (form.top + 1)


def _float(x: Tensor, top: Tensor, form: BlockFormat, keys: Tensor | None) -> tuple[Tensor, Tensor]:
    """s = max|x| / largest float of the format; q = x / s rounded to that format."""
    scale = stored(top * (1 / form.top), form.top)
    q = (x * (1 / scale)).clamp(-form.top, form.top)
    return scale, q.to(FLOATS[form.name]).view(torch.uint8)


def _sign(x: Tensor, top: Tensor, form: BlockFormat, keys: Tensor | None) -> tuple[Tensor, Tensor]:
    """s = mean|x|, the level nearest to all of them."""
    scale = stored(top * (x.abs() * (1 / top)).mean(1, keepdim=True), form.top)
    return scale, torch.where(x < 0, 1.0, 0.0)


def _levels(x: Tensor, top: Tensor, form: BlockFormat, keys: Tensor | None) -> tuple[Tensor, Tensor]:
    """Nearest level of the Gaussian with the row's rms; then the scale that fits the chosen levels best.

    Without the second step a row with one large value would come back with more error than it had energy.
    """
    root = rms(x, top)
    size = x.abs() * (1 / root)
    level = torch.full_like(size, form.levels[0])
    place = torch.zeros_like(size)
    for below, above in zip(form.levels, form.levels[1:], strict=False):
        past = size > (below + above) / 2
        place = place + past.float()
        level = torch.where(past, above, level)
    fitted = (size * level).sum(1, keepdim=True) / level.square().sum(1, keepdim=True)
    codes = place + torch.where(x < 0, float(2 ** (form.bits - 1)), 0.0)
    return stored(root * fitted, form.top), codes


def _means(x: Tensor, top: Tensor, form: BlockFormat, keys: Tensor | None) -> tuple[Tensor, Tensor]:
    """Magnitudes on either side of 0.98 rms, the split of Lloyd-Max on a Gaussian, each at its own mean."""
    size = x.abs() * (1 / top)
    past = (size > 0.9816 * size.square().mean(1, keepdim=True).sqrt()).float()
    above, whole = past.sum(1, keepdim=True), float(x.shape[1])
    high = (size * past).sum(1, keepdim=True)
    low = (size.sum(1, keepdim=True) - high).clamp(min=0.0) / (whole - above).clamp(min=1.0)
    scales = stored(torch.cat([low, high / above.clamp(min=1.0)], 1) * top, form.top)
    return scales, past + torch.where(x < 0, 2.0, 0.0)


def _lattice(x: Tensor, top: Tensor, form: BlockFormat, keys: Tensor | None) -> tuple[Tensor, Tensor]:
    """Nearest points of E8 at `step` times the row's rms; then the scale that fits them best, as for levels."""
    scale = (rms(x, top) * form.step).clamp(max=LARGEST / form.top)
    x = x * (1 / scale)
    points, codes = nearest_e8(x.view(x.shape[0], 8, -1), form.bits)
    points = points.view_as(x)
    fitted = (x * points).sum(1, keepdim=True) / points.square().sum(1, keepdim=True).clamp(min=0.25)
    return stored(scale * fitted, form.top), codes.view_as(x)


def _root(x: Tensor, top: Tensor, form: BlockFormat, keys: Tensor | None) -> tuple[Tensor, Tensor]:
    """s = sqrt(max x) / top; level = round(sqrt(x) / s), at least 1."""
    scale = stored_above(top.sqrt() * (1 / form.top), form.top)
    return scale, (x.clamp(min=0.0).sqrt() * (1 / scale)).round().clamp(1.0, form.top) - 1


def whole_top(form: BlockFormat) -> float:
    """Largest whole number whose square is a level, of a format of kind `square`."""
    return math.sqrt(form.top)


def square_codes(x: Tensor, inverses: Tensor, u: Tensor | float, form: BlockFormat) -> Tensor:
    """Codes of signed squares: the next one away from zero with as much chance as x is near, given u spread in [0, 1).

    With u of a half the nearest one.
    """
    size = x.abs() * inverses
    whole = size.sqrt().floor()
    share = (size - whole * whole) / (2 * whole + 1)  # of the way to the next square
    whole = whole + (share.clamp(min=0.0) + u).floor()
    return torch.where(x < 0, -whole, whole) + whole_top(form)


def _square(x: Tensor, top: Tensor, form: BlockFormat, keys: Tensor | None) -> tuple[Tensor, Tensor]:
    """s = max|x| / top; the nearest whole number's square times s."""
    scale = stored_above(top * (1 / form.top), form.top)
    return scale, square_codes(x, 1 / scale, 0.5, form)


_KINDS = {
    "root": _root,
    "square": _square,
    "lattice": _lattice,
    "uniform": _uniform,
    "float": _float,
    "sign": _sign,
    "levels": _levels,
    "means": _means,
}


@cache
def compiled_encode(form: BlockFormat, stochastic: bool):
    """`encode_rows` of one format, fused."""
    if stochastic:
        return fused(lambda x, keys: encode_rows(x, form, keys), f"encode_{form}_stochastic")
    return fused(lambda x: encode_rows(x, form), f"encode_{form}")


@cache
def compiled_decode(form: BlockFormat, block: int, dtype: torch.dtype):
    """`decode_rows` of one format, fused."""
    return fused(lambda scales, packed: decode_rows(scales, packed, form, block, dtype), f"decode_{form}_{dtype}")
