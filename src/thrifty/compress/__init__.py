"""Codecs of gradients, `chain(TopK(1 / 64), Blockwise(2), Zstd())`, their exchange, and local steps."""

from thrifty.compress.adaptive import Adaptive
from thrifty.compress.cast import Cast
from thrifty.compress.codec import Codec, Identity, chain
from thrifty.compress.entropy import Zstd
from thrifty.compress.exchange import Exchange
from thrifty.compress.feedback import Feedback
from thrifty.compress.fifo import Pending
from thrifty.compress.fsdp import fsdp_hook, fsdp_reduce_scatter
from thrifty.compress.hooks import Overlap, ddp_hook, overlap_hooks
from thrifty.compress.local import AVERAGE, DILOCO, LocalSteps, Outer
from thrifty.compress.lowrank import LowRank
from thrifty.compress.named import codec_of
from thrifty.compress.payload import Payload
from thrifty.compress.quantize import Blockwise
from thrifty.compress.sparse import RandomK, Threshold, TopK
from thrifty.compress.vector import KMeans
from thrifty.quant import lattice, uniform

__all__ = [
    "AVERAGE", "DILOCO", "Adaptive", "Blockwise", "Cast", "Codec", "Exchange", "Feedback", "Identity", "KMeans",
    "LocalSteps", "LowRank", "Outer", "Overlap", "Payload", "Pending", "RandomK", "Threshold", "TopK", "Zstd", "chain",
    "codec_of", "ddp_hook", "fsdp_hook", "fsdp_reduce_scatter", "lattice", "overlap_hooks", "uniform",
]  # fmt: skip
