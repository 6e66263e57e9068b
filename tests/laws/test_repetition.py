"""Repeated data: new at first, worthless in the end; the law and the plan count it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from law_examples import job

from thrifty.laws.loss import PUBLISHED, loss, predicted_loss, tokens_to_target, worth
from thrifty.laws.repetition import effective_parameters, effective_tokens, seen_for
from thrifty.spec.job import Data

UNIQUE = st.floats(1e6, 1e13)


@given(UNIQUE, st.floats(0.01, 1))
def test_tokens_seen_once_are_whole(unique: float, share: float) -> None:
    assert effective_tokens(unique, unique * share) == unique * share


@given(UNIQUE, st.floats(1, 1000), st.floats(1.01, 3))
def test_repetition_helps_ever_less_and_never_hurts(unique: float, epochs: float, factor: float) -> None:
    some, more = effective_tokens(unique, unique * epochs), effective_tokens(unique, unique * epochs * factor)
    assert some <= more <= unique * (1 + 15.39) * (1 + 1e-12)
    assert some <= unique * epochs * (1 + 1e-12)


def test_four_epochs_are_nearly_new_and_forty_are_not() -> None:
    """The paper's own summary: up to four epochs hardly differ from new data; after sixteen, returns fall fast."""
    assert effective_tokens(1e9, 4e9) / 4e9 > 0.92
    assert effective_tokens(1e9, 40e9) / 40e9 < 0.40


@given(UNIQUE, st.floats(0.1, 60))
def test_seen_for_is_the_inverse(unique: float, epochs: float) -> None:
    seen = unique * epochs
    assert seen_for(unique, effective_tokens(unique, seen)) == pytest.approx(seen, rel=1e-6)
    assert seen_for(unique, unique * 16.4) is None


def test_excess_parameters_decay_faster() -> None:
    assert effective_parameters(1e9, 2e9) == 1e9
    assert effective_parameters(8e9, 1e9) < effective_tokens(1e9, 8e9) < 8e9


def test_the_loss_law_counts_unique_tokens() -> None:
    once = predicted_loss(job(), 8e9, 160e9)
    enough = predicted_loss(job(data=Data(unique_tokens=200_000_000_000)), 8e9, 160e9)
    repeated = predicted_loss(job(data=Data(unique_tokens=10_000_000_000)), 8e9, 160e9)
    assert once is not None
    assert enough is not None
    assert repeated is not None
    assert once.value == enough.value < repeated.value
    assert "repeated data" in repeated.source
    assert repeated.value == pytest.approx(loss(*worth(PUBLISHED, 8e9, 160e9, 10e9)))


@given(st.floats(1e8, 1e11), st.floats(1e8, 1e12), st.floats(1.0, 1.6))
def test_tokens_to_a_target_reach_it(size: float, unique: float, above: float) -> None:
    target = loss(size, 20 * size) * above
    tokens = tokens_to_target(PUBLISHED, size, target, unique)
    if tokens is not None:
        assert loss(*worth(PUBLISHED, size, tokens, unique)) == pytest.approx(target, rel=1e-6)
