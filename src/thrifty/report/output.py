"""Reports as JSON and as pages; the pages only where the charting packages are installed."""

from __future__ import annotations

import dataclasses
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from thrifty.report.compare import Comparison, Line, bill_lines
from thrifty.report.ledger import CostToTarget, Ledger
from thrifty.report.summary import notes
from thrifty.spec.errors import ThriftyError

_NEEDED = ("altair", "vl_convert")
_INSTALL = "pip install 'thrifty[report]'"


def missing_packages() -> list[str]:
    """Packages that the page needs and this environment lacks."""
    return [name for name in _NEEDED if not _installed(name)]


def _installed(name: str) -> bool:
    try:
        return find_spec(name) is not None
    except (ImportError, ValueError):
        return False


def report_html(ledger: Ledger, path: Path | None) -> tuple[Path | None, str]:
    """Writes a run's page; by default into the run folder.

    Returns:
        Where the page lies, or None and one line that says what to install.

    Raises:
        ThriftyError: `path` was asked for and packages are missing, or it cannot be written.
    """
    missing = missing_packages()
    if missing and path is None:
        return None, f"no page: {' and '.join(missing)} not installed; {_INSTALL}"
    _require(missing)
    from thrifty.report.page import report_page, write_page

    path = path or ledger.root / "report.html"
    write_page(report_page(ledger), path)
    return path, ""


def comparison_html(comparison: Comparison, path: Path) -> Path:
    """Writes the page of two runs.

    Raises:
        ThriftyError: packages are missing, or the file cannot be written.
    """
    _require(missing_packages())
    from thrifty.report.page import comparison_page, write_page

    write_page(comparison_page(comparison), path)
    return path


def _require(missing: list[str]) -> None:
    if missing:
        raise ThriftyError(f"the page needs {' and '.join(missing)}", where="--html", hint=_INSTALL)


def report_json(ledger: Ledger) -> dict[str, Any]:
    """One run: its bills term by term, the last losses, and what to mind."""
    last = ledger.last
    return {
        "run": str(ledger.root),
        "plan": ledger.plan.hash,
        "billed": ledger.measured is not None,
        "notes": list(notes(ledger)),
        "steps_planned": ledger.plan.total_steps,
        "last": dataclasses.asdict(last) if last else None,
        "validation_loss": ledger.final_loss,
        "evaluations": [dataclasses.asdict(row) for row in ledger.val],
        "terms": [_line(line, "predicted", "measured") for line in bill_lines(ledger.predicted, ledger.measured)],
    }


def comparison_json(comparison: Comparison) -> dict[str, Any]:
    """Two runs: cost to the same loss and its ratios, both bills, and what differs between the plans."""
    return {
        "a": str(comparison.a.root),
        "b": str(comparison.b.root),
        "target_loss": comparison.target,
        "target_from": comparison.target_from,
        "cost_to_target": {"a": _cost(comparison.cost_a), "b": _cost(comparison.cost_b), "b_over_a": comparison.ratios},
        "notes": list(comparison.warnings),
        "terms": [_line(line, "a", "b") for line in comparison.lines],
        "plan_differences": [dataclasses.asdict(difference) for difference in comparison.differences],
    }


def _cost(cost: CostToTarget) -> dict[str, Any]:
    kwh = None if cost.joules is None else cost.joules / 3.6e6
    return {key: value for key, value in dataclasses.asdict(cost).items() if key != "target"} | {"kwh": kwh}


def _line(line: Line, left: str, right: str) -> dict[str, Any]:
    return {
        "term": line.term,
        "unit": line.unit,
        left: line.left.model_dump(exclude_none=True) if line.left else None,
        right: line.right.model_dump(exclude_none=True) if line.right else None,
        "difference": line.difference,
        "ratio": line.ratio,
        "inside_interval": line.inside,
    }
