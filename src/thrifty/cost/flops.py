"""FLOPs of a token, as the model needs them and as the hardware executes them.

Causal attention counts what a causal kernel computes: query i meets i keys, so that the mean context of a sequence of
s is s / 2 (half of the often quoted 12 x layers x width x s per token). A sliding window w shortens it to
w - w^2 / 2s. The attention scores that a flash backward pass computes again are in the time model, not here.
"""

from __future__ import annotations

from thrifty.cost.params import counts
from thrifty.spec.job import ModelShape


def mean_context(shape: ModelShape, sequence_length: int) -> float:
    """Keys that a query meets on average under causal attention, in tokens."""
    window = min(shape.sliding_window or sequence_length, sequence_length)
    return window - window * window / (2 * sequence_length)


def attention_forward_flops(shape: ModelShape, sequence_length: int) -> float:
    """FLOPs of scores and weighted values of one layer for one token: 4 x heads x head_dim x context."""
    return 4 * shape.heads * shape.head_dim * mean_context(shape, sequence_length)


def model_flops_per_token(shape: ModelShape, sequence_length: int) -> float:
    """6 x matrix parameters + 6 x layers x heads x head_dim x s (12 x ... x mean context with a window).

    Chowdhery et al. 2022 (arXiv:2204.02311), appendix B, with the causal half of the attention.
    """
    attention = 3 * shape.layers * attention_forward_flops(shape, sequence_length)
    return 6 * counts(shape).in_matmuls + attention


def hardware_flops_per_token(shape: ModelShape, sequence_length: int, recompute: str) -> float:
    """Model FLOPs, and the forward pass of the blocks once more under `recompute: full`."""
    flops = model_flops_per_token(shape, sequence_length)
    if recompute == "none":
        return flops
    again = 2 * counts(shape).matrices + attention_forward_flops(shape, sequence_length)
    return flops + shape.layers * again


def forward_flops_per_token(shape: ModelShape, sequence_length: int) -> float:
    """One forward pass: a third of the model FLOPs."""
    return model_flops_per_token(shape, sequence_length) / 3
