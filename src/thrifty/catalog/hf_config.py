"""Hugging Face `config.json` to ModelShape, and back for the families that the trainer trains. No torch.

Keys and defaults are those of transformers 5.24 (2026); both its `rope_parameters` and the older `rope_theta` with
`rope_scaling` are read, and the older form is written, which both read.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from thrifty.catalog import hf_priced
from thrifty.catalog.hf_dense import gpt2_fields, llama_fields
from thrifty.catalog.hf_keys import Config
from thrifty.spec.errors import ThriftyError, did_you_mean
from thrifty.spec.job import ModelShape
from thrifty.spec.load import read_json
from thrifty.spec.trained import untrained

# What the trainer trains, and whose checkpoints it reads and writes; `hf_priced.READERS` are only priced.
TRAINED = {
    "gpt2": "GPT2LMHeadModel",
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
}


def family_of(config: Mapping[str, Any], where: str = "config.json") -> str:
    """The family by its `model_type`, else by the name of a trained one in `architectures`.

    Raises:
        ThriftyError: another family; the message lists those supported.
    """
    kind = str(config.get("model_type") or "")
    known = [*TRAINED, *hf_priced.READERS]
    if kind in known:
        return kind
    named = [str(name) for name in config.get("architectures") or ()]
    found = [family for family, architecture in TRAINED.items() if architecture in named and not kind]
    if found:
        return found[0]
    what = kind or ", ".join(named) or "(no model_type)"
    hint = f"{did_you_mean(what, known)}; supported: {', '.join(known)}"
    raise ThriftyError(f"unknown architecture {what!r}", where=where, hint=hint)


def read_shape(path: str | Path) -> ModelShape:
    """The shape in a config.json, or in that of a folder.

    Raises:
        ThriftyError: no such file, not JSON, or as `shape_from_config`.
    """
    file = Path(path) / "config.json" if Path(path).is_dir() else Path(path)
    return shape_from_config(read_json(file), str(file))


def shape_from_config(config: Mapping[str, Any], where: str = "config.json") -> ModelShape:
    """The shape that a Hugging Face config describes.

    Args:
        config: the content of config.json.
        where: its path, for messages.

    Raises:
        ThriftyError: an unknown architecture, a missing key, or a setting that a shape has no switch for.
    """
    family = family_of(config, where)
    read = Config(config, where)
    if family in hf_priced.READERS:
        fields = hf_priced.READERS[family](read)
    else:
        fields = gpt2_fields(read) if family == "gpt2" else llama_fields(read, family)
    name = str(config.get("_name_or_path") or family)
    try:
        return ModelShape(name=name, source=where, **fields)
    except ValidationError as error:
        first = error.errors()[0]
        what = ".".join(map(str, first["loc"])) + ": " if first["loc"] else ""
        raise ThriftyError(what + str(first["msg"]).removeprefix("Value error, "), where=where) from None


def family_for(shape: ModelShape) -> str:
    """The family whose checkpoints can hold a shape.

    A GPT-2 shape without biases (nanoGPT's) goes into GPT-2 with biases of zero.

    Raises:
        ThriftyError: no supported family has this combination of switches.
    """
    mixed = untrained(shape) or shape.full_attention_every is not None
    stack = None if mixed else (shape.norm, shape.mlp, shape.positions)
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
    switches = (
        "norm", "mlp", "positions", "bias", "qk_norm", "kv_heads", "head_dim", "sliding_window", "full_attention_every",
    )  # fmt: skip
    what = untrained(shape) or ", ".join(f"{key} {getattr(shape, key)}" for key in switches)
    hint = f"supported: {', '.join(TRAINED)}"
    raise ThriftyError(f"no Hugging Face architecture here holds this shape: {what}", hint=hint)


def config_from_shape(shape: ModelShape) -> dict[str, Any]:
    """The config.json of a shape; `shape_from_config` reads an equal shape back, name and source aside.

    Raises:
        ThriftyError: no supported family has this combination of switches.
    """
    family = family_for(shape)
    head = {"architectures": [TRAINED[family]], "model_type": family, "vocab_size": shape.vocab_size}
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
