"""Serving: counted bytes are exact, figures move the way that they must, and what cannot be is refused."""

from __future__ import annotations

import math
import random
from functools import cache

import pytest
from cost_examples import gpt, shape
from hypothesis import given, settings
from hypothesis import strategies as st

from thrifty.catalog import lookup
from thrifty.cost import serving, serving_shape, serving_step
from thrifty.cost.params import counts
from thrifty.cost.serving import Speculation, Traffic, engine_of, serve, tokens_per_check
from thrifty.cost.serving_fit import ENGINES, INTERVALS, POWER
from thrifty.cost.serving_quote import quote
from thrifty.cost.serving_step import Deployment
from thrifty.spec.cluster import Cluster
from thrifty.spec.errors import ThriftyError
from thrifty.spec.job import Experts, LatentAttention, ModelShape
from thrifty.spec.load import build

LLAMA_70B = build(ModelShape, lookup.model("llama-3.1-70b"), "")
LLAMA_8B = build(ModelShape, lookup.model("llama-3.1-8b"), "")
ROUTED = ModelShape(
    name="routed", layers=32, hidden=2048, heads=32, kv_heads=4, head_dim=128, ffn=6144, vocab_size=32000,
    experts=Experts(count=64, active=4, ffn=1024, shared=1, dense_layers=2),
)  # fmt: skip
LATENT = ModelShape(
    name="latent", layers=10, hidden=1024, heads=16, head_dim=96, ffn=4096, vocab_size=32000,
    latent=LatentAttention(q_rank=256, kv_rank=128, nope_dim=64, rope_dim=32, value_dim=64),
)  # fmt: skip
VLLM = ENGINES["vllm"]


@cache
def cluster(text: str = "8xh100", **changes: object) -> Cluster:
    settings = lookup.cluster(text)
    for key, value in changes.items():
        settings = settings.put(key, value, "test")
    return build(Cluster, settings, "")


# ---- what is counted


def catalog() -> list[ModelShape]:
    """Decoders of the catalog."""
    shapes = [build(ModelShape, lookup.model(name), "") for name in lookup.models()]
    return [one for one in shapes if one.kind == "decoder"]


@pytest.mark.parametrize("one", catalog(), ids=lambda one: one.name)
def test_matrices_are_those_that_training_counts(one):
    held = serving_shape.matrices(one)
    assert held.per_token + held.head == counts(one).in_matmuls
    # Norms, biases and position tables are what is left out.
    assert held.total == pytest.approx(counts(one).total, rel=0.07 if one.positions == "learned" else 2e-3)


def test_matrices_of_experts():
    held = serving_shape.matrices(ROUTED)
    attention = 2048 * 128 * (32 + 32 + 4 + 4)
    assert held.attention == 32 * attention
    assert held.dense == 2 * 3 * 2048 * 6144 + 30 * (3 * 2048 * 1024 + 2048 * 64)
    assert (held.expert, held.routed_layers, held.count, held.active) == (3 * 2048 * 1024, 30, 64, 4)
    assert held.per_token == held.attention + held.dense + 30 * 4 * held.expert


def test_cached_bytes_are_exact():
    assert serving_shape.kv_bytes_per_token(LLAMA_70B, "bf16") == 2 * 80 * 8 * 128 * 2
    assert serving_shape.kv_bytes_per_token(LLAMA_70B, "fp8") == 2 * 80 * 8 * 128
    assert serving_shape.kv_bytes_per_token(gpt(), "bf16") == 2 * 4 * 256 * 2
    assert serving_shape.kv_bytes_per_token(LATENT, "bf16") == 10 * (128 + 32) * 2


def test_few_heads_are_copied_and_shared_caches_are_not():
    split = Deployment(tensor=16, kv="bf16")
    once = serving_shape.kv_bytes_per_token(LLAMA_70B, "bf16")
    assert serving_step.cache_bytes_per_token(LLAMA_70B, split) == 2 * once
    assert serving_shape.kv_copies(LLAMA_70B, 8) == 1
    assert serving_shape.kv_copies(LATENT, 8) == 8
    shared = Deployment(tensor=16, cache_by_sequence=True)
    assert serving_step.cache_bytes_per_token(LLAMA_70B, shared) == once


