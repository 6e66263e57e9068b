"""Which model for the money, or for a loss: money is kept, the choice beats its neighbours, the two questions agree."""

from __future__ import annotations

import io
import itertools
import json

import pytest
from rich.console import Console

from thrifty.catalog import lookup
from thrifty.laws.law import Constants, LossLaw
from thrifty.laws.loss import PUBLISHED, loss
from thrifty.planner import budget_screen
from thrifty.planner.budget import Rates, for_budget, for_target
from thrifty.planner.expected_loss import job_for_target, with_law
from thrifty.planner.family import family, nearest
from thrifty.planner.search import search
from thrifty.spec import Job, ModelShape, ThriftyError
from thrifty.spec.cluster import Cluster
from thrifty.spec.job import Data
from thrifty.spec.load import Settings, build, from_dict

OWN = LossLaw(source="fitted to code", constants={"code": Constants(E=1.2, A=480.0, B=2000.0)}, alpha=0.35, beta=0.37)


def cluster(text: str = "8xh100") -> Cluster:
    return build(Cluster, lookup.cluster(text), "")


def llama(**changes: object) -> Job:
    shape = build(ModelShape, lookup.model("llama-3-8b"), "")
    asked: dict[str, object] = {"model": shape, "tokens": 10**10, "sequence_length": 2048}
    return Job.model_validate(asked | changes)


@pytest.fixture(scope="module")
def spent():
    return for_budget(2000.0, cluster(), Settings())


def test_the_money_is_spent_and_not_overspent(spent) -> None:
    bill = spent.found.plan.predicted
    assert 0.95 * 2000 <= bill.usd.value <= 2000
    assert spent.chosen.usd == bill.usd.value
    assert spent.chosen.tokens == bill.tokens.value


def test_the_choice_beats_the_sizes_beside_it(spent) -> None:
    assert len(spent.options) == 4
    assert all(spent.chosen.loss <= option.loss + 1e-3 for option in spent.options)
    low, high = spent.flat
    assert low <= spent.chosen.parameters <= high
    sizes = [option.parameters for option in spent.options]
    assert sizes == sorted(sizes)


def test_the_loss_is_the_law_s(spent) -> None:
    bill = spent.found.plan.predicted
    assert bill.loss is not None
    assert bill.loss.value == pytest.approx(loss(spent.chosen.parameters, spent.chosen.tokens))
    assert bill.loss.low < bill.loss.value < bill.loss.high
    assert "Besiroglu" in bill.loss.source


def test_matching_the_loss_with_another_size_costs_more(spent) -> None:
    for option in spent.options:
        if option is not spent.chosen:
            assert option.usd_to_match is None or option.usd_to_match > 0.99 * spent.chosen.usd


def test_the_target_question_is_the_inverse(spent) -> None:
    back = for_target(spent.chosen.loss, cluster(), Settings())
    assert back.found.plan.predicted.usd.value == pytest.approx(2000, rel=0.06)
    assert back.found.plan.predicted.loss is not None
    assert back.found.plan.predicted.loss.value == pytest.approx(spent.chosen.loss, abs=0.005)


def test_more_money_buys_a_larger_model_and_a_lower_loss(spent) -> None:
    more = for_budget(20000.0, cluster(), Settings())
    assert more.chosen.loss < spent.chosen.loss
    assert more.chosen.parameters > spent.chosen.parameters
    assert more.chosen.tokens > spent.chosen.tokens


def test_what_is_given_is_kept() -> None:
    job = {"sequence_length": 1024, "model": {"vocab_size": 50304}, "data": {"unique_tokens": 2_000_000_000}}
    given = from_dict({"job": job, "recipe": {"recompute": "full"}}, "--set")
    advice = for_budget(2000.0, cluster(), given)
    plan = advice.found.plan
    assert (plan.job.sequence_length, plan.job.model.vocab_size, plan.recipe.recompute) == (1024, 50304, "full")
    assert any("data repeats" in reason for reason in plan.reasons)
    assert advice.chosen.loss > for_budget(2000.0, cluster(), given.without("job.data")).chosen.loss


