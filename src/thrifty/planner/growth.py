"""How a plan grows with nodes: the bandwidth from which doubling them pays, and the largest size worth its time.

    doubling pays       twice the nodes make a step at least 5% shorter, the batch being the same
    as cheap a token    twice the nodes cost at most 5% more a token

The layout of a larger or smaller cluster is the plan's with its data ranks scaled: more replicas or more shards, and
the microbatch, gathering and recomputation that are cheapest there.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from thrifty.cost.step import step_seconds
from thrifty.planner.assumptions import changed, figure_at
from thrifty.planner.shortlist import price, show_recipe, variations
from thrifty.spec import units
from thrifty.spec.cluster import Cluster
from thrifty.spec.job import Job
from thrifty.spec.plan import tokens_per_step
from thrifty.spec.recipe import Recipe

FASTER = 0.05  # what doubling the nodes must save of a step
DEARER = 0.05  # what it may add to the cost of a token
MOST_DEVICES = 131_072
_SCAN = [4.0**power for power in range(6, -7, -1)]  # factors of today's bandwidth
_CONTENDERS = 4


@dataclass(frozen=True)
class Size:
    """The job on another number of nodes.

    Attributes:
        recipe: the cheapest of those tried that fits, in words.
        faster: share of the step that this size saves against half of it; none for the smallest.
        usd_per_token: against the smallest size; 1 = the same.
    """

    nodes: int
    devices: int
    recipe: str
    step_seconds: float
    tokens_per_second: float
    faster: float | None
    usd_per_token: float


@dataclass(frozen=True)
class Growth:
    """How a plan grows with nodes.

    Attributes:
        link: that lies between the nodes added.
        doubles: whether any recipe that was tried runs on twice the nodes.
        pays_from: bandwidth above which doubling today's nodes makes a step at least 5% shorter, whatever a token then
            costs; none where no bandwidth does it, 0 where any does that was tried.
        cheap_from: bandwidth above which doubling costs at most 5% more a token; none and 0 likewise.
        sizes: by nodes, at today's bandwidth.
        largest: devices of the largest size worth its time: each doubling before it saved 5% or more.
        limit: why it stops there.
    """

    link: str
    bandwidth: float
    doubles: bool
    pays_from: float | None
    cheap_from: float | None
    sizes: tuple[Size, ...]
    largest: int
    limit: str


def growth(job: Job, cluster: Cluster, recipe: Recipe) -> Growth:
    """When adding nodes pays: at which bandwidth, and up to how many."""
    link = "inter_island" if cluster.islands > 1 else "inter_node"
    path = f"{link}.bandwidth"
    today = figure_at(cluster, path).value
    now, twice = (_contenders(job, cluster, recipe, factor, path) for factor in (1, 2))

    def ratio(value: float) -> float:
        """A step on twice the nodes over one on today's, both at this bandwidth."""
        return _shortest(job, changed(resized(cluster, 2), path, value), twice) / _shortest(
            job, changed(cluster, path, value), now
        )

    sizes, limit = _sizes(job, cluster, recipe)
    largest = _largest(sizes)
    if largest is not sizes[-1]:
        saved = sizes[sizes.index(largest) + 1].faster or 0.0
        limit = f"twice of it saves {saved:.1%} of a step" if saved > 0 else "twice of it saves nothing"
    return Growth(
        link=link,
        bandwidth=today,
        doubles=bool(twice),
        pays_from=_from(lambda value: ratio(value) <= 1 - FASTER, today) if twice else None,
        cheap_from=_from(lambda value: 2 * ratio(value) <= 1 + DEARER, today) if twice else None,
        sizes=tuple(sizes),
        largest=largest.devices,
        limit=limit,
    )


def resized(cluster: Cluster, factor: float) -> Cluster:
    """The same machines, `factor` times as many; where there are islands, more islands of the same size."""
    nodes = round(cluster.nodes * factor)
    islands = max(1, round(cluster.islands * factor)) if cluster.islands > 1 else 1
    return cluster.model_copy(update={"nodes": nodes, "islands": islands if nodes % islands == 0 else 1})


