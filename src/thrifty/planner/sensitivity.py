"""How far a plan's bill and the pick itself hang on each figure that it rests on, one figure at a time.

Each figure goes to both ends of its interval: the published range where its source gives one, else a spread of
`_SPREADS`. At either end the plan is priced again, and so is a shortlist of recipes near it: where one of them is
cheaper by more than `search.NEAR`, or the plan no longer fits, the pick changes, and bisection finds the value at which
it does.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from thrifty.cost import energy
from thrifty.cost.run import estimate
from thrifty.planner import assumptions
from thrifty.planner.assumptions import Used, changed
from thrifty.planner.search import NEAR, Search
from thrifty.planner.shortlist import cheapest_fitting, near, price, show_recipe
from thrifty.spec import units
from thrifty.spec.cluster import Cluster
from thrifty.spec.plan import Plan
from thrifty.spec.recipe import Recipe

# Factors below and above a figure that nobody gives an interval for, and why, by the name of its field.
_SPREADS: dict[str, tuple[float, float, str]] = {
    "price": (0.6, 1.5, "from spot to another provider's list"),
    "peak_flops": (0.9, 1.1, "what products reach of it"),
    "achievable_flops": (0.85, 1.1, "shapes, clocks and power limits"),
    "memory_bandwidth": (0.85, 1.05, "what kernels reach of it"),
    "memory": (0.95, 1.0, "what the driver and neighbours keep"),
    "bandwidth": (0.5, 1.25, "topology, congestion, line rate at best"),
    "latency": (0.5, 3.0, "hops and software"),
    "tdp_watts": (0.8, 1.0, "a power limit below it"),
    "idle_watts": (0.5, 2.0, "a factor of two either way"),
    "host_watts": (0.5, 2.0, "a factor of two either way"),
    "utilisation": (0.75, 1.35, "kernels draw from half to nearly all of the TDP"),
    "op_overhead": (0.5, 2.0, "a factor of two either way"),
    "runtime_memory": (0.5, 2.0, "a factor of two either way"),
}
# What makes every recipe dearer or cheaper by the same share: no other can win by it.
_ALIKE = ("price", "goodput", "grid", "pue", "tdp_watts", "idle_watts", "host_watts", "utilisation")
_MEASURED = (0.9, 1.1, "measured, 10% either way")
_PUE = (1.08, 1.56, "from large clouds to the industry's average (Uptime Institute 2024)")
_GRID_KNOWN = (0.8, 1.2, "hours and regions within a country")
_GRID_ASSUMED = (0.1, 2.0, "from hydro and nuclear grids to coal")
_MOVES = 5e-4  # share of any cost that a figure must move to have a row
_HALVINGS = 12


@dataclass(frozen=True)
class End:
    """The plan with one figure at one end of its interval.

    Attributes:
        pick: the recipe that would be chosen there; empty where it stays the plan's.
        pick_usd: what that one costs there; the plan's own where it stays.
        fits: whether the plan still fits.
    """

    value: float
    usd: float
    seconds: float
    joules: float
    grams: float
    pick: str
    pick_usd: float
    fits: bool


@dataclass(frozen=True)
class Swing:
    """One bar of the tornado.

    Attributes:
        value: of the figure now.
        basis: where the interval comes from.
        flips_at: the value at which another recipe wins; None where none does within the interval.
    """

    name: str
    unit: str
    value: float
    low: End
    high: End
    basis: str
    provenance: str
    flips_at: float | None
    flips_to: str

    @property
    def span_usd(self) -> float:
        """Length of the bar in money."""
        return abs(self.high.usd - self.low.usd)


@dataclass(frozen=True)
class Sensitivity:
    """The tornado, the longest bar in money first, then in energy, then in CO2.

    Attributes:
        shortlist: recipes that were priced at every end.
        sentences: what would change the answer.
    """

    usd: float
    seconds: float
    joules: float
    grams: float
    swings: tuple[Swing, ...]
    shortlist: int
    sentences: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        """Everything, in types that JSON has."""
        return asdict(self)


def sensitivity(found: Search) -> Sensitivity:
    """The tornado of a search's plan."""
    plan = found.plan
    recipes = near(
        plan.job, plan.cluster, plan.recipe, [_alike(one.recipe, plan) for one in found.runners_up], found.kept
    )
    base = _end(plan, plan.cluster, 0.0, recipes[:1])
    swings = [_time_model(plan, base)]
    for one in _varied(plan):
        low, high, basis = interval(one)
        others = recipes[:1] if _field(one.path) in _ALIKE else recipes
        ends = [_end(plan, changed(plan.cluster, one.path, value), value, others) for value in (low, high)]
        if any(_moves(base, end) or end.pick for end in ends):
            swings.append(_swing(plan, one, ends, basis, recipes))
    swings.sort(key=lambda swing: tuple(-abs(getattr(swing.high, cost) - getattr(swing.low, cost)) for cost in _COSTS))
    return Sensitivity(
        base.usd,
        base.seconds,
        base.joules,
        base.grams,
        tuple(swings),
        len(recipes),
        tuple(_sentences(base, swings, len(recipes) - 1)),
    )


_COSTS = ("usd", "joules", "grams")


def _alike(recipe: Recipe, plan: Plan) -> Recipe:
    """A runner-up, evaluated and saved as often as the plan."""
    return recipe.model_copy(update={"evaluation": plan.recipe.evaluation, "checkpoint": plan.recipe.checkpoint})


