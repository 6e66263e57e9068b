"""The report in a terminal: at most 100 columns, colour only where there is a terminal to show it."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from thrifty.report import summary, words
from thrifty.report.compare import Comparison, Line, bill_lines
from thrifty.report.ledger import COSTS, Ledger

WIDTH = 100
_VERDICTS = {True: Text("inside", style="green"), False: Text("outside", style="yellow"), None: Text("")}


def console() -> Console:
    """Standard output, plain and 100 columns wide where it is no terminal."""
    if sys.stdout.isatty():
        found = Console(highlight=False)
        return found if found.width <= WIDTH else Console(highlight=False, width=WIDTH)
    return Console(highlight=False, width=WIDTH, no_color=True, force_terminal=False)


def print_report(out: Console, ledger: Ledger) -> None:
    """Headline, what to mind, and every term predicted beside measured."""
    out.print(Text(summary.headline(ledger), style="bold"))
    out.print(Text(summary.subline(ledger)))
    for note in summary.notes(ledger):
        out.print(Text(f"note: {note}", style="yellow"))
    out.print()
    out.print(bill_table(out, bill_lines(ledger.predicted, ledger.measured)))


def bill_table(out: Console, lines: Sequence[Line]) -> Table:
    """Predicted, measured, difference, ratio, and whether the interval held, for each term."""
    table = plain_table(out, "", "predicted", "measured", "difference", "ratio", "interval", "by")
    for line in lines:
        table.add_row(
            words.label(line.term),
            words.show(line.left, line.term),
            words.show(line.right, line.term),
            words.difference(line.difference, line.unit, line.term),
            words.times(line.ratio),
            _VERDICTS[line.inside],
            " / ".join(side.provenance if side else "–" for side in (line.left, line.right)),
        )
    return table


def print_comparison(out: Console, comparison: Comparison) -> None:
    """Headline, cost to the target, both bills, and what differs between the plans."""
    out.print(Text(summary.compare_headline(comparison), style="bold"))
    out.print(Text(f"A  {comparison.a.root}\nB  {comparison.b.root}"))
    for warning in comparison.warnings:
        out.print(Text(f"note: {warning}", style="yellow"))
    out.print()
    out.print(_cost_table(out, comparison))
    for name, side in (("A", comparison.cost_a), ("B", comparison.cost_b)):
        if side.reason:
            out.print(Text(f"{name}: {side.reason}", style="yellow"))
    out.print(Text(f"Target: {comparison.target_from}. FLOPs are the model's.", style="dim"))
    out.print()
    bills = plain_table(out, "whole run", "A", "B", "difference", "B/A")
    for line in comparison.lines:
        bills.add_row(
            words.label(line.term),
            words.show(line.left, line.term),
            words.show(line.right, line.term),
            words.difference(line.difference, line.unit, line.term),
            words.times(line.ratio),
        )
    out.print(bills)
    out.print()
    if comparison.differences:
        plans = plain_table(out, "plans differ in", "A", "B", left=3)
        for difference in comparison.differences:
            plans.add_row(difference.key, difference.a, difference.b)
        out.print(plans)
    else:
        out.print("The two plans are equal.")


def _cost_table(out: Console, comparison: Comparison) -> Table:
    table = plain_table(out, f"to loss {comparison.target:.4g}", "A", "B", "B/A")
    for cost in COSTS:
        sides = [words.cost(getattr(side, cost), cost) for side in (comparison.cost_a, comparison.cost_b)]
        table.add_row(words.COST_LABELS[cost], *sides, words.times(comparison.ratios[cost]))
    return table


def plain_table(out: Console, first: str, *columns: str, left: int = 1) -> Table:
    """A table whose first `left` columns are text, the others figures."""
    table = Table(box=box.SIMPLE_HEAD if out.is_terminal else None, pad_edge=False, header_style="bold")
    table.add_column(first, overflow="fold")
    for number, column in enumerate(columns, 1):
        figure = number >= left and column not in ("interval", "by")
        table.add_column(column, justify="right" if figure else "left", overflow="fold", no_wrap=figure and left == 1)
    return table


def print_timeline(out: Console, text: str | None) -> None:
    """A pipeline's timelines as they were drawn, if there are any."""
    if text is not None:
        out.print()
        out.print(Text(text), soft_wrap=True)


def print_page(out: Console, page: Path | None, missing: str) -> None:
    """Where the page lies, or why there is none."""
    if page is not None:
        out.print()
        out.print(
            Text(f"page: {page.resolve()} ({page.stat().st_size / 1000:.0f} kB, opens without network)"), soft_wrap=True
        )
    elif missing:
        out.print()
        out.print(Text(missing, style="yellow"), soft_wrap=True)
