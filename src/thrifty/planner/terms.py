"""Explains one term of a plan's bill: its formula, this plan's numbers in it, and where each of them comes from."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from thrifty.cost.params import total_parameters
from thrifty.laws import loss as loss_law
from thrifty.planner import formula
from thrifty.planner.derivations import derive
from thrifty.planner.numbers import Number
from thrifty.spec.errors import ThriftyError, did_you_mean
from thrifty.spec.figure import Figure
from thrifty.spec.plan import Plan

LIST = "list"


@dataclass(frozen=True)
class Explained:
    """How one term came about.

    Attributes:
        formula: in symbols.
        substituted: the same with numbers, in base units.
        value: what the formula gives; equals the bill's figure.
        source: of the formula, as the bill has it.
        numbers: what stands in the formula.
        details: what stands behind the numbers, one line each.
    """

    term: str
    formula: str
    substituted: str
    value: float
    unit: str
    low: float | None
    high: float | None
    source: str
    numbers: tuple[Number, ...]
    details: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        """Everything, in types that JSON has."""
        return asdict(self)


def explain_term(plan: Plan, term: str) -> Explained:
    """Explains a term of the predicted bill by its dotted name, such as `usd` or `memory.activations`.

    Raises:
        ThriftyError: the bill has no such term.
    """
    figure = _figure(plan, term)
    made = derive(plan, term)
    numbers = {one.name: one.value for one in made.numbers}
    return Explained(
        term=term,
        formula=formula.in_words(made.formula),
        substituted=formula.substituted(made.formula, numbers),
        value=formula.evaluate(made.formula, numbers),
        unit=figure.unit,
        low=figure.low,
        high=figure.high,
        source=figure.source,
        numbers=made.numbers,
        details=made.details,
    )


def _figure(plan: Plan, term: str) -> Figure:
    known = dict(plan.predicted.terms())
    if term in known:
        return known[term]
    if term == "loss":
        why_not = loss_law.why_not(plan.job, total_parameters(plan.job.model), plan.predicted.tokens.value)
        raise ThriftyError(f"this bill has no predicted loss: {why_not}", where="--explain loss")
    inside = [name for name in known if name.startswith(f"{term}.")]
    hint = f"it has the terms {', '.join(inside)}" if inside else did_you_mean(term, known)
    raise ThriftyError(f"the bill has no term {term!r}", where="--explain", hint=f"{hint}; --explain {LIST} shows all")
