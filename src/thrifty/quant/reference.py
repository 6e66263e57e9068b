"""One block at a time, in Python's doubles: what the kernels are checked against."""

from __future__ import annotations

import itertools
import math

from thrifty.quant.kernels import LARGEST, SHRINK, SMALLEST
from thrifty.spec.formats import BlockFormat

# Significant bits, smallest exponent of a normal number.
FLOAT_SHAPES = {"fp8_e4m3": (4, -6), "fp8_e5m2": (3, -14)}


def rounded(value: float, bits: int, smallest: int) -> float:
    """To the nearest float of so many significant bits, ties to even, with subnormals below 2^smallest."""
    if not value:
        return 0.0
    unit = 2.0 ** (max(math.floor(math.log2(abs(value))), smallest) - bits + 1)
    return round(value / unit) * unit


def stored(scale: float, form: BlockFormat) -> float:
    """A scale as bfloat16 keeps it."""
    return rounded(min(scale, LARGEST / form.top), 8, -126)


def rounded_up(scale: float) -> float:
    """To the next bfloat16 that is not below."""
    unit = 2.0 ** (math.floor(math.log2(scale)) - 7)
    return math.ceil(scale / unit) * unit


def nearest_point(vector: list[float], bits: int) -> list[float]:
    """The nearest point of E8 whose floors lie in the range of `bits`, by trying every neighbour."""
    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    found: list[list[float]] = []
    for half in (0.0, 0.5):
        floors = [min(max(math.floor(value - half), low), high - 1) for value in vector]
        found += [
            [floor + up + half for floor, up in zip(floors, ups, strict=True)]
            for ups in itertools.product((0, 1), repeat=8)
            if (sum(floors) + sum(ups)) % 2 == 0
        ]
    return min(found, key=lambda point: sum((a - b) ** 2 for a, b in zip(vector, point, strict=True)))


def round_trip(block: list[float], form: BlockFormat) -> list[float]:
    """The values that a block, rounded to nearest, comes back as."""
    if not all(map(math.isfinite, block)):
        return [math.nan] * len(block)
    top = max(map(abs, block))
    if top < SMALLEST:
        return [0.0] * len(block)
    rms = top * math.sqrt(sum((x / top) ** 2 for x in block) / len(block))
    mean = top * sum(abs(x) / top for x in block) / len(block)
    match form.kind:
        case "uniform":
            scale = stored(rms * form.step if form.step else top / form.top, form)
            codes = [max(-form.top, min(form.top, round(x / scale))) for x in block]
            shrink = SHRINK if form.step else 0.0
            return [scale * (q - math.copysign(shrink, q) if q else 0.0) for q in codes]
        case "root":
            scale = rounded_up(math.sqrt(top) / form.top)
            return [(scale * max(1, min(form.top, round(math.sqrt(max(0.0, x)) / scale)))) ** 2 for x in block]
        case "square":
            scale, most = rounded_up(top / form.top), round(math.sqrt(form.top))
            levels = [math.copysign(k * k, k) for k in range(-most, most + 1)]
            return [scale * min(levels, key=lambda level, x=x: abs(x / scale - level)) for x in block]
        case "lattice":
            scale, columns = min(rms * form.step, LARGEST / form.top), len(block) // 8
            points = [nearest_point([x / scale for x in block[j::columns]], form.bits) for j in range(columns)]
            nearest = [points[place % columns][place // columns] for place in range(len(block))]
            along = sum(x / scale * point for x, point in zip(block, nearest, strict=True))
            fitted = stored(scale * along / max(0.25, sum(point**2 for point in nearest)), form)
            return [fitted * point for point in nearest]
        case "float":
            scale = stored(top / form.top, form)
            bits, smallest = FLOAT_SHAPES[form.name]
            return [scale * rounded(max(-form.top, min(form.top, x / scale)), bits, smallest) for x in block]
        case "sign":
            return [math.copysign(stored(mean, form), x) if x else stored(mean, form) for x in block]
        case "levels":
            nearest = [min(form.levels, key=lambda level, x=x: abs(abs(x) / rms - level)) for x in block]
            fitted = sum(abs(x) / top * level for x, level in zip(block, nearest, strict=True))
            scale = stored(top * fitted / sum(level**2 for level in nearest), form)
            return [
                math.copysign(scale * level, x) if x else scale * level for x, level in zip(block, nearest, strict=True)
            ]
        case "means":
            past = [abs(x) > 0.9816 * rms for x in block]
            size = [
                stored(
                    sum(abs(x) for x, p in zip(block, past, strict=True) if p == side) / max(1, past.count(side)), form
                )
                for side in (False, True)
            ]
            return [math.copysign(size[p], x) if x else size[p] for x, p in zip(block, past, strict=True)]
