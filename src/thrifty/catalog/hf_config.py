"""Hugging Face `config.json` to ModelShape and back, for the GPT-2, Llama, Qwen 2/3 and Mistral families. No torch.

Keys and defaults are those of transformers 5.23 (2026); both its `rope_parameters` and the older `rope_theta` with
`rope_scaling` are read, and the older form is written, which both read.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from thrifty.spec.errors import ThriftyError, did_you_mean
from thrifty.spec.job import ModelShape

ARCHITECTURES = {
    "gpt2": "GPT2LMHeadModel",
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
}


class _Config:
    """A config with the place it was read from, so that every refusal names both."""

    def __init__(self, values: Mapping[str, Any], where: str) -> None:
        self.values = values
        self.where = where

    def need(self, key: str) -> Any:
        if self.values.get(key) is None:
            raise ThriftyError(f"the key {key!r} is missing", where=self.where, hint="is this a causal language model?")
        return self.values[key]

    def get(self, key: str, default: Any = None) -> Any:
        return self.values.get(key, default)

    def only(self, key: str, allowed: tuple[Any, ...], default: Any) -> None:
        """Refuses a setting that this decoder has no switch for."""
        value = self.values.get(key, default)
        if value not in allowed:
            choices = " or ".join(repr(choice) for choice in allowed)
            raise ThriftyError(f"{key} = {value!r} is not supported", where=self.where, hint=f"supported: {choices}")


def family_of(config: Mapping[str, Any], where: str = "config.json") -> str:
    """`gpt2`, `llama`, `mistral`, `qwen2` or `qwen3`, from `model_type`, else from `architectures`.

    Raises:
        ThriftyError: another family; the message lists those supported.
    """
    kind = str(config.get("model_type") or "")
    if kind in ARCHITECTURES:
        return kind
    named = [str(name) for name in config.get("architectures") or ()]
    found = [family for family, architecture in ARCHITECTURES.items() if architecture in named and not kind]
    if found:
        return found[0]
    what = kind or ", ".join(named) or "(no model_type)"
    hint = f"{did_you_mean(what, ARCHITECTURES)}; supported: {', '.join(ARCHITECTURES)}"
    raise ThriftyError(f"unknown architecture {what!r}", where=where, hint=hint)


def shape_from_config(config: Mapping[str, Any], where: str = "config.json") -> ModelShape:
    """The shape that a Hugging Face config describes.

    Args:
        config: the content of config.json.
        where: its path, for messages.

    Raises:
        ThriftyError: an unknown architecture, a missing key, or a setting that this decoder has no switch for.
    """
    family = family_of(config, where)
    read = _Config(config, where)
    fields = _gpt2_fields(read) if family == "gpt2" else _llama_fields(read, family)
    name = str(config.get("_name_or_path") or family)
    try:
        return ModelShape(name=name, source=where, **fields)
    except ValidationError as error:
        first = error.errors()[0]
        what = ".".join(map(str, first["loc"])) + ": " if first["loc"] else ""
        raise ThriftyError(what + str(first["msg"]).removeprefix("Value error, "), where=where) from None


def _gpt2_fields(read: _Config) -> dict[str, Any]:
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


def _llama_fields(read: _Config, family: str) -> dict[str, Any]:
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
        "sliding_window": _window(read, family),
    }


def _rope(read: _Config) -> tuple[float, dict[str, Any] | None]:
    """Base of the rotary frequencies, and Llama 3.1's rescaling where there is one."""
    rope = read.get("rope_parameters") or read.get("rope_scaling") or {}
    if not isinstance(rope, Mapping):
        raise ThriftyError(f"rope_scaling must be a mapping, got {rope!r}", where=read.where)
    inner = _Config(rope, f"{read.where}: rope_scaling")
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


def _bias(read: _Config, family: str) -> str:
    if family == "qwen2":
        return "qkv"
    attention = bool(read.get("attention_bias", False))
    if family != "llama":
        read.only("attention_bias", (False,), False)
    elif attention != bool(read.get("mlp_bias", False)):
        hint = "supported: both true or both false"
        raise ThriftyError("attention_bias and mlp_bias differ, which is not supported", where=read.where, hint=hint)
    return "all" if attention else "none"


