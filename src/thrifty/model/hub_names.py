"""Which tensor of a Hugging Face checkpoint holds which parameters of ours."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from thrifty.catalog.hf_config import family_for
from thrifty.spec.job import ModelShape


@dataclass(frozen=True)
class Stored:
    """One tensor of a Hugging Face checkpoint and what it holds.

    Attributes:
        name: without the trunk's prefix.
        parts: our parameters, stacked along dimension 0.
        transposed: stored as (in, out), as GPT-2 does.
    """

    name: str
    parts: tuple[str, ...]
    transposed: bool = False


def stored_tensors(shape: ModelShape) -> Iterator[Stored]:
    """Every tensor of the checkpoint of a shape, in the order of the model."""
    yield from _gpt2_tensors(shape) if family_for(shape) == "gpt2" else _llama_tensors(shape)
    if not shape.tied_embeddings:
        yield Stored("lm_head.weight", ("head.weight",))


def _gpt2_tensors(shape: ModelShape) -> Iterator[Stored]:
    yield Stored("wte.weight", ("embed.weight",))
    yield Stored("wpe.weight", ("positions.weight",))
    for i in range(shape.layers):
        ours, theirs = f"blocks.{i}", f"h.{i}"
        for end in ("weight", "bias"):
            matrix = end == "weight"
            qkv = tuple(f"{ours}.attention.{part}.{end}" for part in ("query", "key", "value"))
            yield Stored(f"{theirs}.ln_1.{end}", (f"{ours}.attention_norm.{end}",))
            yield Stored(f"{theirs}.attn.c_attn.{end}", qkv, matrix)
            yield Stored(f"{theirs}.attn.c_proj.{end}", (f"{ours}.attention.output.{end}",), matrix)
            yield Stored(f"{theirs}.ln_2.{end}", (f"{ours}.mlp_norm.{end}",))
            yield Stored(f"{theirs}.mlp.c_fc.{end}", (f"{ours}.mlp.up.{end}",), matrix)
            yield Stored(f"{theirs}.mlp.c_proj.{end}", (f"{ours}.mlp.down.{end}",), matrix)
    yield from (Stored(f"ln_f.{end}", (f"norm.{end}",)) for end in ("weight", "bias"))


_LLAMA_LINEAR = {
    "attention.query": "self_attn.q_proj",
    "attention.key": "self_attn.k_proj",
    "attention.value": "self_attn.v_proj",
    "attention.output": "self_attn.o_proj",
    "mlp.gate": "mlp.gate_proj",
    "mlp.up": "mlp.up_proj",
    "mlp.down": "mlp.down_proj",
}
_LLAMA_NORM = {"attention_norm": "input_layernorm", "mlp_norm": "post_attention_layernorm"}
_QK_NORM = {"attention.query_norm": "self_attn.q_norm", "attention.key_norm": "self_attn.k_norm"}


def _llama_tensors(shape: ModelShape) -> Iterator[Stored]:
    biased = {"none": (), "qkv": tuple(_LLAMA_LINEAR)[:3], "all": tuple(_LLAMA_LINEAR)}[shape.bias]
    weights = _LLAMA_LINEAR | _LLAMA_NORM | (_QK_NORM if shape.qk_norm else {})
    yield Stored("embed_tokens.weight", ("embed.weight",))
    for i in range(shape.layers):
        for ours, theirs in weights.items():
            yield Stored(f"layers.{i}.{theirs}.weight", (f"blocks.{i}.{ours}.weight",))
        for ours in biased:
            yield Stored(f"layers.{i}.{_LLAMA_LINEAR[ours]}.bias", (f"blocks.{i}.{ours}.bias",))
    yield Stored("norm.weight", ("norm.weight",))
