"""The search against pricing everything: what it leaves out is never better, and its bounds are bounds."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from thrifty.catalog import lookup
from thrifty.cost.memory import memory, usable_bytes
from thrifty.cost.run import estimate
from thrifty.cost.step import step_seconds
from thrifty.planner import pool, space
from thrifty.planner.bounds import Bounds
from thrifty.planner.pool import fill
from thrifty.spec import Cluster, Job, ModelShape, Recipe, legal
from thrifty.spec.job import Experts
from thrifty.spec.load import build
from thrifty.spec.recipe import Batch, Layout
from thrifty.spec.software import RUNS


@st.composite
def jobs(draw: st.DrawFn) -> Job:
    heads = draw(st.sampled_from([4, 6, 8]))
    experts = draw(st.sampled_from([None, Experts(count=4, active=2, ffn=512, dense_layers=1)]))
    shape = ModelShape(
        layers=draw(st.integers(2, 8)), hidden=heads * 128, heads=heads, kv_heads=draw(st.sampled_from([2, heads])),
        ffn=draw(st.sampled_from([1024, 3072])), vocab_size=draw(st.sampled_from([1024, 50304])), experts=experts,
    )  # fmt: skip
    return Job(model=shape, steps=1000, sequence_length=draw(st.sampled_from([512, 1024, 2048])))


@st.composite
def clusters(draw: st.DrawFn) -> Cluster:
    text = draw(st.sampled_from(["4xa100", "4xh100", "2x2xa100", "2xh100"]))
    cluster = build(Cluster, lookup.cluster(text), "")
    # From too little for anything to more than enough.
    memory = cluster.accelerator.memory.model_copy(update={"value": draw(st.sampled_from([2.5, 4, 8, 16, 80])) * 2**30})
    return cluster.model_copy(update={"accelerator": cluster.accelerator.model_copy(update={"memory": memory})})


def every_layout(job: Job, ranks: int, per_node: int, software: str) -> Iterator[Layout]:
    """All of them, one by one, as the nouns allow.

    But for what `space` says is not proposed: tensor groups across nodes, tensor without sequence parallelism where
    that divides, unequal chunks, and islands inside one node under ZeRO-1 and replicas.
    """
    sizes = space.divisors(ranks)
    for island, shard, pipeline, context, tensor in itertools.product(sizes, repeat=5):
        if island * shard * pipeline * context * tensor != ranks or per_node % tensor:
            continue
        if island > 1 and 3 not in RUNS[software].zero:
            continue
        runs = RUNS[software]
        nothing_to_share = max((pipeline > 1 and runs.zero_in_pipelines) or runs.zero)
        sequences = (job.sequence_length % (context * tensor) == 0,) if tensor > 1 else (True,)
        for zero in (0, 1, 2, 3) if shard > 1 else (nothing_to_share,):
            for again, sequence, overlap, expert, (schedule, chunks) in itertools.product(
                (True, False) if zero == 3 and shard > 1 else (True,),
                sequences,
                (True, False) if tensor > 1 else (False,),
                (1, 2, 4) if job.model.experts else (1,),
                schedules(-(-job.model.layers // pipeline)) if pipeline > 1 else [("1f1b", 1)],
            ):
                layout = Layout(
                    island=island, shard=shard, pipeline=pipeline, context=context, tensor=tensor, expert=expert,
                    zero=zero, reshard_after_forward=again, sequence_parallel=sequence, tensor_overlap=overlap,
                    schedule=schedule, interleave=chunks,
                )  # fmt: skip
                if legal.by_layout(job, layout, software) is None:
                    yield layout


def schedules(layers: int) -> list[tuple[str, int]]:
    """Of a stage with so many layers."""
    return [("gpipe", 1), ("1f1b", 1), ("zero_bubble", 1), ("zbv", 2), *([] if layers % 2 else [("interleaved", 2)])]


def every_recipe(job: Job, cluster: Cluster, base: Recipe) -> Iterator[Recipe]:
    sequences = base.batch.sequences
    for layout in every_layout(job, cluster.devices, cluster.per_node, base.software):
        if sequences % layout.data_ranks:
            continue
        for micro in space.divisors(sequences // layout.data_ranks):
            for compiled, again in itertools.product((False, True), ("none", "selective", "full")):
                batch = Batch(sequences=sequences, micro_sequences=micro)
                recipe = base.model_copy(
                    update={"layout": layout, "batch": batch, "compile": compiled, "recompute": again}
                )  # fmt: skip
                if legal.illegal(job, recipe) is None:
                    yield recipe


def base_of(software: str, sequences: int = 8) -> Recipe:
    return Recipe(software=software, batch=Batch(sequences=sequences, micro_sequences=1), precision="bf16")


KEPT = {"precision": "bf16"}


@settings(max_examples=10, deadline=None)
@given(jobs(), clusters(), st.sampled_from(sorted(RUNS)))
def test_nothing_that_fits_is_faster_than_what_the_search_prices(job: Job, cluster: Cluster, software: str) -> None:
    base = base_of(software)
    if legal.illegal(job, base):
        return  # a model that this software does not train
    fastest = math.inf
    for recipe in every_recipe(job, cluster, base):
        run = estimate(job, cluster, recipe)
        if run.memory.peak <= usable_bytes(cluster, recipe.layout.ranks):
            fastest = min(fastest, run.step.total)
    found = fill(job, cluster, base, KEPT | {"software": software})
    ours = min((c.run.step.total for c in found.fitting), default=math.inf)
    assert ours <= fastest * (1 + 1e-9)
    for candidate in found.fitting:
        recipe = Recipe.model_validate(candidate.recipe.model_dump())
        assert legal.illegal(job, recipe) is None
        assert estimate(job, cluster, recipe) == candidate.run
        assert candidate.run.memory.peak <= usable_bytes(cluster, recipe.layout.ranks)


@settings(max_examples=60, deadline=None)
@given(jobs(), clusters(), st.sampled_from(["megatron", "torchtitan", "nanotron"]), st.data())
def test_bounds_are_below_every_recipe_that_they_stand_for(
    job: Job, cluster: Cluster, software: str, data: st.DataObject
) -> None:
    base = base_of(software, 16)
    if legal.illegal(job, base):
        return
    given = {"software": software}
    layout = data.draw(st.sampled_from(space.layouts(job, cluster, given)))
    if base.batch.sequences % layout.data_ranks:
        return
    bounds = Bounds(job, cluster, base)
    micros = space.divisors(base.batch.sequences // layout.data_ranks)
    sizes = [m for m in micros if not legal.by_batch(layout, 16 // (m * layout.data_ranks), software)]
    recipes = [
        base.model_copy(update={"layout": layout, "batch": Batch(sequences=16, micro_sequences=m)}) for m in sizes
    ]
    if not recipes:
        return
    close = bounds.close(recipes[-1], sizes[0])
    for recipe in recipes:
        step = step_seconds(job, cluster, recipe).total
        assert bounds.rough(layout, "bf16", True) <= step * (1 + 1e-9)
        assert close <= step * (1 + 1e-9)
        for again in RUNS[software].recompute:
            slower = step_seconds(job, cluster, recipe.model_copy(update={"recompute": again})).total
            assert step <= slower * (1 + 1e-9), "recomputation takes time"


@settings(max_examples=60, deadline=None)
@given(jobs(), clusters(), st.sampled_from(["thrifty", "megatron", "torchtitan"]), st.data())
def test_memory_grows_with_the_microbatch(job: Job, cluster: Cluster, software: str, data: st.DataObject) -> None:
    """What lets a row end at the first microbatch that does not fit, but for stages that shift with it."""
    base = base_of(software, 16)
    if legal.illegal(job, base):
        return
    layout = data.draw(st.sampled_from(space.layouts(job, cluster, {"software": software})))
    if 16 % layout.data_ranks or (software == "thrifty" and layout.pipeline > 1):
        return

    def peak(micro: int, again: str) -> float:
        batch = Batch(sequences=16, micro_sequences=micro)
        recipe = base.model_copy(update={"layout": layout, "batch": batch, "recompute": again})
        return memory(job, cluster, recipe).peak

    # The largest stands apart: it is alone, and holds no gradients of earlier ones.
    micros = space.divisors(16 // layout.data_ranks)[:-1]
    for again in RUNS[software].recompute:
        peaks = [peak(micro, again) for micro in micros]
        assert peaks == sorted(peaks)


@pytest.mark.parametrize("software", ["thrifty", "megatron", "torchtitan"])
@pytest.mark.parametrize("slack", [1.0, 1.25, math.inf])
def test_every_recipe_is_accounted_for(software: str, slack: float) -> None:
    """Priced and left out add up to layouts x settings x microbatches x recomputations, whatever the bounds cut."""
    shape = ModelShape(layers=8, hidden=1024, heads=8, kv_heads=8, ffn=4096, vocab_size=50304)
    job = Job(model=shape, steps=10, sequence_length=1024)
    cluster = build(Cluster, lookup.cluster("8xa100"), "")
    base, tree, runs = base_of(software, 16), {"software": software}, RUNS[software]
    found = fill(job, cluster, base, tree, slack=slack)
    settings = space.levers(base, cluster, tree)
    expected = sum(
        len(space.divisors(16 // layout.data_ranks)) * len(runs.recompute)
        for layout in space.layouts(job, cluster, tree)
        for setting in settings
        if 16 % layout.data_ranks == 0 and not space.is_pointless(layout, setting, settings[0], runs, tree)
    )
    assert found.tried == expected
    assert (found.excluded[pool.TOO_SLOW] > 0) == (slack < math.inf)
