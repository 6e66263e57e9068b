"""The waterfall: it starts plain, ends at the plan, and its rows multiply out."""

from __future__ import annotations

import math

import pytest
from plan_examples import PLANS, cluster, found, job, plan_of

from thrifty.cost.memory import usable_bytes
from thrifty.cost.run import estimate
from thrifty.planner import waterfall as waterfall_module
from thrifty.planner.shortlist import price
from thrifty.planner.waterfall import baseline, waterfall
from thrifty.spec import Recipe


@pytest.mark.parametrize("name", PLANS)
def test_rows_multiply_to_the_plan(name: str) -> None:
    plan = PLANS[name]()
    fall = waterfall(plan)
    run = estimate(plan.job, plan.cluster, plan.recipe)
    assert (fall.usd, fall.seconds) == (run.usd, run.seconds), "the last row is the plan itself"
    product = math.prod(row.factor for row in fall.rows)
    assert fall.plain_usd * product == pytest.approx(fall.usd)
    assert fall.plain_usd - sum(row.gain_usd for row in fall.rows) == pytest.approx(fall.usd)
    assert fall.gain == pytest.approx(1 - product)
    for row in fall.rows:
        assert row.gain == pytest.approx(1 - row.factor)
        assert row.risk


def test_the_plain_way_is_plain_and_fits() -> None:
    plan = found().plan
    start, note = baseline(plan.job, plan.cluster, plan.recipe)
    assert start.fits
    recipe = start.recipe
    assert (recipe.precision, recipe.compile, recipe.exchange.dtype, recipe.layout.tensor) == ("bf16", False, "fp32", 1)
    assert recipe.batch.sequences == plan.recipe.batch.sequences
    assert "too large: 64 replicas" in note, "it says which plainer ways did not fit"


def test_a_small_model_starts_at_plain_data_parallel_and_the_largest_microbatch() -> None:
    plan = found("gpt2-124m", "8xa100").plan
    start, note = baseline(plan.job, plan.cluster, plan.recipe)
    assert (start.recipe.layout.island, start.recipe.layout.shard, note) == (8, 1, "")
    twice = start.recipe.batch.micro_sequences * 2
    larger = start.recipe.model_copy(update={"batch": start.recipe.batch.model_copy(update={"micro_sequences": twice})})
    room = usable_bytes(plan.cluster, 8)
    each = start.recipe.batch.sequences // 8
    assert twice > each or estimate(plan.job, plan.cluster, larger).memory.peak > room


def test_a_cpu_starts_at_one_process_a_machine_in_fp32() -> None:
    plan = found("tiny-1m", "cpu").plan
    start, _ = baseline(plan.job, plan.cluster, plan.recipe)
    assert (start.recipe.layout.ranks, start.recipe.precision) == (2, "fp32")


def test_where_nothing_plain_fits_it_says_so() -> None:
    plan = found("llama-3-8b", "8xh100").plan
    chip = plan.cluster.accelerator
    small = chip.model_copy(update={"memory": chip.memory.model_copy(update={"value": 4 * 2.0**30})})
    short = plan.cluster.model_copy(update={"accelerator": small})
    start, note = baseline(plan.job, short, plan.recipe)
    assert not start.fits
    assert "nothing plain fits" in note
    assert waterfall(plan_of(plan.job, short, plan.recipe)).usd == pytest.approx(plan.predicted.usd.value)


def test_levers_that_change_the_numbers_say_so() -> None:
    one, on = job("llama-3-8b"), cluster("16xh100")
    islands = {
        "layout": {"island": 2, "shard": 8},
        "exchange": {"dtype": "bf16", "codec": "fp8_e4m3", "local_steps": 16},
    }
    recipe = {"software": "torchtitan", "batch": {"sequences": 256, "micro_sequences": 1}, "recompute": "full"}
    plan = plan_of(one, on, Recipe.model_validate(recipe | islands))
    risks = {row.lever: row.risk for row in waterfall(plan).rows}
    assert "changes the optimisation" in risks["local steps"]
    assert "error feedback" in risks["compression"]
    assert "rounds gradients" in risks["exchange"]


def test_levers_that_need_each_other_are_pulled_together(monkeypatch: pytest.MonkeyPatch) -> None:
    one, on = job("llama-3-8b"), cluster("64xh100")
    shared = {"software": "megatron", "recompute": "full"}
    split = {"shard": 8, "tensor": 8, "zero": 1}
    plain = Recipe.model_validate(shared | {"layout": split, "batch": {"sequences": 192, "micro_sequences": 2}})
    # Interleaving needs microbatches in multiples of the 8 stages: 192 / 8 / 2 = 12 are not, 192 / 8 / 3 = 8 are.
    staged = {"shard": 8, "pipeline": 8, "zero": 1, "schedule": "interleaved", "interleave": 2}
    pick = Recipe.model_validate(shared | {"layout": staged, "batch": {"sequences": 192, "micro_sequences": 3}})
    monkeypatch.setattr(waterfall_module, "baseline", lambda *_: (price(one, on, plain), ""))
    fall = waterfall(plan_of(one, on, pick))
    assert [row.lever for row in fall.rows] == ["layout and microbatch"]
    assert fall.usd == estimate(one, on, pick).usd
