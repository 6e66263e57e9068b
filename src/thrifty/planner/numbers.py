"""What formulas of a bill are made of: figures of the cluster, terms of the bill, choices, results of the model."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from thrifty.cost.run import Run, estimate, evaluations
from thrifty.cost.traffic import Collective, collectives
from thrifty.planner.assumptions import figure_at
from thrifty.spec.plan import Plan


@dataclass(frozen=True)
class Number:
    """A number of a formula.

    Attributes:
        name: as it stands in the formula.
        value: in `unit`, a base unit.
        provenance: of a figure; `given` for what the job, the cluster or the recipe says.
        source: where it comes from: a paper or page, a key of the plan, a term of the bill, a function of the model.
    """

    name: str
    value: float
    unit: str
    provenance: str
    source: str
    date: str = ""


@dataclass(frozen=True)
class Derivation:
    """A formula in the syntax of `planner.formula`, its numbers, and lines about what stands behind them."""

    formula: str
    numbers: tuple[Number, ...]
    details: tuple[str, ...] = ()


class Made:
    """A plan with what the cost model says about it, each worked out once and only when asked for."""

    def __init__(self, plan: Plan) -> None:
        self.plan, self.job, self.cluster, self.recipe = plan, plan.job, plan.cluster, plan.recipe

    @cached_property
    def run(self) -> Run:
        return estimate(self.job, self.cluster, self.recipe)

    @cached_property
    def sent(self) -> tuple[Collective, ...]:
        return collectives(self.job, self.cluster, self.recipe)

    def term(self, name: str, as_name: str = "") -> Number:
        """A term of the bill as a number of another's formula."""
        figure = dict(self.plan.predicted.terms())[name]
        return Number(as_name or name, figure.value, figure.unit, figure.provenance, f"--explain {name}")

    def figure(self, path: str, name: str = "") -> Number:
        """A figure of the cluster."""
        found = figure_at(self.cluster, path)
        label = name or path.rpartition(".")[2]
        return Number(label, found.value, found.unit, found.provenance, found.source or f"cluster.{path}", found.date)

    def given(self, name: str, value: float, key: str, unit: str = "1") -> Number:
        """What the job, the cluster or the recipe says."""
        return Number(name, value, unit, "given", key)

    @property
    def devices(self) -> Number:
        return self.given("devices", self.cluster.devices, "cluster.nodes x cluster.per_node")

    @property
    def evaluations(self) -> Number:
        times = evaluations(self.recipe, self.run.steps)
        return self.given("evaluations", times, "recipe.evaluation.every_steps, and one at the end")


def modelled(name: str, value: float, unit: str, source: str) -> Number:
    """What a function of the cost model says; `source` names it."""
    return Number(name, value, unit, "modelled", source)