def test_a_window_keeps_no_more_than_itself():
    assert serving_shape.cached_tokens(shape(sliding_window=64), 1000) == 64
    assert serving_shape.cached_tokens(shape(), 1000) == 1000
    mixed = shape(sliding_window=100, full_attention_every=2)
    by_layer = [min(1000, mixed.window(layer) or 1000) for layer in range(mixed.layers)]
    assert serving_shape.cached_tokens(mixed, 1000) == pytest.approx(sum(by_layer) / mixed.layers)


@settings(deadline=None, max_examples=40)
@given(count=st.integers(2, 256), tokens=st.integers(1, 400), data=st.data())
def test_experts_touched(count, tokens, data):
    active = data.draw(st.integers(1, count))
    found = serving_shape.experts_touched(count, active, tokens)
    assert min(active, count) - 1e-9 <= found <= min(count, active * tokens) + 1e-9
    assert found <= serving_shape.experts_touched(count, active, tokens + 1) + 1e-9


def test_experts_touched_is_the_mean_of_random_routing():
    dice = random.Random(7)
    count, active, tokens = 32, 4, 12
    drawn = [len({e for _ in range(tokens) for e in dice.sample(range(count), active)}) for _ in range(4000)]
    assert serving_shape.experts_touched(count, active, tokens) == pytest.approx(sum(drawn) / len(drawn), rel=0.01)


@settings(deadline=None, max_examples=40)
@given(length=st.integers(1, 12), acceptance=st.floats(0, 1))
def test_tokens_of_a_check_are_the_sum_over_how_far_the_draft_holds(length, acceptance):
    # The check yields the accepted tokens and one of its own: sum of a^i for i = 0 .. k.
    expected = math.fsum(acceptance**i for i in range(length + 1))
    assert tokens_per_check(length, acceptance) == pytest.approx(expected, rel=1e-6)
    assert 1 <= tokens_per_check(length, acceptance) <= length + 1


# ---- which way figures move


loads = st.fixed_dictionaries({"incoming": st.integers(1, 8000), "outgoing": st.integers(1, 4000)})
models = st.sampled_from([LLAMA_8B, ROUTED])


@settings(deadline=None, max_examples=40)
@given(model=models, load=loads, batch=st.floats(1, 12))
def test_more_sequences_make_more_tokens_and_each_waits_longer(model, load, batch):
    place = (model, cluster("1xh100"), Deployment(), VLLM)
    few, many = (serve(*place, Traffic(load["incoming"], load["outgoing"], b)) for b in (batch, 1.5 * batch))
    assert many.tokens_per_second >= few.tokens_per_second * (1 - 1e-9)
    assert many.token_seconds >= few.token_seconds * (1 - 1e-9)
    assert many.usd_per_million <= few.usd_per_million * (1 + 1e-9)
    assert many.joules_per_token <= few.joules_per_token * 1.02


@settings(deadline=None, max_examples=40)
@given(model=models, load=loads, batch=st.floats(1, 12))
def test_fewer_stored_bits_never_slow_decoding(model, load, batch):
    """Of formats whose products stay in 16 bits, so that nothing else changes."""
    place, traffic = (model, cluster("1xh100")), Traffic(load["incoming"], load["outgoing"], batch)
    wide, narrow = (serve(*place, Deployment(weights=w), VLLM, traffic) for w in ("bf16", "int4"))
    assert narrow.tokens_per_second >= wide.tokens_per_second
    assert narrow.weight_bytes < wide.weight_bytes
    assert narrow.most >= wide.most
    small = serve(*place, Deployment(kv="fp8"), VLLM, traffic)
    assert small.tokens_per_second >= wide.tokens_per_second
    assert small.kv_bytes == pytest.approx(wide.kv_bytes / 2)


