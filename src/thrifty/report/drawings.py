"""The figures of the page: what each shows, the data behind it, its legend and its one-line reading."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from thrifty.cost.memory import capacity_bytes
from thrifty.report import charts, words
from thrifty.report.charts import Level, Records
from thrifty.report.compare import Comparison, Line, bill_lines
from thrifty.report.ledger import COSTS, CostToTarget, Ledger, Row, thinned
from thrifty.spec.bill import MEMORY_TERMS, TIME_PARTS, Bill

MOST_POINTS = 400  # of one curve: more cannot be told apart at the width of a page
PREDICTED, MEASURED, RUN_A, RUN_B = "var(--predicted)", "var(--measured)", "var(--a)", "var(--b)"
# A prediction's headline: totals, rates and peaks, in the order in which they are asked for.
HEADLINE_TERMS = ("usd", "seconds", "energy", "co2", "step_seconds", "tokens_per_second", "mfu", "peak_memory", "loss")


@dataclass(frozen=True)
class Drawing:
    """One figure of the page.

    Attributes:
        rows: the data that the page feeds to the chart as the data set `rows`, and offers for download.
        specs: Vega-Lite specifications by the label of the switch; one entry is a figure without a switch.
        legend: label and colour.
        columns: of the data table, `(key in rows, heading)`.
        table: rows of the data table where they are fewer than `rows`.
    """

    id: str
    title: str
    caption: str
    rows: Records
    specs: dict[str, dict[str, Any]]
    columns: tuple[tuple[str, str], ...]
    legend: tuple[tuple[str, str], ...] = ()
    table: Records | None = field(default=None)


def report_drawings(ledger: Ledger) -> Iterator[Drawing]:
    """Loss, time, memory and the ratios of one run; only those for which there is something to draw."""
    if ledger.train or ledger.val:
        yield _loss([("this run", ledger, MEASURED)], _levels(ledger))
    sides = [("predicted", ledger.predicted, PREDICTED)]
    if ledger.measured is not None:
        sides.append(("measured", ledger.measured, MEASURED))
    yield _time(sides)
    yield _memory(sides, capacity_bytes(ledger.plan.cluster, ledger.plan.recipe.layout.ranks))
    if ledger.measured is not None:
        lines = [line for line in bill_lines(ledger.predicted, ledger.measured) if line.term in HEADLINE_TERMS]
        caption = "A dot at 1x is a prediction that came true; the bar is the interval that was predicted. "
        caption += "Green dots lie inside it, amber ones outside."
        ratios = _ratios(lines, "How good the prediction was", "measured / predicted (log scale)", "predicted", caption)
        if ratios is not None:
            yield ratios


def comparison_drawings(comparison: Comparison) -> Iterator[Drawing]:
    """Both runs' losses with the target, the ratios of the costs to it, and both bills' time and memory."""
    a, b = comparison.a, comparison.b
    level = [Level(comparison.target, f"target {comparison.target:.4g}")]
    yield _loss([("A", a, RUN_A), ("B", b, RUN_B)], level, [("A", comparison.cost_a), ("B", comparison.cost_b)])
    cost = _cost_ratios(comparison)
    if cost is not None:
        yield cost
    sides = [("A", a.bill, RUN_A), ("B", b.bill, RUN_B)]
    yield _time(sides)
    yield _memory(sides, None)


def _loss(
    runs: Sequence[tuple[str, Ledger, str]], levels: Sequence[Level], reached: Sequence[tuple[str, CostToTarget]] = ()
) -> Drawing:
    rows: Records = []
    for name, ledger, _ in runs:
        for split, points in (("train", ledger.train), ("val", ledger.val)):
            rows += [_point(name, split, row, ledger.flops_per_token) for row in thinned(points, MOST_POINTS)]
    marks = [
        {"run": name, "loss": cost.target, **{key: getattr(cost, key) for key in COSTS}}
        for name, cost in reached
        if cost.reached
    ]
    colours = {name: colour for name, _, colour in runs}
    known = [cost for cost in COSTS if any(row[cost] for row in rows)]  # free is no axis
    caption = "Strong line: validation loss; thin line: training loss. "
    caption += (
        "Rings: where each run reached the target, interpolated between evaluations."
        if reached
        else "Costs are totals over all resumes, start-up and evaluation included."
    )
    if any(len(ledger.train) > MOST_POINTS for _, ledger, _ in runs):
        caption += f" The training line shows means of neighbouring steps, {MOST_POINTS} points a run."
    headings = {"tokens": "tokens", "seconds": "seconds", "usd": "USD", "joules": "joules", "flops": "model FLOPs"}
    return Drawing(
        id="loss",
        title="Loss against what it cost",
        caption=caption,
        rows=rows,
        specs={
            words.COST_LABELS[cost]: charts.specification(charts.loss_chart(cost, rows, colours, levels, marks))
            for cost in known
        },
        columns=(
            ("run", "run"),
            ("step", "step"),
            ("loss", "validation loss"),
            *((cost, headings[cost]) for cost in known),
        ),
        legend=tuple(colours.items()) if len(runs) > 1 else (),
        table=[row for row in rows if row["split"] == "val"],
    )


def _point(run: str, split: str, row: Row, flops_per_token: float) -> dict[str, Any]:
    costs = {
        "tokens": row.tokens,
        "seconds": row.seconds,
        "usd": row.usd,
        "joules": row.joules,
        "flops": row.tokens * flops_per_token,
    }
    return {
        "run": run,
        "split": split,
        "step": row.step,
        "loss": charts.finite(row.loss),
        **{key: charts.finite(cost) for key, cost in costs.items()},
    }


def _levels(ledger: Ledger) -> list[Level]:
    levels = []
    if ledger.plan.job.target_loss is not None:
        levels.append(Level(ledger.plan.job.target_loss, f"target {ledger.plan.job.target_loss:.4g}"))
    predicted = ledger.predicted.loss
    if predicted is not None:
        levels.append(
            Level(predicted.value, f"predicted at the end {predicted.value:.4g}", predicted.low, predicted.high)
        )
    return levels


def _time(sides: Sequence[tuple[str, Bill, str]]) -> Drawing:
    parts = [part for part in TIME_PARTS if any(bill.seconds_by_part.get(part) for _, bill, _ in sides)]
    rows: Records = []
    for name, bill, _ in sides:
        total = sum(figure.value for figure in bill.seconds_by_part.values()) or 1.0
        for part in parts:
            figure = bill.seconds_by_part.get(part)
            if figure is not None:
                rows.append(
                    {
                        "side": name,
                        "part": part,
                        "seconds": charts.finite(figure.value),
                        "share": charts.finite(figure.value / total),
                        "text": str(figure),
                    }
                )
    steps = " · ".join(f"{name} {words.show(bill.step_seconds)}" for name, bill, _ in sides)
    names, colours = [name for name, _, _ in sides], [colour for _, _, colour in sides]
    return Drawing(
        id="time",
        title="Where the time went" if len(sides) > 1 else "Where the time should go",
        caption="Wall time of the whole run by part; communication is what computation did not hide. "
        f"One optimizer step: {steps}.",
        rows=rows,
        specs={
            "time": charts.specification(
                charts.parts_chart(names, colours, parts, max((row["seconds"] for row in rows), default=1.0))
            )
        },
        columns=(
            ("side", "bill"),
            ("part", "part"),
            ("text", "time"),
            ("seconds", "seconds"),
            ("share", "share of the run"),
        ),
        legend=tuple(zip(names, colours, strict=True)),
    )


def _memory(sides: Sequence[tuple[str, Bill, str]], capacity: float | None) -> Drawing:
    terms = {
        term: f"var(--c{i})"
        for i, term in enumerate(MEMORY_TERMS, 1)
        if any(_bytes(bill, term) for _, bill, _ in sides)
    }
    rows: Records = []
    for name, bill, _ in sides:
        for order, term in enumerate(terms):
            if term in bill.memory:
                figure = bill.memory[term]
                row = {"side": name, "term": term, "bytes": charts.finite(figure.value)}
                rows.append(row | {"order": order, "text": str(figure)})
    peaks: Records = [
        {"side": name, "bytes": bill.peak_memory.value, "text": str(bill.peak_memory)} for name, bill, _ in sides
    ]
    sums = [sum(row["bytes"] for row in rows if row["side"] == name) for name, _, _ in sides]
    longest = max(1.0, *sums, *(peak["bytes"] for peak in peaks))
    marks = " · ".join(f"{peak['side']} {peak['text']}" for peak in peaks)
    caption = f"The mark is the peak ({marks}); it lies off the sum where terms peak at different times."
    if capacity:
        share = max(peak["bytes"] for peak in peaks) / capacity
        caption += f" A rank may use {words.value(capacity, 'byte')}; the highest peak is {100 * share:.3g}% of it."
    names = [name for name, _, _ in sides]
    return Drawing(
        id="memory",
        title="Memory of the fullest rank",
        caption=caption,
        rows=rows,
        specs={"memory": charts.specification(charts.memory_chart(terms, names, peaks, capacity, longest))},
        columns=(("side", "bill"), ("term", "term"), ("text", "memory"), ("bytes", "bytes")),
        legend=tuple(terms.items()),
    )


def _bytes(bill: Bill, term: str) -> float:
    return bill.memory[term].value if term in bill.memory else 0.0


def _ratios(lines: Sequence[Line], title: str, axis: str, reference: str, caption: str) -> Drawing | None:
    rows: Records = []
    for line in sorted(lines, key=lambda line: HEADLINE_TERMS.index(line.term)):
        if line.ratio is None or line.ratio <= 0 or line.left is None:
            continue
        left = line.left
        ends = [charts.finite(end / left.value) if end is not None else None for end in (left.low, left.high)]
        verdict = "" if line.inside is None else "inside" if line.inside else "outside"
        row = {
            "term": words.label(line.term),
            "ratio": charts.finite(line.ratio),
            "text": words.times(line.ratio),
            "low": ends[0],
            "high": ends[1],
        }
        rows.append(
            row | {"left": words.show(left, line.term), "right": words.show(line.right, line.term), "verdict": verdict}
        )
    return _ratio_drawing("ratios", rows, title, axis, reference, caption)


def _cost_ratios(comparison: Comparison) -> Drawing | None:
    rows: Records = []
    for cost in words.COST_LABELS:
        ratio = comparison.ratios[cost]
        if ratio is not None and ratio > 0:
            sides = [words.cost(getattr(side, cost), cost) for side in (comparison.cost_a, comparison.cost_b)]
            verdict = "inside" if ratio < 1 else "outside" if ratio > 1 else ""
            row = {
                "term": words.COST_LABELS[cost],
                "ratio": charts.finite(ratio),
                "text": words.times(ratio),
                "low": None,
                "high": None,
            }
            rows.append(row | {"left": sides[0], "right": sides[1], "verdict": verdict})
    caption = f"What B spent to reach a validation loss of {comparison.target:.4g}, over what A spent: "
    caption += "left of 1x (green), B is cheaper."
    return _ratio_drawing("ratios", rows, "Cost to the same loss, B over A", "B / A (log scale)", "A", caption)


def _ratio_drawing(id_: str, rows: Records, title: str, axis: str, reference: str, caption: str) -> Drawing | None:
    if not rows:
        return None
    right = "measured" if reference == "predicted" else "B"
    return Drawing(
        id=id_,
        title=title,
        caption=caption,
        rows=rows,
        specs={"ratios": charts.specification(charts.ratio_chart(rows, axis, reference))},
        columns=(("term", ""), ("left", reference), ("right", right), ("text", "ratio")),
    )
