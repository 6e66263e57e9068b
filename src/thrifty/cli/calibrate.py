"""`thrifty calibrate [JOB]`: measures this machine and this trainer on it, for plans with `--on local`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from thrifty.cli.common import Json, Sets

if TYPE_CHECKING:
    from thrifty.spec.calibration import Calibration
    from thrifty.spec.plan import Plan


def command(
    job: Annotated[
        str | None,
        typer.Argument(metavar="[JOB]", help="Also run this job's shape, and time its levers.", show_default=False),
    ] = None,
    on: Annotated[str, typer.Option("--on", metavar="CLUSTER", help="Only this machine can be measured.")] = "local",
    nproc: Annotated[
        list[int] | None,
        typer.Option(min=1, metavar="N", help="Ranks to run on beside one. Repeatable.  [default: 2, or the GPUs]"),
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Fewer and shorter runs: about a minute.")] = False,
    levers: Annotated[bool, typer.Option("--levers", help="Time each lever on the job's block; needs JOB.")] = False,
    from_history: Annotated[
        bool, typer.Option("--from-history", help="Measure nothing: fit to the runs that were made here.")
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="FILE", help="Where the profile goes.  [default: the user's cache folder]"),
    ] = None,
    sets: Sets = None,
    json: Json = False,
) -> None:
    """Measure this machine and short runs on it, and keep the constants that plans are priced with."""
    from thrifty.cli.common import need_torch, print_json
    from thrifty.planner.calibrated import write_calibration
    from thrifty.spec.errors import ThriftyError

    if on != "local":
        hint = f"run it on that machine; then take the file along: thrifty plan JOB --on {on} --profile FILE"
        raise ThriftyError("only the machine at hand can be measured", where=f"--on {on}", hint=hint)
    if levers and job is None:
        raise ThriftyError("whose levers?", where="--levers", hint="name the job: thrifty calibrate JOB --levers")
    need_torch("calibrating")
    from thrifty.trainer.calibrate import Asked, calibrate
    from thrifty.trainer.local import calibration_path
    from thrifty.trainer.probe import probe

    plan = _plan(job, sets or []) if job is not None else None
    path = out or calibration_path()
    _check_writable(path)
    asked = Asked(_ranks(nproc, probe()), plan, quick, levers, measure=not from_history)
    found = calibrate(asked, _progress())
    write_calibration(found, path)
    if json:
        print_json({"calibration": found.model_dump(mode="json"), "out": str(path)})
        return
    _print(found)
    typer.echo(f"\nwritten: {path}   next: thrifty plan {job or 'JOB'} --on local")


def _plan(job: str, sets: list[str]) -> Plan:
    from thrifty.cli.common import resolve
    from thrifty.planner import search

    request = resolve(job, "local", None, sets)
    return search.plan(request.job, request.cluster, request.recipe)


def _check_writable(path: Path) -> None:
    """Before minutes of measuring, not after."""
    import os

    from thrifty.spec.errors import ThriftyError

    folder = next(p for p in (path.parent, *path.parent.parents) if p.exists())
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        hint = "choose another place with --out, or set XDG_CACHE_HOME to a folder that can be written"
        raise ThriftyError("the profile cannot be written there", where=str(path), hint=hint)


def _ranks(nproc: list[int] | None, machine: dict[str, Any]) -> tuple[int, ...]:
    """One rank, and those asked for; by default two on a CPU, and all GPUs."""
    from thrifty.spec.errors import ThriftyError

    there = machine["devices"]
    usual = min(2, there) if machine["kind"] == "cpu" else there
    found = tuple(sorted({1, *(nproc or [usual])}))
    if found[-1] > there:
        what = f"{found[-1]} ranks; this machine has {there} {'cores' if machine['kind'] == 'cpu' else 'GPUs'}"
        raise ThriftyError(what, where="--nproc", hint=f"use at most {there}")
    return found


def _progress() -> Any:
    """One line for each thing that is measured, on standard error."""
    import time

    begin = time.monotonic()
    return lambda text: typer.echo(f"{time.monotonic() - begin:5.0f} s  {text}", err=True)


def _print(found: Calibration) -> None:
    """Parts of each run before and after, then the constants."""
    from rich import box
    from rich.table import Table

    from thrifty.planner.screen import console
    from thrifty.spec.profile import CONSTANTS
    from thrifty.spec.units import show

    out, own = console(), found.profile
    table = Table(box=box.SIMPLE_HEAD if out.is_terminal else None, pad_edge=False, header_style="bold")
    for name in ("run", "part", "predicted before", "measured", "predicted after", "before", "after"):
        table.add_column(name, justify="left" if name in ("run", "part") else "right")
    last = ""
    for row in found.residuals:
        times = [f"{side / row.measured:.2f}x" if row.measured > 0 else "" for side in (row.before, row.after)]
        seconds = [show(side, "s") for side in (row.before, row.measured, row.after)]
        table.add_row(row.run if row.run != last else "", row.part, *seconds, *times)
        last = row.run
    out.print(table)
    for fit in found.collectives:
        rate, latency = show(fit.bytes_per_s, "byte/s"), show(fit.latency_seconds, "s")
        out.print(f"{fit.kind} of {fit.ranks} ranks: {latency} and {rate}, {fit.error:.0%} off", markup=False)
    values = ", ".join(f"{name} {value:.3g}" for name in CONSTANTS if (value := getattr(own, name)) is not None)
    out.print(f"constants: {values}", markup=False)
    for lever in own.levers:
        out.print(f"measured on {lever.shape}: {lever.lever} {lever.value} {lever.ratio:.2f}x", markup=False)
    out.print(
        f"profile {own.name} on {own.hardware}, {own.date}: {own.runs} runs; median error of a step "
        f"{own.error_before:.0%} before, {own.error:.0%} after (kinds of runs held out in turn, where there are two); "
        f"80% interval {own.low:.2f} to {own.high:.2f}",
        markup=False,
    )
