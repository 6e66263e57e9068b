"""The parts of the page that are text: tiles, the table of terms, assumptions, plan and manifest."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from thrifty.report import words
from thrifty.report.compare import Comparison, Line
from thrifty.report.ledger import Ledger, figures
from thrifty.report.markup import Markup, table, tag
from thrifty.spec.load import leaves

TILES = ("usd", "seconds", "loss", "energy", "tokens_per_second", "peak_memory")


def tiles(lines: Sequence[Line]) -> Markup:
    by_term = {line.term: line for line in lines}
    tiles = []
    for term in TILES:
        line = by_term.get(term)
        if line is None:
            continue
        predicted = f"predicted {words.show(line.left, term)}" if line.left else "not predicted"
        if line.right is None:
            tiles.append(_tile(words.label(term), words.show(line.left, term), "predicted"))
        else:
            tiles.append(_tile(words.label(term), words.show(line.right, term), predicted, words.against(line.ratio)))
    return tag("dl", tiles, class_="tiles")


def cost_tiles(comparison: Comparison) -> Markup:
    tiles = []
    for cost, name in words.COST_LABELS.items():
        a, b = (words.cost(getattr(side, cost), cost) for side in (comparison.cost_a, comparison.cost_b))
        tiles.append(_tile(f"{name}, B/A", words.times(comparison.ratios[cost]), f"A {a}", f"B {b}"))
    return tag("dl", tiles, class_="tiles")


def _tile(label: str, big: str, *small: str) -> Markup:
    return tag(
        "div",
        tag("dt", label),
        tag("dd", big, class_="big"),
        [tag("dd", line, class_="small") for line in small if line],
    )


def terms(lines: Sequence[Line]) -> Markup:
    rows = []
    for line in lines:
        verdict = (
            tag("span", "inside" if line.inside else "outside", class_="inside" if line.inside else "outside")
            if line.inside is not None
            else ""
        )
        figures_ = (
            words.show(line.left, line.term),
            words.interval(line.left, line.term),
            words.show(line.right, line.term),
        )
        gap = (words.difference(line.difference, line.unit, line.term), words.times(line.ratio), verdict)
        rows.append((words.label(line.term), *figures_, *gap, _origin(line)))
    headings = ("term", "predicted", "interval", "measured", "difference", "ratio", "", "where the figures come from")
    content = table(headings, rows, text=(0, 6, 7), caption="Every term of the bill")
    return tag(
        "section",
        tag("h2", "Every term, predicted beside measured"),
        tag("p", "Ratios are measured over predicted."),
        content,
    )


def _origin(line: Line) -> Markup:
    sides = [
        f"{side.provenance}: {side.source}" if side.source else side.provenance
        for side in (line.left, line.right)
        if side
    ]
    return tag("div", [tag("div", side) for side in dict.fromkeys(sides)], class_="source")


def assumptions(ledger: Ledger) -> Markup:
    rows = [
        (
            name,
            words.show(figure),
            figure.provenance,
            figure.date or "–",
            tag("div", figure.source or "–", class_="source"),
        )
        for name, figure in figures(ledger.plan.cluster, "cluster.")
    ]
    shape = ledger.plan.job.model
    rows.append(
        (
            "job.model",
            shape.name,
            "published" if shape.source else "assumed",
            "–",
            tag("div", shape.source or "given by the user", class_="source"),
        )
    )
    content = table(("key", "value", "provenance", "date", "source"), rows, text=(0, 2, 3, 4), caption="Assumptions")
    lead = "What the prediction took for granted about the machine, its price and its power, with who said so and when."
    return tag("section", tag("h2", "Assumptions"), tag("p", lead), content)


def plan(ledger: Ledger) -> Markup:
    keys = [("job." + key, value) for key, value in leaves(ledger.plan.job.model_dump(exclude_none=True))]
    keys += [("recipe." + key, value) for key, value in leaves(ledger.plan.recipe.model_dump(exclude_none=True))]
    reasons = (
        tag("ul", [tag("li", reason) for reason in ledger.plan.reasons], class_="reasons")
        if ledger.plan.reasons
        else None
    )
    content = table(("key", "value"), keys, text=(0, 1), caption="Job and recipe")
    return tag(
        "section",
        tag("h2", "The plan"),
        reasons,
        tag("details", tag("summary", "Every key of job and recipe"), content),
    )


def manifest(ledger: Ledger) -> Markup | None:
    if not ledger.manifest:
        return None
    rows = [(key, tag("div", str(value), class_="source")) for key, value in leaves(_numbered(ledger.manifest))]
    content = table(("key", "value"), rows, text=(0, 1), caption="Manifest")
    return tag(
        "section", tag("h2", "Manifest"), tag("p", "Data, versions and machines that the run was made with."), content
    )


def _numbered(value: Any) -> Any:
    """Lists as mappings from 1, so that each entry gets a line; long ones as their length."""
    if isinstance(value, list):
        return (
            {str(i): _numbered(item) for i, item in enumerate(value, 1)}
            if len(value) <= 12
            else f"{len(value)} entries"
        )
    return {key: _numbered(item) for key, item in value.items()} if isinstance(value, dict) else value


def differences(comparison: Comparison) -> Markup:
    if not comparison.differences:
        return tag("section", tag("h2", "The two plans are equal"))
    rows = [(difference.key, difference.a, difference.b) for difference in comparison.differences]
    return tag(
        "section",
        tag("h2", "What differs between the plans"),
        table(("key", "A", "B"), rows, text=(0, 1, 2), caption="Plan differences"),
    )


def both_bills(lines: Sequence[Line]) -> Markup:
    rows = [
        (
            words.label(line.term),
            words.show(line.left, line.term),
            words.show(line.right, line.term),
            words.difference(line.difference, line.unit, line.term),
            words.times(line.ratio),
            _origin(line),
        )
        for line in lines
    ]
    headings = ("term", "A", "B", "difference", "B/A", "where the figures come from")
    content = table(headings, rows, text=(0, 5), caption="Both bills")
    return tag(
        "section", tag("h2", "Both bills, whole runs"), tag("p", "Each run to its own end, whatever its loss."), content
    )
