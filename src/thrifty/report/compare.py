"""A bill beside another: predicted against measured, and run against run at the same validation loss."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

from thrifty.report import words
from thrifty.report.ledger import COSTS, CostToTarget, Ledger
from thrifty.spec.bill import MEMORY_TERMS, TIME_PARTS, Bill
from thrifty.spec.errors import ThriftyError
from thrifty.spec.figure import Figure

LINKS = ("intra_node", "inter_node", "inter_island")


@dataclass(frozen=True)
class Line:
    """One term of two bills, left the yardstick: predicted beside measured, or run A beside run B.

    Attributes:
        difference: right - left, in the unit of both; none unless both sides have the term.
        ratio: right / left; none where left is zero.
        inside: right lies within left's interval; none where left gives no interval.
    """

    term: str
    unit: str
    left: Figure | None
    right: Figure | None
    difference: float | None
    ratio: float | None
    inside: bool | None


@dataclass(frozen=True)
class Difference:
    """One key of the two plans that is not equal."""

    key: str
    a: str
    b: str


@dataclass(frozen=True)
class Comparison:
    """Two runs at one validation loss.

    Attributes:
        target: nats per token.
        target_from: who chose the target.
        ratios: B over A for each of `COSTS`; none unless both reached the target and know the cost.
        warnings: why the two losses may not mean the same.
    """

    a: Ledger
    b: Ledger
    target: float
    target_from: str
    cost_a: CostToTarget
    cost_b: CostToTarget
    ratios: dict[str, float | None]
    lines: tuple[Line, ...]
    differences: tuple[Difference, ...]
    warnings: tuple[str, ...]


def bill_lines(left: Bill, right: Bill | None) -> tuple[Line, ...]:
    """Every term of either bill, in reading order, with difference and ratio."""
    ours, theirs = dict(left.terms()), dict(right.terms()) if right else {}
    names = sorted({*ours, *theirs}, key=_place)
    return tuple(_line(name, ours.get(name), theirs.get(name)) for name in names)


def _place(term: str) -> tuple[int, int, str]:
    """Where a term stands: by field of the Bill, then by part; parts that nobody listed come last."""
    field, _, part = term.partition(".")
    parts = {"seconds_by_part": TIME_PARTS, "memory": MEMORY_TERMS, "link_bytes": LINKS}.get(field, ())
    return list(Bill.model_fields).index(field), parts.index(part) if part in parts else len(parts), part


def _line(term: str, left: Figure | None, right: Figure | None) -> Line:
    unit = (left or right).unit  # type: ignore[union-attr]  # one of the two is there
    if left is None or right is None:
        return Line(term, unit, left, right, None, None, None)
    ratio = right.value / left.value if left.value else None
    known = left.low is not None and left.high is not None
    inside = left.low <= right.value <= left.high if known else None  # type: ignore[operator]
    return Line(term, unit, left, right, right.value - left.value, ratio, inside)


def compare_runs(a: Ledger, b: Ledger, target: float | None = None) -> Comparison:
    """What each run spent to reach the same validation loss, and what differs between their plans.

    Args:
        target: nats per token; by default the worse of the two final validation losses, which both runs reached.

    Raises:
        ThriftyError: no target was given and neither run has evaluated.
    """
    target, target_from = (target, "given") if target is not None else _default_target(a, b)
    cost_a, cost_b = a.cost_to(target), b.cost_to(target)
    return Comparison(
        a=a,
        b=b,
        target=target,
        target_from=target_from,
        cost_a=cost_a,
        cost_b=cost_b,
        ratios={cost: _ratio(getattr(cost_a, cost), getattr(cost_b, cost)) for cost in COSTS},
        lines=bill_lines(a.bill, b.bill),
        differences=tuple(plan_differences(a, b)),
        warnings=tuple(_warnings(a, b)),
    )


def _default_target(a: Ledger, b: Ledger) -> tuple[float, str]:
    finals = [loss for loss in (a.final_loss, b.final_loss) if loss is not None]
    if not finals:
        hint = "wait for the first evaluation, or set recipe.evaluation.every_steps"
        raise ThriftyError("neither run has a validation loss yet", where=f"{a.root}, {b.root}", hint=hint)
    if len(finals) == 1:
        return finals[0], "the final validation loss of the only run that has one"
    return max(finals), "the worse of the two final validation losses"


def _ratio(a: float | None, b: float | None) -> float | None:
    return None if a is None or b is None or a == 0 else b / a


def plan_differences(a: Ledger, b: Ledger) -> Iterator[Difference]:
    """Keys of job, cluster and recipe whose values differ; figures by value, whatever their sources say."""
    left, right = (dict(_leaves(run.plan)) for run in (a, b))
    for key in [*left, *(key for key in right if key not in left)]:
        if key not in left or key not in right or left[key] != right[key]:
            yield Difference(key, *(_text(side[key]) if key in side else "–" for side in (left, right)))


def _leaves(plan: BaseModel) -> Iterator[tuple[str, Any]]:
    for noun in ("job", "cluster", "recipe"):
        yield from _leaves_in(getattr(plan, noun), noun)


def _leaves_in(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    """Dotted path and value; of a figure only what it says, not where it came from."""
    if isinstance(value, Figure):
        yield path, Figure(value=value.value, unit=value.unit, provenance="assumed")
    elif isinstance(value, BaseModel):
        for name in type(value).model_fields:
            yield from _leaves_in(getattr(value, name), f"{path}.{name}")
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _leaves_in(inner, f"{path}.{key}")
    else:
        yield path, value


def _text(value: Any) -> str:
    return words.show(value) if isinstance(value, Figure) else str(value)


def _warnings(a: Ledger, b: Ledger) -> Iterator[str]:
    """A loss per token is comparable only over the same tokens."""
    keys = {difference.key for difference in plan_differences(a, b)}
    matters = ("job.data.", "job.sequence_length", "job.model.vocab_size", "recipe.evaluation.sequences")
    unlike = sorted(key for key in keys if key.startswith(matters))
    if unlike:
        yield f"the validation losses may not mean the same: the runs differ in {', '.join(unlike)}"
    for ledger, name in ((a, "A"), (b, "B")):
        if ledger.unbilled:
            yield f"{name} has {ledger.unbilled}; the bill beside is its predicted one"
