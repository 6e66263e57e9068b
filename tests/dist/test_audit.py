"""What is really sent in a step is what the planner says: kind, ranks, bytes and number of every collective; and what a
rank really holds of parameters, gradients and optimizer states."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from typing import Any

import pytest
from parity import Case, take_steps
from test_parity import named

from thrifty.cost.held import held, states
from thrifty.cost.traffic import collectives
from thrifty.parallel.count import TrafficCounter
from thrifty.spec import Cluster
from thrifty.trainer import memory

pytestmark = pytest.mark.dist

CLUSTER: dict[str, Any] = {
    "name": "cores", "per_node": 8, "price": 1, "grid": 400, "pue": 1, "goodput": 1, "utilisation": 1, "host_watts": 1,
    "accelerator": {
        "name": "a core", "kind": "cpu", "peak_flops": {"fp32": "50 GFLOP/s", "bf16": "100 GFLOP/s"}, "memory": "4GiB",
        "memory_bandwidth": "10 GB/s", "idle_watts": "1 W", "tdp_watts": "4 W", "op_overhead": "5 us",
        "runtime_memory": "300MiB",
    },
    **{link: {"bandwidth": "1 GB/s", "latency": "100 us"} for link in ("intra_node", "inter_node", "inter_island")},
}  # fmt: skip
LAYOUTS = [
    {"tensor": 2},
    {"tensor": 2, "sequence_parallel": False},
    {"shard": 2, "tensor": 2},
    {"shard": 2, "tensor": 2, "sequence_parallel": False, "reshard_after_forward": False},
    {"island": 2, "tensor": 2},
    {"shard": 4},
    {"context": 4},
    {"shard": 2, "context": 2, "reshard_after_forward": False},
    {"context": 2, "tensor": 2},
]


@dataclass(frozen=True)
class Seen:
    """Of one rank: collectives as (kind, ranks, payload bytes) -> number, and bytes held."""

    calls: dict[tuple[str, int, int], int]
    parameters: int
    gradients: int
    optimizer: int


def take_and_count(case: Case) -> Seen:
    found = {}
    with TrafficCounter(lambda ranks: "intra_node") as traffic:
        take_steps(case, look=lambda built: found.update(
            parameters=memory.parameter_bytes(built.model), gradients=memory.gradient_bytes(built.model),
            optimizer=memory.optimizer_bytes(built.optimizer),
        ))  # fmt: skip
    calls: Counter[tuple[str, int, int]] = Counter()
    for (kind, ranks, size, _), number in traffic.calls.items():
        if size != 8:  # the harness's own sum of losses
            calls[kind, ranks, size] += number
    return Seen(dict(calls), **found)


def expected(case: Case) -> dict[tuple[str, int, int], int]:
    found: Counter[tuple[str, int, int]] = Counter()
    for one in collectives(case.job, Cluster.model_validate(CLUSTER), case.recipe):
        found[one.kind, one.group, int(one.payload_bytes)] += int(one.count)
    return dict(found)


@pytest.mark.parametrize("layout", LAYOUTS, ids=named)
@pytest.mark.parametrize(
    ("shape", "recompute", "micro", "precision"),
    [("llama", "none", 2, "fp32"), ("gpt", "full", 1, "fp32"), ("qwen", "selective", 1, "bf16")],
)
def test_what_is_sent_is_what_was_planned(pool, layout, shape, recompute, micro, precision):
    case = Case(
        shape=shape, layout=layout, dtype="float32", recompute=recompute, micro=micro, precision=precision, clip=1.0
    )
    for seen in pool(case.recipe.layout.ranks).run(take_and_count, case):
        assert seen.calls == expected(case)


@pytest.mark.parametrize("layout", LAYOUTS, ids=named)
@pytest.mark.parametrize("shape", ["llama", "gpt", "qwen"])
def test_what_is_held_is_what_was_planned(pool, layout, shape):
    case = replace(Case(shape=shape, layout=layout, dtype="float32"), steps=2)
    piece = held(case.job.model, case.recipe.layout, "thrifty")[0]
    planned = states(piece, "thrifty", "fp32", 3, 32)
    seen = pool(case.recipe.layout.ranks).run(take_and_count, case)
    for term in ("parameters", "gradients", "optimizer"):
        assert max(getattr(one, term) for one in seen) == getattr(planned, term), term
