"""FLOPs of a token, as the model needs them and as the hardware executes them.

Causal attention counts what a causal kernel computes: query i meets i keys, so that the mean context of a sequence of
s is s / 2 (half of the often quoted 12 x layers x width x s per token). A sliding window w shortens it to
w - w^2 / 2s. Encoders and vision transformers attend to all s. The attention scores that a flash backward pass
computes again are in the time model, not here.

Of a mixture of experts the chosen ones count, whatever the balance of the routing. An encoder's head counts for every
token, though a loss on masked tokens needs the logits of those alone.
"""

from __future__ import annotations

from thrifty.cost.params import counts
from thrifty.spec.job import ModelShape


def mean_context(shape: ModelShape, sequence_length: int) -> float:
    """Keys that a query meets on average over its places in the sequence and over the layers, in tokens."""
    if shape.kind != "decoder":
        return float(sequence_length)
    window = min(shape.sliding_window or sequence_length, sequence_length)
    windowed = window - window * window / (2 * sequence_length)
    full = 0 if shape.full_attention_every is None else shape.layers // shape.full_attention_every
    return windowed + full / shape.layers * (sequence_length / 2 - windowed)


def attention_forward_flops(shape: ModelShape, sequence_length: int) -> float:
    """FLOPs of scores and weighted values of one layer for one token: 2 x heads x (key + value width) x context.

    Where some layers have a window, of the mean layer. Latent attention in training makes keys and values of every
    head, so its scores are over nope_dim + rope_dim and its values value_dim wide (DeepSeek-V2, arXiv:2405.04434).
    """
    latent = shape.latent
    widths = 2 * shape.head_dim if latent is None else latent.nope_dim + latent.rope_dim + latent.value_dim
    return 2 * shape.heads * widths * mean_context(shape, sequence_length)


def matmul_parameters_per_token(shape: ModelShape, sequence_length: int) -> float:
    """Active matrix parameters that a token of a sequence meets on average.

    All of them, but in a vision transformer: there the patch projection meets every token but the class's, and the
    head that one alone.
    """
    held = counts(shape)
    if shape.kind != "vit":
        return held.in_matmuls
    patch = held.root_matrices - held.head
    blocks = held.in_matmuls - held.root_matrices
    return blocks + (patch * (sequence_length - 1) + held.head) / sequence_length


def model_flops_per_token(shape: ModelShape, sequence_length: int) -> float:
    """6 x active matrix parameters + 6 x layers x heads x head_dim x s (12 x ... x mean context in general).

    Chowdhery et al. 2022 (arXiv:2204.02311), appendix B, with the causal half of the attention.
    """
    attention = 3 * shape.layers * attention_forward_flops(shape, sequence_length)
    return 6 * matmul_parameters_per_token(shape, sequence_length) + attention


def hardware_flops_per_token(shape: ModelShape, sequence_length: int, recompute: str) -> float:
    """Model FLOPs and what the backward pass computes again.

    `full`: the forward pass of the blocks. `selective`: scores and weighted values alone (Korthikanti et al. 2022,
    arXiv:2205.05198).
    """
    flops = model_flops_per_token(shape, sequence_length)
    if recompute == "none":
        return flops
    attention = shape.layers * attention_forward_flops(shape, sequence_length)
    if recompute == "selective":
        return flops + attention
    held = counts(shape)
    return flops + 2 * (held.in_matmuls - held.root_matrices) + attention


def forward_flops_per_token(shape: ModelShape, sequence_length: int) -> float:
    """One forward pass: a third of the model FLOPs."""
    return model_flops_per_token(shape, sequence_length) / 3