def test_a_law_of_one_s_own_decides() -> None:
    advice = for_budget(2000.0, cluster(), Settings(), OWN)
    assert advice.chosen.loss < 2.0 < for_budget(2000.0, cluster(), Settings()).chosen.loss
    assert advice.as_json()["law"]["constants"]["code"]["E"] == 1.2


def test_too_little_money_says_what_would_do() -> None:
    with pytest.raises(ThriftyError, match="starting up") as error:
        for_budget(0.01, cluster(), Settings())
    assert "fewer devices" in error.value.hint


@pytest.mark.parametrize("tree", [{"tokens": 10**9}, {"model": {"layers": 4}}, {"model": {"vocab_size": "many"}}])
def test_what_is_asked_for_cannot_be_given(tree: dict[str, object]) -> None:
    with pytest.raises(ThriftyError):
        for_budget(2000.0, cluster(), from_dict({"job": tree}, "--set"))


def test_free_devices_and_unreachable_losses_are_told() -> None:
    free = cluster().model_copy(update={"price": cluster().price.model_copy(update={"value": 0.0})})
    with pytest.raises(ThriftyError, match="costs nothing"):
        for_budget(10.0, free, Settings())
    with pytest.raises(ThriftyError, match="no model goes below"):
        for_target(1.5, cluster(), Settings())


def test_the_screen_fits_and_says_where_the_loss_is_from(spent) -> None:
    drawn = io.StringIO()
    Console(file=drawn, width=100).print(budget_screen.render(spent))
    lines = drawn.getvalue().splitlines()
    assert len(lines) <= 45
    assert max(map(len, lines)) <= 100
    assert "Besiroglu" in drawn.getvalue()
    assert lines[0].startswith("$2,000 on 8xH100")
    json.dumps(spent.as_json())


def test_rates_are_exact_where_planned_and_between_the_neighbours_elsewhere() -> None:
    rates = Rates((1e9, 4e9), (1e-9, 4e-9), 10.0)
    assert rates.at(1e9) == pytest.approx(1e-9)
    assert rates.at(2e9) == pytest.approx(2e-9)
    assert rates.at(8e9) == pytest.approx(8e-9)
    assert rates.usd(2e9, rates.tokens(2e9, 110.0)) == pytest.approx(110.0)
    assert rates.also(2e9, 3e-9).at(2e9) == pytest.approx(3e-9)


def test_the_family_is_dense_and_runs() -> None:
    sizes = [size for size, _ in family(128_256, 4096)]
    assert sizes == sorted(sizes)
    assert all(b / a < 1.7 for a, b in itertools.pairwise(sizes))
    assert sizes[0] < 50e6 < 1e12 < sizes[-1]
    assert nearest(family(128_256, 4096), 8.03e9)[1].layers == 32


def test_a_job_over_budget_is_refused_with_what_would_do() -> None:
    cost = search(llama(), cluster()).plan.predicted.usd.value
    assert search(llama(), cluster(), budget_usd=cost * 1.01).plan.predicted.usd.value <= cost * 1.01
    with pytest.raises(ThriftyError, match="budget") as error:
        search(llama(), cluster(), budget_usd=cost / 2)
    assert error.value.hint


def test_a_job_with_a_target_gets_the_tokens_of_the_law() -> None:
    job = job_for_target(llama(), 2.3)
    assert job.tokens is not None
    assert loss(8.03e9, job.tokens) == pytest.approx(2.3, abs=1e-3)
    repeated = job_for_target(llama(data=Data(unique_tokens=10**10)), 2.3)
    assert repeated.tokens is not None
    assert repeated.tokens > job.tokens
    with pytest.raises(ThriftyError, match="however often they repeat"):
        job_for_target(llama(data=Data(unique_tokens=10**8)), 2.3)


def test_a_law_s_loss_and_warnings_reach_the_plan() -> None:
    plan = search(llama(), cluster()).plan
    own = OWN.model_copy(update={"warnings": ("two sizes only",)})
    told = with_law(plan, own)
    assert told.predicted.loss is not None
    assert plan.predicted.loss is not None
    assert told.predicted.loss.value < plan.predicted.loss.value
    assert any("two sizes only" in reason for reason in told.reasons)
    assert told.hash == plan.hash
    assert with_law(plan, PUBLISHED).predicted.loss == plan.predicted.loss
