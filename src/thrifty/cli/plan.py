"""`thrifty plan JOB --on CLUSTER`: prices a job, picks what the recipe leaves open, and writes the plan."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from thrifty.cli.common import Json, On, RecipeFile, Sets

if TYPE_CHECKING:
    from thrifty.laws.law import LossLaw
    from thrifty.planner.search import Search
    from thrifty.planner.sizes import Size
    from thrifty.spec import Cluster, Job
    from thrifty.spec.load import Settings

_LEVERS = ("lowbit", "optimizer8bit", "compression", "localsteps")  # planner.space.OPTIONAL, which is slow to import


def command(
    job: Annotated[
        str | None,
        typer.Argument(
            metavar="JOB",
            help="Job, plan or config.json file, or model name; none with --budget or --target-loss: it is chosen too.",
            show_default=False,
        ),
    ] = None,
    on: On = None,
    recipe: RecipeFile = None,
    sets: Sets = None,
    out: Annotated[Path, typer.Option("--out", metavar="FILE", help="Where the plan goes.")] = Path("plan.yaml"),
    html: Annotated[
        Path | None, typer.Option("--html", metavar="FILE", help="Also write the screen as an HTML page.")
    ] = None,
    budget: Annotated[
        str | None,
        typer.Option("--budget", metavar="MONEY", help="Spend at most this, e.g. 100000usd; without JOB: on what?"),
    ] = None,
    target_loss: Annotated[
        float | None,
        typer.Option("--target-loss", metavar="NATS", help="Train until this loss; without JOB: which model?"),
    ] = None,
    law: Annotated[
        str | None,
        typer.Option("--law", metavar="FILE[@DATASET]", help="Loss law of fit-law, in place of the published one."),
    ] = None,
    objective: Annotated[
        str, typer.Option("--objective", metavar="WHAT", help="What to have least of: usd, time, energy or co2.")
    ] = "usd",
    deadline: Annotated[
        str | None, typer.Option("--deadline", metavar="TIME", help="Longest that the run may take, e.g. 30d.")
    ] = None,
    software: Annotated[
        str | None,
        typer.Option("--software", metavar="NAME", help="What runs it: thrifty, torchtitan, megatron, ...; or any."),
    ] = None,
    levers: Annotated[
        str | None,
        typer.Option("--levers", metavar="A,B", help="Also those that change the numbers: " + ", ".join(_LEVERS) + "."),
    ] = None,
    json: Json = False,
) -> None:
    """Price a job on a cluster, choose the cheapest recipe that fits, and write it as a plan.

    Without a job, say which model to train: for a sum of money (--budget), or to a loss (--target-loss). A range of
    devices, --on 8..1024xh100, prices each power of two and takes the best within the limits.
    """
    from thrifty.cli.common import print_json, quantity, resolve
    from thrifty.planner import expected_loss, screen
    from thrifty.planner.emit import write_plan, write_text
    from thrifty.planner.explain import explain

    usd, by = quantity(budget, "usd", "--budget"), _law(law)
    if job is None:
        _advise(usd, target_loss, by, on, recipe, sets, out, html, json)
        return
    wanted = {
        "objective": objective,
        "deadline_seconds": quantity(deadline, "seconds", "--deadline"),
        "software": software,
        "levers": tuple(name.strip() for name in levers.split(",")) if levers else (),
    }

    def asked(cluster: str | None) -> tuple[Job, Cluster, Settings]:
        request = resolve(job or "", cluster, recipe, sets)
        told = request.job if target_loss is None else expected_loss.job_for_target(request.job, target_loss, by)
        return told, request.cluster, request.recipe

    found, sizes = _search(asked, on, usd, wanted)
    told = explain(replace(found, plan=expected_loss.with_law(found.plan, by)))
    write_plan(told.plan, out)
    if html is not None:
        write_text(html, screen.html_page(told, f"{told.plan.job.name} on {told.plan.cluster.name}"), "--html")
    if json:
        extra = {"out": str(out), "html": str(html) if html else None, "sizes": [one.as_json() for one in sizes]}
        print_json(told.as_json() | extra)
        return
    console = screen.console()
    if sizes:
        console.print(screen.sizes_table(sizes, console.width))
        console.print()
    console.print(screen.render(told, console.width))
    written = f"{out} and {html}" if html else str(out)
    console.print(f"\nwritten: {written}   next: thrifty train {out}", markup=False, soft_wrap=True)


def _search(
    asked: Callable[[str | None], tuple[Job, Cluster, Settings]], on: str | None, usd: float | None,
    wanted: dict[str, Any],
) -> tuple[Search, tuple[Size, ...]]:  # fmt: skip
    """The plan; with a range of devices, also every size that was tried."""
    from thrifty.catalog import lookup
    from thrifty.planner.expected_loss import within_budget
    from thrifty.planner.search import search
    from thrifty.planner.sizes import doubling, search_sizes

    span = lookup.short_form_range(on, f"--on {on}") if on else None
    if span is None:
        found = search(*asked(on), **wanted)
        return (found if usd is None else within_budget(found, usd)), ()
    low, high, name = span
    per_node = lookup.machine(name).at("per_node")
    sizes = search_sizes(
        doubling(low, high, per_node), lambda devices: asked(f"{devices}x{name}"), budget_usd=usd, **wanted
    )
    return next(one.found for one in sizes if one.chosen and one.found), sizes


def _law(text: str | None) -> LossLaw:
    """The law that loss is expected by."""
    from thrifty.laws.loss import PUBLISHED
    from thrifty.planner.loss_table import read_law

    return PUBLISHED if text is None else read_law(text)


def _advise(
    usd: float | None,
    target: float | None,
    by: LossLaw,
    on: str | None,
    recipe: Path | None,
    sets: list[str] | None,
    out: Path,
    html: Path | None,
    json: bool,
) -> None:
    """Which model to train, without a job."""
    from thrifty.cli.common import local_cluster, print_json
    from thrifty.planner import budget_screen, screen
    from thrifty.planner.budget import for_budget, for_target
    from thrifty.planner.emit import write_plan, write_text
    from thrifty.planner.request import read_question
    from thrifty.spec.errors import ThriftyError

    if (usd is None) == (target is None):
        hint = "for example  thrifty plan llama-3-8b --on 8xh100,  or  thrifty plan --budget 100000usd --on 64xh100"
        what = "one question at a time" if usd is not None else "say what to train: JOB, --budget or --target-loss"
        raise ThriftyError(what, where="--budget and --target-loss" if usd is not None else "JOB", hint=hint)
    cluster, given = read_question(on or "local", recipe, sets or (), local=local_cluster)
    advice = for_budget(usd, cluster, given, by) if usd is not None else for_target(target or 0.0, cluster, given, by)
    write_plan(advice.found.plan, out)
    if html is not None:
        drawn = budget_screen.render(advice)
        write_text(html, screen.page_of(drawn, f"which model on {cluster.name}"), "--html")
    if json:
        print_json(advice.as_json() | {"out": str(out), "html": str(html) if html else None})
        return
    console = screen.console()
    console.print(budget_screen.render(advice, console.width))
    console.print(f"\nwritten: {out}   next: thrifty train {out}", markup=False, soft_wrap=True)