def scaled(job: Job, cluster: Cluster, recipe: Recipe, factor: float) -> Iterator[Recipe]:
    """Recipes for `factor` times the data ranks, the batch as it was: more replicas, more shards, or either alone."""
    layout = recipe.layout
    ranks = round(layout.data_ranks * factor)
    if ranks != layout.data_ranks * factor:
        return  # what stages and tensors share cannot be halved further
    shards = {layout.shard, round(layout.shard * factor), min(ranks, cluster.per_node), ranks, 1}
    for shard in sorted(size for size in shards if size and ranks % size == 0):
        wider = layout.model_copy(update={"island": ranks // shard, "shard": shard})
        each, rest = divmod(recipe.batch.sequences, ranks)
        if not rest:
            micro = next(size for size in range(min(each, recipe.batch.micro_sequences), 0, -1) if each % size == 0)
            batch = recipe.batch.model_copy(update={"micro_sequences": micro})
            yield from variations(job, recipe.model_copy(update={"layout": wider, "batch": batch}))


def _contenders(job: Job, cluster: Cluster, recipe: Recipe, factor: float, path: str) -> list[Recipe]:
    """Recipes that fit on a resized cluster, of which one is the fastest at some bandwidth: the best few at three."""
    larger = resized(cluster, factor)
    fitting = [one for one in scaled(job, cluster, recipe, factor) if price(job, larger, one).fits]
    found: dict[Recipe, None] = {}
    for by in (_SCAN[0], 1.0, _SCAN[-1]):
        there = changed(larger, path, by * figure_at(larger, path).value)
        ordered = sorted(fitting, key=lambda one: step_seconds(job, there, one).total)
        found |= dict.fromkeys(ordered[:_CONTENDERS])
    return list(found)


def _shortest(job: Job, cluster: Cluster, recipes: Sequence[Recipe]) -> float:
    return min(step_seconds(job, cluster, one).total for one in recipes)


def _from(pays: Callable[[float], bool], today: float) -> float | None:
    """The bandwidth above which something pays, looked for from high to low; 0 where it pays at all that were tried."""
    tried = [factor * today for factor in _SCAN]
    if not pays(tried[0]):
        return None
    for above, below in pairwise(tried):
        if not pays(below):
            return least(pays, below, above, 1e-3)
    return 0.0


def _sizes(job: Job, cluster: Cluster, recipe: Recipe) -> tuple[list[Size], str]:
    """Doublings from the smallest part of the cluster that the job fits on, until one saves too little."""
    halvings = (cluster.nodes & -cluster.nodes).bit_length() - 1
    sizes = list[Size]()
    factor = 2.0**-halvings
    while cluster.devices * factor <= max(MOST_DEVICES, cluster.devices):
        there = resized(cluster, factor)
        priced = [price(job, there, one) for one in scaled(job, cluster, recipe, factor)]
        fitting = [one for one in priced if one.fits]
        if fitting:
            best = min(fitting, key=lambda one: one.run.step.total)
            sizes.append(_size(job, there, best.recipe, best.run.step.total, sizes))
        elif sizes and not priced:
            return sizes, f"the batch of {recipe.batch.sequences:,} sequences cannot be shared by more ranks"
        faster = sizes[-1].faster if sizes else None
        if factor >= 1 and faster is not None and faster < FASTER:
            break
        factor *= 2
    return sizes, f"more than {MOST_DEVICES:,} devices were not tried"


def _size(job: Job, cluster: Cluster, recipe: Recipe, seconds: float, smaller: Sequence[Size]) -> Size:
    before = smaller[-1] if smaller else None
    return Size(
        nodes=cluster.nodes,
        devices=cluster.devices,
        recipe=show_recipe(recipe),
        step_seconds=seconds,
        tokens_per_second=tokens_per_step(job, recipe) / seconds,
        faster=1 - seconds / before.step_seconds if before else None,
        usd_per_token=cluster.devices * seconds / (smaller[0].devices * smaller[0].step_seconds) if smaller else 1.0,
    )


def _largest(sizes: Sequence[Size]) -> Size:
    """The last size before the first doubling that saves too little."""
    for before, after in pairwise(sizes):
        if after.faster is not None and after.faster < FASTER:
            return before
    return sizes[-1]


def least(enough: Callable[[float], bool], low: float, high: float, precise: float) -> float:
    """The least value at which `enough` turns true, which it is at `high`; found in logarithms."""
    while high / low > 1 + precise:
        middle = math.sqrt(low * high)
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high


def sentences(grown: Growth) -> Iterator[str]:
    """When another node pays, and how far."""
    name, now = grown.link.replace("_", "-"), units.show(grown.bandwidth, "byte/s")
    if grown.doubles:
        yield (
            f"twice the nodes over {name} links of {now}: a step is at least {FASTER:.0%} shorter "
            f"{_where(grown.pays_from)}, a token at most {DEARER:.0%} dearer {_where(grown.cheap_from)}"
        )
    yield f"largest size worth its time: {grown.largest:,} devices ({grown.limit})"


def _where(bandwidth: float | None) -> str:
    if bandwidth is None:
        return "at no bandwidth"
    return f"above {units.show(bandwidth, 'byte/s')}" if bandwidth else "at any bandwidth"
