"""What a search may choose among: complete, legal, counted where it is not, and restricted to what is asked."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import pytest

from thrifty.catalog import lookup
from thrifty.planner import space
from thrifty.planner.reasons import show_layout
from thrifty.spec import Cluster, Job, ModelShape, Recipe, ThriftyError, legal
from thrifty.spec.load import build
from thrifty.spec.recipe import Batch, Layout
from thrifty.spec.software import RUNS


def job(model: str = "llama-3-8b", length: int = 4096) -> Job:
    return Job(model=build(ModelShape, lookup.model(model), ""), steps=100, sequence_length=length)


def cluster(text: str = "64xh100") -> Cluster:
    return build(Cluster, lookup.cluster(text), "")


def base(software: str) -> Recipe:
    return Recipe(software=software, batch=Batch(sequences=64, micro_sequences=1))


@pytest.mark.parametrize("software", sorted(RUNS))
@pytest.mark.parametrize("text", ["8xa100", "64xh100", "3x4xh100", "125x8xh100"])
def test_layouts_use_every_device_and_are_legal(software: str, text: str) -> None:
    found = space.layouts(job(), cluster(text), {"software": software})
    assert len(set(found)) == len(found) > 0
    devices = cluster(text).devices
    for layout in found[:: 1 + len(found) // 100]:
        assert layout.ranks == devices
        assert legal.by_layout(job(), layout, software) is None
        assert cluster(text).per_node % layout.tensor == 0
        assert Layout.model_validate(layout.model_dump()) == layout


@pytest.mark.parametrize(
    ("software", "axes"),
    [("thrifty", "island shard pipeline context tensor"), ("accelerate", "island shard"),
     ("deepspeed", "shard pipeline"), ("nanotron", "shard pipeline tensor"),
     ("megatron", "island shard pipeline context tensor"), ("torchtitan", "island shard pipeline context tensor")],
)  # fmt: skip
def test_each_software_gets_its_axes(software: str, axes: str) -> None:
    found = space.layouts(job(), cluster(), {"software": software})
    used = [axis for axis in space.AXES if any(getattr(layout, axis) > 1 for layout in found)]
    assert used == axes.split()
    assert {layout.zero for layout in found if layout.shard > 1} == set(RUNS[software].zero)


def test_experts_are_split_over_data_and_context_ranks() -> None:
    from thrifty.spec.job import Experts

    shape = job().model.model_copy(update={"experts": Experts(count=8, active=2, ffn=1024)})
    mixed = job().model_copy(update={"model": shape})
    found = space.layouts(mixed, cluster("16xh100"), {"software": "megatron"})
    assert {layout.expert for layout in found} == {1, 2, 4, 8}
    assert all((layout.data_ranks * layout.context) % layout.expert == 0 for layout in found)


@pytest.mark.parametrize(
    "given",
    [{"tensor": 4}, {"pipeline": 8, "schedule": "1f1b"}, {"context": 2, "shard": 8}, {"island": 4, "zero": 1},
     {"shard": 2, "island": 2}, {"interleave": 4, "pipeline": 4, "schedule": "interleaved"}, {"tensor_overlap": False},
     {"sequence_parallel": False, "tensor": 2}, {"tensor": 16}],
)  # fmt: skip
def test_what_is_given_is_in_every_layout(given: dict[str, Any]) -> None:
    found = space.layouts(job(), cluster(), {"software": "megatron", "layout": given})
    assert found
    for layout in found:
        assert all(getattr(layout, axis) == size for axis, size in given.items())
        assert layout.ranks == 64


def test_illegal_ways_are_counted_by_reason() -> None:
    odd = job().model_copy(update={"model": job().model.model_copy(update={"heads": 24, "kv_heads": 8})})
    counted: Counter[str] = Counter()
    space.layouts(odd, cluster("2x16xh100"), {"software": "megatron"}, counted)
    assert counted["tensor does not divide heads"] > 0
    counted.clear()
    space.layouts(job(), cluster(), {"software": "megatron"}, counted)
    assert set(counted) == {space.CROSSES}


@pytest.mark.parametrize(
    ("software", "given", "what"),
    [("thrifty", {"expert": 2}, "has no experts to split"), ("thrifty", {"zero": 1}, "the trainer runs zero 3"),
     ("megatron", {"tensor": 3}, "does not divide 64 devices"), ("megatron", {"pipeline": 64}, "exceeds layers 32"),
     ("megatron", {"zero": 3}, "Megatron-LM runs zero 0 or 1"), ("torchtitan", {"shard": 128}, "128 ranks need 128"),
     ("nanotron", {"pipeline": 2, "interleave": 2}, "needs schedule interleaved or zbv")],
)  # fmt: skip
def test_what_cannot_be_is_told(software: str, given: dict[str, Any], what: str) -> None:
    with pytest.raises(ThriftyError, match=what) as error:
        space.layouts(job(), cluster(), {"software": software, "layout": given})
    assert error.value.hint


def test_a_hundred_thousand_devices() -> None:
    found = space.layouts(job("llama-3-70b", 8192), cluster("12500x8xh100"), {"software": "megatron"})
    assert len(found) > 500
    assert all(math.prod(getattr(layout, axis) for axis in space.AXES) == 100_000 for layout in found)


def test_levers_that_change_the_numbers_are_closed_until_opened() -> None:
    def values(software: str, *opened: str) -> dict[str, set[object]]:
        found = space.levers(base(software), cluster(), {"software": software}, opened)
        return {
            "precision": {one.precision for one in found},
            "state_bits": {one.optimizer.state_bits for one in found},
            "codec": {one.exchange.codec for one in found},
            "local_steps": {one.exchange.local_steps for one in found},
        }

    plain = {"precision": {"fp32", "bf16"}, "state_bits": {32}, "codec": {None}, "local_steps": {1}}
    assert all(values(software) == plain for software in RUNS)
    assert values("megatron", "lowbit")["precision"] == {"fp32", "bf16", "fp8"}
    assert values("megatron", "optimizer8bit")["state_bits"] == {32, 16, 8}
    assert values("torchtitan", "compression", "localsteps") == plain | {
        "codec": {None, "fp8_e4m3"},
        "local_steps": {1, 10, 100},
    }
    given = {"optimizer": {"state_bits": 32}}
    assert {o.optimizer.state_bits for o in space.levers(base("megatron"), cluster(), given, ["optimizer8bit"])} == {32}


@pytest.mark.parametrize(
    ("software", "lever", "what"),
    [("thrifty", "lowbit", "the trainer does not run lowbit"), ("thrifty", "lowbits", "unknown lever")],
)
def test_a_lever_that_is_not_there_is_told(software: str, lever: str, what: str) -> None:
    with pytest.raises(ThriftyError, match=what) as error:
        space.levers(base(software), cluster(), {"software": software}, [lever])
    assert error.value.hint


@pytest.mark.parametrize(
    ("layout", "shown"),
    [
        (Layout(), "one rank"),
        (Layout(island=8, shard=8), "8 islands x 8 shards, gathered twice"),
        (Layout(island=4), "4 replicas"),
        (Layout(shard=4, zero=0), "4 replicas"),
        (
            Layout(shard=16, zero=1, pipeline=8, tensor=8, schedule="interleaved", interleave=5),
            "16 ranks under ZeRO-1 x 8 stages (interleaved 5) x 8 tensor",
        ),
        (
            Layout(shard=4, context=2, pipeline=2, schedule="zbv", interleave=2, expert=8),
            "4 shards x 2 stages (zbv) x 2 context, experts over 8",
        ),
    ],
)
def test_layouts_are_shown_in_words(layout: Layout, shown: str) -> None:
    assert show_layout(layout) == shown
