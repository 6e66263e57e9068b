"""Searches and plans that the tests of explanations share."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from typing import Any

from thrifty.catalog import lookup
from thrifty.cost.predict import predict
from thrifty.planner.search import Search, search
from thrifty.spec import Cluster, Job, ModelShape, Recipe
from thrifty.spec.load import build, from_dict
from thrifty.spec.plan import Plan, fingerprint

CASES = [("llama-3-8b", "64xh100"), ("gpt2-124m", "8xa100"), ("llama-3-70b", "512xh100"), ("tiny-1m", "h100")]

_FIGURES = {
    "name": "two machines of four cores",
    "accelerator": {
        "name": "core",
        "kind": "cpu",
        "peak_flops": {"fp32": "100GFLOP/s"},
        "memory": "4GiB",
        "memory_bandwidth": "8GB/s",
        "idle_watts": "1W",
        "tdp_watts": "5W",
        "op_overhead": "4us",
        "runtime_memory": "300MiB",
    },
    "per_node": 4,
    "nodes": 2,
    "intra_node": {"bandwidth": "2GB/s", "latency": "200us"},
    "inter_node": {"bandwidth": "100MB/s", "latency": "500us"},
    "inter_island": {"bandwidth": "10MB/s", "latency": "5ms"},
    "price": "0.04usd/h",
    "grid": "300g/kWh",
    "pue": 1.2,
    "goodput": 0.95,
    "utilisation": 0.8,
    "host_watts": "1W",
}


def job(model: str, **more: Any) -> Job:
    """A job of 16B tokens, or as `more` says."""
    shape = build(ModelShape, lookup.model(model), "")
    usual: dict[str, Any] = {"name": model, "model": shape, "sequence_length": min(4096, shape.max_positions)}
    return Job(**(usual | ({"tokens": 16 * 10**9} if "steps" not in more else {}) | more))


def cluster(text: str) -> Cluster:
    """A cluster of the catalog; `cpu` is two machines of four cores over gloo."""
    return build(Cluster, from_dict(_FIGURES, "test") if text == "cpu" else lookup.cluster(text), "")


@cache
def found(model: str = "llama-3-8b", on: str = "64xh100") -> Search:
    """A search with everything open."""
    return keeping({}, model, on)


def keeping(recipe: dict[str, Any], model: str = "llama-3-8b", on: str = "64xh100") -> Search:
    """A search that keeps what `recipe` gives."""
    one = job(model, steps=200, sequence_length=256) if on == "cpu" else job(model)
    return search(one, cluster(on), from_dict(recipe, "test"))


def plan_of(one: Job, on: Cluster, recipe: Recipe) -> Plan:
    """A plan of exactly this recipe."""
    return Plan(
        job=one, cluster=on, recipe=recipe, predicted=predict(one, on, recipe), hash=fingerprint(one, on, recipe)
    )


def model_parallel() -> Plan:
    """A plan with every axis that Megatron-LM has, bubble and all."""
    one, on = job("llama-3-70b"), cluster("64xh100")
    layout = {"shard": 4, "pipeline": 2, "tensor": 8, "zero": 1, "island": 1}
    recipe = {"software": "megatron", "layout": layout, "batch": {"sequences": 256, "micro_sequences": 1}}
    return plan_of(one, on, Recipe.model_validate(recipe | {"recompute": "selective", "exchange": {"dtype": "bf16"}}))


def overlapping() -> Plan:
    """Checkpoints written aside, evaluations, accumulation and recomputation, sized by steps."""
    recipe = {
        "layout": {"island": 2, "shard": 8},
        "batch": {"sequences": 64, "micro_sequences": 2},
        "recompute": "full",
        "compile": True,
        "checkpoint": {"every_steps": 50, "asynchronous": True},
        "evaluation": {"every_steps": 25, "sequences": 100},
    }
    return plan_of(job("gpt2-124m", steps=1000), cluster("16xa100"), Recipe.model_validate(recipe))


SEARCHES = [*CASES, ("tiny-1m", "cpu"), ("gpt2-124m", "16xrtx-4090")]
PLANS: dict[str, Callable[[], Plan]] = {
    **{" on ".join(case): partial(lambda case: found(*case).plan, case) for case in SEARCHES},
    "every axis of Megatron-LM": model_parallel,
    "two islands, overlapping": overlapping,
}
