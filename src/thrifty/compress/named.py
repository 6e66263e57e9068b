"""A codec from its text or its description."""

from __future__ import annotations

from thrifty.compress.cast import Cast
from thrifty.compress.codec import Codec, chain
from thrifty.compress.entropy import Zstd
from thrifty.compress.quantize import Blockwise
from thrifty.compress.sparse import RandomK, Threshold, TopK
from thrifty.compress.vector import KMeans
from thrifty.spec.codec import (
    BlocksStage,
    CastStage,
    RandomKStage,
    Stage,
    ThresholdStage,
    TopKStage,
    VectorStage,
    ZstdStage,
    stages_of,
)


def codec_of(text: str) -> Codec:
    """The codec that a text names, e.g. `topk(1/64) + means2 + zstd`; see `thrifty.spec.codec`.

    Raises:
        ThriftyError: no such codec, or stages that do not follow each other.
    """
    return chain(*map(_made, stages_of(text)))


def _made(stage: Stage) -> Codec:
    match stage:
        case TopKStage(density, chunk):
            return TopK(density, chunk)
        case ThresholdStage(density):
            return Threshold(density)
        case RandomKStage(every):
            return RandomK(every)
        case CastStage(form):
            return Cast(form)
        case BlocksStage(form, block):
            return Blockwise(form, block)
        case VectorStage(entries, dimension, block):
            return KMeans(entries, dimension, block)
        case ZstdStage(level):
            return Zstd(level)
