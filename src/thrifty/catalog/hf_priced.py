"""Reads the configs of families that are priced and not trained: mixtures of experts, OLMo 2, encoders, ViT.

What costs nothing is not asked after: how rotary frequencies are rescaled, how a router scores, clips and balances,
dropout, which exact GELU. A module that predicts further tokens (DeepSeek-V3) is not part of the shape.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from thrifty.catalog.hf_keys import Config, rope_theta, windows
from thrifty.spec.errors import ThriftyError


def _decoder(read: Config, theta: float = 10000.0) -> dict[str, Any]:
    """What the decoders below share. Each gives its own default of what transformers has different defaults for."""
    read.only("hidden_act", ("silu",), "silu")
    return {
        "layers": read.need("num_hidden_layers"),
        "hidden": read.need("hidden_size"),
        "heads": read.need("num_attention_heads"),
        "kv_heads": read.get("num_key_value_heads"),
        "head_dim": read.get("head_dim"),
        "ffn": read.need("intermediate_size"),
        "vocab_size": read.need("vocab_size"),
        "max_positions": read.need("max_position_embeddings"),
        "norm_eps": read.get("rms_norm_eps", 1e-6),
        "rope_theta": rope_theta(read, theta),
        "tied_embeddings": read.get("tie_word_embeddings", False),
    }


def _count(read: Config, default: int | None = None) -> Any:
    """Routed experts of a layer, under any of the names that transformers has for them."""
    names = ("n_routed_experts", "num_experts", "num_local_experts")
    given = [read.get(name) for name in names if read.get(name) is not None]
    return given[0] if given else default or read.need(names[0])


def _mixtral(read: Config) -> dict[str, Any]:
    fields = _decoder(read, 1000000.0)
    experts = {
        "count": _count(read, 8),
        "active": read.get("num_experts_per_tok", 2),
        "ffn": fields["ffn"],
    }
    kv_heads = read.get("num_key_value_heads", 8)
    return fields | {"kv_heads": kv_heads, "sliding_window": read.get("sliding_window"), "experts": experts}


def _qwen3_moe(read: Config) -> dict[str, Any]:
    read.only("decoder_sparse_step", (1,), 1)
    read.only("use_sliding_window", (False,), False)
    read.only("attention_bias", (False,), False)
    dense = list(read.get("mlp_only_layers") or [])
    if sorted(dense) != list(range(len(dense))):
        hint = "supported: none, or the first ones"
        raise ThriftyError(f"mlp_only_layers = {dense} is not supported", where=read.where, hint=hint)
    experts = {
        "count": _count(read, 128),
        "active": read.get("num_experts_per_tok", 8),
        "ffn": read.need("moe_intermediate_size"),
        "dense_layers": len(dense),
    }
    return _decoder(read) | {"kv_heads": read.get("num_key_value_heads", 4), "qk_norm": True, "experts": experts}


def _deepseek(read: Config) -> dict[str, Any]:
    """DeepSeek V2 and V3. Their `head_dim` names the rotary part, and key/value heads are as many as heads."""
    for key in ("attention_bias", "mlp_bias"):
        read.only(key, (False,), False)
    read.only("moe_layer_freq", (1,), 1)
    experts = {
        "count": _count(read),
        "active": read.need("num_experts_per_tok"),
        "ffn": read.need("moe_intermediate_size"),
        "shared": read.get("n_shared_experts") or 0,
        "dense_layers": read.need("first_k_dense_replace"),
    }
    latent = {
        "q_rank": read.get("q_lora_rank"),
        "kv_rank": read.need("kv_lora_rank"),
        "nope_dim": read.need("qk_nope_head_dim"),
        "rope_dim": read.need("qk_rope_head_dim"),
        "value_dim": read.need("v_head_dim"),
    }
    return _decoder(read) | {"kv_heads": None, "head_dim": None, "latent": latent, "experts": experts}


def _gpt_oss(read: Config) -> dict[str, Any]:
    read.only("attention_bias", (True,), True)
    fields = _decoder(read, 150000.0)
    experts = {
        "count": _count(read, 128),
        "active": read.get("num_experts_per_tok", 4),
        "ffn": fields["ffn"],
    }
    alternate = [("sliding_attention", "full_attention")[layer % 2] for layer in range(fields["layers"])]
    fields |= {"kv_heads": read.get("num_key_value_heads", 8), "head_dim": read.get("head_dim", 64)}
    fields |= {"norm_eps": read.get("rms_norm_eps", 1e-5), "bias": "all", "attention_sinks": True, "experts": experts}
    return fields | windows(read, read.get("layer_types") or alternate, read.get("sliding_window", 128))


def _olmo2(read: Config) -> dict[str, Any]:
    """Norms stand after attention and MLP; they cost the same there."""
    read.only("attention_bias", (False,), False)
    return _decoder(read) | {"norm_eps": read.get("rms_norm_eps", 1e-5), "qk_norm": "width"}


def _olmoe(read: Config) -> dict[str, Any]:
    fields = _olmo2(read)
    experts = {
        "count": _count(read, 64),
        "active": read.get("num_experts_per_tok", 8),
        "ffn": fields["ffn"],
    }
    return fields | {"experts": experts}


def _bert(read: Config) -> dict[str, Any]:
    """With the head of masked language modelling, without the pooler that sentence pairs need."""
    read.only("hidden_act", ("gelu", "gelu_new", "relu"), "gelu")
    read.only("position_embedding_type", ("absolute", None), "absolute")
    read.only("is_decoder", (False,), False)
    return {
        "kind": "encoder",
        "layers": read.need("num_hidden_layers"),
        "hidden": read.need("hidden_size"),
        "heads": read.need("num_attention_heads"),
        "ffn": read.need("intermediate_size"),
        "vocab_size": read.need("vocab_size"),
        "max_positions": read.need("max_position_embeddings"),
        "token_types": read.get("type_vocab_size", 2),
        "norm": "layernorm",
        "norm_eps": read.get("layer_norm_eps", 1e-12),
        "mlp": "gelu",
        "positions": "learned",
        "tied_embeddings": read.get("tie_word_embeddings", True),
        "bias": "all",
    }


def _vit(read: Config) -> dict[str, Any]:
    """With the head of image classification: `num_labels`, or as many as `id2label` names, or 2."""
    read.only("hidden_act", ("gelu", "gelu_new", "relu"), "gelu")
    read.only("qkv_bias", (True,), True)
    image, patch = (_side(read, key, default) for key, default in (("image_size", 224), ("patch_size", 16)))
    return {
        "kind": "vit",
        "layers": read.need("num_hidden_layers"),
        "hidden": read.need("hidden_size"),
        "heads": read.need("num_attention_heads"),
        "ffn": read.need("intermediate_size"),
        "vocab_size": read.get("num_labels") or len(read.get("id2label") or (0, 1)),
        "max_positions": (image // patch) ** 2 + 1,
        "patch_size": patch,
        "channels": read.get("num_channels", 3),
        "norm": "layernorm",
        "norm_eps": read.get("layer_norm_eps", 1e-12),
        "mlp": "gelu",
        "positions": "learned",
        "bias": "all",
    }


def _side(read: Config, key: str, default: int) -> int:
    """A side of a square in pixels, written as one number or as two equal ones."""
    value = read.get(key, default)
    sides = set(value) if isinstance(value, list | tuple) else {value}
    if len(sides) != 1 or not all(isinstance(side, int) and side > 0 for side in sides):
        raise ThriftyError(f"{key} = {value!r} is not supported", where=read.where, hint="supported: a square")
    return int(sides.pop())


READERS: dict[str, Callable[[Config], dict[str, Any]]] = {
    "mixtral": _mixtral,
    "qwen3_moe": _qwen3_moe,
    "deepseek_v2": _deepseek,
    "deepseek_v3": _deepseek,
    "gpt_oss": _gpt_oss,
    "olmo2": _olmo2,
    "olmoe": _olmoe,
    "bert": _bert,
    "roberta": _bert,
    "vit": _vit,
}
