"""The critical batch: its published law against published step counts, and the trade of steps for tokens."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from thrifty.laws.critical_batch import (
    critical_batch_tokens,
    noise_batch_tokens,
    overhead,
    steps_over_least,
    tokens_and_steps,
)  # fmt: skip

SIZES = st.floats(1e3, 1e9)


@given(SIZES, SIZES)
def test_steps_and_tokens_trade_as_a_hyperbola(batch: float, critical: float) -> None:
    """(S / S_min - 1)(D / D_min - 1) = 1."""
    product = (overhead(batch, critical) - 1) * (steps_over_least(batch, critical) - 1)
    assert product == pytest.approx(1)


@given(SIZES)
def test_a_fifth_is_lost_at_the_critical_batch(critical: float) -> None:
    assert overhead(critical, critical) == pytest.approx(1.2)
    tokens, steps = tokens_and_steps(1e10, critical, critical)
    assert (tokens, steps) == pytest.approx((1.2e10, 1.2e10 / critical))


# Sequences of 512 in a step to the fewest steps that reached the goal: 20 tokens a parameter, from the output cells of
# plots/chinchilla.ipynb in github.com/hlzhang109/critical-batch-size (commit c5b509d).
MEASURED = {
    85e6: {64: 46000, 256: 13282, 1024: 3840, 2048: 2500, 4096: 1800},
    302e6: {64: 196000, 256: 46000, 1024: 13300, 4096: 4980, 8192: 3400},
    1.2e9: {64: 643000, 256: 176000, 1024: 46500, 2048: 25000, 4096: 15360, 8192: 8900, 16384: 6500},
}


@pytest.mark.parametrize("parameters", MEASURED)
def test_overhead_is_near_what_its_authors_measured(parameters: float) -> None:
    """Within 30% up to 20 times the critical batch, where it is a factor of two."""
    critical = critical_batch_tokens(20 * parameters)
    tokens = {batch * 512: batch * 512 * steps for batch, steps in MEASURED[parameters].items()}
    least = min(tokens.values())
    for batch, seen in tokens.items():
        assert overhead(batch, critical) == pytest.approx(seen / least, rel=0.3)


def test_it_grows_with_data_as_kaplan_s_does_with_loss() -> None:
    """Both laws put batches of the same order on the same runs (losses of Zhang et al.)."""
    for parameters, reached in ((85e6, 3.42), (302e6, 3.07), (1.2e9, 2.736)):
        assert critical_batch_tokens(20 * parameters) == pytest.approx(noise_batch_tokens(reached), rel=0.25)
