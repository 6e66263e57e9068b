"""What bandwidth a plan needs: bisected values hold on re-evaluation, and more bandwidth never hurts."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from plan_examples import PLANS, SEARCHES, cluster, found, job

from thrifty.cost.step import step_seconds
from thrifty.planner.assumptions import changed
from thrifty.planner.bandwidth import EXPOSED, bandwidth, exposed_share, needed, sentences
from thrifty.planner.growth import DEARER, FASTER, Growth, growth, least, resized, scaled
from thrifty.planner.search import search
from thrifty.planner.shortlist import cheapest_fitting
from thrifty.spec.load import from_dict
from thrifty.spec.plan import Plan


@pytest.mark.parametrize("name", PLANS)
def test_the_needed_bandwidth_reaches_the_share_and_a_little_less_does_not(name: str) -> None:
    plan = PLANS[name]()
    for link in bandwidth(plan).links:
        path = f"{link.link}.bandwidth"
        assert link.exposed == exposed_share(plan.job, plan.cluster, plan.recipe)
        assert [need.share for need in link.needs] == list(EXPOSED)
        for need in link.needs:
            if need.bandwidth is None:
                assert need.floor > need.share
                continue
            assert exposed_share(plan.job, changed(plan.cluster, path, need.bandwidth), plan.recipe) <= need.share
            below = changed(plan.cluster, path, 0.99 * need.bandwidth)
            assert exposed_share(plan.job, below, plan.recipe) > need.share
            assert need.floor <= need.share


@pytest.mark.parametrize("name", PLANS)
def test_more_bandwidth_never_hurts(name: str) -> None:
    plan = PLANS[name]()
    for link in bandwidth(plan).links:
        for less, more in pairwise(link.curve):
            assert less.bandwidth < more.bandwidth
            assert less.tokens_per_second <= more.tokens_per_second * (1 + 1e-9)
            assert less.exposed >= more.exposed - 1e-9
        today = min(link.curve, key=lambda point: abs(point.bandwidth - link.bandwidth))
        assert today.exposed == pytest.approx(link.exposed)


def test_a_smaller_share_needs_more() -> None:
    plan = found("llama-3-8b", "64xh100").plan
    shares = (0.3, 0.2, 0.1)
    needs = [needed(plan.job, plan.cluster, plan.recipe, "inter_node", share).bandwidth for share in shares]
    assert all(need is not None for need in needs)
    assert needs == sorted(needs, key=lambda need: need or 0.0)


def test_one_rank_needs_none() -> None:
    told = bandwidth(found("tiny-1m", "h100").plan)
    assert told.links == ()
    assert "no bandwidth is needed" in next(sentences(told))


def ratio(plan: Plan, grown: Growth, value: float) -> float:
    """A step on twice the nodes over one on today's, the best of all that are tried at each."""
    steps = []
    for factor in (1, 2):
        there = changed(resized(plan.cluster, factor), f"{grown.link}.bandwidth", value)
        best = cheapest_fitting(plan.job, there, list(scaled(plan.job, there, plan.recipe, factor)))
        assert best is not None
        steps.append(step_seconds(plan.job, there, best.recipe).total)
    return steps[1] / steps[0]


@pytest.mark.parametrize(
    "case", [("gpt2-124m", "8xa100"), ("tiny-1m", "cpu"), ("llama-3-8b", "8xh100")], ids=" on ".join
)
def test_doubling_pays_above_what_is_said(case: tuple[str, str]) -> None:
    plan = found(*case).plan
    grown = growth(plan.job, plan.cluster, plan.recipe)
    assert grown.doubles
    for found_at, most in ((grown.pays_from, 1 - FASTER), (grown.cheap_from, (1 + DEARER) / 2)):
        if found_at:
            assert ratio(plan, grown, 1.02 * found_at) <= most * 1.001
            assert ratio(plan, grown, 0.9 * found_at) > most
    if grown.pays_from is not None and grown.cheap_from is not None:
        assert grown.pays_from <= grown.cheap_from, "saving 5% of the time is easier than at 5% more money"


@pytest.mark.parametrize("case", SEARCHES, ids=" on ".join)
def test_sizes_double_up_to_the_largest_worth_it(case: tuple[str, str]) -> None:
    plan = found(*case).plan
    grown = growth(plan.job, plan.cluster, plan.recipe)
    assert plan.cluster.devices in {size.devices for size in grown.sizes}
    for before, after in pairwise(grown.sizes):
        assert after.nodes == 2 * before.nodes
        assert after.faster == pytest.approx(1 - after.step_seconds / before.step_seconds)
        assert (after.faster >= FASTER) or before.devices >= grown.largest
        assert after.usd_per_token / before.usd_per_token == pytest.approx(2 * after.step_seconds / before.step_seconds)
    assert grown.largest in {size.devices for size in grown.sizes}
    assert grown.limit


def test_slow_links_keep_a_cluster_small() -> None:
    plan = found("gpt2-124m", "8xa100").plan
    slow = changed(plan.cluster, "inter_node.bandwidth", 1e6)
    assert growth(plan.job, slow, plan.recipe).largest == 8
    assert growth(plan.job, plan.cluster, plan.recipe).largest > 8


def test_a_batch_that_cannot_be_shared_further_is_the_limit() -> None:
    given = from_dict({"batch": {"sequences": 8, "micro_sequences": 1}}, "test")
    plan = search(job("gpt2-124m"), cluster("8xa100"), given).plan
    grown = growth(plan.job, plan.cluster, plan.recipe)
    assert not grown.doubles
    assert (grown.pays_from, grown.largest) == (None, 8)
    assert "cannot be shared" in grown.limit


def test_islands_grow_over_the_link_between_them() -> None:
    plan = found("llama-3-8b", "64xh100").plan
    islands = plan.cluster.model_copy(update={"islands": 2})
    assert growth(plan.job, islands, plan.recipe).link == "inter_island"
    assert (resized(islands, 2).islands, resized(islands, 2).nodes) == (4, 16)
    assert (resized(islands, 0.5).islands, resized(islands, 0.5).nodes) == (1, 4)


@settings(max_examples=50, deadline=None)
@given(st.floats(1.0, 1e6), st.floats(1e-6, 1e-2))
def test_least_finds_a_threshold(threshold: float, precise: float) -> None:
    at = least(lambda value: value >= threshold, 0.5, 1e7, precise)
    assert threshold <= at <= threshold * (1 + precise) * (1 + 1e-9)
