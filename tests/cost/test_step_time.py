"""Time of a step: what must hold whatever the constants."""

from __future__ import annotations

import pytest
from cost_examples import cores, gpus, job, recipe, recipes, shape, shapes
from hypothesis import given
from hypothesis import strategies as st

from thrifty.cost.compute import product_seconds, rank_of, unit_seconds
from thrifty.cost.step import step_seconds
from thrifty.spec import ModelShape, Recipe, ThriftyError


@given(shapes(), recipes(), st.booleans())
def test_a_step_is_the_sum_of_what_it_waits_for(model: ModelShape, how: Recipe, laptop: bool) -> None:
    step = step_seconds(job(model), cores(4) if laptop else gpus(16), how)
    assert sum(step.limits.values()) == pytest.approx(step.total)
    assert min(step.limits.values()) >= 0
    assert 0 < step.forward_microbatch < step.compute


@given(st.integers(1, 4000), st.integers(1, 4000), st.integers(1, 4000))
def test_no_product_beats_the_roofline(m: int, n: int, k: int) -> None:
    rank = rank_of(gpus(), recipe(shard=8))
    seconds = product_seconds(m, n, k, rank, 2)
    assert seconds >= 2 * m * n * k / rank.flops
    assert seconds >= 2 * (m * k + k * n + m * n) / rank.bandwidth
    assert rank.flops < rank.peak_flops


def test_a_large_product_runs_near_the_sustained_rate() -> None:
    rank = rank_of(gpus(), recipe(shard=8))
    assert product_seconds(16384, 16384, 16384, rank, 2) < 1.05 * 2 * 16384**3 / rank.flops


@given(shapes(), recipes())
def test_recomputation_costs_a_forward_pass_of_the_blocks(model: ModelShape, how: Recipe) -> None:
    none, full = (
        step_seconds(job(model), gpus(16), how.model_copy(update={"recompute": again})) for again in ("none", "full")
    )
    rank = rank_of(gpus(16), how)
    unit = unit_seconds(model, how.batch.micro_sequences, 128, rank, how.precision, how.compile)
    again = how.accumulation * model.layers * sum(unit.block_forward)
    assert full.compute - none.compute == pytest.approx(again)
    assert full.communication <= none.communication * (1 + 1e-9) + 1e-12 or how.layout.ranks > 1


def test_bf16_halves_the_products_of_a_device_that_is_twice_as_fast_in_it() -> None:
    model = shape(hidden=2048, heads=16, kv_heads=16, ffn=8192, vocab_size=32000)
    fp32, bf16 = (step_seconds(job(model), cores(), recipe(micro=8, precision=p)) for p in ("fp32", "bf16"))
    assert bf16.limits["matrix products"] == pytest.approx(fp32.limits["matrix products"] / 2, rel=0.01)


def test_more_cores_compute_faster_and_dispatch_no_faster() -> None:
    one, four = (step_seconds(job(), cores(n), recipe(micro=4, precision="fp32")) for n in (1, 4))
    assert one.limits["matrix products"] == pytest.approx(4 * four.limits["matrix products"], rel=0.05)
    assert one.limits["dispatch"] == four.limits["dispatch"]


def test_two_processes_on_one_core_share_it() -> None:
    """Each computes half of the batch at half the rate."""
    alone = step_seconds(job(), cores(1), recipe(micro=4, accumulation=2, precision="fp32"))
    shared = step_seconds(job(), cores(1), recipe(shard=2, micro=4, precision="fp32"))
    assert shared.limits["matrix products"] == pytest.approx(alone.limits["matrix products"])


def test_small_kernels_wait_for_their_launch_on_a_gpu() -> None:
    small = step_seconds(job(), gpus(), recipe())
    large = step_seconds(job(shape(hidden=4096, heads=32, kv_heads=32, ffn=16384)), gpus(), recipe(micro=16))
    assert small.limits["dispatch"] > 0.8 * small.compute
    assert large.limits["dispatch"] < 0.01 * large.compute


def test_a_gpu_hides_gathers_behind_large_blocks_and_a_cpu_hides_nothing() -> None:
    model = shape(layers=24, hidden=4096, heads=32, kv_heads=32, ffn=16384)
    asked = job(model, sequence_length=4096)
    hidden, bare = (step_seconds(asked, gpus(), recipe(shard=8, micro=m)) for m in (8, 1))
    assert hidden.communication / hidden.total < 0.15
    assert bare.communication / bare.total > hidden.communication / hidden.total
    laptop = recipe(shard=2, micro=4, precision="fp32")
    from thrifty.cost.traffic import collectives

    alone = sum(c.seconds * c.count for c in collectives(job(shape()), cores(2), laptop))
    assert step_seconds(job(), cores(2), laptop).communication >= alone


def test_gathering_once_sends_less() -> None:
    twice, once = (step_seconds(job(), cores(2), recipe(shard=2, reshard=r, precision="fp32")) for r in (True, False))
    assert once.communication < twice.communication


def test_a_missing_rate_is_never_another_one_s() -> None:
    cluster = gpus()
    chip = cluster.accelerator
    volta = cluster.model_copy(
        update={"accelerator": chip.model_copy(update={"peak_flops": {"fp32": chip.peak_flops["fp32"]}})}
    )
    with pytest.raises(ThriftyError, match="no bf16 rate") as error:
        step_seconds(job(), volta, recipe(precision="bf16"))
    assert "fp32" in error.value.hint
