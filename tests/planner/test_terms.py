"""Every term of a bill is explained by a formula that gives the bill's own figure."""

from __future__ import annotations

import pytest
from plan_examples import PLANS, found

from thrifty.planner import formula
from thrifty.planner.derivations import derive
from thrifty.planner.terms import explain_term
from thrifty.spec import ThriftyError


@pytest.mark.parametrize("name", PLANS)
def test_every_term_is_its_formula(name: str) -> None:
    plan = PLANS[name]()
    terms = dict(plan.predicted.terms())
    assert {"usd", "seconds_by_part.communication", "memory.activations", "link_bytes.inter_node"} <= set(terms)
    for term, figure in terms.items():
        told = explain_term(plan, term)
        assert told.value == pytest.approx(figure.value, rel=1e-9), term
        assert (told.unit, told.low, told.high) == (figure.unit, figure.low, figure.high)
        assert told.source == figure.source
        for number in told.numbers:
            assert number.name in derive(plan, term).formula
            assert number.source, f"{term}: {number.name} does not say where it comes from"
            assert number.provenance in ("measured", "modelled", "assumed", "published", "given")


def test_numbers_carry_the_clusters_own_provenance() -> None:
    plan = found().plan
    told = {number.name: number for number in explain_term(plan, "usd").numbers}
    price = plan.cluster.price
    assert (told["price"].value, told["price"].provenance) == (price.value, price.provenance)
    assert (told["price"].source, told["price"].date) == (price.source, price.date)
    assert told["devices"].value == plan.cluster.devices
    assert told["seconds"].source == "--explain seconds"


def test_numbers_of_other_terms_can_be_explained_in_turn() -> None:
    plan = found().plan
    known = dict(plan.predicted.terms())
    for name in known:
        for number in derive(plan, name).numbers:
            if number.source.startswith("--explain "):
                assert known[number.source.removeprefix("--explain ")].value == number.value


def test_communication_lists_what_is_sent() -> None:
    details = explain_term(found().plan, "seconds_by_part.communication").details
    assert any("all_gather of block (forward)" in line and "inter_node" in line for line in details)


@pytest.mark.parametrize(
    ("term", "said"),
    [
        ("usdd", "'usd'"),
        ("memory", "memory.activations"),
        ("memory.activation", "'memory.activations'"),
        ("", "--explain list"),
    ],
)
def test_an_unknown_term_is_told_with_the_nearest(term: str, said: str) -> None:
    with pytest.raises(ThriftyError, match="has no term") as error:
        explain_term(found().plan, term)
    assert said in error.value.hint


def test_a_loss_that_nothing_predicts_says_why() -> None:
    with pytest.raises(ThriftyError, match="no predicted loss"):
        explain_term(found("tiny-1m", "cpu").plan, "loss")


# ---- formulas


@pytest.mark.parametrize(
    ("text", "value"),
    [("a + b * c", 14.0), ("(a + b) / c - 1", 0.25), ("a ** b", 8.0), ("ceil(c / b)", 2.0), ("max(a, b, c)", 4.0)],
)
def test_formulas_are_worked_out(text: str, value: float) -> None:
    assert formula.evaluate(text, {"a": 2.0, "b": 3.0, "c": 4.0}) == value


@pytest.mark.parametrize("text", ["a + missing", "__import__('os')", "a.real", "[a]", "min(a)", "a if a else a", "-a"])
def test_nothing_else_is_a_formula(text: str) -> None:
    with pytest.raises(ValueError, match="not part of a formula"):
        formula.evaluate(text, {"a": 1.0})


def test_a_formula_is_shown_in_words_and_in_numbers() -> None:
    text = "ceil(job_tokens / tokens) * rate ** 2"
    assert formula.in_words(text) == "ceil(job tokens / tokens) x rate ^ 2"
    shown = formula.substituted(text, {"job_tokens": 1e6, "tokens": 512.0, "rate": 0.123456789})
    assert shown == "ceil(1,000,000 / 512) x 0.123457 ^ 2"
