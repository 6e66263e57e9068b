"""Codecs of gradients: `chain(TopK(1 / 64), Blockwise(2), Zstd())`, each also alone."""

from thrifty.compress.cast import Cast
from thrifty.compress.codec import Codec, Identity, chain
from thrifty.compress.entropy import Zstd
from thrifty.compress.named import codec_of
from thrifty.compress.payload import Payload
from thrifty.compress.quantize import Blockwise
from thrifty.compress.sparse import RandomK, Threshold, TopK
from thrifty.compress.vector import KMeans
from thrifty.quant import lattice, uniform

__all__ = [
    "Blockwise",
    "Cast",
    "Codec",
    "Identity",
    "KMeans",
    "Payload",
    "RandomK",
    "Threshold",
    "TopK",
    "Zstd",
    "chain",
    "codec_of",
    "lattice",
    "uniform",
]
