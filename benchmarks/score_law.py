"""Scores a loss law: fitted on one table of runs, tested on another.

    python benchmarks/score_law.py FIT.csv TEST.csv [--json FILE]
    python benchmarks/score_law.py RUNS.csv --cuts [--json FILE]

Tables have the columns id, dataset, params, tokens and c4_val_loss, and better params_no_embed and global_batch_seq.
The form of the law is chosen inside FIT, by how well smaller models predict larger ones there; TEST is only predicted.
Beside the law stand two nulls: a power law of compute alone, L = E + k / (6 N D)^c, fitted on the same rows, and the
loss of the nearest fitted run in log N and log D. With --cuts the table is split by size instead, at every size with
two smaller ones: the cross-validated score.
"""

from __future__ import annotations

import json
import math
import statistics
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from thrifty.laws.fit import Form, RunRow, law_of
from thrifty.laws.heldout import choose
from thrifty.laws.law import LossLaw, interval, loss, pooled, value
from thrifty.laws.minimise import minimise
from thrifty.planner.loss_table import Lacking, read_rows
from thrifty.spec.errors import ThriftyError

SHARE = 0.8  # of runs that the interval should hold


@dataclass(frozen=True)
class Predicted:
    """A run of the test table beside what the law and the nulls say of it."""

    row: RunRow
    loss: float
    low: float
    high: float
    compute_null: float
    nearest_null: float

    @property
    def error(self) -> float:
        return self.loss / self.row.loss - 1


def predict(law: LossLaw, form: Form, row: RunRow) -> tuple[float, float, float] | str:
    """Loss and interval of a run, or what the run lacks. A dataset that the fit never saw gets the mean constants."""
    parameters = row.counted(form.counted)
    if not parameters:
        return "no params_no_embed, which this law counts"
    if form.loses_steps and row.steps is None:
        return "no global_batch_seq, which this law counts steps with"
    steps = row.steps if form.loses_steps else None
    if row.dataset not in law.constants:
        lost = law.lost_steps / steps if steps else 0.0
        expected = value(pooled(law), law.alpha, law.beta, parameters, row.tokens, lost)
        bounds = [interval(law, parameters, row.tokens, steps, name, SHARE) for name in law.constants]
        known = [b for b in bounds if b is not None]
        return expected, min(b[0] for b in known), max(b[1] for b in known)
    bound = interval(law, parameters, row.tokens, steps, row.dataset, SHARE)
    assert bound is not None
    return loss(law, parameters, row.tokens, steps, row.dataset), *bound


def compute_law(rows: list[RunRow]) -> Any:
    """L = E + k / C^c over compute alone, fitted as the law is."""
    logs = [math.log(6 * row.parameters * row.tokens) for row in rows]
    middle = statistics.mean(logs)

    def residuals(x: Any) -> Any:
        found, slopes = [], []
        for log_c, row in zip(logs, rows, strict=True):
            floor, rest = math.exp(x[0]), math.exp(x[1] - x[2] * (log_c - middle))
            found.append(math.log((floor + rest) / row.loss))
            share = rest / (floor + rest)
            slopes.append([(0, 1 - share), (1, share), (2, -share * (log_c - middle))])
        return found, slopes

    ones = [1.0] * len(rows)
    found = minimise(residuals, [0.5, 0.5, 0.15], weights=ones, delta=1e-3, scale=0.01).constants
    return lambda row: (
        math.exp(found[0]) + math.exp(found[1] - found[2] * (math.log(6 * row.parameters * row.tokens) - middle))
    )


def nearest(rows: list[RunRow], row: RunRow) -> float:
    """Loss of the nearest fitted run, of the same dataset where there is one."""
    alike = [r for r in rows if r.dataset == row.dataset] or rows
    return min(
        alike, key=lambda r: math.log(r.parameters / row.parameters) ** 2 + math.log(r.tokens / row.tokens) ** 2
    ).loss