def _window(read: _Config, family: str) -> int | None:
    if family == "llama":
        return None
    if family == "mistral":
        window = read.get("sliding_window", 4096)
    else:
        window = read.get("sliding_window", 4096) if read.get("use_sliding_window", False) else None
        if window is not None:
            layers = read.need("num_hidden_layers")
            full = min(read.get("max_window_layers", 28), layers)
            kinds = read.get("layer_types") or ["full_attention"] * full + ["sliding_attention"] * (layers - full)
            if "sliding_attention" not in kinds:
                window = None
            elif set(kinds) != {"sliding_attention"}:
                hint = "supported: the same attention in every layer (max_window_layers 0, or use_sliding_window false)"
                raise ThriftyError("sliding_window in some layers only is not supported", where=read.where, hint=hint)
    return None if window is None else int(window)


def family_for(shape: ModelShape) -> str:
    """The family whose checkpoints can hold a shape.

    A GPT-2 shape without biases (nanoGPT's) goes into GPT-2 with biases of zero.

    Raises:
        ThriftyError: no supported family has this combination of switches.
    """
    stack = (shape.norm, shape.mlp, shape.positions)
    plain = shape.heads == shape.kv_heads and shape.heads * shape.head_dim == shape.hidden
    if stack == ("layernorm", "gelu", "learned") and plain and not shape.qk_norm and shape.sliding_window is None:
        return "gpt2"
    if stack == ("rmsnorm", "swiglu", "rope"):
        if shape.bias == "none":
            return "qwen3" if shape.qk_norm else "llama" if shape.sliding_window is None else "mistral"
        if shape.bias == "qkv" and not shape.qk_norm:
            return "qwen2"
        if shape.bias == "all" and not shape.qk_norm and shape.sliding_window is None:
            return "llama"
    switches = "kind", "norm", "mlp", "positions", "bias", "qk_norm", "kv_heads", "head_dim", "sliding_window"
    what = ", ".join(f"{key} {getattr(shape, key)}" for key in switches)
    hint = f"supported: {', '.join(ARCHITECTURES)}"
    raise ThriftyError(f"no Hugging Face architecture here holds this shape: {what}", hint=hint)


def config_from_shape(shape: ModelShape) -> dict[str, Any]:
    """The config.json of a shape; `shape_from_config` reads an equal shape back, name and source aside.

    Raises:
        ThriftyError: no supported family has this combination of switches.
    """
    family = family_for(shape)
    head = {"architectures": [ARCHITECTURES[family]], "model_type": family, "vocab_size": shape.vocab_size}
    tail = {"tie_word_embeddings": shape.tied_embeddings, "bos_token_id": None, "eos_token_id": None}
    return head | (_gpt2_config(shape) if family == "gpt2" else _llama_config(shape, family)) | tail


def _gpt2_config(shape: ModelShape) -> dict[str, Any]:
    return {
        "n_layer": shape.layers,
        "n_embd": shape.hidden,
        "n_head": shape.heads,
        "n_inner": shape.ffn,
        "n_positions": shape.max_positions,
        "layer_norm_epsilon": shape.norm_eps,
        "activation_function": "gelu_new",
    } | dict.fromkeys(("attn_pdrop", "embd_pdrop", "resid_pdrop"), 0.0)


def _llama_config(shape: ModelShape, family: str) -> dict[str, Any]:
    config: dict[str, Any] = {
        "num_hidden_layers": shape.layers,
        "hidden_size": shape.hidden,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head_dim,
        "intermediate_size": shape.ffn,
        "max_position_embeddings": shape.max_positions,
        "rms_norm_eps": shape.norm_eps,
        "hidden_act": "silu",
        "rope_theta": shape.rope_theta,
        "rope_scaling": None,
    }
    if shape.rope_scaling is not None:
        s = shape.rope_scaling
        config["rope_scaling"] = {
            "rope_type": "llama3",
            "factor": s.factor,
            "low_freq_factor": s.low_freq_factor,
            "high_freq_factor": s.high_freq_factor,
            "original_max_position_embeddings": s.original_max_positions,
        }
    if family == "llama":
        config |= dict.fromkeys(("attention_bias", "mlp_bias"), shape.bias == "all")
    else:
        config["sliding_window"] = shape.sliding_window
    if family in ("qwen2", "qwen3"):
        windowed = shape.sliding_window is not None
        config |= {"use_sliding_window": windowed, "max_window_layers": 0 if windowed else shape.layers}
    return config
