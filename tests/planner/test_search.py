"""The search: what is given stays, what is chosen is best, what does not fit is said to."""

from __future__ import annotations

import itertools
import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from thrifty.catalog import lookup
from thrifty.cost.memory import usable_bytes
from thrifty.cost.run import estimate
from thrifty.planner import space
from thrifty.planner.search import NEAR, plan, search
from thrifty.spec import Cluster, Job, ModelShape, Recipe, ThriftyError
from thrifty.spec.load import build, from_dict, leaves
from thrifty.spec.plan import fingerprint
from thrifty.spec.recipe import Batch, Layout

LOOPBACK = {"bandwidth": "0.5GB/s", "latency": "400us"}
CORE = {
    "name": "core", "kind": "cpu", "peak_flops": {"fp32": "100GFLOP/s", "bf16": "200GFLOP/s"}, "memory": "8GiB",
    "memory_bandwidth": "15GB/s", "idle_watts": 1, "tdp_watts": 4, "op_overhead": "4us", "runtime_memory": "300MiB",
}  # fmt: skip


def laptop(cores: int = 2) -> Cluster:
    links = dict.fromkeys(("intra_node", "inter_node", "inter_island"), LOOPBACK)
    return Cluster(
        name="laptop", accelerator=CORE, per_node=cores, price=0.05, grid=400, pue=1, goodput=1, utilisation=1,
        host_watts=1, **links,
    )  # fmt: skip


def cluster(text: str, **changes: Any) -> Cluster:
    return build(Cluster, lookup.cluster(text), "").model_copy(update=changes)


def job(model: str = "gpt2-124m", **changes: Any) -> Job:
    asked: dict[str, Any] = {"model": build(ModelShape, lookup.model(model), ""), "sequence_length": 1024}
    if not {"tokens", "steps", "target_loss"} & set(changes):
        asked["steps"] = 1000
    return Job.model_validate(asked | changes)


GIVEN = [
    ("layout.shard", 4), ("layout.island", 2), ("layout.reshard_after_forward", True), ("batch.sequences", 64),
    ("batch.micro_sequences", 2), ("precision", "fp32"), ("recompute", "full"), ("compile", True),
    ("optimizer.lr", 1e-4), ("schedule.warmup_steps", 7), ("evaluation.every_steps", 13), ("evaluation.sequences", 24),
    ("checkpoint.every_steps", 17), ("exchange.dtype", "bf16"), ("schedule.name", "wsd"), ("optimizer.beta2", 0.99),
]  # fmt: skip


@settings(max_examples=40, deadline=None)
@given(st.sets(st.integers(0, len(GIVEN) - 1)), st.booleans())
def test_what_is_given_is_kept(which: set[int], on_gpus: bool) -> None:
    tree: dict[str, Any] = {}
    for index in which:
        tree = space.put(tree, *GIVEN[index])
    found = plan(job(), cluster("8xa100") if on_gpus else laptop(8), from_dict(tree, "test"))
    chosen = found.recipe.model_dump()
    for path, value in leaves(tree):
        assert space.at(chosen, path) == value, path
    assert found.hash == fingerprint(found.job, found.cluster, found.recipe)
    assert found.predicted.peak_memory.value <= usable_bytes(found.cluster, found.recipe.layout.ranks)


def test_a_whole_recipe_is_only_priced() -> None:
    given = Recipe(layout=Layout(shard=8), batch=Batch(sequences=64, micro_sequences=4), precision="bf16")
    found = search(job(), cluster("8xa100"), given)
    assert found.plan.recipe == given
    assert found.tried == 1


