"""Time and traffic of tensor, context, expert and pipeline layouts: what must hold whatever the constants."""

from __future__ import annotations

import pytest
from cost_examples import gpus, job, shape
from hypothesis import given
from hypothesis import strategies as st

from thrifty.cost import work
from thrifty.cost.pipeline import bubble_seconds
from thrifty.cost.profiles import PROFILES, profile
from thrifty.cost.step import step_seconds
from thrifty.cost.traffic import collectives, hop
from thrifty.cost.work import Split
from thrifty.spec.job import Experts, LatentAttention
from thrifty.spec.recipe import Batch, Layout, Recipe

LARGE = shape(layers=16, hidden=4096, heads=32, kv_heads=8, ffn=14336, vocab_size=32000)
MIXED = LARGE.model_copy(update={"experts": Experts(count=8, active=2, ffn=14336, dense_layers=2)})
LATENT = shape(
    layers=4, hidden=1024, heads=16, kv_heads=16, ffn=4096,
    latent=LatentAttention(q_rank=256, kv_rank=128, nope_dim=64, rope_dim=32, value_dim=64),
)  # fmt: skip


def recipe(micro=1, accumulation=8, software="megatron", recompute="none", precision="bf16", **layout):
    how = Layout(**({"zero": 0} | layout))
    batch = Batch(sequences=micro * accumulation * how.data_ranks, micro_sequences=micro)
    return Recipe(software=software, layout=how, batch=batch, recompute=recompute, precision=precision)


def flops(done: work.Work) -> float:
    return sum(2 * m * n * k * times for m, n, k, times in done.products + done.plain) + done.attention_flops


@given(
    st.sampled_from([LARGE, LATENT]), st.sampled_from([1, 2, 4, 8]), st.sampled_from([1, 2, 4]), st.booleans(),
    st.booleans(),
)  # fmt: skip
def test_a_split_block_does_its_share_of_the_flops(model, tensor, context, sequence, fused):
    """Compressions of latent attention are done by every tensor rank; everything else is divided."""
    tokens = 4096
    whole = work.block_forward(model, tokens, tokens, 2, True, fused_attention=fused)
    part = work.block_forward(
        model, tokens / context, tokens, 2, True, Split(tensor, context, 1, sequence), fused_attention=fused
    )
    again = 0.0
    if model.latent is not None:
        repeated = model.latent.q_rank + model.latent.kv_rank + model.latent.rope_dim
        again = 2 * tokens / context * model.hidden * repeated * (1 - 1 / tensor)
    assert flops(part) == pytest.approx(flops(whole) / (tensor * context) + again)


@given(st.sampled_from([1, 2, 4, 8]))
def test_experts_do_the_same_work_however_they_are_spread(expert):
    one, many = (work.block_forward(MIXED, 4096, 4096, 2, True, Split(1, 1, e), sparse=True) for e in (1, expert))
    assert flops(many) == pytest.approx(flops(one))


def test_backward_products_are_twice_the_forward_ones():
    for split in (Split(), Split(4, 1, 1, True)):
        ahead, back = (f(LARGE, 4096, 4096, 2, True, split) for f in (work.block_forward, work.block_backward))
        total = [sum(2 * m * n * k * t for m, n, k, t in one.products) for one in (ahead, back)]
        assert total[1] == pytest.approx(2 * total[0])


@pytest.mark.parametrize(
    "layout",
    [
        {"tensor": 8}, {"pipeline": 4}, {"shard": 8}, {"tensor": 2, "pipeline": 2, "shard": 4},
        {"tensor": 4, "context": 2}, {"shard": 8, "zero": 1}, {"island": 4, "shard": 4, "zero": 3},
        {"pipeline": 4, "schedule": "zero_bubble"}, {"pipeline": 4, "schedule": "interleaved", "interleave": 4},
    ],
)  # fmt: skip
@pytest.mark.parametrize("model", [LARGE, MIXED], ids=["dense", "experts"])
def test_a_step_is_the_sum_of_what_it_waits_for(model, layout):
    step = step_seconds(job(model, sequence_length=4096), gpus(8, 2), recipe(**layout))
    assert sum(step.limits.values()) == pytest.approx(step.total)
    assert min(step.limits.values()) >= 0
    assert 0 < step.forward_microbatch < step.total


def test_bubbles_of_the_schedules():
    """Forward 1, input gradients 1, weight gradients 1, four stages."""
    idle = {s: bubble_seconds(4, s, 2, 1.0, 1.0, 1.0) for s in ("gpipe", "1f1b", "interleaved", "zero_bubble", "zbv")}
    assert idle == {"gpipe": 9.0, "1f1b": 9.0, "interleaved": 4.5, "zero_bubble": 3.0, "zbv": 0.0}
    assert bubble_seconds(1, "1f1b", 1, 1.0, 1.0, 1.0) == 0.0


@given(st.sampled_from([2, 4, 8]), st.sampled_from([4, 8, 16, 32]))
def test_the_bubble_is_that_of_the_formula_and_more_microbatches_dilute_it(stages, accumulation):
    asked, cluster = job(LARGE, sequence_length=4096), gpus(8)
    step = step_seconds(asked, cluster, recipe(accumulation=accumulation, pipeline=stages))
    twice = step_seconds(asked, cluster, recipe(accumulation=2 * accumulation, pipeline=stages))
    assert twice.bubble == pytest.approx(step.bubble)
    # The head is on top of the last stage alone, so a stage's bubble is below (p - 1) / m of its own time.
    busy = step.total - step.bubble - step.optimizer - step.data
    assert 0.7 * (stages - 1) / accumulation < step.bubble / busy <= (stages - 1) / accumulation + 1e-9


