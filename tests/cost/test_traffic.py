"""Collectives of a step: bytes conserved, dtypes, links, and what FSDP2 really starts."""

from __future__ import annotations

import math

import pytest
from cost_examples import cores, gpus, job, recipe, recipes, shape, shapes
from hypothesis import given

from thrifty.cost.params import parameter_shapes
from thrifty.cost.traffic import collectives, evaluation_by_link, hop, sent_by_link
from thrifty.spec import ModelShape, Recipe
from thrifty.spec.recipe import Layout


def payload(model: ModelShape, shards: int) -> int:
    """Elements that a gather hands in, over all units: the padded shard of every tensor."""
    return sum(math.ceil(size[0] / shards) * math.prod(size[1:]) for _, size in parameter_shapes(model))


def test_one_rank_sends_nothing() -> None:
    assert collectives(job(shape()), gpus(), recipe()) == ()


@given(shapes(), recipes())
def test_gathers_and_reductions_carry_every_parameter(model: ModelShape, how: Recipe) -> None:
    sent, n, times = collectives(job(model), gpus(16), how), how.layout.shard, how.accumulation
    element, exchange = ({"fp32": 4, "bf16": 2}[name] for name in (how.precision, how.exchange.dtype))
    expected = payload(model, n)

    def total(kind: str, phase: str) -> float:
        return sum(c.payload_bytes * c.count for c in sent if c.kind == kind and c.phase == phase and c.unit != "norm")

    if n > 1:
        assert total("all_gather", "forward") == expected * element * times
        assert total("reduce_scatter", "backward") == n * expected * exchange * times
    if how.layout.island > 1:
        assert total("all_reduce", "step") == expected * exchange, "across islands once a step"
    assert bool(total("all_gather", "backward")) == (n > 1 and how.layout.reshard_after_forward)


@given(shapes(), recipes())
def test_bytes_are_those_of_rings(model: ModelShape, how: Recipe) -> None:
    for one in collectives(job(model), gpus(16), how):
        n = one.group
        share = {"all_gather": n - 1, "reduce_scatter": (n - 1) / n, "all_reduce": 2 * (n - 1) / n}[one.kind]
        assert one.sent_bytes == pytest.approx(one.payload_bytes * share)
        assert one.seconds >= one.latency > 0


def test_bf16_gathers_are_half_of_fp32() -> None:
    half, full = (
        sum(
            c.sent_bytes * c.count
            for c in collectives(job(shape()), gpus(), recipe(shard=8, precision=p))
            if c.kind == "all_gather"
        )
        for p in ("bf16", "fp32")
    )
    assert 2 * half == full > 0


def test_a_ring_takes_the_slowest_link_and_every_adapter_of_a_node() -> None:
    cluster = gpus(per_node=8, nodes=4, islands=2)
    inside = hop(cluster, Layout(shard=8, island=4), "shard")
    assert (inside.link, inside.bandwidth) == ("intra_node", 200e9)
    across = hop(cluster, Layout(shard=16, island=2), "shard")
    assert (across.link, across.bandwidth) == ("inter_node", 8 * 25e9)
    everything = hop(cluster, Layout(shard=32), "shard")
    assert (everything.link, everything.bandwidth) == ("inter_island", 8 * 1e9)
    # Replicas of a whole node: each pair of GPUs has its own adapter.
    replicas = hop(cluster, Layout(shard=8, island=4), "island")
    assert (replicas.link, replicas.bandwidth) == ("inter_island", 1e9)
    assert hop(gpus(per_node=8, nodes=4), Layout(shard=8, island=4), "island").bandwidth == 25e9


def test_all_bytes_are_booked_on_a_link() -> None:
    sent = collectives(job(shape()), gpus(8, 2), recipe(island=2, shard=8))
    by_link = sent_by_link(sent)
    assert sum(by_link.values()) == pytest.approx(sum(c.sent_bytes * c.count for c in sent))
    assert by_link["intra_node"] > by_link["inter_node"] > 0
    assert by_link["inter_island"] == 0


def test_an_evaluation_gathers_blocks_for_every_pass_and_the_root_once() -> None:
    model = shape()
    root = sum(math.ceil(size[0] / 4) * math.prod(size[1:]) for n, size in parameter_shapes(model) if "blocks" not in n)
    for reshard in (True, False):
        how = recipe(shard=4, accumulation=3, reshard=reshard, precision="fp32")
        sent = evaluation_by_link(collectives(job(model), gpus(), how), how, batches=5)["intra_node"]
        blocks = (payload(model, 4) - root) * (5 if reshard else 1)
        assert sent == pytest.approx(3 * 4 * (root + blocks))


def test_ranks_of_a_laptop_share_its_loopback() -> None:
    assert hop(cores(4), Layout(shard=4), "shard").link == "intra_node"
