"""A pipeline computes what one process computes, under each schedule, alone and with the other axes."""

from __future__ import annotations

from collections import Counter

import pytest
from parity import LLAMA, SEQUENCE, Case, bound, compare, take_steps, watch_a_step
from test_parity import TERMS, named, reference

from thrifty.cost.timeline import order
from thrifty.cost.traffic import collectives
from thrifty.spec import Cluster

LOOPBACK = {"bandwidth": "1GB/s", "latency": "200us"}
CORE = {
    "name": "core", "kind": "cpu", "peak_flops": {"fp32": "100GFLOP/s", "bf16": "200GFLOP/s"}, "memory": "8GiB",
    "memory_bandwidth": "15GB/s", "idle_watts": 1, "tdp_watts": 4, "op_overhead": "4us", "runtime_memory": "300MiB",
}  # fmt: skip
LAPTOP = Cluster(
    name="laptop", accelerator=CORE, per_node=2, intra_node=LOOPBACK, inter_node=LOOPBACK, inter_island=LOOPBACK,
    price=0.05, grid=400, pue=1, goodput=1, utilisation=1, host_watts=1,
)  # fmt: skip
pytestmark = pytest.mark.dist

SCHEDULES = {
    "gpipe": {"schedule": "gpipe"},
    "1f1b": {"schedule": "1f1b"},
    "interleaved": {"schedule": "interleaved", "interleave": 2},
    "zero_bubble": {"schedule": "zero_bubble"},
    "zbv": {"schedule": "zbv", "interleave": 2},
}


@pytest.mark.parametrize("shape", ["llama", "gpt", "qwen"])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_every_schedule_equals_one_process(pool, schedule, shape):
    case = Case(shape=shape, layout={"pipeline": 2} | SCHEDULES[schedule], clip=0.5)
    for result in pool(2).run(take_steps, case):
        assert compare(reference(case), result, bound("float64", TERMS, LLAMA["layers"])) == []


LAYOUTS = [{"pipeline": 4}, {"pipeline": 2, "shard": 2}, {"pipeline": 2, "island": 2}]


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("layout", LAYOUTS, ids=named)
def test_on_four_ranks_it_still_does(pool, layout, schedule):
    """Two sequences a microbatch, tied embeddings."""
    case = Case(shape="deep", layout=layout | SCHEDULES[schedule], sequences=16, micro=2, clip=0.5)
    for result in pool(4).run(take_steps, case):
        assert compare(reference(case), result, bound("float64", 4 * TERMS, 8)) == []


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_in_fp32_they_differ_by_rounding(pool, schedule):
    case = Case(shape="gpt", layout={"pipeline": 2} | SCHEDULES[schedule], dtype="float32", clip=0.5)
    for result in pool(2).run(take_steps, case):
        assert compare(reference(case), result, bound("float32", TERMS, LLAMA["layers"])) == []


@pytest.mark.parametrize("layout", [{"pipeline": 2}, {"pipeline": 2, "shard": 2}], ids=named)
def test_in_bf16_they_differ_by_its_rounding(pool, layout):
    case = Case(layout=layout | SCHEDULES["zero_bubble"], dtype="float32", precision="bf16", sequences=16)
    for result in pool(case.recipe.layout.ranks).run(take_steps, case):
        assert compare(reference(case), result, 8 * 2.0**-8) == []


@pytest.mark.parametrize("layout", [{"pipeline": 2}, {"pipeline": 2, "shard": 2}], ids=named)
@pytest.mark.parametrize("schedule", ["1f1b", "zbv"])
def test_twenty_steps_of_a_tied_model_with_clipping(pool, layout, schedule):
    """Both copies of the embedding stay one: every step's losses come from them."""
    again = "full" if schedule == "1f1b" else "none"
    case = Case(shape="gpt", layout=layout | SCHEDULES[schedule], clip=0.3, steps=20, recompute=again)
    for result in pool(case.recipe.layout.ranks).run(take_steps, case):
        assert compare(reference(case), result, 1e3 * bound("float64", TERMS, LLAMA["layers"])) == []


def test_uneven_stages(pool):
    case = Case(shape="qwen", layout={"pipeline": 2} | SCHEDULES["1f1b"], stages=(range(3), range(3, 4)), clip=0.5)
    for result in pool(2).run(take_steps, case):
        assert compare(reference(case), result, bound("float64", TERMS, LLAMA["layers"])) == []


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_what_runs_and_what_is_sent_are_as_planned(pool, schedule):
    """Of the planner's list, which is that of the busiest sender, every message: kind, group, bytes and count."""
    case = Case(shape="gpt", layout={"pipeline": 2} | SCHEDULES[schedule], dtype="float32", clip=1.0)
    watched = pool(2).run(watch_a_step, case)
    orders = order(case.recipe.layout, case.recipe.accumulation)
    assert [ran for ran, _ in watched] == [list(map(tuple, mine)) for mine in orders]
    planned = Counter()
    for one in collectives(case.job, LAPTOP, case.recipe):
        planned[one.kind, 2, one.payload_bytes] += one.count
    sent = [calls for _, calls in watched]
    assert max(sent, key=lambda calls: calls["send", 2, SEQUENCE * LLAMA["hidden"] * 4]) == planned


@pytest.mark.parametrize("recompute", ["none", "full"])
def test_stages_of_context_ranks_send_what_is_planned(pool, recompute):
    """Messages of the ring and of the pipeline are as large here; the last stage, with norm and head, shards most."""
    layout = {"pipeline": 2, "context": 2}
    case = Case(shape="llama", layout=layout, dtype="float32", clip=1.0, recompute=recompute)
    planned = Counter()
    for one in collectives(case.job, LAPTOP, case.recipe):
        planned[one.kind, one.group, one.payload_bytes] += one.count
    *_, last = pool(4).run(watch_a_step, case)
    assert last[1] == planned
