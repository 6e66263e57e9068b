"""The schedules as lists are those that torch executes, and the clock that runs them knows the formulas' bubbles."""

from __future__ import annotations

import pytest
from cost_examples import cores, job, shape
from hypothesis import given, settings
from hypothesis import strategies as st

from thrifty.cost.compute import rank_of
from thrifty.cost.pipeline import bubble_seconds, idle_seconds, least_idle_seconds, part_seconds
from thrifty.cost.stages import balanced, even, placement, sends, stage_layers, unit_times
from thrifty.cost.step import step_seconds
from thrifty.cost.timeline import PartSeconds, Span, draw, length, most_kept, order, run, use
from thrifty.spec.recipe import Batch, Layout, Recipe

SCHEDULES = {"gpipe": 1, "1f1b": 1, "interleaved": 2, "zero_bubble": 1, "zbv": 2}


def layout_of(schedule: str, stages: int) -> Layout:
    return Layout(pipeline=stages, schedule=schedule, interleave=SCHEDULES[schedule])


def recipe(layout: Layout, microbatches: int) -> Recipe:
    return Recipe(layout=layout, batch=Batch(sequences=microbatches, micro_sequences=1), precision="fp32")


unhurried = settings(deadline=None)  # the clock of a shared machine is no test
any_schedule = st.sampled_from(sorted(SCHEDULES))
any_stages = st.sampled_from([2, 3, 4])
any_rounds = st.integers(1, 5)
seconds = st.floats(0.1, 3.0)


@unhurried
@given(any_schedule, any_stages, any_rounds)
def test_every_part_passes_every_microbatch_once_each_way(schedule, stages, rounds):
    layout, m = layout_of(schedule, stages), rounds * stages
    for rank, actions in enumerate(order(layout, m)):
        for part in placement(layout)[rank]:
            for kind in "FIW" if schedule in ("zero_bubble", "zbv") else "FB":
                assert [a.microbatch for a in actions if (a.kind, a.part) == (kind, part)] == list(range(m))


@unhurried
@given(any_schedule, any_stages, any_rounds, st.data())
def test_the_clock_keeps_every_dependency(schedule, stages, rounds, data):
    layout, m = layout_of(schedule, stages), rounds * stages
    parts = [PartSeconds(*data.draw(st.tuples(seconds, seconds, seconds))) for _ in range(stages * layout.interleave)]
    ends = {(("B" if s.kind == "I" else s.kind), s.part, s.microbatch): s for mine in run(order(layout, m), parts, 0.25)
            for s in mine}  # fmt: skip
    at = {part: rank for rank, mine in enumerate(placement(layout)) for part in mine}
    for (kind, part, i), span in ends.items():
        if kind == "F" and part:
            assert span.begin >= ends["F", part - 1, i].end + (0.25 if at[part] != at[part - 1] else 0)
        if kind == "B" and part + 1 < len(parts):
            assert span.begin >= ends["B", part + 1, i].end + (0.25 if at[part] != at[part + 1] else 0)
        if kind == "W":
            assert span.begin >= ends["B", part, i].end


@unhurried
@given(any_schedule, any_stages, any_rounds, st.sampled_from([0.0, 0.25]), st.data())
def test_how_long_it_takes_needs_no_spans(schedule, stages, rounds, handing, data):
    layout, m = layout_of(schedule, stages), rounds * stages
    parts = [PartSeconds(*data.draw(st.tuples(seconds, seconds, seconds))) for _ in range(stages * layout.interleave)]
    assert length(layout, m, parts, handing) == use(run(order(layout, m), parts, handing)).seconds


@unhurried
@given(any_schedule, any_stages, any_rounds, st.data())
def test_what_idles_at_the_least_is_no_more_than_what_idles(schedule, stages, rounds, data):
    layout, m = layout_of(schedule, stages), rounds * stages
    drawn = [data.draw(st.tuples(seconds, seconds, seconds)) for _ in range(stages * layout.interleave)]
    parts = tuple(PartSeconds(*one) for one in drawn)
    assert least_idle_seconds(layout, m, parts) <= idle_seconds(layout, m, parts, 0.0) + 1e-9


@pytest.mark.parametrize("stages", [2, 4, 8])
@pytest.mark.parametrize("schedule", ["gpipe", "1f1b", "interleaved", "zero_bubble"])
def test_equal_stages_idle_as_the_formulas_say(schedule, stages):
    layout = layout_of(schedule, stages)
    v = layout.interleave
    part = PartSeconds(1.0 / v, 1.0 / v, 1.0 / v)
    idle = idle_seconds(layout, 4 * stages, (part,) * (stages * v), 0.0)
    assert idle == pytest.approx(bubble_seconds(stages, schedule, v, 1.0, 1.0, 1.0))


