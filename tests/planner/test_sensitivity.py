"""The tornado: its ends hold the plan between them, and what flips the pick flips it where it says."""

from __future__ import annotations

import pytest
from plan_examples import SEARCHES, found, keeping

from thrifty.cost.run import estimate
from thrifty.planner.assumptions import Used, changed, figure_at, used
from thrifty.planner.search import NEAR
from thrifty.planner.sensitivity import interval, sensitivity
from thrifty.planner.shortlist import near, price, runs
from thrifty.spec.figure import Figure


@pytest.mark.parametrize("case", SEARCHES, ids=" on ".join)
def test_ends_hold_the_plan_between_them(case: tuple[str, str]) -> None:
    told = sensitivity(found(*case))
    for swing in told.swings:
        assert swing.low.value <= swing.value <= swing.high.value, swing.name
        for cost in ("usd", "seconds", "joules", "grams"):
            base = getattr(told, cost)
            ends = sorted(getattr(end, cost) for end in (swing.low, swing.high))
            assert ends[0] <= base * (1 + 1e-9), (swing.name, cost)
            assert ends[1] >= base * (1 - 1e-9), (swing.name, cost)
    spans = [swing.span_usd for swing in told.swings]
    assert spans == sorted(spans, reverse=True)


def test_an_end_is_the_plan_priced_there() -> None:
    one = found()
    swing = next(swing for swing in sensitivity(one).swings if swing.name == "price")
    dearer = changed(one.plan.cluster, "price", swing.high.value)
    assert swing.high.usd == estimate(one.plan.job, dearer, one.plan.recipe).usd
    assert swing.high.usd / one.plan.predicted.usd.value == pytest.approx(swing.high.value / swing.value)
    assert "range that its source gives" in swing.basis


def test_money_alone_moves_with_price_and_energy_alone_with_pue() -> None:
    told = sensitivity(found())
    swings = {swing.name: swing for swing in told.swings}
    assert swings["price"].low.joules == swings["price"].high.joules
    assert swings["pue"].low.usd == swings["pue"].high.usd
    assert swings["pue"].high.grams > swings["pue"].low.grams
    assert swings["grid"].high.joules == told.joules
    assert "bf16 best product" in swings
    assert "bf16 peak" not in swings, "one of a chip's two rates"


def test_only_links_that_are_used_are_varied() -> None:
    names = {swing.name for swing in sensitivity(found("gpt2-124m", "8xa100")).swings}
    assert "inter-node link" not in names
    assert not {
        name for name in (swing.name for swing in sensitivity(found("tiny-1m", "h100")).swings) if "link" in name
    }


def test_the_pick_changes_where_it_is_said_to() -> None:
    one = keeping({"layout": {"reshard_after_forward": True}}, "gpt2-124m", "8xa100")
    flips = [swing for swing in sensitivity(one).swings if swing.flips_at is not None]
    assert flips, "this plan has close seconds"
    plan = one.plan
    paths = {figure.name: figure.path for figure in used(plan)}
    recipes = near(plan.job, plan.cluster, plan.recipe, [other.recipe for other in one.runners_up], one.kept)

    def gain(path: str, value: float) -> float:
        there = changed(plan.cluster, path, value)
        own, *others = (price(plan.job, there, recipe) for recipe in recipes)
        return 1 - min(other.run.usd for other in others if other.fits) / own.run.usd

    for swing in flips:
        assert swing.flips_at is not None
        assert gain(paths[swing.name], swing.flips_at) >= NEAR * 0.999
        nearer = swing.flips_at + 0.01 * (swing.value - swing.flips_at)
        assert gain(paths[swing.name], nearer) <= NEAR * 1.05
        assert any(swing.name in line for line in sensitivity(one).sentences)


def test_the_shortlist_keeps_what_is_given_and_runs() -> None:
    one = keeping({"recompute": "none", "batch": {"micro_sequences": 16}}, "gpt2-124m", "8xa100")
    recipes = near(one.plan.job, one.plan.cluster, one.plan.recipe, (), one.kept)
    assert recipes[0] == one.plan.recipe
    assert {recipe.batch.micro_sequences for recipe in recipes} == {16}
    assert {recipe.recompute for recipe in recipes} == {"none"}
    assert all(runs(one.plan.job, recipe) for recipe in recipes)
    assert len(set(recipes)) == len(recipes)


def test_a_recipe_with_nothing_open_has_no_rivals() -> None:
    plan = found("gpt2-124m", "8xa100").plan
    told = sensitivity(keeping(plan.recipe.model_dump(), "gpt2-124m", "8xa100"))
    assert told.shortlist == 1
    assert "left nothing open" in told.sentences[0]


@pytest.mark.parametrize(
    ("path", "value", "provenance", "ends"),
    [
        ("goodput", 0.9, "assumed", (0.8, 0.95)),
        ("goodput", 1.0, "assumed", (0.98, 1.0)),
        ("pue", 1.7, "assumed", (1.08, 1.7)),
        ("utilisation", 0.9, "assumed", (0.675, 1.0)),
        ("grid", 400.0, "assumed", (40.0, 800.0)),
        ("grid", 400.0, "published", (320.0, 480.0)),
        ("inter_node.bandwidth", 1e9, "assumed", (5e8, 1.25e9)),
        ("inter_node.bandwidth", 1e9, "measured", (9e8, 1.1e9)),
        ("accelerator.peak_flops.bf16", 1e15, "published", (0.9e15, 1.1e15)),
    ],
)
def test_intervals(path: str, value: float, provenance: str, ends: tuple[float, float]) -> None:
    figure = Figure.model_validate({"value": value, "unit": "1", "provenance": provenance})
    low, high, basis = interval(Used(path, path, figure))
    assert (low, high) == pytest.approx(ends)
    assert basis


def test_every_figure_used_has_a_path_that_can_be_changed() -> None:
    for case in SEARCHES:
        plan = found(*case).plan
        for one in used(plan):
            altered = changed(plan.cluster, one.path, one.figure.value * 1.5)
            assert figure_at(altered, one.path).value == one.figure.value * 1.5
            assert figure_at(plan.cluster, one.path) == one.figure