def test_sequence_parallel_sends_the_same_bytes():
    asked, cluster = job(LARGE, sequence_length=4096), gpus(8)
    sums = []
    for sequence in (False, True):
        sent = collectives(asked, cluster, recipe(tensor=8, sequence_parallel=sequence))
        sums.append(sum(c.sent_bytes * c.count for c in sent if c.unit == "stream"))
    assert sums[0] == pytest.approx(sums[1])
    # Two sums each way of (tokens x hidden) in 16 bits for each layer, one for the embedding and one for the head; of
    # each a rank sends 2 (t - 1) / t, in each of 8 microbatches.
    assert sums[0] == pytest.approx((4 * 16 + 2) * 2 * 7 / 8 * 4096 * 4096 * 2 * 8)


@pytest.mark.parametrize(("software", "again"), [("megatron", 2 * 16), ("torchtitan", 16)])
@pytest.mark.parametrize("sequence_parallel", [True, False])
def test_recomputing_everything_repeats_the_forward_sums_and_selective_does_not(software, again, sequence_parallel):
    """torch's checkpoint stops before the sum that ends a block; with sequence parallelism a sum is two halves."""
    asked, cluster = job(LARGE, sequence_length=4096), gpus(8)

    def sums(recompute):
        how = recipe(tensor=8, recompute=recompute, software=software, sequence_parallel=sequence_parallel)
        sent = collectives(asked, cluster, how)
        each = 2 * 7 / 8 * 4096 * 4096 * 2 * 8
        return sum(c.sent_bytes * c.count for c in sent if c.unit == "stream") / each

    assert sums("none") == sums("selective") == pytest.approx(4 * 16 + 2)
    halves = 0.5 * 16 if sequence_parallel and software == "torchtitan" else 0
    assert sums("full") == pytest.approx(4 * 16 + 2 + again + halves)


def test_zero_stages_differ_in_what_they_send():
    asked, cluster = job(LARGE, sequence_length=4096), gpus(8)

    def sent(**layout):
        return collectives(asked, cluster, recipe(shard=8, **layout))

    def total(found, kind):
        return sum(c.sent_bytes * c.count for c in found if c.kind == kind and c.unit != "norm")

    replicas, sharded = sent(zero=0), sent(zero=1)
    assert total(replicas, "all_reduce") > 0
    assert total(replicas, "all_gather") == 0
    # A reduce-scatter in fp32 and a gather in bf16 instead of an all-reduce in fp32: three quarters of the bytes.
    both = total(sharded, "all_gather") + total(sharded, "reduce_scatter")
    assert both == pytest.approx(0.75 * total(replicas, "all_reduce"))
    assert total(sent(zero=3), "all_gather") > total(sharded, "all_gather")


def test_compressed_and_rarer_exchange_between_islands():
    asked, cluster = job(LARGE, sequence_length=4096), gpus(8, 4, islands=4)
    plain = recipe(island=4, shard=8, zero=3, software="thrifty")

    def crossing(**exchange):
        how = plain.model_copy(update={"exchange": plain.exchange.model_copy(update=exchange)})
        sent = [c for c in collectives(asked, cluster, how) if c.axis == "island"]
        assert {c.link for c in sent} == {"inter_island"}
        return sum(c.sent_bytes * c.count for c in sent), step_seconds(asked, cluster, how).total

    whole, often = crossing()
    few, _ = crossing(codec="lloyd2")
    rare, quick = crossing(local_steps=50)
    assert few == pytest.approx(whole * 2.0625 / 32, rel=0.001)  # there and back again, as an all-reduce
    assert rare == pytest.approx(whole / 50, rel=0.001)
    assert quick < 0.7 * often


def test_tensor_ranks_are_neighbours_and_stages_are_far_apart():
    cluster, layout = gpus(8, 4), Layout(tensor=8, pipeline=4)
    assert hop(cluster, layout, "tensor").link == "intra_node"
    assert hop(cluster, layout, "pipeline").link == "inter_node"
    assert hop(cluster, Layout(tensor=16, pipeline=2), "tensor").link == "inter_node"


def test_low_precision_speeds_up_products_and_pays_for_casts():
    chip = gpus(8).accelerator
    fast = chip.model_copy(
        update={"peak_flops": chip.peak_flops | {"fp8": chip.peak_flops["bf16"].model_copy(update={"value": 1e15})}}
    )
    cluster = gpus(8).model_copy(update={"accelerator": fast})
    asked = job(LARGE, sequence_length=4096)
    bf16, fp8 = (step_seconds(asked, cluster, recipe(shard=8, precision=p)) for p in ("bf16", "fp8"))
    assert fp8.limits["matrix products"] < bf16.limits["matrix products"]
    assert fp8.limits["elementwise operations"] > bf16.limits["elementwise operations"]
    rows = recipe(shard=8, precision="fp8").model_copy(update={"scaling": "row", "software": "torchtitan"})
    tensors = rows.model_copy(update={"scaling": "tensor"})
    assert step_seconds(asked, cluster, rows).total > step_seconds(asked, cluster, tensors).total


def test_the_profile_follows_software_and_accelerator():
    def named(software: str, **chip: str) -> str:
        cluster = gpus()
        changed = cluster.accelerator.model_copy(update=chip)
        return profile(software, cluster.model_copy(update={"accelerator": changed})).name

    assert named("megatron", name="A100-SXM-80GB") == "megatron"
    assert named("megatron", name="H100-SXM-80GB") == "megatron-core"
    assert named("thrifty", kind="cpu") == "thrifty-cpu"
    for one in PROFILES.values():
        assert one.source
        assert one.low < 1 < one.high
