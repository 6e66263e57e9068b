"""Break-even prices: at that price the two cost the same."""

from __future__ import annotations

import pytest
from plan_examples import found, job

from thrifty.catalog import lookup
from thrifty.planner.rivals import SHOWN, rivals, sentences
from thrifty.planner.search import search
from thrifty.spec import Cluster, ThriftyError
from thrifty.spec.load import build


def test_at_the_break_even_price_both_cost_the_same() -> None:
    one = found("gpt2-124m", "8xa100")
    rival = rivals(one, ["b200"])[0]
    assert (rival.accelerator, rival.devices) == ("B200-SXM-180GB", 8)
    assert rival.seconds is not None
    assert rival.break_even is not None
    cost = rival.devices * rival.seconds / 3600 * rival.break_even
    assert cost == pytest.approx(one.plan.predicted.usd.value)
    assert rival.usd is not None
    assert rival.price is not None
    assert rival.own_break_even is not None
    assert rival.usd / rival.price * rival.break_even == pytest.approx(one.plan.predicted.usd.value)
    own_hours = one.plan.cluster.devices * one.plan.predicted.seconds.value / 3600
    assert own_hours * rival.own_break_even == pytest.approx(rival.usd)


def test_a_rival_costs_no_less_than_a_whole_search_finds() -> None:
    one = found("gpt2-124m", "8xa100")
    rival = rivals(one, ["h100"])[0]
    on = build(Cluster, lookup.cluster("8xh100"), "")
    searched = search(job("gpt2-124m"), on).plan.predicted.usd.value
    assert rival.usd is not None
    assert searched * 0.97 <= rival.usd <= searched * 1.05


def test_named_rivals_come_first_and_the_plans_own_chip_is_none() -> None:
    one = found()
    shown = rivals(one, ["l4", "nvidia l4"])
    assert [rival.accelerator for rival in shown].count("L4") == 1
    assert shown[0].accelerator == "L4"
    assert len(shown) == 1 + SHOWN
    assert "H100-SXM-80GB" not in {rival.accelerator for rival in shown}
    costs = [rival.usd for rival in shown[1:] if rival.usd is not None]
    assert costs == sorted(costs)
    assert len(list(sentences(one.plan, shown))) == len(shown) + 1


def test_a_rival_that_cannot_hold_the_job_says_so() -> None:
    shown = rivals(found("llama-3-70b", "512xh100"), ["l4"])
    assert shown[0].recipe == ""
    assert shown[0].break_even is None
    assert "none of the recipes tried fits" in next(sentences(found("llama-3-70b", "512xh100").plan, shown))


def test_a_cpu_plan_is_compared_only_with_what_is_named() -> None:
    one = found("tiny-1m", "cpu")
    assert rivals(one) == ()
    named = rivals(one, ["h100"])
    assert [rival.devices for rival in named] == [1]


def test_an_unknown_rival_is_told() -> None:
    with pytest.raises(ThriftyError, match="no accelerator 'h1000'") as error:
        rivals(found(), ["h1000"])
    assert "'h100'" in error.value.hint
