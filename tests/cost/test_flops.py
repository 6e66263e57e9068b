"""FLOPs: the published closed forms, with the causal half of the attention."""

from __future__ import annotations

import pytest
from cost_examples import gpt, shape, shapes
from hypothesis import given
from hypothesis import strategies as st

from thrifty.cost.flops import hardware_flops_per_token, mean_context, model_flops_per_token
from thrifty.cost.params import matmul_parameters
from thrifty.spec import ModelShape


@pytest.mark.parametrize(("layers", "hidden", "heads"), [(24, 2304, 24), (96, 12288, 96)])
def test_gpt_needs_72_flops_for_each_square_of_the_width(layers: int, hidden: int, heads: int) -> None:
    """Narayanan et al. 2021 (arXiv:2104.04473): 72 B L s h^2 (1 + s/6h + V/12hL) a step, attention here causal."""
    s, v = 2048, 51200
    model = gpt(layers=layers, hidden=hidden, heads=heads, ffn=4 * hidden, vocab_size=v)
    expected = 72 * layers * hidden**2 * (1 + s / (12 * hidden) + v / (12 * hidden * layers))
    assert model_flops_per_token(model, s) == pytest.approx(expected, rel=1e-12)
    executed = 96 * layers * hidden**2 * (1 + s / (12 * hidden) + v / (16 * hidden * layers))
    assert hardware_flops_per_token(model, s, "full") == pytest.approx(executed, rel=1e-12)


@given(shapes(), st.integers(1, 500))
def test_six_flops_a_parameter_and_the_attention(model: ModelShape, s: int) -> None:
    attention = 6 * model.layers * model.heads * model.head_dim * s
    assert model_flops_per_token(model, s) == pytest.approx(6 * matmul_parameters(model) + attention)
    assert hardware_flops_per_token(model, s, "none") == model_flops_per_token(model, s)
    assert hardware_flops_per_token(model, s, "full") < 4 / 3 * model_flops_per_token(model, s) + 1e-6


@given(st.integers(1, 300), st.integers(1, 300))
def test_a_window_shortens_the_mean_context(s: int, window: int) -> None:
    """Against a count of keys for each query; the continuous form differs from it by half a key at most."""
    counted = sum(min(i + 1, window) for i in range(s)) / s
    assert mean_context(shape(sliding_window=window), s) == pytest.approx(counted, abs=0.5 + 1e-9)
