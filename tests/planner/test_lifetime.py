"""A model's life: the more is served, the smaller the cheapest size; and development runs on top of a plan's bill."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from thrifty.catalog import lookup
from thrifty.cost.flops import model_flops_per_token
from thrifty.cost.run import with_experiments
from thrifty.cost.serving import Traffic
from thrifty.laws import loss as law
from thrifty.planner.deploy import Formats, deploy
from thrifty.planner.explain import explain
from thrifty.planner.lifetime import MOST_TOKENS_PER_PARAMETER, cheapest_life, life, training_usd
from thrifty.planner.screen import render
from thrifty.planner.search import search
from thrifty.spec.cluster import Cluster
from thrifty.spec.errors import ThriftyError
from thrifty.spec.figure import modelled
from thrifty.spec.job import Experts, Job, ModelShape
from thrifty.spec.load import Settings, build

LLAMA_8B = build(ModelShape, lookup.model("llama-3.1-8b"), "")
H100 = build(Cluster, lookup.cluster("8xh100"), "")
TRAFFIC = Traffic(500, 500)
PLAIN = Formats()


def test_training_is_flops_over_rate_times_price():
    flops = model_flops_per_token(LLAMA_8B, 8192) * 1e12
    hours = flops / (989e12 * 0.4 * H100.goodput.value) / 3600
    assert training_usd(LLAMA_8B, 1e12, H100) == pytest.approx(hours * H100.price.value)


def test_the_more_is_served_the_smaller_the_cheapest_model_and_the_longer_it_is_trained():
    target = law.loss(8e9, 160e9)
    best = [cheapest_life(LLAMA_8B, target, served, H100, TRAFFIC, PLAIN)[0] for served in (0, 1e11, 1e12, 1e13, 1e14)]
    counted = [one.parameters for one in best]
    assert counted == sorted(counted, reverse=True)
    assert counted[-1] < counted[0]
    tokens = [one.tokens for one in best]
    assert tokens == sorted(tokens)
    assert all(one.loss == pytest.approx(target) for one in best)
    # With nothing served the size is the law's compute optimum, up to the grid of sizes.
    optimum = best[0]
    assert law.compute_optimal_tokens(optimum.parameters) == pytest.approx(optimum.tokens, rel=0.4)


@settings(deadline=None, max_examples=40)
@given(served=st.floats(0, 1e14))
def test_a_life_is_never_cheaper_than_the_cheapest(served):
    own = life(LLAMA_8B, 160e9, served, H100, TRAFFIC, PLAIN)
    lives = cheapest_life(LLAMA_8B, own.loss, served, H100, TRAFFIC, PLAIN)
    assert lives[0].usd <= own.usd * (1 + 1e-9)
    assert [one.usd for one in lives] == sorted(one.usd for one in lives)
    assert all(one.tokens <= MOST_TOKENS_PER_PARAMETER * one.parameters for one in lives)


def test_dollars_of_a_life_add_up_with_their_interval():
    figures = life(LLAMA_8B, 160e9, 1e12, H100, TRAFFIC, PLAIN).figures((0.8, 1.25))
    training, serving, both = (figures[name] for name in ("training_usd", "serving_usd", "usd"))
    assert both.value == pytest.approx(training.value + serving.value)
    assert both.low == pytest.approx(training.value + 0.8 * serving.value)
    assert both.high == pytest.approx(training.value + 1.25 * serving.value)


def test_what_the_law_does_not_cover_is_refused():
    routed = LLAMA_8B.model_copy(update={"experts": Experts(count=8, active=2, ffn=14336)})
    with pytest.raises(ThriftyError, match="dense models"):
        cheapest_life(routed, 2.0, 1e12, H100, TRAFFIC, PLAIN)
    with pytest.raises(ThriftyError, match="no model reaches"):
        cheapest_life(LLAMA_8B, 1.0, 1e12, H100, TRAFFIC, PLAIN)


# ---- layouts


def test_the_layout_with_most_tokens_is_taken():
    best, found = deploy(LLAMA_8B, H100, TRAFFIC, PLAIN)
    assert best.devices == 8
    for tensor in (1, 2, 4, 8):
        _, other = deploy(LLAMA_8B, H100, TRAFFIC, PLAIN, tensor=tensor)
        assert other.tokens_per_second <= found.tokens_per_second
    narrow = build(ModelShape, lookup.model("llama-3.1-70b"), "")
    assert deploy(narrow, H100, TRAFFIC, PLAIN)[0].tensor >= 4, "two devices do not hold 70B parameters in 16 bits"


def test_a_layout_that_cannot_be_says_why():
    with pytest.raises(ThriftyError, match="does not divide 8 devices"):
        deploy(LLAMA_8B, H100, TRAFFIC, PLAIN, tensor=3)
    huge = build(ModelShape, lookup.model("llama-3.1-405b"), "")
    with pytest.raises(ThriftyError, match="GiB"):
        deploy(huge, H100, TRAFFIC, PLAIN)
    assert deploy(huge, H100, TRAFFIC, Formats("fp8", "fp8"))[0].tensor == 8


# ---- development runs


def test_development_runs_come_on_top_of_the_bill():
    job = Job(model=LLAMA_8B, tokens=10**9, sequence_length=2048, experiments=0.5)
    told = explain(search(job, H100, Settings()))
    plain = explain(search(job.model_copy(update={"experiments": 0.0}), H100, Settings()))
    bill = told.plan.predicted
    assert bill.usd.value == plain.plan.predicted.usd.value
    assert told.programme["usd"].value == pytest.approx(1.5 * bill.usd.value)
    assert told.programme["co2"].high == pytest.approx(1.5 * (bill.co2.high or 0))
    assert plain.programme == {}
    shown = [str(part) for part in render(told).renderables]  # type: ignore[attr-defined]
    assert any(line.startswith("with development x1.5: $") for line in shown)
    assert not any("development" in str(part) for part in render(plain).renderables)  # type: ignore[attr-defined]


def test_a_figure_without_an_interval_keeps_none():
    job = Job(model=LLAMA_8B, steps=1, sequence_length=2048, experiments="82%")
    both = with_experiments(job, modelled(100.0, "usd", "x"))
    assert (both.value, both.low, both.high) == (pytest.approx(182.0), None, None)
