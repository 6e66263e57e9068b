"""A model's shape as Megatron-LM's options."""

from __future__ import annotations

import shlex

from thrifty.planner.emit.common import Notes, number, refuse
from thrifty.spec.job import ModelShape


def model(shape: ModelShape, notes: Notes) -> list[str]:
    """Options that describe the model.

    Raises:
        ThriftyError: a switch that Megatron-LM does not have.
    """
    options = [
        f"--num-layers {shape.layers}",
        f"--hidden-size {shape.hidden}",
        f"--ffn-hidden-size {shape.ffn}",
        f"--num-attention-heads {shape.heads}",
        f"--vocab-size {shape.vocab_size}",
        f"--max-position-embeddings {shape.max_positions}",
        f"--normalization {'RMSNorm' if shape.norm == 'rmsnorm' else 'LayerNorm'}",
        f"--norm-epsilon {number(shape.norm_eps)}",
    ]
    options += ["--untie-embeddings-and-output-weights"] * (not shape.tied_embeddings)
    options += ["--qk-layernorm"] * bool(shape.qk_norm)
    notes.say("job.model.vocab_size", "Megatron-LM pads it to a multiple of 128 x tensor")
    return options + _activation(shape, notes) + _positions(shape) + _attention(shape) + _experts(shape)


def _activation(shape: ModelShape, notes: Notes) -> list[str]:
    options = ["--swiglu"] if shape.mlp == "swiglu" else []
    if shape.bias != "all":
        options += ["--disable-bias-linear", *["--add-qkv-bias"] * (shape.bias == "qkv")]
        if shape.norm == "layernorm":
            notes.say("job.model.bias", "Megatron-LM's LayerNorm has a bias all the same")
        if shape.mlp == "gelu":
            notes.say("job.model.mlp", "without biases Megatron-LM computes GELU exactly, not its tanh form")
    return options


def _positions(shape: ModelShape) -> list[str]:
    if shape.positions == "learned":
        return ["--position-embedding-type learned_absolute"]
    if shape.rope_theta != int(shape.rope_theta):
        what = f"takes a whole number as the base of rotary positions, not {shape.rope_theta}"
        refuse("Megatron-LM", "job.model.rope_theta", what, "round it")
    options = ["--position-embedding-type rope", f"--rotary-base {int(shape.rope_theta)}"]
    scaling = shape.rope_scaling
    if scaling is not None:
        fixed = (scaling.low_freq_factor, scaling.high_freq_factor, scaling.original_max_positions)
        if fixed != (1, 4, 8192) or shape.latent is not None:
            what = "scales rotary positions with low 1, high 4 and 8192 original positions only, and not with latents"
            refuse("Megatron-LM", "job.model.rope_scaling", what, "use those, or emit it for torchtitan")
        options += ["--use-rope-scaling", f"--rope-scaling-factor {number(scaling.factor)}"]
    return options


def _attention(shape: ModelShape) -> list[str]:
    latent = shape.latent
    if latent is not None:
        return [
            "--multi-latent-attention",
            "--rope-type rope",
            *[f"--q-lora-rank {latent.q_rank}"] * (latent.q_rank is not None),
            f"--kv-lora-rank {latent.kv_rank}",
            f"--qk-head-dim {latent.nope_dim}",
            f"--qk-pos-emb-head-dim {latent.rope_dim}",
            f"--v-head-dim {latent.value_dim}",
        ]
    options = [f"--kv-channels {shape.head_dim}"]
    if shape.kv_heads != shape.heads:
        options += ["--group-query-attention", f"--num-query-groups {shape.kv_heads}"]
    if shape.sliding_window is not None:
        # Each token sees itself and window - 1 before it: left, right of itself.
        options.append(f"--window-size {shape.sliding_window - 1},0")
    return options


def _experts(shape: ModelShape) -> list[str]:
    experts = shape.experts
    if experts is None:
        return []
    options = [
        f"--num-experts {experts.count}",
        f"--moe-router-topk {experts.active}",
        f"--moe-ffn-hidden-size {experts.ffn}",
        "--moe-grouped-gemm",
        "--moe-token-dispatcher-type alltoall",
        "--moe-router-load-balancing-type aux_loss",
        "--moe-aux-loss-coeff 0.01",
    ]
    if experts.shared:
        options.append(f"--moe-shared-expert-intermediate-size {experts.shared * experts.ffn}")
    if experts.dense_layers:
        pattern = f"[0]*{experts.dense_layers}+[1]*{shape.layers - experts.dense_layers}"
        options.append(f"--moe-layer-freq {shlex.quote(pattern)}")
    return options
