"""`thrifty plan JOB --on CLUSTER`: prices a job, picks what the recipe leaves open, and writes the plan."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from thrifty.cli.common import Json, On, ProfileFile, RecipeFile, Sets

if TYPE_CHECKING:
    from thrifty.planner.search import Search
    from thrifty.planner.sizes import Size
    from thrifty.planner.why_screen import Section
    from thrifty.spec import Cluster, Job
    from thrifty.spec.load import Settings

# planner.space.OPTIONAL, which is slow to import
_LEVERS = ("lowbit", "optimizer", "optimizer8bit", "compression", "localsteps")


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
    profile: ProfileFile = None,
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
    why: Annotated[
        bool,
        typer.Option(
            "--why",
            help="Also show how the plan was reached lever by lever, why the next best lost, what it hangs on, "
            "and the bandwidth it needs.",
        ),
    ] = False,
    rival: Annotated[
        list[str] | None,
        typer.Option("--rival", metavar="ACCELERATOR", help="Compare with it, too: its break-even price. Repeatable."),
    ] = None,
    explain: Annotated[
        list[str] | None,
        typer.Option(
            "--explain",
            metavar="TERM",
            help="Show only how a term of the bill was made; 'list' names them. Repeatable.",
        ),
    ] = None,
    emit: Annotated[
        list[str] | None,
        typer.Option("--emit", metavar="TARGET", help="Also write it for this: see thrifty emit --help. Repeatable."),
    ] = None,
    emit_dir: Annotated[Path, typer.Option("--emit-dir", metavar="DIR", help="Folder for what --emit writes.")] = Path(
        "emitted"
    ),
    json: Json = False,
) -> None:
    """Price a job on a cluster, choose the cheapest recipe that fits, and write it as a plan.

    Without a job, say which model to train: for a sum of money (--budget), or to a loss (--target-loss). A range of
    devices, --on 8..1024xh100, prices each power of two and takes the best within the limits.
    """
    from rich.console import Group

    from thrifty.cli import emit as emitter
    from thrifty.cli.advise import advise, law_of
    from thrifty.cli.common import print_json, quantity, resolve
    from thrifty.planner import expected_loss, screen
    from thrifty.planner import explain as explaining
    from thrifty.planner.emit import write_plan, write_text

    usd, by = quantity(budget, "usd", "--budget"), law_of(law)
    if job is None:
        advise(usd, target_loss, by, on, recipe, sets, out, html, json)
        return
    if emit:
        from thrifty.planner.emit.targets import check

        check(emit, "--emit")
    wanted = {
        "objective": objective,
        "deadline_seconds": quantity(deadline, "seconds", "--deadline"),
        "budget_usd": usd,
        "software": software,
        "levers": tuple(name.strip() for name in levers.split(",")) if levers else (),
    }

    def asked(cluster: str | None) -> tuple[Job, Cluster, Settings]:
        request = resolve(job or "", cluster, recipe, sets, profile)
        told = request.job if target_loss is None else expected_loss.job_for_target(request.job, target_loss, by)
        return told, request.cluster, request.recipe

    found, sizes = _search(asked, on, wanted)
    found = replace(found, plan=expected_loss.with_law(found.plan, by))
    told = explaining.explain(found)
    more: list[Section] = []
    if why or rival or explain:
        from thrifty.planner.why_screen import sections

        more = sections(found, told, why=why or bool(rival), rivals=rival or [], terms=explain or [])
    write_plan(told.plan, out)
    if html is not None:
        title = f"{told.plan.job.name} on {told.plan.cluster.name}"
        drawn = Group(screen.render(told), *(one.draw(screen.WIDTH) for one in more))
        write_text(html, screen.page_of(drawn, title), "--html")
    emitted = emitter.write(told.plan, emit, emit_dir, "--emit-dir") if emit else {}
    if json:
        added = {key: value for one in more for key, value in one.content.items()}
        added |= {"sizes": [one.as_json() for one in sizes], "emitted": emitted}
        print_json(told.as_json() | added | {"out": str(out), "html": str(html) if html else None})
        return
    console = screen.console()
    if sizes:
        console.print(screen.sizes_table(sizes, console.width))
        console.print()
    if not explain:
        console.print(screen.render(told, console.width))
    for one in more:
        console.print(one.draw(console.width))
    written = f"{out} and {html}" if html else str(out)
    console.print(f"\nwritten: {written}   next: thrifty train {out}", markup=False, soft_wrap=True)
    for line in emitter.told(emitted):
        console.print(line, markup=False, soft_wrap=True)


def _search(
    asked: Callable[[str | None], tuple[Job, Cluster, Settings]], on: str | None, wanted: dict[str, Any]
) -> tuple[Search, tuple[Size, ...]]:
    """The plan; with a range of devices, also every size that was tried."""
    from thrifty.catalog import lookup
    from thrifty.planner.search import search
    from thrifty.planner.sizes import doubling, search_sizes

    span = lookup.short_form_range(on, f"--on {on}") if on else None
    if span is None:
        return search(*asked(on), **wanted), ()
    low, high, name = span
    per_node = lookup.machine(name).at("per_node")
    sizes = search_sizes(doubling(low, high, per_node), lambda devices: asked(f"{devices}x{name}"), **wanted)
    return next(one.found for one in sizes if one.chosen and one.found), sizes