@settings(deadline=None, max_examples=40)
@given(factor=st.floats(1, 10))
def test_dollars_follow_the_price_and_nothing_else_does(factor):
    cheap, dear = (
        serve(LLAMA_8B, cluster("1xh100", price=price), Deployment(), VLLM, Traffic(500, 500, 8))
        for price in (1.0, factor)
    )
    assert dear.usd_per_million == pytest.approx(factor * cheap.usd_per_million)
    assert dear.tokens_per_second == cheap.tokens_per_second


@settings(deadline=None, max_examples=40)
@given(batch=st.floats(1, 60), load=loads)
def test_watts_lie_between_idle_and_tdp(batch, load):
    found = serve(LLAMA_8B, cluster("1xb200"), Deployment(), VLLM, Traffic(load["incoming"], load["outgoing"], batch))
    assert 100 < found.device_watts < 1000
    assert found.facility_joules_per_token > found.joules_per_token


def test_replicas_share_the_sequences():
    one = serve(LLAMA_8B, cluster("1xh100"), Deployment(), VLLM, Traffic(500, 500, 16))
    four = serve(LLAMA_8B, cluster("4xh100"), Deployment(replicas=4), VLLM, Traffic(500, 500, 64))
    assert four.tokens_per_second == pytest.approx(4 * one.tokens_per_second)
    assert four.token_seconds == pytest.approx(one.token_seconds)
    assert four.joules_per_token == pytest.approx(one.joules_per_token)


def test_without_a_batch_memory_is_full():
    found = serve(LLAMA_70B, cluster("4xh100"), Deployment(tensor=4), VLLM, Traffic(4000, 1000))
    assert found.limit == "memory"
    assert found.kv_bytes == pytest.approx(found.free_bytes)
    assert found.weight_bytes + found.kv_bytes < 0.9 * cluster().accelerator.memory.value


def test_an_engine_that_evicts_nothing_holds_fewer():
    place = (LLAMA_70B, cluster("4xh100"), Deployment(tensor=4))
    whole, pages = (serving.most_sequences(*place, ENGINES[n], Traffic(1000, 1000)) for n in ("tensorrt-llm", "vllm"))
    assert whole[0] == pytest.approx(pages[0] * 1500 / 2000)


def test_prompts_alone_are_bound_by_products_and_single_tokens_by_weights():
    place = (LLAMA_70B, cluster("8xh100"), Deployment(tensor=8), VLLM)
    seconds = serving.prefill_seconds(*place, 8000)
    least = 2 * 8000 * serving_shape.matrices(LLAMA_70B).per_token / (8 * 989e12)
    assert least < seconds < 3 * least
    token = serving_step.step(*place, sequences=1, context=1, prompt_tokens=0, prompt=1).total
    assert token > serving_step.weight_bytes(LLAMA_70B, place[2]) / (8 * 3.35e12)


def test_wide_attention_costs_bytes_and_time():
    place, traffic = (LLAMA_70B, cluster("4xh100")), Traffic(500, 500, 16)
    narrow = serve(*place, Deployment(tensor=4, weights="fp8"), VLLM, traffic)
    wide = serve(*place, Deployment(tensor=4, weights="fp8", attention_weights="bf16"), VLLM, traffic)
    assert wide.weight_bytes - narrow.weight_bytes == serving_shape.matrices(LLAMA_70B).attention / 4
    assert wide.tokens_per_second < narrow.tokens_per_second


def test_data_parallel_attention_keeps_experts_once():
    place = (ROUTED, cluster("8xh100"))
    one, eight = Deployment(), Deployment(data=8)
    held = serving_shape.matrices(ROUTED)
    own = 2 * (held.attention + held.dense + held.head + held.lookup)
    difference = serving_step.weight_bytes(ROUTED, eight) - serving_step.weight_bytes(ROUTED, one)
    assert difference == pytest.approx(7 * own)
    assert serve(*place, eight, VLLM, Traffic(500, 500, 256)).tokens_per_second > 0


