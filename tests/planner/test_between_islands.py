"""Compression and local steps in a plan: on over a slow link, off over a fast one, held to 16-bit gradients."""

from __future__ import annotations

import pytest
from plan_examples import cluster, job

from thrifty.cost.run import estimate
from thrifty.planner.search import search
from thrifty.spec import Cluster
from thrifty.spec.load import from_dict
from thrifty.spec.plan import Plan

LAYOUT = {"layout": {"island": 2, "shard": 1}, "precision": "fp32", "compile": False}


def islands(rate: str) -> Cluster:
    """Two machines of four cores, each an island, over such a link."""
    both = cluster("cpu")
    link = both.inter_island.model_dump() | {"bandwidth": rate, "latency": "100us"}
    return Cluster.model_validate(both.model_dump() | {"islands": 2, "inter_island": link})


def planned(rate: str, *levers: str, sequences: int = 32) -> Plan:
    given = from_dict(LAYOUT | {"batch": {"sequences": sequences, "micro_sequences": 4}}, "test")
    return search(job("tiny-1m", steps=200, sequence_length=128), islands(rate), given, levers=levers).plan


def said(plan: Plan, word: str) -> str:
    return next(reason for reason in plan.reasons if reason.startswith(word))


def test_compression_is_on_over_a_slow_link_and_says_what_it_saves() -> None:
    plan = planned("1MB/s", "compression")
    assert plan.recipe.exchange.codec is not None
    assert "compression on" in said(plan, "compression")
    assert "with 16-bit gradients" in said(plan, "compression")
    halved = plan.recipe.model_copy(update={"exchange": plan.recipe.exchange.model_copy(
        update={"codec": None, "dtype": "bf16"})})  # fmt: skip
    plain = estimate(plan.job, plan.cluster, halved).step.total
    assert plan.predicted.step_seconds.value < 0.7 * plain


def test_compression_is_off_where_the_link_is_no_hindrance() -> None:
    plan = planned("10GB/s", "compression", sequences=256)
    assert plan.recipe.exchange.codec is None
    assert "compression off" in said(plan, "compression")


def test_local_steps_are_on_over_a_slow_link_and_their_loss_is_not_claimed() -> None:
    plan = planned("1MB/s", "localsteps")
    assert plan.recipe.exchange.local_steps > 1
    assert "not priced" in said(plan, "localsteps")


@pytest.mark.parametrize("rate", ["1MB/s", "10GB/s"])
def test_both_stay_closed_until_opened(rate: str) -> None:
    plan = planned(rate)
    assert not plan.recipe.exchange.between_islands
    assert not any(reason.startswith(("compression", "localsteps")) for reason in plan.reasons)
