"""`thrifty train`: executes a plan, or plans a job and executes that."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from thrifty.cli.common import Json, On, Sets

if TYPE_CHECKING:
    from thrifty.spec.plan import Plan
    from thrifty.trainer.launch import Outcome


def command(
    source: Annotated[
        str, typer.Argument(metavar="PLAN-or-JOB", help="plan.yaml, a job file, a model name, or a run folder.")
    ],
    on: On = None,
    nproc: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Processes on this machine; the plan's ranks by default.")
    ] = None,
    run_dir: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Where the run is kept; runs/<job>-<hash> by default.")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue the run in --run-dir from its last checkpoint.")
    ] = False,
    budget: Annotated[
        str | None, typer.Option(metavar="USD", help="Stop with a checkpoint before the run costs more, e.g. 5usd.")
    ] = None,
    deadline: Annotated[
        str | None, typer.Option(metavar="TIME", help="Stop with a checkpoint before this long, e.g. 2h.")
    ] = None,
    follow: Annotated[
        str | None, typer.Option(metavar="NAME", help="Also send metrics to tensorboard, wandb or trackio.")
    ] = None,
    export: Annotated[
        Path | None, typer.Option(metavar="DIR", help="At the end, write the model there as a Hugging Face folder.")
    ] = None,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run", help="Build the layout, of any number of ranks, in this process; print memory and collectives."
        ),
    ] = False,
    rank: Annotated[
        int | None,
        typer.Option(metavar="N", help="With --dry-run: the rank to build; one of each kind of stage by default."),
    ] = None,
    sets: Sets = None,
    json: Json = False,
) -> None:
    """Train a plan (or plan a job, then train it), and bill it."""
    import time

    from thrifty.cli.common import need_torch, print_json, quantity

    began = time.time()
    budget_usd, deadline_seconds = quantity(budget, "usd", "--budget"), quantity(deadline, "seconds", "--deadline")
    need_torch("training")
    _check_rank(rank, dry_run)
    plan, root = _plan(source, on, nproc, run_dir, resume, sets or [])
    if dry_run:
        _dry_run(plan, rank, json)
        return
    from thrifty.trainer import launch

    if not json:
        _say(_before(plan, root))
    options = launch.Options(
        resume=resume,
        budget_usd=budget_usd,
        deadline_seconds=deadline_seconds,
        follow=follow,
        export=None if export is None else str(export.absolute()),
    )
    outcome = launch.run(plan, root, options, began=began)
    if outcome is None:
        return
    if json:
        bill = outcome.bill.model_dump(mode="json")
        print_json(
            {
                "run_dir": str(root),
                "stopped": outcome.stopped,
                "predicted": plan.predicted.model_dump(mode="json"),
                "measured": bill,
            }
        )
        return
    _after(outcome, root)


def _check_rank(rank: int | None, dry_run: bool) -> None:
    from thrifty.spec.errors import ThriftyError

    if rank is not None and not dry_run:
        raise ThriftyError("says which rank a dry run builds", where="--rank", hint="add --dry-run, or leave it out")


def _dry_run(plan: Plan, rank: int | None, json: bool) -> None:
    """Exit code 1 where something is not as planned."""
    from thrifty.cli.common import print_json
    from thrifty.report.dry_run import dry_run_json, print_dry_run
    from thrifty.report.terminal import console
    from thrifty.trainer.dry_run import dry_run

    found = dry_run(plan, rank)
    if json:
        print_json(dry_run_json(found))
    else:
        print_dry_run(console(), found)
    if not found.agrees:
        raise typer.Exit(1)


def _plan(
    source: str, on: str | None, nproc: int | None, run_dir: Path | None, resume: bool, sets: list[str]
) -> tuple[Plan, Path]:
    """The plan to execute, and its run folder."""
    from thrifty.cli.common import resolve
    from thrifty.planner import search
    from thrifty.planner.emit import read_plan
    from thrifty.spec.load import read_yaml

    path = Path(source)
    if path.is_dir():
        run_dir, path = run_dir or path, path / "plan.yaml"
    elif resume and run_dir is not None and (run_dir / "plan.yaml").exists() and not path.exists():
        path = run_dir / "plan.yaml"
    is_plan = path.suffix in (".yaml", ".yml") and path.is_file() and "hash" in read_yaml(path, "plan").tree
    if is_plan and on is None and not sets and nproc is None:
        plan = read_plan(path)
    else:
        plan = read_plan(path) if is_plan else None
        if (
            nproc is not None
            and (plan is None or plan.recipe.layout.ranks != nproc)
            and not any(s.startswith("recipe.layout") for s in sets)
        ):
            layout = [f"recipe.layout.shard={nproc}", "recipe.layout.island=1"]
            sets = [*sets, *layout, *_one_island(plan), *_microbatch(plan, nproc)]
        if plan is None or on is not None or sets:
            request = resolve(str(path) if is_plan else source, on, None, sets)
            replanned = search.plan(request.job, request.cluster, request.recipe)
            _check_same_training(plan, replanned, resume)
            plan = replanned
    return plan, run_dir or Path("runs") / f"{plan.job.name}-{plan.hash[:8]}"


def _one_island(plan: Plan | None) -> list[str]:
    """Without others, an island has nobody to send anything to."""
    if plan is None or not plan.recipe.exchange.between_islands:
        return []
    return [f"recipe.exchange.{one}" for one in ("codec=none", "local_steps=1", "fragments=1", "delay_steps=0")]


def _microbatch(plan: Plan | None, ranks: int) -> list[str]:
    """The largest microbatch up to the plan's that divides its batch over another number of ranks."""
    from thrifty.spec.errors import ThriftyError

    if plan is None:
        return []
    batch = plan.recipe.batch
    if batch.sequences % ranks:
        raise ThriftyError(
            f"{ranks} processes cannot share {batch.sequences} sequences a step equally",
            where="--nproc",
            hint=f"use a divisor of {batch.sequences}; changing the batch would change the training",
        )
    share = batch.sequences // ranks
    micro = max(m for m in range(1, min(share, batch.micro_sequences) + 1) if share % m == 0)
    return [f"recipe.batch.micro_sequences={micro}"]