def test_a_draft_pays_for_few_sequences_and_not_for_many():
    place = (LLAMA_70B, cluster("4xh100"), Deployment(tensor=4), VLLM)
    draft = Speculation(build(ModelShape, lookup.model("llama-3.2-1b"), ""), 4, 0.8)
    gains = []
    for batch in (1, 16, 256):
        traffic = Traffic(500, 500, batch)
        gains.append(serve(*place, traffic, draft).tokens_per_second / serve(*place, traffic).tokens_per_second)
    assert gains[0] > 1.5
    assert gains[0] > gains[1] > gains[2]
    useless = serve(*place, Traffic(500, 500, 16), Speculation(draft.draft, 4, 0.0))
    assert useless.tokens_per_second < serve(*place, Traffic(500, 500, 16)).tokens_per_second


# ---- figures and refusals


@pytest.mark.parametrize("engine", ENGINES)
def test_figures_have_a_source_and_their_interval(engine):
    found = serve(LLAMA_8B, cluster("1xh100"), Deployment(), ENGINES[engine], Traffic(500, 500, 8))
    figures = quote(found, engine)
    assert all(figure.provenance == "modelled" and figure.source for figure in figures.values())
    for name in ("tokens_per_second", "usd_per_million", "energy", "device_watts", "first_token"):
        figure = figures[name]
        assert figure.low is not None
        assert figure.high is not None
        assert figure.low < figure.value < figure.high
    assert set(INTERVALS[engine]) == {"tokens_per_second", "itl_seconds", "watts", "joules_per_token"}


def test_the_power_curve_starts_at_idle_and_never_reaches_tdp():
    one = serving_step.step(
        LLAMA_8B, cluster("1xh100"), Deployment(), VLLM, sequences=1e5, context=1, prompt_tokens=1e6, prompt=1
    )  # fmt: skip
    assert serving_step.watts(cluster("1xh100"), POWER, one) < 700
    assert serving_step.watts(cluster("1xh100"), type(POWER)(0.0, 0.0, 0.0, 0.0), one) == 70


@pytest.mark.parametrize(
    ("changes", "text", "says"),
    [
        ({"weights": "fp9"}, "8xh100", "'fp8'"),
        ({"kv": "mxfp4"}, "8xh100", "Known"),
        ({"tensor": 3}, "8xh100", "does not divide 32 heads"),
        ({"tensor": 8, "replicas": 2}, "8xh100", "at most 8"),
        ({"data": 2}, "8xh100", "routed experts"),
    ],
)
def test_what_cannot_be_is_refused(changes, text, says):
    with pytest.raises(ThriftyError, match=says):
        serve(LLAMA_8B, cluster(text), Deployment(**changes), VLLM, Traffic(100, 100, 1))


def test_what_does_not_fit_says_how_many_devices_would():
    with pytest.raises(ThriftyError) as caught:
        serve(LLAMA_70B, cluster("1xh100"), Deployment(), VLLM, Traffic(100, 100))
    assert "GiB" in caught.value.what
    needed = int(caught.value.hint.split("among ")[1].split()[0])
    assert needed == 2
    with pytest.raises(ThriftyError, match="memory allows"):
        serve(LLAMA_70B, cluster("2xh100"), Deployment(tensor=2), VLLM, Traffic(1000, 1000, 5000))


def test_unknown_software_is_refused():
    with pytest.raises(ThriftyError, match="vllm"):
        engine_of("vlm")


def test_formats_without_a_rate_are_stored_only():
    rates = dict.fromkeys(("fp32", "bf16", "fp8"), 1.0)
    assert serving_shape.rate_name("fp8", rates) == "fp8"
    assert serving_shape.rate_name("nvfp4", rates) == "bf16"
    assert serving_shape.rate_name("int4", rates) == "bf16"
    assert serving_shape.rate_name("bf16", {"fp16": 1.0}) == "fp16"
    with pytest.raises(ThriftyError, match="16-bit"):
        serving_shape.rate_name("fp8", {"fp32": 1.0})
