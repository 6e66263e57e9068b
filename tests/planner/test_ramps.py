"""Ramps in a plan: advised where they come as far for less, and priced where they are asked for."""

from __future__ import annotations

import pytest
from plan_examples import cluster, job

from thrifty.cost.ramped import useful_tokens
from thrifty.planner import ramps
from thrifty.planner.pool import price
from thrifty.planner.search import search
from thrifty.planner.space import Candidate
from thrifty.planner.terms import explain_term
from thrifty.spec.load import from_dict
from thrifty.spec.recipe import Recipe


def one(sequences: int, shard: int = 8) -> Candidate:
    how = Recipe(batch={"sequences": sequences, "micro_sequences": 1}, layout={"shard": shard})
    return price(job("gpt2-124m", tokens=2 * 10**9), cluster("8xh100"), how)


def test_a_batch_far_above_the_critical_one_is_advised_to_grow_into_it() -> None:
    """4,096 sequences of 1,024 tokens are 7.8 critical batches of 2 billion tokens: most of the early ones are lost."""
    wanted = job("gpt2-124m", tokens=2 * 10**9)
    found = ramps.advise(wanted, cluster("8xh100"), one(4096))
    assert found is not None
    assert found.useful > 1.2
    assert found.useful == pytest.approx(useful_tokens(wanted, found.recipe) / useful_tokens(wanted, one(4096).recipe))
    assert found.saving == pytest.approx(1 - found.run.usd / one(4096).run.usd / found.useful)
    line = ramps.told(wanted, cluster("8xh100"), one(4096))[0]
    assert "x the steps" in line
    assert "2410.21676" in line


def test_a_short_run_of_a_tiny_model_is_not_advised_and_a_given_ramp_stays() -> None:
    wanted = job("gpt2-124m", tokens=2 * 10**9)
    assert ramps.told(job("tiny-1m", tokens=10**9), cluster("8xh100"), one(4096)) == []  # no law holds
    found = ramps.advise(wanted, cluster("8xh100"), one(4096))
    assert found is not None
    again = Candidate(found.recipe, found.run, True)
    assert ramps.advise(wanted, cluster("8xh100"), again) is None


def test_a_ramp_that_is_asked_for_is_planned_and_explained() -> None:
    given = {"batch": {"sequences": 256, "ramp": {"name": "seesaw", "most_sequences": 1024}}}
    plan = search(job("gpt2-124m", tokens=2 * 10**9), cluster("8xh100"), from_dict(given, "test")).plan
    assert plan.recipe.batch.ramp is not None
    bill = dict(plan.predicted.terms())
    assert bill["steps"].value < 2e9 / 256 / 1024
    for term in ("steps", "tokens", "seconds", "step_seconds", "usd", "link_bytes.intra_node", "mfu"):
        assert explain_term(plan, term).value == pytest.approx(bill[term].value, rel=1e-6), term
