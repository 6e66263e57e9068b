"""Shapes, clusters and recipes that the cost tests share, and hypothesis strategies over them."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from thrifty.spec import Cluster, Job, ModelShape, Recipe
from thrifty.spec.recipe import Batch, Exchange, Layout

LLAMA = {"layers": 4, "hidden": 256, "heads": 4, "kv_heads": 2, "ffn": 704, "vocab_size": 1000, "max_positions": 4096}
GPT = {
    "layers": 4, "hidden": 256, "heads": 4, "ffn": 1024, "vocab_size": 1000, "max_positions": 4096, "norm": "layernorm",
    "mlp": "gelu", "positions": "learned", "tied_embeddings": True, "bias": "all",
}  # fmt: skip


def shape(**changes: Any) -> ModelShape:
    return ModelShape(**(LLAMA | changes))


def gpt(**changes: Any) -> ModelShape:
    return ModelShape(**(GPT | changes))


def job(model: ModelShape | None = None, **changes: Any) -> Job:
    asked: dict[str, Any] = {"model": model or shape(), "sequence_length": 128, "steps": 100}
    return Job(**(asked | changes))


def gpus(per_node: int = 8, nodes: int = 1, **changes: Any) -> Cluster:
    """A cluster of imaginary GPUs with round numbers."""
    chip = {
        "name": "round-gpu", "kind": "gpu", "peak_flops": {"fp32": "50TFLOP/s", "bf16": "500TFLOP/s"},
        "memory": "80GiB", "memory_bandwidth": "2TB/s", "idle_watts": 100, "tdp_watts": 600, "op_overhead": "5us",
        "runtime_memory": "1GiB",
    }  # fmt: skip
    asked: dict[str, Any] = {
        "name": "rounds", "accelerator": chip, "per_node": per_node, "nodes": nodes,
        "intra_node": {"bandwidth": "200GB/s", "latency": "40us"},
        "inter_node": {"bandwidth": "25GB/s", "latency": "60us"},
        "inter_island": {"bandwidth": "1GB/s", "latency": "1ms"},
        "price": 2.0, "grid": 400, "pue": 1.25, "goodput": 0.9, "utilisation": 0.8, "host_watts": 100,
    }  # fmt: skip
    return Cluster(**(asked | changes))


def cores(number: int = 2, **changes: Any) -> Cluster:
    """A laptop: cores of 100 GFLOP/s in fp32 and 200 in bf16."""
    chip = {
        "name": "core", "kind": "cpu", "peak_flops": {"fp32": "100GFLOP/s", "bf16": "200GFLOP/s"}, "memory": "8GiB",
        "memory_bandwidth": "15GB/s", "idle_watts": 1, "tdp_watts": 4, "op_overhead": "4us", "runtime_memory": "300MiB",
    }  # fmt: skip
    loopback = {"bandwidth": "1GB/s", "latency": "200us"}
    asked: dict[str, Any] = {
        "name": "laptop", "accelerator": chip, "per_node": number, "intra_node": loopback, "inter_node": loopback,
        "inter_island": loopback, "price": 0.05, "grid": 400, "pue": 1, "goodput": 1, "utilisation": 1, "host_watts": 1,
    }  # fmt: skip
    return Cluster(**(asked | changes))


def recipe(
    island: int = 1, shard: int = 1, micro: int = 1, accumulation: int = 1, reshard: bool = True,
    exchange: str = "fp32", **changes: Any,
) -> Recipe:  # fmt: skip
    layout = Layout(island=island, shard=shard, reshard_after_forward=reshard)
    batch = Batch(sequences=micro * accumulation * island * shard, micro_sequences=micro)
    return Recipe(layout=layout, batch=batch, exchange=Exchange(dtype=exchange), **changes)


@st.composite
def shapes(draw: st.DrawFn) -> ModelShape:
    heads = draw(st.sampled_from([1, 2, 4, 6]))
    return ModelShape(
        layers=draw(st.integers(1, 6)),
        hidden=draw(st.sampled_from([32, 48, 96, 130])),
        heads=heads,
        kv_heads=draw(st.sampled_from([h for h in (1, 2, heads) if heads % h == 0])),
        head_dim=draw(st.sampled_from([8, 16])),
        ffn=draw(st.sampled_from([33, 64, 200])),
        vocab_size=draw(st.integers(2, 700)),
        norm=draw(st.sampled_from(["rmsnorm", "layernorm"])),
        mlp=draw(st.sampled_from(["swiglu", "gelu"])),
        positions=draw(st.sampled_from(["rope", "learned"])),
        qk_norm=draw(st.booleans()),
        tied_embeddings=draw(st.booleans()),
        bias=draw(st.sampled_from(["none", "qkv", "all"])),
    )


@st.composite
def priced_shapes(draw: st.DrawFn) -> ModelShape:
    """What the trainer does not run: experts, latent attention, encoders, vision transformers."""
    base = draw(shapes()).model_dump()
    kind = draw(st.sampled_from(["decoder", "encoder", "vit"]))
    if kind == "vit":
        return ModelShape(**base | {"kind": kind, "positions": "learned", "patch_size": draw(st.sampled_from([4, 7]))})
    if kind == "encoder":
        return ModelShape(**base | {"kind": kind, "token_types": draw(st.integers(0, 2))})
    if draw(st.booleans()):
        rank = draw(st.sampled_from([None, 12]))
        base |= {"latent": {"q_rank": rank, "kv_rank": 8, "nope_dim": 6, "rope_dim": 4, "value_dim": 5}}
        base |= {"bias": "none", "qk_norm": False, "head_dim": 10}
    else:
        base |= {"qk_norm": draw(st.sampled_from([False, True, "width"])), "attention_sinks": draw(st.booleans())}
    count = draw(st.integers(1, 6))
    experts = {"count": count, "active": draw(st.integers(1, count)), "ffn": 24, "shared": draw(st.integers(0, 2))}
    return ModelShape(**base | {"experts": experts | {"dense_layers": draw(st.integers(0, base["layers"]))}})


@st.composite
def recipes(draw: st.DrawFn, most: int = 4) -> Recipe:
    return recipe(
        island=draw(st.integers(1, most)),
        shard=draw(st.integers(1, most)),
        micro=draw(st.integers(1, 4)),
        accumulation=draw(st.integers(1, 3)),
        reshard=draw(st.booleans()),
        exchange=draw(st.sampled_from(["fp32", "bf16"])),
        precision=draw(st.sampled_from(["fp32", "bf16"])),
        recompute=draw(st.sampled_from(["none", "full"])),
        compile=draw(st.booleans()),
    )
