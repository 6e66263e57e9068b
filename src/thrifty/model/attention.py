"""Causal self-attention with grouped queries, and the cache of keys and values that generation keeps."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from thrifty.model.layers import Linear, RMSNorm, rope_tables, rotate
from thrifty.model.short_attention import short_attention, suits
from thrifty.spec.job import ModelShape


class Context:
    """What all blocks of one forward pass share, or those of one window where windows differ.

    A plain class on purpose: FSDP casts the tensors among a module's arguments, those in tuples, dicts and dataclasses
    too, to its parameter dtype, and the rotary tables must stay in fp32.

    Attributes:
        start: position of the first token; not 0 only with a cache.
        rope: cosines and sines, each (seq, 1, head_dim); none with learned positions.
        mask: (seq, keys), added to the scores: 0 where a token may look, else -inf. None where `causal`, or sight of
            everything, says it all. Of true and false each layer would make, and keep, such a tensor of its own.
    """

    def __init__(self, start: int, rope: tuple[Tensor, Tensor] | None, mask: Tensor | None, causal: bool) -> None:
        self.start = start
        self.rope = rope
        self.mask = mask
        self.causal = causal


def make_context(
    shape: ModelShape, window: int | None, seq: int, start: int, dtype: torch.dtype, device: torch.device,
    places: Tensor | None = None,
) -> Context:  # fmt: skip
    """Rotary tables and mask for `seq` tokens that begin at position `start`, in layers of one window.

    Args:
        places: positions of the tokens where they do not follow one another, (seq,).
    """
    positions = torch.arange(start, start + seq, device=device)
    rope = rope_tables(shape, positions if places is None else places, dtype) if shape.positions == "rope" else None
    if (window is None or start + seq <= window) and (start == 0 or seq == 1):  # a lower triangle, or all
        return Context(start, rope, None, causal=start == 0)
    distance = positions[:, None] - torch.arange(start + seq, device=device)  # (seq, keys)
    seen = distance >= 0 if window is None else (distance >= 0) & (distance < window)
    mask = torch.zeros(seen.shape, dtype=dtype, device=device).masked_fill_(~seen, -torch.inf)
    return Context(start, rope, mask, causal=False)


class LayerCache:
    """Keys and values of one layer, (batch, kv_heads, capacity, head_dim) each, allocated when first written."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.keys: Tensor | None = None
        self.values: Tensor | None = None

    def append(self, key: Tensor, value: Tensor, start: int) -> tuple[Tensor, Tensor]:
        """Writes (batch, kv_heads, seq, head_dim) at `start`; returns everything up to there."""
        if self.keys is None or self.values is None:
            batch, kv_heads, _, head_dim = key.shape
            self.keys = key.new_empty(batch, kv_heads, self.capacity, head_dim)
            self.values = torch.empty_like(self.keys)
        end = start + key.shape[2]
        self.keys[:, :, start:end] = key
        self.values[:, :, start:end] = value
        return self.keys[:, :, :end], self.values[:, :, :end]


class Cache:
    """Keys and values of every layer for up to `capacity` tokens; `length` of them are filled."""

    def __init__(self, layers: int, capacity: int) -> None:
        self.layers = [LayerCache(capacity) for _ in range(layers)]
        self.length = 0


class Attention(nn.Module):
    """softmax(q k^T / sqrt(head_dim)) v over earlier tokens, each key/value head serving heads / kv_heads queries.

    Head counts come from the widths of the projections, so that a rank that holds a part of the heads computes them.
    """

    def __init__(self, shape: ModelShape) -> None:
        super().__init__()
        inner, kv_inner = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
        bias = shape.bias != "none"
        self.head_dim = shape.head_dim
        self.grouped = shape.kv_heads != shape.heads
        self.query = Linear(shape.hidden, inner, bias=bias)
        self.key = Linear(shape.hidden, kv_inner, bias=bias)
        self.value = Linear(shape.hidden, kv_inner, bias=bias)
        self.query_norm = RMSNorm(shape.head_dim, shape.norm_eps) if shape.qk_norm else None
        self.key_norm = RMSNorm(shape.head_dim, shape.norm_eps) if shape.qk_norm else None
        self.output = Linear(inner, shape.hidden, bias=shape.bias == "all")
        # Attention where other ranks hold keys of the same sequences: (q, k, v) -> y, heads before seq.
        self.ring: Callable[[Tensor, Tensor, Tensor], Tensor] | None = None
        self.recompute = False  # what lies between the projections, in the backward pass (arXiv:2205.05198)

    def forward(self, x: Tensor, context: Context, cache: LayerCache | None = None) -> Tensor:
        batch, seq, _ = x.shape  # (batch, seq, hidden)
        q = self.query(x).view(batch, seq, -1, self.head_dim)  # (batch, seq, heads, head_dim)
        k = self.key(x).view(batch, seq, -1, self.head_dim)
        v = self.value(x).view(batch, seq, -1, self.head_dim)
        if self.recompute and torch.is_grad_enabled():
            y = checkpoint(self._attend, q, k, v, context, use_reentrant=False, preserve_rng_state=False)
        else:
            y = self._attend(q, k, v, context, cache)
        return self.output(y.reshape(batch, seq, -1))

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, context: Context, cache: LayerCache | None = None) -> Tensor:
        """What lies between the projections; (batch, seq, heads, head_dim) in and out."""
        if self.query_norm is not None and self.key_norm is not None:
            q, k = self.query_norm(q), self.key_norm(k)
        if context.rope is not None:
            q, k = rotate(q, *context.rope), rotate(k, *context.rope)
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)  # (batch, heads, seq, head_dim)
        if cache is not None:
            k, v = cache.append(k, v, context.start)
        if self.ring is not None:
            y = self.ring(q, k, v)
        elif context.causal and suits(q, k):
            y = short_attention(q, k, v)
        else:
            y = F.scaled_dot_product_attention(
                q, k, v, attn_mask=context.mask, is_causal=context.causal, enable_gqa=self.grouped
            )
        return y.transpose(1, 2)