def score(fit_rows: list[RunRow], test_rows: list[RunRow], lacking: list[Lacking]) -> tuple[dict[str, Any], list[Any]]:
    """Fits, predicts and sums up; rows that cannot be predicted join `lacking`."""
    form, _ = choose(fit_rows)
    law = law_of(fit_rows, form, "fit table")
    null = compute_law(fit_rows)
    found = []
    for row in test_rows:
        one = predict(law, form, row)
        if isinstance(one, str):
            lacking.append(Lacking(row.id, one))
        else:
            found.append(Predicted(row, *one, null(row), nearest(fit_rows, row)))
    if not found:
        raise ThriftyError("no row of the test table can be predicted", where=f"{len(lacking)} rows lack inputs")
    errors = [one.error for one in found]
    nulls = {
        name: statistics.mean(abs(getattr(one, name) / one.row.loss - 1) for one in found)
        for name in ("compute_null", "nearest_null")
    }
    summary = {
        "rows": len(found),
        "mape": statistics.mean(map(abs, errors)),
        "median": statistics.median(map(abs, errors)),
        "worst": max(map(abs, errors)),
        "bias": statistics.mean(errors),
        "coverage": sum(one.low <= one.row.loss <= one.high for one in found) / len(found),
        "null_mape": min(nulls.values()),
        **nulls,
        "form": str(form),
        "fit_rows": len(fit_rows),
        "unseen_datasets": sorted({one.row.dataset for one in found} - set(law.constants)),
        "lacking": [vars(one) for one in lacking],
    }
    return summary, found


def show(title: str, summary: dict[str, Any], found: list[Any], rows: bool) -> None:
    print(f"{title}: {summary['form']}")
    if rows:
        print(f"\n{'run':44}{'loss':>8}{'law':>8}{'80% interval':>18}{'error':>8}{'compute':>9}{'nearest':>9}")
        for one in found:
            low_high = f"{one.low:.3f} to {one.high:.3f}"
            print(
                f"{one.row.id:44}{one.row.loss:8.3f}{one.loss:8.3f}{low_high:>18}{one.error:+8.1%}"
                f"{one.compute_null / one.row.loss - 1:+9.1%}{one.nearest_null / one.row.loss - 1:+9.1%}"
            )
        print()
    print(
        f"  {summary['rows']} rows  MAPE {summary['mape']:.2%}  median {summary['median']:.2%}  worst "
        f"{summary['worst']:.1%}  bias {summary['bias']:+.2%}  80% interval holds {summary['coverage']:.0%}   null: "
        f"compute {summary['compute_null']:.1%}, nearest {summary['nearest_null']:.1%}"
    )
    for dataset in summary["unseen_datasets"]:
        print(f"  dataset {dataset} is not in the fit: predicted with the mean constants of the others")
    for one in summary["lacking"]:
        print(f"  NOT SCORED {one['id']}: {one['why']}")


def cuts(rows: list[RunRow]) -> dict[str, tuple[dict[str, Any], list[Any]]]:
    """Every split of a table by size with two sizes to fit, and once without the smallest."""
    sizes = sorted({row.parameters for row in rows})
    found = {}
    for lowest, cut in [(0, i) for i in range(2, len(sizes))] + [(1, len(sizes) - 1)]:
        small = [r for r in rows if sizes[lowest] <= r.parameters < sizes[cut]]
        large = [r for r in rows if r.parameters >= sizes[cut]]
        name = f"{sizes[lowest] / 1e6:.0f}M to {sizes[cut - 1] / 1e6:.0f}M, tested on {sizes[cut] / 1e6:.0f}M and more"
        found[name] = score(small, large, [])
    return found


def main(arguments: list[str]) -> int:
    target = None
    if "--json" in arguments:
        at = arguments.index("--json")
        target = Path(arguments[at + 1]) if at + 1 < len(arguments) else None
        del arguments[at : at + 2]
    by_cuts = "--cuts" in arguments
    paths = [Path(text) for text in arguments if text != "--cuts"]
    if len(paths) != (1 if by_cuts else 2):
        print(__doc__, file=sys.stderr)
        return 2
    absent = [str(path) for path in paths if not path.exists()]
    if absent:
        print(f"NOT SCORED: no such table {' and '.join(absent)}", file=sys.stderr)
        return 2
    try:
        tables = [read_rows(path) for path in paths]
        if by_cuts:
            rows, lacking = tables[0]
            result: dict[str, Any] = {"cuts": {}, "lacking": [vars(one) for one in lacking]}
            for name, (summary, found) in cuts(rows).items():
                show(name, summary, found, rows=False)
                result["cuts"][name] = summary
            result["mape"] = statistics.mean(one["mape"] for one in result["cuts"].values())
            result["coverage"] = statistics.mean(one["coverage"] for one in result["cuts"].values())
            print(f"mean over the cuts: MAPE {result['mape']:.2%}, 80% interval holds {result['coverage']:.0%}")
        else:
            (fit_rows, fit_lacking), (test_rows, test_lacking) = tables
            result, found = score(fit_rows, test_rows, [*fit_lacking, *test_lacking])
            show(f"{len(fit_rows)} runs fitted", result, found, rows=True)
    except ThriftyError as error:
        print(f"NOT SCORED: {error}", file=sys.stderr)
        return 2
    if target is not None:
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(json.dumps(result, indent=1) + "\n")
        print(f"written: {target}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