@unhurried
@given(any_schedule, any_stages, st.integers(7, 12), st.data())
def test_a_few_rounds_of_microbatches_tell_of_many(schedule, stages, rounds, data):
    """However unequal the stages; where they are about equal nothing is lost."""
    layout, m = layout_of(schedule, stages), rounds * stages
    parts = [PartSeconds(*data.draw(st.tuples(seconds, seconds, seconds))) for _ in range(stages * layout.interleave)]
    busiest = max(sum(sum(parts[part]) for part in mine) for mine in placement(layout))
    took = use(run(order(layout, m), parts)).seconds
    assert took >= m * busiest - 1e-9
    assert m * busiest + idle_seconds(layout, m, tuple(parts), 0.0) == pytest.approx(took, rel=0.05)


def test_a_drawing_is_to_scale():
    spans = ((Span("F", 0, 0, 10.0, 11.0), Span("B", 0, 0, 13.0, 15.0)), (Span("F", 1, 0, 11.0, 12.0),))
    assert draw(spans, 10) == "stage 0  FF....BBBB\nstage 1  ..FF......"
    assert use(spans).bubble == pytest.approx(1 - 4 / 10)


def test_how_many_microbatches_are_kept_at_once():
    for schedule, most in (("gpipe", (8, 8, 8, 8)), ("1f1b", (4, 3, 2, 1))):
        actions = order(layout_of(schedule, 4), 8)
        assert tuple(most_kept(mine, {rank: 1.0}) for rank, mine in enumerate(actions)) == most


# --- stages ----------------------------------------------------------------------------------------------------------


@unhurried
@given(st.integers(4, 40), any_schedule, st.sampled_from([2, 4]), seconds, st.floats(0, 3), st.floats(0, 12))
def test_no_single_layer_moved_would_help(layers, schedule, stages, block, embedding, head):
    layout = layout_of(schedule, stages)
    held = placement(layout)
    parts = stages * layout.interleave
    if layers < parts:
        return
    split = balanced(layers, held, block, embedding, head)
    assert [layer for part in split for layer in part] == list(range(layers))
    assert all(split)

    def slowest(numbers: list[int]) -> float:
        ends = {0: embedding, parts - 1: head}
        return max(sum(numbers[part] * block + ends.get(part, 0.0) for part in mine) for mine in held)

    numbers = [len(part) for part in split]
    for a in range(parts):
        for b in range(parts):
            moved = [n - (i == a) + (i == b) for i, n in enumerate(numbers)]
            assert min(moved) < 1 or slowest(numbers) <= slowest(moved) + 1e-9


def test_a_heavy_head_gets_fewer_layers():
    asked, cluster, how = job(shape(layers=12, vocab_size=32000)), cores(2), recipe(Layout(pipeline=2), 4)
    first, last = stage_layers(asked, cluster, how)
    assert len(first) > len(last) >= 1
    spread = even(12, 2)
    assert len(spread[0]) == len(spread[1])


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_step_is_as_long_as_the_clock_says(schedule):
    """Computation of the busiest stage, bubble and traffic between stages together are the whole timeline."""
    asked, cluster = job(shape(layers=8, vocab_size=8000)), cores(2)
    layout = layout_of(schedule, 2)
    how = recipe(layout, 8)
    step = step_seconds(asked, cluster, how)
    parts = part_seconds(unit_times(asked, how, rank_of(cluster, how)), stage_layers(asked, cluster, how))
    took = use(run(order(layout, 8), parts)).seconds
    waits = ("matrix products", "attention", "elementwise operations", "dispatch", "pipeline bubble")
    assert sum(step.limits[name] for name in waits) == pytest.approx(took)
    assert step.limits["pipeline traffic"] > 0


def test_messages_of_the_busiest_sender():
    assert sends(Layout(pipeline=2)) == (1, 0)
    assert sends(Layout(pipeline=4)) == (1, 1)
    assert sum(sends(Layout(pipeline=2, schedule="interleaved", interleave=2))) == 3
    assert sum(sends(Layout(pipeline=2, schedule="zbv", interleave=2))) == 2
    assert sum(sends(Layout(pipeline=4, schedule="zbv", interleave=2))) == 4
