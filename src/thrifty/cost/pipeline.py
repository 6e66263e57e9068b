"""How long a pipeline takes for its microbatches, and what of it is idle: the bubble.

For this project's trainer, whose stages and order of work are known, the clock of `cost.timeline` says it. Of other
software the slowest stage alone is known, and a formula must do.

With p stages, m microbatches, v chunks a stage, and forward, input-gradient and weight-gradient times F, B and W of
one microbatch on the slowest stage, a stage is busy for m (F + B + W) and waits for

    gpipe, 1f1b     (p - 1) (F + B + W)             Huang et al. 2018, arXiv:1811.06965; Narayanan et al. 2021
    interleaved     (p - 1) (F + B + W) / v         Narayanan et al. 2021, arXiv:2104.04473
    zero_bubble     (p - 1) (F + B - W)             ZB-H1, Qi et al. 2023, arXiv:2401.10241
    zbv             (p - 1) (F + B - 2 W) / 2       Qi et al. 2024, arXiv:2405.15362: none where F = B = W
"""

from __future__ import annotations

from functools import lru_cache

from thrifty.cost.compute import rank_of
from thrifty.cost.stages import UnitTimes, placement, stage_layers, unit_times
from thrifty.cost.timeline import PartSeconds, Span, length, order, run
from thrifty.cost.traffic import collectives
from thrifty.spec.cluster import Cluster
from thrifty.spec.job import Job
from thrifty.spec.legal import SPLIT_BACKWARD
from thrifty.spec.recipe import Layout, Recipe


def bubble_seconds(stages: int, schedule: str, chunks: int, forward: float, by_input: float, by_weight: float) -> float:
    """Idle time of a stage in one optimizer step.

    Args:
        forward: of one microbatch on the slowest stage, with what is computed again; likewise the gradients of inputs
            and of weights.
    """
    if stages == 1:
        return 0.0
    full = forward + by_input + by_weight
    idle = {
        "gpipe": full,
        "1f1b": full,
        "interleaved": full / chunks,
        "zero_bubble": forward + by_input - by_weight,
        "zbv": (forward + by_input - 2 * by_weight) / 2,
    }[schedule]
    return (stages - 1) * max(0.0, idle)


def part_seconds(times: UnitTimes, layers: tuple[range, ...]) -> tuple[PartSeconds, ...]:
    """Time of one microbatch in each part of a model.

    Half of the products of a block's backward pass make gradients of weights. The loss forms the gradients of the head
    beside itself, so all of the head is in the forward pass.
    """
    by_weight = times.backward.products / 2
    by_input = sum(times.backward) - by_weight + sum(times.again)
    found = []
    for part, run_of_layers in enumerate(layers):
        n = len(run_of_layers)
        found.append(
            PartSeconds(
                n * sum(times.forward) + (sum(times.head) if part == len(layers) - 1 else 0.0),
                n * by_input,
                n * by_weight + (times.embedding if part == 0 else 0.0),
            )
        )
    return tuple(found)


def planned_spans(job: Job, cluster: Cluster, recipe: Recipe) -> tuple[tuple[Span, ...], ...]:
    """The timeline of one step of this project's trainer, for each rank of a pipeline.

    Raises:
        ThriftyError: the accelerator has no rate for the recipe's precision.
    """
    times = unit_times(job, recipe, rank_of(cluster, recipe))
    parts = part_seconds(times, stage_layers(job, cluster, recipe))
    messages = [one for one in collectives(job, cluster, recipe) if one.kind == "send"]
    handing = max((one.seconds for one in messages), default=0.0)
    return run(order(recipe.layout, recipe.accumulation), parts, handing)


def idle_seconds(layout: Layout, microbatches: int, parts: tuple[PartSeconds, ...], handing: float) -> float:
    """What a step takes beyond the computation of its busiest rank.

    Args:
        handing: from the end of an action to its result's arrival on another rank.
    """
    # After a few rounds each further one adds the same; idle time too, where one stage is slow forward and another one
    # backward. Stages of very unequal times need six rounds to settle, others fewer.
    p = layout.pipeline
    few = 4 * p + microbatches % p
    if microbatches <= few + p:
        return _idle_seconds(layout, microbatches, parts, handing)
    some, more = (_idle_seconds(layout, m, parts, handing) for m in (few, few + p))
    return some + (more - some) * (microbatches - few) / p


def least_idle_seconds(layout: Layout, microbatches: int, parts: tuple[PartSeconds, ...]) -> float:
    """What `idle_seconds` is at the least, without its clock: a rank waits for the parts before its first, forward, and
    after its last whole backward pass for theirs."""
    busy, least = 0.0, 0.0
    for mine in placement(layout):
        before = parts[: mine[0]]
        works = microbatches * sum(sum(parts[part]) for part in mine)
        drain = 0.0 if layout.schedule in SPLIT_BACKWARD else sum(one.by_input + one.by_weight for one in before)
        busy, least = max(busy, works), max(least, sum(one.forward for one in before) + works + drain)
    return least - busy


@lru_cache(maxsize=4096)
def _idle_seconds(layout: Layout, microbatches: int, parts: tuple[PartSeconds, ...], handing: float) -> float:
    return length(layout, microbatches, parts, handing) - microbatches * max(
        sum(sum(parts[part]) for part in mine) for mine in placement(layout)
    )