@pytest.mark.parametrize("text", ["8xa100", "16xh100"])
def test_nothing_that_fits_is_cheaper(text: str) -> None:
    """Against pricing every combination one by one, within the share that counts as equal."""
    asked, devices = job("llama-3.2-1b", sequence_length=4096), cluster(text)
    sequences = 4 * devices.devices
    kept = from_dict({"batch": {"sequences": sequences}, "compile": True}, "test")
    best = plan(asked, devices, kept).recipe
    runs = []
    for island, reshard, micro, recompute in itertools.product(
        (1, 2, 4, 8, 16), (True, False), (1, 2, 4), ("none", "full")
    ):
        if devices.devices % island:
            continue
        layout = Layout(island=island, shard=devices.devices // island, reshard_after_forward=reshard)
        batch = Batch(sequences=sequences, micro_sequences=micro)
        recipe = best.model_copy(update={"layout": layout, "batch": batch, "recompute": recompute})
        run = estimate(asked, devices, recipe)
        if run.memory.peak <= usable_bytes(devices, devices.devices):
            runs.append(run.usd)
    assert estimate(asked, devices, best).usd <= min(runs) * (1 + NEAR)


def test_gpus_are_all_used_and_cores_as_many_as_pay() -> None:
    assert plan(job(), cluster("8xa100")).recipe.layout.ranks == 8
    small = job("tiny-1m", sequence_length=128)
    assert 1 <= plan(small, laptop(4)).recipe.layout.ranks <= 4


def test_bf16_is_taken_only_where_it_gains() -> None:
    assert plan(job(), cluster("a100")).recipe.precision == "bf16"
    equal = CORE | {"peak_flops": {"fp32": "100GFLOP/s", "bf16": "60GFLOP/s"}}
    slow = laptop().model_copy(update={"accelerator": Cluster.model_fields["accelerator"].annotation(**equal)})
    assert plan(job("tiny-3m", sequence_length=256), slow).recipe.precision == "fp32"


def test_a_short_run_is_planned_by_its_steps_not_by_its_start_up() -> None:
    short, long = (
        plan(job(steps=n), cluster("8xa100"), from_dict({"batch": {"sequences": 256}}, "t")) for n in (3, 3000)
    )
    assert short.recipe.precision == long.recipe.precision == "bf16"
    assert short.recipe.recompute == long.recipe.recompute == "none"


def test_compiling_does_not_pay_for_a_short_run() -> None:
    found = plan(job("tiny-1m", sequence_length=128, steps=50), laptop())
    assert found.recipe.compile is False
    assert any(reason.startswith("compile off") for reason in found.reasons)


def test_every_open_choice_has_a_reason() -> None:
    found = plan(job(), cluster("8xa100"))
    for start in ("batch", "optimizer.lr", "schedule.warmup", "layout", "precision", "recompute", "micro_sequences",
                  "compile", "exchange", "evaluation", "checkpoint"):  # fmt: skip
        assert sum(reason.startswith(start) for reason in found.reasons) == 1, start


def test_a_target_loss_alone_gives_tokens() -> None:
    found = plan(job("llama-2-7b", target_loss=2.3, sequence_length=4096), cluster("64xh100"))
    assert found.job.tokens is not None
    assert found.predicted.loss is not None
    assert found.predicted.loss.value == pytest.approx(2.3, abs=0.001)
    with pytest.raises(ThriftyError, match="out of reach"):
        plan(job("gpt2-124m", target_loss=2.0), cluster("8xh100"))
    with pytest.raises(ThriftyError, match="vocabularies"):
        plan(job("tiny-10m", target_loss=2.0, sequence_length=128), laptop())


def test_what_does_not_fit_says_what_it_needs_and_what_would_do() -> None:
    with pytest.raises(ThriftyError) as error:
        plan(job("llama-3-70b", sequence_length=8192), cluster("8xh100"))
    assert "does not fit" in error.value.what
    assert "optimizer" in error.value.what
    assert "more devices" in error.value.hint
    given = {"recompute": "none", "layout": {"tensor": 1, "pipeline": 1, "context": 1}}
    with pytest.raises(ThriftyError) as error:
        plan(job("llama-3-8b", sequence_length=8192), cluster("8xa100-40gb"), from_dict(given, "test"))
    assert "recipe.recompute" in error.value.hint


def test_the_number_of_devices_that_would_do_does() -> None:
    asked = job("llama-3-70b", sequence_length=8192, steps=10)
    with pytest.raises(ThriftyError) as error:
        plan(asked, cluster("8xh100"))
    enough = int(error.value.hint.split("more devices (")[1].split(" would")[0])
    assert plan(asked, cluster(f"{enough}xh100"))
    with pytest.raises(ThriftyError, match="does not fit"):
        plan(asked, cluster(f"{enough // 2}xh100"))


@pytest.mark.parametrize(
    ("tree", "where"),
    [
        ({"batch": {"sequences": 10}, "layout": {"shard": 8}}, "batch.sequences"),
        ({"layout": {"shard": 3}}, "layout.shard"),
        ({"layout": {"shard": 16, "island": 1}}, "layout"),
        ({"batch": {"sequences": 64, "micro_sequences": 3}}, ""),
        ({"precision": "fp8"}, "precision"),
    ],
)
def test_contradictions_are_told(tree: dict[str, Any], where: str) -> None:
    with pytest.raises(ThriftyError) as error:
        plan(job(), cluster("8xa100"), from_dict(tree, "test"))
    assert where in error.value.where or where in error.value.what
    assert error.value.hint or error.value.what


ONE_SHARDED = {"shard": 4, "island": 1, "pipeline": 1, "context": 1, "tensor": 1}


def test_idle_devices_are_named() -> None:
    found = plan(job(), cluster("8xa100"), from_dict({"layout": ONE_SHARDED}, "test"))
    assert any("4 of 8 devices have nothing to do" in reason for reason in found.reasons)


def test_runners_up_are_other_ways_that_fit() -> None:
    found = search(job("llama-3.2-1b", sequence_length=4096), cluster("16xh100"))
    assert found.runners_up
    ways = {(c.recipe.layout, c.recipe.precision, c.recipe.recompute) for c in found.runners_up}
    chosen = found.plan.recipe
    assert (chosen.layout, chosen.precision, chosen.recompute) not in ways
    assert all(c.fits for c in found.runners_up)
    assert all(c.run.usd >= found.plan.predicted.usd.value * (1 - NEAR) for c in found.runners_up)
    assert [c.run.usd for c in found.runners_up] == sorted(c.run.usd for c in found.runners_up)


def test_a_free_cluster_is_ranked_by_time() -> None:
    free = cluster("8xa100", price=laptop().price.model_copy(update={"value": 0.0}))
    assert plan(job(), free).recipe == plan(job(), cluster("8xa100")).recipe


@pytest.mark.parametrize("cores", [1, 3, 64, 96])
def test_any_number_of_cores_is_planned(cores: int) -> None:
    assert plan(job("tiny-1m", sequence_length=128), laptop(cores)).recipe.layout.ranks <= cores


def test_thousands_of_recipes_are_priced_in_a_second() -> None:
    """No gate on time, but a bound that only a blunder would break."""
    begin = time.process_time()
    found = search(job("llama-3-8b", sequence_length=8192, tokens=10**11), cluster("1024xh100"))
    assert found.tried > 100
    assert time.process_time() - begin < found.tried / 100


def test_checkpoints_are_written_aside_only_where_waiting_costs() -> None:
    """An 8B model saved every hundred steps waits for minutes; saved every half hour it does not."""
    shape = build(ModelShape, lookup.model("llama-3-8b"), "")
    job = Job(model=shape, tokens=10**11, sequence_length=8192)
    cluster = build(Cluster, lookup.cluster("64xh100"), "")
    often = plan(job, cluster, from_dict({"checkpoint": {"every_steps": 5}}, "test"))
    assert often.recipe.checkpoint.asynchronous
    assert any("checkpoint.asynchronous" in reason for reason in often.reasons)
    seldom = plan(job, cluster, from_dict({"checkpoint": {"every_steps": 1000}}, "test"))
    assert not seldom.recipe.checkpoint.asynchronous
    kept = plan(job, cluster, from_dict({"checkpoint": {"every_steps": 5, "asynchronous": False}}, "test"))
    assert not kept.recipe.checkpoint.asynchronous
