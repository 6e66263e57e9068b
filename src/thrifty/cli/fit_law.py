"""`thrifty fit-law RUNS...`: a loss law from finished runs, and how far beyond them it can be trusted."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from thrifty.cli.common import Json

if TYPE_CHECKING:
    from collections.abc import Iterator

    from thrifty.laws.fit import RunRow
    from thrifty.laws.heldout import Check
    from thrifty.laws.law import LossLaw
    from thrifty.planner.loss_table import Lacking

TESTS_SHOWN = 4


def command(
    runs: Annotated[
        list[Path],
        typer.Argument(
            metavar="RUNS...",
            help="Run folders of thrifty train, or CSV tables with id, dataset, params, tokens and loss.",
            show_default=False,
        ),
    ],
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FILE", help="Where the law goes, for plan --law FILE.")
    ] = None,
    json: Json = False,
) -> None:
    """Fit a loss law to finished runs, test it on models larger than the fit, and save it for `plan --law`."""
    from thrifty.cli.common import print_json
    from thrifty.planner.emit import write_text
    from thrifty.planner.loss_table import read_rows, write_law
    from thrifty.planner.screen import WIDTH, wrapped
    from thrifty.planner.screen import console as make_console

    tables = [read_rows(path) for path in runs]
    rows = [row for found, _ in tables for row in found]
    lacking = [one for _, missing in tables for one in missing]
    source = f"fitted to {', '.join(path.name for path in runs[:3])}{' and more' if len(runs) > 3 else ''}"
    law, checks = _fit(rows, lacking, source)
    if out is not None:
        write_text(out, write_law(law), "--out")
    if json:
        print_json(_content(law, checks, lacking) | {"out": str(out) if out else None})
        return
    console = make_console()
    for line in _lines(law, checks, lacking):
        console.print(wrapped(line, WIDTH), markup=False)
    if out is not None:
        dataset = "" if len(law.constants) == 1 else f"@{next(iter(law.constants))}"
        console.print(f"\nwritten: {out}   next: thrifty plan JOB --law {out}{dataset}", markup=False, soft_wrap=True)


def _fit(rows: list[RunRow], lacking: list[Lacking], source: str) -> tuple[LossLaw, list[Check]]:
    """The law, and the tests of its form and the others, its own first."""
    from thrifty.laws.fit import law_of, why_not
    from thrifty.laws.heldout import choose
    from thrifty.spec.errors import ThriftyError

    problem = why_not(rows) if rows else "no run has parameters, tokens and a loss"
    if problem:
        hint = "add runs of other sizes, and of the same size on other numbers of tokens"
        hint = "\n".join([hint, *(f"left out {one.id}: {one.why}" for one in lacking[:5])])
        raise ThriftyError(f"no law can be fitted: {problem}", where="fit-law", hint=hint)
    form, checks = choose(rows)
    return law_of(rows, form, source), sorted(checks, key=lambda check: (check.form != form, check.mape))


def _content(law: LossLaw, checks: list[Check], lacking: list[Lacking]) -> dict[str, Any]:
    from dataclasses import asdict

    return {
        "law": law.model_dump(mode="json", exclude={"draws"}),
        "intervals": {name: list(bounds) for name, _, bounds in _constants(law)},
        "held_out": [asdict(check) | {"form": str(check.form), "reach": check.reach} for check in checks],
        "lacking": [vars(one) for one in lacking],
    }


def _constants(law: LossLaw) -> Iterator[tuple[str, float, tuple[float, float]]]:
    """Every constant with the interval that holds four fifths of the bootstrap's."""
    from thrifty.laws.law import quantile

    def between(values: list[float]) -> tuple[float, float]:
        ordered = sorted(values)
        return quantile(ordered, 0.1), quantile(ordered, 0.9)

    for name in ("alpha", "beta", "lost_steps"):
        if getattr(law, name):
            yield name, getattr(law, name), between([getattr(draw, name) for draw in law.draws])
    for dataset, constants in law.constants.items():
        for name in ("E", "A", "B"):
            drawn = [getattr(draw.constants[dataset], name) for draw in law.draws]
            yield f"{name} {dataset}", getattr(constants, name), between(drawn)


def _lines(law: LossLaw, checks: list[Check], lacking: list[Lacking]) -> Iterator[str]:
    from thrifty.spec import units

    def count(number: float) -> str:
        return units.show(number, "token")

    assert law.parameters is not None
    assert law.tokens is not None
    counted = "all parameters" if law.counted == "all" else "parameters without the input embedding"
    data = "B/D^beta" if not law.lost_steps else "B/(D/(1 + S0/S))^beta with S steps, S0 = lost_steps"
    yield f"L = E + A/N^alpha + {data}; N counts {counted}"
    yield (
        f"{law.rows} runs of {count(law.parameters[0])} to {count(law.parameters[1])} parameters on "
        f"{count(law.tokens[0])} to {count(law.tokens[1])} tokens"
    )
    for name, value, (low, high) in _constants(law):
        yield f"  {name:24}{value:10.4g}   {low:.4g} to {high:.4g}"
    yield ""
    if checks:
        yield "fitted on the smaller models, tested on larger ones than any in the fit:"
        for index, check in enumerate(checks[:TESTS_SHOWN]):
            mark = "-" if index else "taken:"
            yield f"{mark} {check.mape:.2%} mean, {check.worst:.1%} worst, {check.bias:+.2%} bias: {check.form}"
        best = checks[0]
        yield (
            f"tested up to {best.reach:.2g} times the largest model fitted: past "
            f"{count(best.reach * law.parameters[1])} parameters nothing here has been tried"
        )
    else:
        yield "not tested: that needs three sizes and more"
    yield from (f"note: {warning}" for warning in law.warnings)
    yield from (f"left out {one.id}: {one.why}" for one in lacking)