def _check_same_training(before: Plan | None, after: Plan, resume: bool) -> None:
    """A resumed run may change how it is spread and saved, not what is trained."""
    from thrifty.spec.errors import ThriftyError

    if before is None or not resume:
        return
    same_batch = before.recipe.batch.sequences == after.recipe.batch.sequences
    if not same_batch or before.job.model_copy(update={"name": ""}) != after.job.model_copy(update={"name": ""}):
        raise ThriftyError(
            "a resumed run must keep its job and batch.sequences: the order of samples depends on them",
            where="--resume",
            hint="start a new run in another --run-dir",
        )


def _say(text: str) -> None:
    """For people; rank 0 only, so that torchrun does not repeat it."""
    import os

    if int(os.environ.get("RANK", 0)) == 0:
        typer.echo(text, err=True)


def _before(plan: Plan, root: Path) -> str:
    bill, ranks = plan.predicted, plan.recipe.layout.ranks
    return (
        f"{plan.job.name}: {plan.total_steps} steps on {ranks} rank{'s' * (ranks > 1)} of {plan.cluster.name}, "
        f"predicted {bill.seconds}, {bill.usd}, {bill.energy}; run folder {root}"
    )


def _after(outcome: Outcome, root: Path) -> None:
    """The bill, predicted beside measured."""
    from thrifty.report.ledger import read_ledger
    from thrifty.report.terminal import console, print_report, print_timeline
    from thrifty.report.timeline import timeline_text

    if outcome.stopped is not None:
        typer.echo(
            f"stopped early: {outcome.stopped}; a checkpoint is kept, continue with: thrifty train {root} --resume"
        )
    ledger = read_ledger(root)
    print_report(console(), ledger)
    print_timeline(console(), timeline_text(ledger.plan, root))
    typer.echo(
        f"\nnext: thrifty report {root} (page)   thrifty generate {root} --prompt ... (sample)   "
        f"thrifty export {root} DIR (for transformers)"
    )
