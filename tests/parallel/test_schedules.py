"""The order in which the cost model runs the schedules is the order in which torch does.

Of 1F1B torch's own list is not what it executes (the last stage's begins with the second microbatch); what really ran
is compared in tests/dist.
"""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from torch import nn

from thrifty.cost.stages import even, placement
from thrifty.cost.timeline import order
from thrifty.parallel.pipeline import _LISTED, _SINGLE, parts_of
from thrifty.spec.recipe import Layout

LAYOUTS = [
    Layout(pipeline=stages, schedule=schedule, interleave=interleave)
    for stages in (2, 3, 4)
    for schedule, interleave in (("gpipe", 1), ("interleaved", 2), ("interleaved", 3), ("zero_bubble", 1),
                                 ("zbv", 2))
]  # fmt: skip


def torch_order(layout: Layout, microbatches: int) -> list[list[tuple[str, int, int]]]:
    """What torch's schedule says of every rank, computation alone."""
    total = layout.pipeline * layout.interleave
    stages = [
        SimpleNamespace(
            stage_index=part, num_stages=total, group_size=layout.pipeline, group_rank=0, is_first=part == 0,
            is_last=part == total - 1, submod=nn.Identity(),
        )
        for part in placement(layout)[0]
    ]  # fmt: skip
    build = {**_SINGLE, **_LISTED}[layout.schedule]
    schedule = build(stages if layout.schedule in _LISTED else stages[0], microbatches)
    return [
        [(a.computation_type.value, a.stage_index, a.microbatch_index) for a in actions if a and a.is_compute_op]
        for _, actions in sorted(schedule.pipeline_order.items())
    ]


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda one: f"{one.schedule}-{one.pipeline}x{one.interleave}")
@pytest.mark.parametrize("rounds", [1, 2, 5])
def test_orders_are_those_of_torch(layout, rounds):
    microbatches = rounds * layout.pipeline
    assert [list(map(tuple, mine)) for mine in order(layout, microbatches)] == torch_order(layout, microbatches)


def test_the_parts_of_a_rank():
    layout = Layout(pipeline=2, shard=2, schedule="zbv", interleave=2)
    near, far = parts_of(10, layout, rank=3)
    assert (near.index, far.index, near.first, far.last) == (1, 2, False, False)
    assert (near.layers, far.layers) == even(10, 4)[1:3]
    assert [part.last for part in parts_of(10, layout, rank=0)] == [False, True]
    (whole,) = parts_of(10, Layout(shard=2), rank=1)
    assert (whole.first, whole.last, whole.layers) == (True, True, range(10))
