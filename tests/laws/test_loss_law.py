"""The loss law: its published constants, its inverse, and where it keeps silent."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from law_examples import job

from thrifty.laws.loss import compute_optimal_tokens, loss, predicted_loss, tokens_for_loss, why_not
from thrifty.spec import ThriftyError
from thrifty.spec.job import Data, Tokenizer

SIZES = st.floats(1e7, 1e12)


def test_the_constants_are_the_refit_s() -> None:
    """Besiroglu et al. 2024, at the size and tokens of Chinchilla: 1.8172 + 482.01/N^0.3478 + 2085.43/D^0.3658."""
    n, d = 70e9, 1.4e12
    assert loss(n, d) == pytest.approx(1.8172 + 482.01 * n**-0.3478 + 2085.43 * d**-0.3658)
    assert 1.9 < loss(n, d) < 2.1


@given(SIZES, st.floats(1.01, 1.5))
def test_tokens_and_loss_are_inverse(n: float, above: float) -> None:
    target = (1.8172 + 482.01 / n**0.3478) * above
    assert loss(n, tokens_for_loss(n, target)) == pytest.approx(target, rel=1e-9)


def test_an_unreachable_target_names_the_floor_and_a_size_that_would_do() -> None:
    with pytest.raises(ThriftyError) as error:
        tokens_for_loss(125e6, 2.0)
    assert "125M parameters" in error.value.what
    assert "2.553" in error.value.what  # 1.8172 + 482.01 / 125e6^0.3478
    assert "parameters, which needs" in error.value.hint
    with pytest.raises(ThriftyError, match="no model reaches"):
        tokens_for_loss(125e6, 1.8)


@given(st.floats(1e7, 1e11), st.floats(1.84, 3.0))
def test_the_size_that_would_do_does(n: float, target: float) -> None:
    floor = 1.8172 + 482.01 / n**0.3478
    if target > floor:
        return
    enough = 2 * (482.01 / (target - 1.8172)) ** (1 / 0.3478)
    assert enough > n
    assert loss(enough, tokens_for_loss(enough, target)) == pytest.approx(target)


@given(SIZES)
def test_the_optimum_is_one(n: float) -> None:
    """At constant N x D, every other split of the same FLOPs loses."""
    d = compute_optimal_tokens(n)
    assert all(loss(n * f, d / f) >= loss(n, d) for f in (0.5, 0.9, 1.1, 2.0))


def test_the_optimum_is_about_twenty_tokens_a_parameter() -> None:
    assert 15 < compute_optimal_tokens(70e9) / 70e9 < 25


def test_the_law_is_silent_outside_its_range() -> None:
    assert why_not(job(), 8e9) == ""
    figure = predicted_loss(job(), 8e9, 160e9)
    assert figure is not None
    assert figure.unit == "nat/token"
    assert "vocabularies" in why_not(job("tiny-10m"), 1e9)
    assert "5M" in why_not(job(), 5e6)
    assert "82k" not in why_not(job(), 8e9)
    assert "tokens and more" in why_not(job(), 8e9, 82e3)
    bytes_of_my_own = Data(path="mine.txt", tokenizer=Tokenizer(kind="bytes"))
    assert "bytes" in why_not(job(data=bytes_of_my_own), 8e9)
    assert predicted_loss(job(data=bytes_of_my_own), 8e9, 1e9) is None
