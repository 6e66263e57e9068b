"""What bandwidth does a plan need? How exposed it is on each link that it sends over.

    exposed share   communication that a step waits for, without a pipeline's bubble / the step
    needed          least bandwidth of a link at which the exposed share is at most 5% (1%), all else equal

`planner.growth` says when more nodes pay.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from thrifty.cost.step import StepSeconds, step_seconds
from thrifty.cost.traffic import LINKS, collectives, sent_by_link
from thrifty.planner.assumptions import changed, figure_at
from thrifty.planner.growth import Growth, growth, least
from thrifty.planner.growth import sentences as growth_sentences
from thrifty.spec import units
from thrifty.spec.cluster import Cluster
from thrifty.spec.job import Job
from thrifty.spec.plan import Plan, tokens_per_step
from thrifty.spec.recipe import Recipe

EXPOSED = (0.05, 0.01)
_UNBOUNDED = 1e18  # bytes/s: no wait but latency
_CURVE = [2.0 ** (power / 2) for power in range(-12, 13)]


@dataclass(frozen=True)
class Need:
    """The least bandwidth at which the exposed share is at most `share`.

    Attributes:
        bandwidth: bytes/s of one device's link; none where no bandwidth does it.
        floor: the exposed share that stays at any bandwidth: latency, other links.
    """

    share: float
    bandwidth: float | None
    floor: float


@dataclass(frozen=True)
class Point:
    """The plan at another bandwidth of the link."""

    bandwidth: float
    tokens_per_second: float
    exposed: float


@dataclass(frozen=True)
class LinkNeed:
    """One link that the plan sends over.

    Attributes:
        bandwidth: of one device, bytes/s, today.
        exposed: the share of a step that waits for communication today, over all links.
        needs: for each share of `EXPOSED`.
        curve: tokens/s and exposed share over bandwidth, lowest first.
    """

    link: str
    bandwidth: float
    exposed: float
    needs: tuple[Need, ...]
    curve: tuple[Point, ...]


@dataclass(frozen=True)
class Bandwidth:
    """The links that a plan sends over, the slowest last, and how it grows."""

    links: tuple[LinkNeed, ...]
    growth: Growth

    def as_json(self) -> dict[str, Any]:
        """Everything, in types that JSON has."""
        return asdict(self)


def bandwidth(plan: Plan) -> Bandwidth:
    """What bandwidth a plan needs and how far it can grow."""
    sent = sent_by_link(collectives(plan.job, plan.cluster, plan.recipe))
    links = [_link_need(plan.job, plan.cluster, plan.recipe, link) for link in LINKS if sent[link]]
    return Bandwidth(tuple(links), growth(plan.job, plan.cluster, plan.recipe))


# ---- one link, the plan as it is


def exposed_share(job: Job, cluster: Cluster, recipe: Recipe) -> float:
    """The part of a step that waits for communication; a pipeline's bubble is not in it."""
    return _exposed(step_seconds(job, cluster, recipe))


def _exposed(step: StepSeconds) -> float:
    return (step.communication - step.bubble) / step.total


def needed(job: Job, cluster: Cluster, recipe: Recipe, link: str, share: float) -> Need:
    """The least bandwidth of a link at which the exposed share is at most `share`, to a millionth."""
    path = f"{link}.bandwidth"

    def enough(value: float) -> bool:
        return exposed_share(job, changed(cluster, path, value), recipe) <= share

    floor = exposed_share(job, changed(cluster, path, _UNBOUNDED), recipe)
    if floor > share:
        return Need(share, None, floor)
    return Need(share, least(enough, 1.0, _UNBOUNDED, 1e-6), floor)


def _link_need(job: Job, cluster: Cluster, recipe: Recipe, link: str) -> LinkNeed:
    path = f"{link}.bandwidth"
    today = figure_at(cluster, path).value
    curve = []
    for factor in _CURVE:
        step = step_seconds(job, changed(cluster, path, factor * today), recipe)
        rate = tokens_per_step(job, recipe) / step.total
        curve.append(Point(factor * today, rate, _exposed(step)))
    needs = tuple(needed(job, cluster, recipe, link, share) for share in EXPOSED)
    return LinkNeed(link, today, exposed_share(job, cluster, recipe), needs, tuple(curve))


# ---- in words


def sentences(found: Bandwidth) -> Iterator[str]:
    """What each link needs, and when another node pays."""
    for link in found.links:
        name, now = link.link.replace("_", "-"), units.show(link.bandwidth, "byte/s")
        within = [need for need in link.needs if need.bandwidth is not None]
        wants = "; ".join(map(_want, link.needs[: len(within) + 1]))  # what is out of reach is told once
        yield f"{name} link, {now} a device: a step waits {link.exposed:.1%} for communication; {wants}"
    if not found.links:
        yield "one rank sends nothing: no bandwidth is needed"
    yield from growth_sentences(found.growth)


def _want(need: Need) -> str:
    if need.bandwidth is None:
        return f"{need.share:.0%} is out of reach ({need.floor:.1%} stays at any bandwidth)"
    return f"{need.share:.0%} needs {units.show(need.bandwidth, 'byte/s')}"
