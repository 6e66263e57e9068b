"""The same job on several numbers of devices: what each costs, which of them nothing beats, and which to take.

Fewer devices are cheaper and slower. A point is on the front where no other takes as little money and as little time.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from thrifty.planner.aim import Aim, Objective, Price
from thrifty.planner.reasons import show_layout
from thrifty.planner.search import Search, search
from thrifty.spec import units
from thrifty.spec.cluster import Cluster
from thrifty.spec.errors import ThriftyError
from thrifty.spec.job import Job
from thrifty.spec.load import Settings

T = TypeVar("T")
Asked = tuple[Job, Cluster, Settings]
MOST_BETWEEN = 5  # further sizes tried between two powers of two, where a limit lies between them


@dataclass(frozen=True)
class Size:
    """One number of devices: its plan, or why there is none.

    Attributes:
        allowed: whether the plan stays within the limits.
        on_front: no other size takes as little money and as little time.
        chosen: the one to take.
    """

    devices: int
    found: Search | None
    why_not: str = ""
    allowed: bool = False
    on_front: bool = False
    chosen: bool = False

    @property
    def price(self) -> Price | None:
        return self.found.price if self.found else None

    def as_json(self) -> dict[str, Any]:
        """Everything but the whole plan, in types that JSON has."""
        marks = {"allowed": self.allowed, "on_front": self.on_front, "chosen": self.chosen}
        head: dict[str, Any] = {"devices": self.devices, **marks}
        if self.found is None or self.price is None:
            return head | {"why_not": self.why_not}
        taken = {name: getattr(self.price, name) for name in ("usd", "seconds", "joules", "co2_grams")}
        recipe = self.found.plan.recipe
        return head | taken | {"software": recipe.software, "layout": show_layout(recipe.layout)}


def search_sizes(
    sizes: Sequence[int],
    asked: Callable[[int], Asked],
    *,
    objective: Objective = "usd",
    deadline_seconds: float | None = None,
    budget_usd: float | None = None,
    software: str | None = None,
    levers: Sequence[str] = (),
) -> tuple[Size, ...]:
    """Plans a job for every size, and for a few between where a limit falls between two.

    Args:
        sizes: numbers of devices, in rising order.
        asked: job, cluster and recipe keys for a number of devices; raises ThriftyError where nodes are not filled.

    Returns one entry for each size, in rising order; exactly one is chosen. Other arguments as `search.search`.

    Raises:
        ThriftyError: nothing fits any size, or nothing stays within the limits.
    """
    aim = Aim(objective, deadline_seconds, budget_usd)

    def at(devices: int) -> Size:
        try:
            job, cluster, recipe = asked(devices)
            found = search(job, cluster, recipe, software=software, objective=objective, levers=levers)
        except ThriftyError as error:
            return Size(devices, None, error.what)
        return Size(devices, found, allowed=aim.allows(found.price))

    found = [at(devices) for devices in sizes]
    found = _between(found, at)
    planned = [one for one in found if one.price is not None]
    if not planned:
        raise ThriftyError(found[-1].why_not, where="--on", hint=f"{len(found)} sizes up to {sizes[-1]:,} were tried")
    allowed = [one for one in planned if one.allowed]
    if not allowed:
        raise _unmet(aim, planned)
    best = min(allowed, key=lambda one: aim.rank(one.found.price))  # type: ignore[union-attr]
    front = {one.devices for one in pareto(planned, _money_and_time)}
    return tuple(
        Size(one.devices, one.found, one.why_not, one.allowed, one.devices in front, one is best) for one in found
    )


def pareto(items: Sequence[T], costs: Callable[[T], tuple[float, ...]]) -> list[T]:
    """Items that no other one beats: none is as good at every cost and better at one."""

    def beaten(one: T) -> bool:
        mine = costs(one)
        return any(
            other is not one
            and costs(other) != mine
            and all(theirs <= own for theirs, own in zip(costs(other), mine, strict=True))
            for other in items
        )

    return [one for one in items if not beaten(one)]


def doubling(low: int, high: int, per_node: int) -> list[int]:
    """low, twice that, and so on up to high, which is among them; beyond one node in full nodes."""
    found, size = {high}, low
    while size < high:
        found.add(size if size <= per_node else -(-size // per_node) * per_node)
        size *= 2
    return sorted(size for size in found if size <= high)


def _money_and_time(one: Size) -> tuple[float, ...]:
    assert one.price is not None  # sizes without a plan are not compared
    return one.price.usd, one.price.seconds


def _between(found: list[Size], at: Callable[[int], Size]) -> list[Size]:
    """Halves the interval between a size that the limits refuse and the next that they allow."""
    edges = [(one, two) for one, two in itertools.pairwise(found) if one.allowed != two.allowed]
    for low, high in edges:
        for _ in range(MOST_BETWEEN if low.price and high.price else 0):
            node = high.found.plan.cluster.per_node if high.found else 1
            middle = (low.devices + high.devices) // 2 // node * node
            if middle <= low.devices or middle >= high.devices:
                break
            one = at(middle)
            found = [*found, one]
            low, high = (one, high) if one.allowed == low.allowed else (low, one)
    return sorted(found, key=lambda one: one.devices)


def _unmet(aim: Aim, planned: Sequence[Size]) -> ThriftyError:
    fastest = min(planned, key=lambda one: _money_and_time(one)[1])
    cheapest = min(planned, key=_money_and_time)
    told = [
        f"{one.devices:,} devices take {units.show(_money_and_time(one)[1], 's')} and "
        f"{units.show(_money_and_time(one)[0], 'usd')}"
        for one in {one.devices: one for one in (fastest, cheapest)}.values()
    ]
    hint = "allow more time or money, try more devices, or train fewer tokens or a smaller model"
    return ThriftyError(f"no size stays within {aim.show_limits()}: {'; '.join(told)}", where="limits", hint=hint)
