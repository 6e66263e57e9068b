"""FLOPs: the published closed forms, with the causal half of a decoder's attention."""

from __future__ import annotations

import pytest
from cost_examples import gpt, priced_shapes, shape, shapes
from hypothesis import given
from hypothesis import strategies as st

from thrifty.catalog import lookup
from thrifty.cost.flops import (
    attention_forward_flops,
    forward_flops_per_token,
    hardware_flops_per_token,
    mean_context,
    model_flops_per_token,
)
from thrifty.cost.params import matmul_parameters
from thrifty.spec import ModelShape
from thrifty.spec.load import build


def of_catalog(name: str) -> ModelShape:
    return build(ModelShape, lookup.model(name), "")


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


@given(st.integers(1, 300), st.integers(1, 300), st.integers(1, 5), st.integers(1, 7))
def test_layers_that_attend_to_all_lengthen_it(s: int, window: int, every: int, layers: int) -> None:
    model = shape(sliding_window=window, full_attention_every=every, layers=layers)
    seen = [[min(i + 1, model.window(layer) or s) for i in range(s)] for layer in range(layers)]
    counted = sum(map(sum, seen)) / (s * layers)
    assert mean_context(model, s) == pytest.approx(counted, abs=0.5 + 1e-9)


@given(shapes() | priced_shapes(), st.integers(2, 500))
def test_recomputation_adds_attention_or_the_whole_forward_pass_of_the_blocks(model: ModelShape, s: int) -> None:
    none, selective, full = (hardware_flops_per_token(model, s, how) for how in ("none", "selective", "full"))
    attention = model.layers * attention_forward_flops(model, s)
    assert none == model_flops_per_token(model, s) == pytest.approx(3 * forward_flops_per_token(model, s))
    assert selective == pytest.approx(none + attention)
    assert selective < full < 4 / 3 * none + 1e-6
    if model.kind == "decoder":
        assert none == pytest.approx(6 * matmul_parameters(model) + 3 * attention)


def test_gpt3_takes_the_published_flops() -> None:
    """Brown et al. 2020 (arXiv:2005.14165), table D.1: 3.14e23 for 300 billion tokens."""
    assert 300e9 * model_flops_per_token(of_catalog("gpt3"), 2048) == pytest.approx(3.14e23, rel=0.01)


def test_latent_attention_scores_both_parts_of_a_key() -> None:
    """DeepSeek-V3's heads: 128 of (128 + 64) for scores, 128 for values; a mean context of 2048."""
    deepseek = of_catalog("deepseek-v3")
    assert attention_forward_flops(deepseek, 4096) == 2 * 128 * (128 + 64 + 128) * 2048
    # Arithmetic of the report (arXiv:2412.19437): 37B active parameters, 14.8T tokens, about 3.3e24 FLOPs.
    assert 14.8e12 * model_flops_per_token(deepseek, 4096) == pytest.approx(6 * 37e9 * 14.8e12, rel=0.15)


def test_an_encoder_attends_to_everything() -> None:
    bert = of_catalog("bert-base")
    assert mean_context(bert, 512) == 512
    blocks, head = 12 * 12 * 768**2, 768**2 + 30522 * 768
    assert model_flops_per_token(bert, 512) == 6 * (blocks + head) + 12 * 12 * 768 * 512


def test_a_vision_transformer_takes_the_published_flops_an_image() -> None:
    """17.6, 61.6 and 167.4 GFLOP a forward pass, products and sums apart, at 224 pixels (torchvision's model cards)."""
    published = {"vit-b-16": 17.56e9, "vit-l-16": 61.55e9, "vit-h-14": 167.3e9}
    for name, products in published.items():
        shape = of_catalog(name)
        length = shape.max_positions
        # The cards count a product and its sum as one.
        assert length * forward_flops_per_token(shape, length) / 2 == pytest.approx(products, rel=0.01)
