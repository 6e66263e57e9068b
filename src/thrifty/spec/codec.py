"""What a codec is, in words and as data: `topk(1/64) + means2 + zstd`. Read by settings, prices and the codecs.

A codec is a chain of stages, first to last. The text has one name for each, joined by `+`:

    topk(DENSITY[, CHUNK])    the largest magnitudes of each chunk
    threshold(DENSITY)        the largest magnitudes of the whole tensor
    randomk(EVERY)            one value of each run, drawn by seed
    bf16 fp16                 the values, each rounded to 16 bits: the baseline
    int8 int4 lloyd3 lloyd2 means2 sign fp8_e4m3 fp8_e5m2 e8 uniform(STEP) lattice(STEP)    a block format
    kmeans[(ENTRIES[, DIMENSION])]    vectors out of a learned codebook
    zstd[(LEVEL)]             zstandard behind any of them
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction

from thrifty.spec.errors import ThriftyError, did_you_mean
from thrifty.spec.formats import FORMATS, BlockFormat, block_format, lattice, uniform

WHERE = "recipe.exchange.codec"


@dataclass(frozen=True)
class TopKStage:
    """The share `density` largest magnitudes of each chunk, with indices in Elias-Fano code."""

    density: float
    chunk: int = 4096


@dataclass(frozen=True)
class ThresholdStage:
    """The share `density` largest magnitudes of the whole tensor, with indices in Elias-Fano code."""

    density: float


@dataclass(frozen=True)
class RandomKStage:
    """One value of every run of `every`, at a place drawn from the seed; nothing else is sent."""

    every: int


@dataclass(frozen=True)
class BlocksStage:
    """Codes in a block format."""

    format: BlockFormat
    block: int


@dataclass(frozen=True)
class VectorStage:
    """Vectors of `dimension` values as places in a codebook of `entries`, with a scale for every block of values.

    The codebook goes with every payload, in bf16, unless it is shared.
    """

    entries: int = 256
    dimension: int = 4
    block: int = 256
    shared: bool = False


CAST_FORMATS = ("bf16", "fp16")


@dataclass(frozen=True)
class CastStage:
    """Each value as a float of 16 bits, one of `CAST_FORMATS`."""

    format: str


@dataclass(frozen=True)
class ZstdStage:
    """zstandard, or the bytes as they are where it does not shorten them: one byte says which."""

    level: int = 1


Stage = TopKStage | ThresholdStage | RandomKStage | CastStage | BlocksStage | VectorStage | ZstdStage


def _blocks(name: str) -> BlocksStage:
    form = block_format(name)
    return BlocksStage(form, form.block)


def _stepped(make: Callable[[float], BlockFormat]) -> Callable[[float], BlocksStage]:
    return lambda step: BlocksStage(make(step), make(step).block)


_MADE: dict[str, tuple[Callable[..., Stage], tuple[type, ...], int]] = {  # by name: maker, arguments, how many it needs
    "topk": (TopKStage, (float, int), 1),
    "threshold": (ThresholdStage, (float,), 1),
    "randomk": (RandomKStage, (int,), 1),
    "uniform": (_stepped(uniform), (float,), 1),
    "lattice": (_stepped(lattice), (float,), 1),
    "bf16": (lambda: CastStage("bf16"), (), 0),
    "fp16": (lambda: CastStage("fp16"), (), 0),
    "kmeans": (VectorStage, (int, int), 0),
    "zstd": (ZstdStage, (int,), 0),
}
NAMES = (*_MADE, *(name for name in FORMATS if name not in _MADE))
_STAGE = re.compile(r"([a-z0-9_]+)\s*(?:\(([^()]*)\))?")


def stages_of(text: str) -> tuple[Stage, ...]:
    """The stages of a codec that is written as text.

    Raises:
        ThriftyError: not a codec: says which stage, and the nearest name.
    """
    return tuple(_stage(part.strip()) for part in text.split("+"))


def _stage(text: str) -> Stage:
    found = _STAGE.fullmatch(text.lower())
    name = found.group(1) if found else text
    if found is None or name not in NAMES:
        raise ThriftyError(f"no codec {text!r}", where=WHERE, hint=did_you_mean(name, list(NAMES)))
    given = [one.strip() for one in (found.group(2) or "").split(",") if one.strip()]
    if name not in _MADE:
        if given:
            raise ThriftyError(f"{name} takes nothing in brackets", where=WHERE, hint=f"write {name}")
        return _blocks(name)
    maker, kinds, needed = _MADE[name]
    if not needed <= len(given) <= len(kinds):
        told = "nothing" if not kinds else f"{needed} to {len(kinds)} numbers" if needed < len(kinds) else f"{needed}"
        raise ThriftyError(f"{text!r}: {name} takes {told} in brackets", where=WHERE, hint=EXAMPLE)
    try:
        return maker(*(kind(Fraction(one)) for kind, one in zip(kinds, given, strict=False)))
    except (ValueError, ZeroDivisionError):
        raise ThriftyError(f"{text!r}: not a number in brackets", where=WHERE, hint=EXAMPLE) from None


EXAMPLE = "e.g. topk(1/64) + means2 + zstd"
