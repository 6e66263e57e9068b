"""What a plan is to be best at, and what it may not exceed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from thrifty.catalog import lookup
from thrifty.cost import energy
from thrifty.planner.space import Candidate
from thrifty.spec import units
from thrifty.spec.cluster import Cluster
from thrifty.spec.errors import ThriftyError, did_you_mean

Objective = Literal["usd", "time", "energy", "co2"]


@dataclass(frozen=True, slots=True)
class Price:
    """What a run takes of everything that can be an objective."""

    usd: float
    seconds: float
    joules: float
    co2_grams: float


def price_of(cluster: Cluster, usd: float, seconds: float) -> Price:
    """A run's price, from its money and its time on a cluster."""
    joules = energy.energy_joules(cluster, seconds)
    return Price(usd, seconds, joules, energy.co2_grams(cluster, joules))


@dataclass(frozen=True)
class Aim:
    """The objective, and the limits of a whole run.

    On one cluster money, energy and CO2 all grow with time, so there every objective picks the same recipe; between
    numbers of devices they differ.
    """

    objective: Objective = "usd"
    deadline_seconds: float | None = None
    budget_usd: float | None = None

    def __post_init__(self) -> None:
        if self.objective not in get_args(Objective):  # a word of the command line
            hint = did_you_mean(self.objective, get_args(Objective))
            raise ThriftyError(f"unknown objective {self.objective!r}", where="--objective", hint=hint)

    def rank(self, price: Price) -> tuple[float, float]:
        """Less is better; of equals the faster."""
        taken = {"usd": price.usd, "time": price.seconds, "energy": price.joules, "co2": price.co2_grams}
        return taken[self.objective], price.seconds

    def allows(self, price: Price) -> bool:
        """Whether a run stays within the limits."""
        in_time = self.deadline_seconds is None or price.seconds <= self.deadline_seconds
        return in_time and (self.budget_usd is None or price.usd <= self.budget_usd)

    def show_limits(self) -> str:
        """`30 days`, `30 days and $5,000`."""
        named = [] if self.deadline_seconds is None else [units.show(self.deadline_seconds, "s")]
        return " and ".join(named + ([] if self.budget_usd is None else [units.show(self.budget_usd, "usd")]))


def unmet(
    aim: Aim, cluster: Cluster, fastest: Price, tried: int, at_devices: Callable[[int], Price | None]
) -> ThriftyError:  # fmt: skip
    """Why no recipe stays within the limits, the nearest that there is, and what would mend it.

    Args:
        fastest: the recipe that exceeds them least.
        at_devices: the best run on so many devices, or None where nothing fits them.
    """
    ways = _other_sizes(aim, cluster, at_devices)
    if aim.deadline_seconds is not None and fastest.seconds > aim.deadline_seconds:
        ways.append(f"allow {units.show(fastest.seconds, 's')} (--deadline)")
    if aim.budget_usd is not None and fastest.usd > aim.budget_usd:
        ways.append(f"allow {units.show(fastest.usd, 'usd')} (--budget)")
    ways.append("train fewer tokens or a smaller model")
    return ThriftyError(
        f"nothing on {cluster.name} stays within {aim.show_limits()}: the nearest of {tried:,} recipes takes "
        f"{units.show(fastest.seconds, 's')} and costs {units.show(fastest.usd, 'usd')}",
        where="limits",
        hint="; ".join(ways),
    )


MOST_DOUBLINGS = 6


def _other_sizes(aim: Aim, cluster: Cluster, at_devices: Callable[[int], Price | None]) -> list[str]:
    """The first power of two times as many devices, or as few, that stays within the limits."""
    for sizes in _doubled(cluster), _halved(cluster):
        for devices in sizes:
            price = at_devices(devices)
            if price is not None and aim.allows(price):
                taken = f"{units.show(price.seconds, 's')} and {units.show(price.usd, 'usd')}"
                return [f"use {devices:,} devices ({taken})"]
    return []


def _doubled(cluster: Cluster) -> Sequence[int]:
    return [cluster.devices << n for n in range(1, MOST_DOUBLINGS + 1)]


def _halved(cluster: Cluster) -> Sequence[int]:
    found = [cluster.devices]
    while found[-1] % 2 == 0 and len(found) <= MOST_DOUBLINGS:
        found.append(found[-1] // 2)
    return found[1:]


def resized(cluster: Cluster, devices: int) -> Cluster | None:
    """The same cluster with another number of devices, in full nodes or a part of one; None where they do not fill."""
    per_node = min(cluster.per_node, devices)
    if devices % per_node:
        return None
    nodes = devices // per_node
    islands = cluster.islands if nodes % cluster.islands == 0 else 1
    update = {"nodes": nodes, "per_node": per_node, "islands": islands}
    return cluster.model_copy(update=update | {"name": lookup.cluster_name(cluster.accelerator.name, nodes, per_node)})


def cheapest(aim: Aim, cluster: Cluster, candidates: Sequence[Candidate]) -> Candidate:
    """The best by the objective; of equals the faster."""
    return min(candidates, key=lambda c: aim.rank(price_of(cluster, c.run.usd, c.run.seconds)))
