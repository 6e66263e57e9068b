"""The batch law: published sizes, and its form for a number of steps."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from thrifty.laws.batch import learning_rate, optimal_batch_for_steps, optimal_batch_tokens


def test_it_gives_what_its_authors_trained_with() -> None:
    """DeepSeek LLM 7B: batch 2304 x 4096 tokens and lr 4.2e-4 on 2T tokens; within a factor of two either way."""
    flops = 6 * 6.5e9 * 2e12
    assert 0.5 < optimal_batch_tokens(flops) / (2304 * 4096) < 2
    assert 0.5 < learning_rate(flops, optimal_batch_tokens(flops)) / 4.2e-4 < 2


@given(st.floats(1e6, 1e12), st.integers(10, 10**6))
def test_the_batch_for_steps_is_the_batch_for_its_tokens(flops_per_token: float, steps: int) -> None:
    batch = optimal_batch_for_steps(flops_per_token, steps)
    assert optimal_batch_tokens(flops_per_token * batch * steps) == pytest.approx(batch)


@given(st.floats(1e12, 1e24), st.floats(0.01, 100))
def test_the_rate_goes_with_the_root_of_the_batch_up_to_a_bound(flops: float, ratio: float) -> None:
    best = optimal_batch_tokens(flops)
    scale = learning_rate(flops, best * ratio) / learning_rate(flops, best)
    assert scale == pytest.approx(min(1.5, ratio**0.5))
