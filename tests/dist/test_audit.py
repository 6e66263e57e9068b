"""What is really sent in a step is what the planner says: kind, ranks, bytes and number of every collective; and what a
rank really holds of parameters, gradients and optimizer states."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from typing import Any

import pytest
from parity import Case, build_case, one_step, take_steps
from test_parity import named

from torch.distributed.tensor.debug import CommDebugMode

from thrifty.cost.memory import states_of
from thrifty.cost.predict import predict
from thrifty.cost.stages import own_runs
from thrifty.cost.traffic import collectives
from thrifty.parallel.count import TrafficCounter
from thrifty.parallel.mesh import coordinates
from thrifty.spec import Cluster, Plan
from thrifty.spec.plan import fingerprint
from thrifty.trainer import memory
from thrifty.trainer.dry_run import dry_run

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
LAYOUTS: list[dict[str, Any]] = [
    {"tensor": 2},
    {"tensor": 2, "sequence_parallel": False},
    {"shard": 4},
    {"island": 2, "shard": 2},
    {"island": 2, "tensor": 2},
    {"island": 2, "pipeline": 2},
    {"shard": 2, "tensor": 2},
    {"shard": 2, "tensor": 2, "sequence_parallel": False, "reshard_after_forward": False},
    {"context": 4},
    {"shard": 2, "context": 2, "reshard_after_forward": False},
    {"context": 2, "tensor": 2},
    {"shard": 2, "pipeline": 2, "schedule": "zbv", "interleave": 2},
    {"pipeline": 2, "tensor": 2},
    {"pipeline": 2, "context": 2, "schedule": "zbv", "interleave": 2},
    {"pipeline": 2, "tensor": 2, "schedule": "interleaved", "interleave": 2, "sequence_parallel": False},
]
EIGHT = {"shard": 2, "pipeline": 2, "tensor": 2}


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


def expected(case: Case, rank: int) -> Seen:
    layout, cluster = case.recipe.layout, Cluster.model_validate(CLUSTER)
    place = coordinates(layout, rank)
    calls: Counter[tuple[str, int, int]] = Counter()
    for one in collectives(case.job, cluster, case.recipe, place):
        calls[one.kind, one.group, int(one.payload_bytes)] += int(one.count)
    sharing = place["shard"] * layout.context + place["context"]
    held = states_of(case.job, cluster, case.recipe, place["pipeline"], (place["tensor"], sharing))
    return Seen(dict(calls), int(held.parameters), int(held.gradients), int(held.optimizer))


def cut(case: Case) -> Case:
    """With the stages that the trainer would make of it."""
    return replace(case, stages=own_runs(case.job, Cluster.model_validate(CLUSTER), case.recipe))


def check(pool: Any, case: Case) -> list[Seen]:
    """Every rank holds and sends what is planned for it: its own bytes, where axes do not divide evenly."""
    found: list[Seen] = pool(case.recipe.layout.ranks).run(take_and_count, cut(replace(case, steps=2, clip=1.0)))
    for rank, seen in enumerate(found):
        planned = expected(case, rank)
        twice = {one: 2 * count for one, count in planned.calls.items()}
        assert seen == replace(planned, calls=twice), f"rank {rank}"
    return found


@pytest.mark.parametrize("layout", LAYOUTS, ids=named)
@pytest.mark.parametrize(
    ("shape", "recompute", "micro", "precision"),
    [("llama", "none", 2, "fp32"), ("gpt", "full", 1, "fp32"), ("odd", "selective", 1, "bf16")],
)
def test_what_is_held_and_sent_is_what_was_planned(pool, layout, shape, recompute, micro, precision):
    again = "none" if layout.get("schedule") == "zbv" else recompute
    check(pool, Case(
        shape=shape, layout=layout, dtype="float32", recompute=again, micro=micro, precision=precision
    ))  # fmt: skip


def test_three_axes_at_once_on_eight_ranks(pool):
    check(pool, Case(shape="odd", layout=EIGHT, dtype="float32"))


@pytest.mark.parametrize("layout", [{"shard": 2, "tensor": 2}, {"shard": 2, "pipeline": 2}], ids=named)
def test_a_dry_run_finds_what_real_ranks_do(pool, layout):
    """In one process without memory, rank by rank: the same bytes and collectives as among processes over gloo."""
    case = Case(shape="odd", layout=layout, dtype="float32")
    asked = case.job, Cluster.model_validate(CLUSTER), case.recipe
    plan = Plan(job=asked[0], cluster=asked[1], recipe=asked[2], predicted=predict(*asked), hash=fingerprint(*asked))
    for rank, seen in enumerate(check(pool, case)):
        (pretended,) = dry_run(plan, rank).runs
        calls: Counter[tuple[str, int, int]] = Counter()
        for one, count in pretended.sent.items():
            calls[one.kind, one.ranks, one.payload_bytes] += 2 * count
        assert seen == Seen(dict(calls), **pretended.found)


WITNESSED = {"allgather": "all_gather", "reduce_scatter": "reduce_scatter", "allreduce": "all_reduce"}


def take_and_witness(case: Case) -> tuple[dict[str, int], dict[str, int]]:
    """Collectives of a step by kind, as counted here and as torch's own CommDebugMode counts them."""
    built, world = build_case(case)
    witness = CommDebugMode()
    # It also notes in which module it is, by hooks that forbid sums in place, as the residual stream's.
    modules = witness.advanced_module_tracker
    modules.__enter__ = modules.__exit__ = lambda: None
    modules.name, modules.module_parents_dict["Global"] = "Global", {"Global"}
    with TrafficCounter(lambda _: "link") as traffic, witness:
        one_step(case, built, world, 0)
    counted: Counter[str] = Counter()
    for (kind, *_), number in traffic.calls.items():
        counted[kind] += number
    seen: Counter[str] = Counter()
    for operation, number in witness.get_comm_counts().items():
        seen[next(kind for name, kind in WITNESSED.items() if name in str(operation))] += number
    return dict(counted), dict(seen)


@pytest.mark.parametrize("layout", [{"shard": 2, "tensor": 2}, {"island": 2, "shard": 2}], ids=named)
def test_a_second_witness_counts_the_same(pool, layout):
    for counted, seen in pool(4).run(take_and_witness, Case(layout=layout, dtype="float32")):
        assert counted == seen
