"""What a token meets when a model is served: matrices by who reads them, cached keys and values, stored bits.

Norms, biases and positions are left out: together they are less than a thousandth of the elements.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Final

from thrifty.spec.errors import ThriftyError, did_you_mean
from thrifty.spec.job import LatentAttention, ModelShape

# Bits of a stored element, scales included: nvfp4 has an 8-bit scale for every 16 elements, mxfp4 for every 32, int4 a
# 16-bit scale and zero for every 128.
STORED_BITS: Final = {"bf16": 16.0, "fp16": 16.0, "fp8": 8.0, "int8": 8.0, "nvfp4": 4.5, "mxfp4": 4.25, "int4": 4.25}
KV_BITS: Final = {"bf16": 16.0, "fp16": 16.0, "fp8": 8.0, "int8": 8.0, "nvfp4": 4.5, "int4": 4.25}
# Formats whose products run in that format where the accelerator can (key of `Accelerator.peak_flops`). The others only
# store weights, which are widened before the product.
_RATE_OF: Final = {"fp8": "fp8", "nvfp4": "fp4"}


@dataclass(frozen=True, slots=True)
class Matrices:
    """Elements of a model's matrices by how often a step reads them.

    Attributes:
        attention: projections of all layers.
        dense: MLPs, shared experts and routers of all layers: every token passes through.
        expert: one routed expert of one layer.
        routed_layers: layers that have routed experts; `count` of them each, `active` for a token.
        head: makes logits; in `bf16` whatever the weights' format.
        lookup: an embedding that is not the head: held, and hardly read.
    """

    attention: int
    dense: int
    expert: int
    routed_layers: int
    count: int
    active: int
    head: int
    lookup: int

    @property
    def per_token(self) -> int:
        """Elements of the blocks that one token is multiplied by."""
        return self.attention + self.dense + self.routed_layers * self.active * self.expert

    @property
    def total(self) -> int:
        """Everything that is held."""
        routed = self.routed_layers * self.count * self.expert
        return self.attention + self.dense + routed + self.head + self.lookup


@lru_cache(maxsize=256)
def matrices(shape: ModelShape) -> Matrices:
    """Counts a decoder's matrices."""
    mlp = (3 if shape.mlp == "swiglu" else 2) * shape.hidden
    experts = shape.experts
    routed = 0 if experts is None else shape.layers - experts.dense_layers
    dense = (shape.layers - routed) * mlp * shape.ffn
    if experts is not None:
        dense += routed * (mlp * experts.shared * experts.ffn + shape.hidden * experts.count)
    table = shape.vocab_size * shape.hidden
    return Matrices(
        attention=shape.layers * _attention(shape),
        dense=dense,
        expert=0 if experts is None else mlp * experts.ffn,
        routed_layers=routed,
        count=1 if experts is None else experts.count,
        active=0 if experts is None else experts.active,
        head=table,
        lookup=0 if shape.tied_embeddings else table,
    )


def _attention(shape: ModelShape) -> int:
    latent = shape.latent
    if latent is None:
        return shape.hidden * shape.head_dim * 2 * (shape.heads + shape.kv_heads)
    query = shape.heads * (latent.nope_dim + latent.rope_dim)
    down = 0 if latent.q_rank is None else shape.hidden * latent.q_rank
    up = query * (shape.hidden if latent.q_rank is None else latent.q_rank)
    keys = shape.hidden * (latent.kv_rank + latent.rope_dim)
    keys += latent.kv_rank * shape.heads * (latent.nope_dim + latent.value_dim)
    return down + up + keys + shape.heads * latent.value_dim * shape.hidden


def experts_touched(count: int, active: int, tokens: float) -> float:
    """Distinct experts of a layer that `tokens` pass through: count x (1 - (1 - active / count)^tokens).

    Expected under balanced, independent routing.
    """
    return float(count * (1 - (1 - active / count) ** tokens))


def kv_bytes_per_token(shape: ModelShape, kv: str) -> float:
    """Cache of one token over all layers: 2 x layers x kv_heads x head_dim x bytes.

    Latent attention keeps layers x (kv_rank + rope_dim) (DeepSeek-V2, arXiv:2405.04434).
    """
    return shape.layers * _kv_elements(shape, shape.latent) * KV_BITS[kv] / 8


def _kv_elements(shape: ModelShape, latent: LatentAttention | None) -> int:
    return 2 * shape.kv_heads * shape.head_dim if latent is None else latent.kv_rank + latent.rope_dim


def kv_copies(shape: ModelShape, tensor: int) -> float:
    """How often a cached token is held in a tensor-parallel group: more ranks than heads share out copies."""
    return float(tensor) if shape.latent is not None else max(1.0, tensor / shape.kv_heads)


def cached_tokens(shape: ModelShape, context: float) -> float:
    """Tokens that a mean layer keeps of a context: all of them, or its sliding window."""
    if shape.sliding_window is None:
        return context
    full = 0 if shape.full_attention_every is None else shape.layers // shape.full_attention_every
    windowed = min(context, shape.sliding_window)
    return windowed + full / shape.layers * (context - windowed)


def score_flops_per_key(shape: ModelShape) -> float:
    """FLOPs of one query against one key, over all heads and layers: scores and weighted values."""
    latent = shape.latent
    widths = 2 * shape.head_dim if latent is None else latent.nope_dim + latent.rope_dim + latent.value_dim
    return 2.0 * shape.layers * shape.heads * widths


def rate_name(weights: str, rates: dict[str, float]) -> str:
    """The rate that products run at: that of the weights' format where the accelerator has it, else 16 bit.

    Raises:
        ThriftyError: the accelerator has no 16-bit rate either.
    """
    wanted = _RATE_OF.get(weights)
    for name in (wanted, "fp16" if weights == "fp16" else "bf16", "fp16"):
        if name in rates:
            return name
    raise ThriftyError(
        "the accelerator has no 16-bit rate", where="cluster.accelerator.peak_flops", hint="give bf16 or fp16"
    )


def check_format(name: str, option: str, known: dict[str, float]) -> None:
    """Raises ThriftyError where a storage format is unknown."""
    if name not in known:
        hint = f"{did_you_mean(name, known)} Known: {', '.join(known)}"
        raise ThriftyError(f"unknown format {name!r}", where=option, hint=hint)