def _varied(plan: Plan) -> list[Used]:
    """Figures that are varied. Of a chip's two rates for products, the one that the time model goes by."""
    figures = list(assumptions.used(plan))
    rates = [one for one in figures if _field(one.path) in ("peak_flops", "achievable_flops")]
    best = max(rates, key=lambda one: _speed_up(plan, one))
    return [one for one in figures if one not in rates or one is best]


def _speed_up(plan: Plan, rate: Used) -> float:
    """Time now over time with 10% more of a rate."""
    faster = changed(plan.cluster, rate.path, 1.1 * rate.figure.value)
    return plan.predicted.seconds.value / estimate(plan.job, faster, plan.recipe).seconds


def interval(one: Used) -> tuple[float, float, str]:
    """Low and high of a figure, both in its unit, and where they come from; they hold the value between them."""
    figure, field = one.figure, _field(one.path)
    value = figure.value
    if figure.low is not None and figure.high is not None and figure.low < figure.high:
        return min(figure.low, value), max(figure.high, value), "the range that its source gives"
    if field == "goodput":
        lost = max(0.01, 1 - value)
        return max(0.05, 1 - 2 * lost), max(value, 1 - lost / 2), "lost time doubled or halved"
    if field == "pue":
        low, high, basis = _PUE
        return min(low, value), max(high, value), basis
    if field == "grid":
        below, above, basis = _GRID_ASSUMED if figure.provenance == "assumed" else _GRID_KNOWN
    else:
        below, above, basis = _MEASURED if figure.provenance == "measured" else _SPREADS[field]
    ceiling = 1.0 if field == "utilisation" else math.inf
    return below * value, min(ceiling, above * value), basis


def _field(path: str) -> str:
    parts = path.split(".")
    return parts[1] if parts[0] == "accelerator" else parts[-1]


def _end(plan: Plan, cluster: Cluster, value: float, recipes: Sequence[Recipe]) -> End:
    own = price(plan.job, cluster, plan.recipe)
    best = cheapest_fitting(plan.job, cluster, recipes[1:])
    stays = best is None or (own.fits and best.run.usd >= own.run.usd * (1 - NEAR))
    joules = energy.energy_joules(cluster, own.run.seconds)
    return End(
        value=value,
        usd=own.run.usd,
        seconds=own.run.seconds,
        joules=joules,
        grams=energy.co2_grams(cluster, joules),
        pick="" if stays or best is None else show_recipe(best.recipe),
        pick_usd=own.run.usd if stays or best is None else best.run.usd,
        fits=own.fits,
    )


def _moves(base: End, end: End) -> bool:
    return any(abs(getattr(end, cost) / getattr(base, cost) - 1) > _MOVES for cost in _COSTS if getattr(base, cost))


def _swing(plan: Plan, one: Used, ends: Sequence[End], basis: str, recipes: Sequence[Recipe]) -> Swing:
    figure, low, high = one.figure, ends[0], ends[1]
    flips_at, flips_to = None, ""
    for end in ends:
        if end.pick and flips_at is None:
            flips_at, flips_to = _flip(plan, one, end, recipes)
    return Swing(one.name, figure.unit, figure.value, low, high, basis, figure.provenance, flips_at, flips_to)


def _flip(plan: Plan, one: Used, end: End, recipes: Sequence[Recipe]) -> tuple[float, str]:
    """The value nearest to today's at which the pick is no longer the plan's, by bisection, and what is picked then."""
    stays, gone, pick = one.figure.value, end.value, end.pick
    for _ in range(_HALVINGS):
        middle = (stays + gone) / 2
        there = _end(plan, changed(plan.cluster, one.path, middle), middle, recipes)
        if there.pick:
            gone, pick = middle, there.pick
        else:
            stays = middle
    return gone, pick


def _time_model(plan: Plan, base: End) -> Swing:
    """The interval of the predicted time: all else follows it, and no other recipe gains by it."""
    seconds = plan.predicted.seconds
    ends = [_after(base, end) for end in (seconds.low or seconds.value, seconds.high or seconds.value)]
    basis = "what the time model was off by on measured runs"
    return Swing("hours (time model)", "s", seconds.value, ends[0], ends[1], basis, "modelled", None, "")


def _after(base: End, seconds: float) -> End:
    ratio = seconds / base.seconds
    return End(seconds, base.usd * ratio, seconds, base.joules * ratio, base.grams * ratio, "", base.usd * ratio, True)


# ---- in words


def _sentences(base: End, swings: Sequence[Swing], others: int) -> Iterator[str]:
    """What would change the answer: figures at which another recipe wins, and the one that moves the bill most."""
    for swing in swings:
        if swing.flips_at is not None:
            side = "above" if swing.flips_at > swing.value else "below"
            at, now = units.show(swing.flips_at, swing.unit), units.show(swing.value, swing.unit)
            yield f"{swing.name} {side} {at} (now {now}): {swing.flips_to} would be over {NEAR:.0%} cheaper"
    if not others:
        yield "the recipe left nothing open that was near it, so that no other was tried"
    elif all(swing.flips_at is None for swing in swings):
        yield f"no figure, moved alone within its range, makes one of {others} other recipes over {NEAR:.0%} cheaper"
    largest = swings[0]
    ends = sorted((largest.low.usd, largest.high.usd))
    low, high = (units.show(usd, "usd") for usd in ends)
    yield f"{largest.name} moves the bill most: {low} to {high}, from {units.show(base.usd, 'usd')}"
