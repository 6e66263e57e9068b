"""What an encoded tensor weighs, from its codec's description alone: for the codecs and for whoever prices them.

A codec is a chain of stages. Each turns so many values into fewer or shorter ones for the next stage, and may add bytes
of its own beside them (scales, indices). A payload is a header, a length for each part, and the parts.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from thrifty.spec.codec import (
    BlocksStage,
    CastStage,
    RandomKStage,
    Stage,
    ThresholdStage,
    TopKStage,
    VectorStage,
    ZstdStage,
)
from thrifty.spec.formats import SCALE_BITS, BlockFormat

# Magic, version, number of parts, CRC-32 of all behind it, CRC-32 of the codec's description, seed, number of values.
HEADER_BYTES = 2 + 1 + 1 + 4 + 4 + 8 + 8
LENGTH_BYTES = 8  # of each part


@dataclass(frozen=True)
class Size:
    """What stands after a stage: `values` for the next one of `bits` each, and the bytes beside them by part."""

    values: int
    bits: int
    beside: tuple[int, ...] = ()


def tail_block(rest: int) -> int:
    """Values in the block that holds the last `rest`: filled up to 8, so that codes of any width end on a byte."""
    return math.ceil(rest / 8) * 8


def block_bytes(values: int, form: BlockFormat, block: int) -> tuple[int, int]:
    """Bytes of codes and of scales of `values` in blocks of `block`."""
    whole, rest = divmod(values, block)
    coded = whole * block + tail_block(rest)
    return coded * form.bits // 8, (whole + (rest > 0)) * form.scales * SCALE_BITS // 8


def kept(values: int, density: float) -> int:
    """How many of `values` a chunk keeps: at least the share, at least one."""
    return min(values, max(1, math.ceil(values * density - 1e-9))) if values else 0


def index_bits(chunk: int, keep: int) -> tuple[int, int]:
    """Elias-Fano code of `keep` places out of `chunk`: low bits of each place, and bits of the map of the high ones.

    The low bits are stored as they are; the high ones as a map of `keep` ones among the buckets' ends: Elias, J. ACM 21
    (1974). Fixed length, within half a bit a place of log2 of the number of choices at 1 in 64.
    """
    low = (chunk // keep).bit_length() - 1 if keep else 0
    return low, keep + math.ceil(chunk / 2**low) if keep else 0


def index_bytes(chunks: int, chunk: int, keep: int) -> int:
    """Bytes of the places of `keep` values in each of `chunks`."""
    low, high = index_bits(chunk, keep)
    return tail_block(chunks * keep) * low // 8 + chunks * math.ceil(high / 8)


def vector_code_bytes(values: int, stage: VectorStage) -> int:
    """Bytes of the places in the codebook, packed."""
    return tail_block(math.ceil(values / stage.dimension)) * (stage.entries.bit_length() - 1) // 8


def vector_beside_bytes(values: int, stage: VectorStage) -> tuple[int, ...]:
    """Bytes of scales, and of a codebook that is not shared."""
    scales = math.ceil(values / stage.block) * SCALE_BITS // 8
    return (scales,) if stage.shared else (scales, stage.entries * stage.dimension * SCALE_BITS // 8)


def after(stage: Stage, values: int, bits: int) -> Size:
    """What `stage` makes of `values` of `bits` each. For zstandard it is a bound, exact for every other stage."""
    match stage:
        case TopKStage(density, chunk):
            whole, rest = divmod(values, chunk)
            keep, keep_rest = kept(chunk, density), kept(rest, density)
            places = index_bytes(whole, chunk, keep) + index_bytes(1 if rest else 0, rest, keep_rest)
            return Size(whole * keep + keep_rest, bits, (places,))
        case ThresholdStage(density):
            keep = kept(values, density)
            return Size(keep, bits, (index_bytes(1 if values else 0, values, keep),))
        case RandomKStage(every):
            return Size(math.ceil(values / every), bits)
        case CastStage():
            return Size(values, 16)
        case BlocksStage(form, block):
            codes, scales = block_bytes(values, form, block)
            return Size(codes, 8, (scales,))
        case VectorStage():
            return Size(vector_code_bytes(values, stage), 8, vector_beside_bytes(values, stage))
        case ZstdStage():
            return Size(values * bits // 8 + 1, 8)


def payload_bytes(stages: Sequence[Stage], shape: Sequence[int], *, value_bits: int = 32) -> int:
    """Bytes of the payload of a tensor of that shape, header and lengths included; an upper bound behind zstandard.

    Args:
        stages: of the codec, first to last; none sends the values as they are.
        shape: of the tensor.
        value_bits: of a value of the tensor, for what reaches the wire without a quantizer.
    """
    values, bits, beside = math.prod(shape), value_bits, 0
    parts = 1
    for stage in stages:
        size = after(stage, values, bits)
        values, bits = size.values, size.bits
        beside, parts = beside + sum(size.beside), parts + len(size.beside)
    return HEADER_BYTES + LENGTH_BYTES * parts + beside + values * bits // 8


def bits_per_value(stages: Sequence[Stage], shape: Sequence[int], *, value_bits: int = 32) -> float:
    """Bits on the wire for each value of a tensor of that shape, header included; see `payload_bytes`."""
    return 8 * payload_bytes(stages, shape, value_bits=value_bits) / max(1, math.prod(shape))
