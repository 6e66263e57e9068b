"""Which layers each part of a pipeline holds, and which parts each rank: even, or so that the slowest has least to do.

A pipeline of p ranks with v chunks each cuts the model into p v parts. They are dealt round, part c to rank c mod p
(Narayanan et al. 2021, arXiv:2104.04473), or under `zbv` there and back, parts r and 2p - 1 - r to rank r (Qi et al.
2024, arXiv:2405.15362).
"""

from __future__ import annotations

import heapq
from functools import lru_cache
from itertools import pairwise
from typing import NamedTuple

from thrifty.cost.compute import Parts, Rank, rank_of, unit_seconds
from thrifty.cost.work import split_of
from thrifty.spec.cluster import Cluster
from thrifty.spec.job import Job
from thrifty.spec.recipe import Layout, Recipe


def placement(layout: Layout) -> tuple[tuple[int, ...], ...]:
    """The parts of each pipeline rank, in the order of the model."""
    return _placement(layout.pipeline, layout.interleave, layout.schedule == "zbv")


@lru_cache(maxsize=1024)
def _placement(p: int, v: int, vee: bool) -> tuple[tuple[int, ...], ...]:
    if vee:
        return tuple((rank, 2 * p - 1 - rank) for rank in range(p))
    return tuple(tuple(rank + p * chunk for chunk in range(v)) for rank in range(p))


def sends(layout: Layout) -> tuple[int, int]:
    """Messages that the busiest sender starts for one microbatch: forward, and backward."""
    return max((messages(layout, stage) for stage in range(layout.pipeline)), key=sum)


def messages(layout: Layout, stage: int) -> tuple[int, int]:
    """Messages that a stage starts for one microbatch: forward, and backward."""
    mine, last = placement(layout)[stage], layout.pipeline * layout.interleave - 1
    ahead = sum(part < last and part + 1 not in mine for part in mine)
    back = sum(part > 0 and part - 1 not in mine for part in mine)
    return ahead, back


def even(layers: int, parts: int) -> tuple[range, ...]:
    """Layers in equal runs; the first ones hold one more where it does not come out even.

    >>> even(5, 2)
    (range(0, 3), range(3, 5))
    """
    ends = [-(-layers * part // parts) for part in range(parts + 1)]
    return tuple(range(begin, end) for begin, end in pairwise(ends))


class UnitTimes(NamedTuple):
    """Seconds of one microbatch on one rank, of what a stage is made of.

    Attributes:
        again: what recomputation adds to a block's backward pass.
        embedding: of the first stage: the dense gradient of the lookups is zeroed and added to.
        head: of the last stage: norm, head and loss, both directions.
    """

    forward: Parts
    backward: Parts
    again: Parts
    embedding: float
    head: Parts

    @property
    def block(self) -> float:
        return sum(self.forward) + sum(self.backward) + sum(self.again)


def unit_times(job: Job, recipe: Recipe, rank: Rank) -> UnitTimes:
    """Of a model whose blocks are alike."""
    shape, split = job.model, split_of(recipe.layout)
    unit = unit_seconds(
        shape, recipe.batch.micro_sequences, job.sequence_length, rank, recipe.precision, recipe.compile,
        recipe.recompute, split, False, recipe.software == "thrifty",
    )  # fmt: skip
    # `work.head` counts the lookups' gradient with the head, where one rank has both.
    lookups = 12 * shape.vocab_size / split.tensor * shape.hidden * rank.profile.traffic / rank.bandwidth
    head = unit.root._replace(elementwise=max(0.0, unit.root.elementwise - lookups))
    return UnitTimes(unit.block_forward, unit.block_backward, unit.block_again, lookups, head)


def stage_layers(job: Job, cluster: Cluster, recipe: Recipe) -> tuple[range, ...]:
    """The layers of each part of a pipeline, so that its slowest rank is as fast as can be.

    Raises:
        ThriftyError: the accelerator has no rate for the recipe's precision.
    """
    times = unit_times(job, recipe, rank_of(cluster, recipe))
    return balanced(job.model.layers, placement(recipe.layout), times.block, times.embedding, sum(times.head))


def own_runs(job: Job, cluster: Cluster, recipe: Recipe) -> tuple[range, ...] | None:
    """The same for this project's trainer, which cuts so; None for other software, and without a pipeline."""
    return stage_layers(job, cluster, recipe) if recipe.software == "thrifty" and recipe.layout.pipeline > 1 else None


@lru_cache(maxsize=16384)
def balanced(
    layers: int, held: tuple[tuple[int, ...], ...], block: float, embedding: float, head: float
) -> tuple[range, ...]:
    """Runs of at least one layer, such that the busiest rank, and then the longest part, are the least possible.

    Layers are alike, so handing each to the rank that would then be least busy is optimal.

    Args:
        held: the parts of each rank.
        block, embedding, head: seconds of one layer, and of what the first and the last part have besides.
    """
    parts = sum(map(len, held))
    if layers < parts:  # `spec.legal` refuses this, but a search may ask what it would cost
        return even(layers, parts)
    numbers = [1] * parts
    load = [block + (embedding if part == 0 else 0.0) + (head if part == parts - 1 else 0.0) for part in range(parts)]

    def next_of(rank: int) -> tuple[float, float, int, int]:
        """Load of a rank with one layer more, in its shortest part."""
        shortest = min(held[rank], key=lambda part: (load[part], part))
        return sum(load[part] for part in held[rank]) + block, load[shortest] + block, shortest, rank

    waiting = [next_of(rank) for rank in range(len(held))]
    heapq.heapify(waiting)
    for _ in range(layers - parts):
        *_, part, rank = waiting[0]
        numbers[part] += 1
        load[part] += block
        heapq.heapreplace(waiting, next_of(rank))
    ends = [sum(numbers[:part]) for part in range(parts + 1)]
    return tuple(range(begin, end) for begin, end in pairwise(ends))
