"""The same job on as many devices of another kind, and the price of a device-hour at which the two cost the same.

    break-even    money of the plan / (devices x hours of the rival)

A rival is priced over recipes near the plan's, not searched whole: what wins here deserves a plan of its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from thrifty.catalog import lookup
from thrifty.cost import energy
from thrifty.planner.search import Search
from thrifty.planner.shortlist import cheapest_fitting, show_recipe, variations
from thrifty.planner.space import divisors
from thrifty.spec import units
from thrifty.spec.cluster import Cluster
from thrifty.spec.figure import Figure
from thrifty.spec.load import build, from_dict
from thrifty.spec.plan import Plan
from thrifty.spec.recipe import Layout, Recipe

SHOWN = 3


@dataclass(frozen=True)
class Rival:
    """The job on another accelerator.

    Attributes:
        recipe: the cheapest of those tried that fits, in words; empty where none fits.
        price: of a device-hour with its date, where the catalog knows one.
        usd: of the run at that price; none without a price.
        break_even: dollars for a device-hour of the rival at which it costs what the plan costs.
        own_break_even: dollars for a device-hour of the plan's own at which it costs what the rival costs.
    """

    accelerator: str
    devices: int
    recipe: str
    seconds: float | None
    joules: float | None
    price: float | None
    price_date: str
    price_source: str
    usd: float | None
    break_even: float | None
    own_break_even: float | None

    def as_json(self) -> dict[str, Any]:
        """Everything, in types that JSON has."""
        return asdict(self)


def rivals(found: Search, named: Sequence[str] = ()) -> tuple[Rival, ...]:
    """The named accelerators, then the cheapest others of the catalog that have a price and fit.

    Args:
        named: names or aliases of the catalog.

    Raises:
        ThriftyError: a name that the catalog does not have.
    """
    plan = found.plan
    wanted = [lookup.accelerator_name(name, "--rival") for name in named]
    asked = [_rival(found, name) for name in dict.fromkeys(wanted)]
    own = plan.cluster.accelerator
    others = [] if own.kind == "cpu" else [name for name in lookup.accelerators() if name not in (own.name, *wanted)]
    priced = [_rival(found, name) for name in others if _comparable(plan, name)]
    fitting = sorted((one for one in priced if one.usd is not None), key=lambda one: one.usd or 0.0)
    return (*asked, *fitting[:SHOWN])


def _comparable(plan: Plan, name: str) -> bool:
    """Whether a chip of the catalog has a price, and is of the plan's kind with the rate that the plan needs."""
    chip = lookup.accelerator(name)
    rates = chip.at("peak_flops")
    same = chip.at("kind") == plan.cluster.accelerator.kind and plan.recipe.precision in rates
    return same and lookup.price(name) is not None


def _rival(found: Search, name: str) -> Rival:
    plan, cost = found.plan, lookup.price(name)
    cluster = _cluster(plan, name, cost)
    ways = list(dict.fromkeys(way for seed in _seeds(found, cluster) for way in variations(plan.job, seed, found.kept)))
    best = cheapest_fitting(plan.job, cluster, ways)
    usual: dict[str, Any] = {
        "accelerator": name,
        "devices": cluster.devices,
        "price": cost.value if cost else None,
        "price_date": cost.date if cost else "",
        "price_source": cost.source if cost else "",
    }
    if best is None:
        return Rival(**usual, recipe="", seconds=None, joules=None, usd=None, break_even=None, own_break_even=None)
    own_hours = plan.cluster.devices * plan.predicted.seconds.value / 3600
    return Rival(
        **usual,
        recipe=show_recipe(best.recipe),
        seconds=best.run.seconds,
        joules=energy.energy_joules(cluster, best.run.seconds),
        usd=best.run.usd if cost else None,
        break_even=plan.predicted.usd.value / (cluster.devices * best.run.seconds / 3600),
        own_break_even=best.run.usd / own_hours if cost else None,
    )


def _cluster(plan: Plan, name: str, cost: Figure | None) -> Cluster:
    """As many devices as the plan has, in nodes as full as divides them; where a plan runs on a CPU, one device."""
    own, machine = plan.cluster, lookup.machine(name)
    devices = 1 if own.accelerator.kind == "cpu" else own.devices
    per_node = max(size for size in divisors(devices) if size <= int(machine.at("per_node")))
    nodes = devices // per_node
    islands = own.islands if nodes % own.islands == 0 else 1
    free = Figure(value=0.0, unit="usd/h", provenance="assumed", source="no price is known")
    alike = {"grid": own.grid, "goodput": own.goodput, "price": cost or free}  # where and how well it is run
    counts = {"name": lookup.cluster_name(name, nodes, per_node), "per_node": per_node, "nodes": nodes}
    given = counts | {"islands": islands} | {key: figure.model_dump() for key, figure in alike.items()}
    return build(Cluster, from_dict(given, "rival").over(machine), "")


def _seeds(found: Search, cluster: Cluster) -> Iterator[Recipe]:
    """The plan's recipe and its runners-up, in a precision that the rival has."""
    rates = cluster.accelerator.peak_flops
    for recipe in (found.plan.recipe, *(one.recipe for one in found.runners_up)):
        update: dict[str, Any] = {
            "evaluation": found.plan.recipe.evaluation,
            "checkpoint": found.plan.recipe.checkpoint,
        }
        if recipe.precision not in rates:
            update["precision"] = "bf16" if "bf16" in rates else "fp32"
        if found.plan.cluster.accelerator.kind == "cpu":
            update["layout"] = Layout()
        yield recipe.model_copy(update=update)


def sentences(plan: Plan, found: Sequence[Rival]) -> Iterator[str]:
    """Each rival's money and time, and the price of a device-hour at which it costs what the plan costs."""
    own = plan.cluster.accelerator.name
    for one in found:
        which = f"{one.devices:,} x {one.accelerator}"
        if one.seconds is None or one.break_even is None:
            yield f"{which}: none of the recipes tried fits"
            continue
        even = f"the two cost the same at {units.show(one.break_even, 'usd/h')}"
        if one.usd is None or one.price is None or one.own_break_even is None:
            yield f"{which}: {units.show(one.seconds, 's')}, no price is known; {even}"
            continue
        beside = _beside(one.usd / plan.predicted.usd.value)
        cost = f"{units.show(one.usd, 'usd')} ({beside}) and {units.show(one.seconds, 's')}"
        dated = f" ({one.price_date[:7]})" if one.price_date else ""
        even += f", or {own} at {units.show(one.own_break_even, 'usd/h')}"
        yield f"{which} at {units.show(one.price, 'usd/h')}{dated}: {cost}; {even}"
    if found:
        yield f"other devices are priced as if {plan.recipe.software} ran as well on them"


def _beside(ratio: float) -> str:
    if abs(ratio - 1) < 0.005:
        return "as much"
    if ratio >= 2:
        return f"{ratio:,.3g} times as much"
    return f"{abs(ratio - 1):.0%} {'more' if ratio > 1 else 'less'}"
