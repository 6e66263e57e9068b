"""The optimizer in a plan: by tokens, by the time of a step, by memory; told where it stays closed."""

from __future__ import annotations

from typing import Any

import pytest
from plan_examples import cluster, job

from thrifty.planner import reasons, space
from thrifty.planner.search import search
from thrifty.planner.terms import explain_term
from thrifty.planner.waterfall import waterfall
from thrifty.spec.errors import ThriftyError
from thrifty.spec.load import from_dict
from thrifty.spec.plan import Plan
from thrifty.spec.recipe import Recipe


def planned(model: str = "gpt2-124m", on: str = "8xh100", levers: tuple[str, ...] = (), **given: Any) -> Plan:
    return search(job(model), cluster(on), from_dict(given, "test"), levers=levers).plan


def said(plan: Plan) -> str:
    return next((reason for reason in plan.reasons if reason.startswith("optimizer ")), "")


def test_adamw_stays_until_another_is_asked_for_and_what_that_would_save_is_told() -> None:
    plan = planned()
    assert plan.recipe.optimizer.name == "adamw"
    assert "muon (--levers optimizer) would reach the same loss for 2" in said(plan)
    assert "1.37 times fewer tokens (published)" in said(plan)


def test_muon_pays_for_a_small_model_and_its_loss_is_lower_after_the_same_tokens() -> None:
    plan, plain = planned(levers=("optimizer",)), planned()
    assert plan.recipe.optimizer.name == "muon"
    assert "the same loss for 2" in said(plan)
    assert plan.predicted.loss.value < plain.predicted.loss.value
    assert plan.predicted.tokens.value == plain.predicted.tokens.value
    assert explain_term(plan, "loss").value == pytest.approx(plan.predicted.loss.value)
    assert any(row.lever == "optimizer" for row in waterfall(plan).rows)


def test_muon_does_not_pay_where_a_step_is_short() -> None:
    """Sequence by sequence on one device: its products take as long as those of many more tokens."""
    plan = planned(
        "llama-3.2-3b", "1xh100", ("optimizer", "optimizer8bit"), batch={"sequences": 1, "micro_sequences": 1},
        optimizer={"state_bits": 8},
    )  # fmt: skip
    assert plan.recipe.optimizer.name == "adamw"
    assert "muon would save -" in said(plan)


def test_fewer_bits_fit_where_32_do_not() -> None:
    """3.2 billion parameters on two devices of 39 GiB: 16 bytes each with AdamW in 32 bits, 10 in 8."""
    tight = {"batch": {"sequences": 16, "micro_sequences": 1}, "layout": {"shard": 2}, "recompute": "none"}
    with pytest.raises(ThriftyError, match="does not fit"):
        planned("llama-3.2-3b", "2xa100-40gb", **tight)
    assert planned("llama-3.2-3b", "2xa100-40gb", ("optimizer8bit",), **tight).recipe.optimizer.state_bits < 32


def test_a_target_takes_fewer_tokens_with_muon() -> None:
    wanted = job("gpt2-124m").model_copy(update={"tokens": None, "target_loss": 3.2})
    plain, muon = (
        search(wanted, cluster("8xh100"), levers=levers).plan for levers in ((), ("optimizer",))
    )  # fmt: skip
    assert muon.recipe.optimizer.name == "muon"
    factor = reasons.tokens_factor(wanted, muon.recipe)
    assert plain.job.tokens / muon.job.tokens == pytest.approx(factor, rel=1e-6)
    assert muon.predicted.loss.value == pytest.approx(3.2, abs=0.01)
    assert muon.predicted.usd.value < plain.predicted.usd.value


@pytest.mark.parametrize(("software", "names"), [("thrifty", {"adamw", "muon"}), ("megatron", {"adamw"})])
def test_the_lever_offers_what_the_software_has(software: str, names: set[str]) -> None:
    asked = Recipe(software=software, batch={"sequences": 64, "micro_sequences": 1}), cluster("64xh100")
    if software == "megatron":
        with pytest.raises(ThriftyError, match="Megatron-LM does not run optimizer"):
            space.levers(*asked, {}, ["optimizer"])
        return
    found = space.levers(*asked, {}, ["optimizer", "optimizer8bit"])
    assert {one.optimizer.name for one in found} == names
    assert {one.optimizer.state_bits for one in found} == {32, 16, 8, 4}
