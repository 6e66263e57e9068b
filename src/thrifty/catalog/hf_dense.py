"""Reads the configs of the families that the trainer trains: GPT-2, Llama, Mistral, Qwen 2 and 3."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from thrifty.catalog.hf_keys import Config, windows
from thrifty.spec.errors import ThriftyError


def gpt2_fields(read: Config) -> dict[str, Any]:
    """Keys of `ModelShape` from a GPT-2 config."""
    read.only("activation_function", ("gelu_new", "gelu_pytorch_tanh"), "gelu_new")
    read.only("scale_attn_weights", (True,), True)
    read.only("scale_attn_by_inverse_layer_idx", (False,), False)
    read.only("add_cross_attention", (False,), False)
    hidden = read.need("n_embd")
    return {
        "layers": read.need("n_layer"),
        "hidden": hidden,
        "heads": read.need("n_head"),
        "ffn": 4 * hidden if read.get("n_inner") is None else read.get("n_inner"),
        "vocab_size": read.need("vocab_size"),
        "max_positions": read.need("n_positions"),
        "norm": "layernorm",
        "norm_eps": read.get("layer_norm_epsilon", 1e-5),
        "mlp": "gelu",
        "positions": "learned",
        "tied_embeddings": read.get("tie_word_embeddings", True),
        "bias": "all",
    }


def llama_fields(read: Config, family: str) -> dict[str, Any]:
    """Keys of `ModelShape` from a config of `llama`, `mistral`, `qwen2` or `qwen3`."""
    read.only("hidden_act", ("silu",), "silu")
    read.only("partial_rotary_factor", (1.0, None), None)
    theta, scaling = _rope(read)
    return {
        "layers": read.need("num_hidden_layers"),
        "hidden": read.need("hidden_size"),
        "heads": read.need("num_attention_heads"),
        "kv_heads": read.get("num_key_value_heads", {"mistral": 8, "qwen2": 32, "qwen3": 32}.get(family)),
        "head_dim": read.get("head_dim", 128 if family == "qwen3" else None),
        "ffn": read.need("intermediate_size"),
        "vocab_size": read.need("vocab_size"),
        "max_positions": read.need("max_position_embeddings"),
        "norm_eps": read.get("rms_norm_eps", 1e-6),
        "rope_theta": theta,
        "rope_scaling": scaling,
        "qk_norm": family == "qwen3",
        "tied_embeddings": read.get("tie_word_embeddings", False),
        "bias": _bias(read, family),
    } | _windows(read, family)


def _rope(read: Config) -> tuple[float, dict[str, Any] | None]:
    """Base of the rotary frequencies, and Llama 3.1's rescaling where there is one."""
    rope = read.get("rope_parameters") or read.get("rope_scaling") or {}
    if not isinstance(rope, Mapping):
        raise ThriftyError(f"rope_scaling must be a mapping, got {rope!r}", where=read.where)
    inner = Config(rope, f"{read.where}: rope_scaling")
    theta = rope.get("rope_theta", read.get("rope_theta", 10000.0))
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind == "default":
        return theta, None
    if kind != "llama3":
        hint = "supported: 'default' or 'llama3'; within the original context length, rope_scaling can be set to null"
        raise ThriftyError(f"rope_type {kind!r} is not supported", where=inner.where, hint=hint)
    return theta, {
        "factor": inner.need("factor"),
        "low_freq_factor": inner.need("low_freq_factor"),
        "high_freq_factor": inner.need("high_freq_factor"),
        "original_max_positions": inner.need("original_max_position_embeddings"),
    }


def _bias(read: Config, family: str) -> str:
    if family == "qwen2":
        return "qkv"
    attention = bool(read.get("attention_bias", False))
    if family != "llama":
        read.only("attention_bias", (False,), False)
    elif attention != bool(read.get("mlp_bias", False)):
        hint = "supported: both true or both false"
        raise ThriftyError("attention_bias and mlp_bias differ, which is not supported", where=read.where, hint=hint)
    return "all" if attention else "none"


def _windows(read: Config, family: str) -> dict[str, int | None]:
    if family == "llama":
        return {"sliding_window": None}
    if family == "mistral":
        return {"sliding_window": read.get("sliding_window", 4096)}
    if not read.get("use_sliding_window", False):
        return {"sliding_window": None}
    layers = read.need("num_hidden_layers")
    full = min(read.get("max_window_layers", 28), layers)
    kinds = read.get("layer_types") or ["full_attention"] * full + ["sliding_attention"] * (layers - full)
    return windows(read, kinds, read.get("sliding_window", 4096))
