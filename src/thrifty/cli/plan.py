"""`thrifty plan JOB --on CLUSTER`: prices a job, picks what the recipe leaves open, and writes the plan."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from thrifty.cli.common import Json, On, RecipeFile, Sets

if TYPE_CHECKING:
    from thrifty.planner.why_screen import Section


def command(
    job: Annotated[str, typer.Argument(metavar="JOB", help="Job file, plan file, or model name.", show_default=False)],
    on: On = None,
    recipe: RecipeFile = None,
    sets: Sets = None,
    out: Annotated[Path, typer.Option("--out", metavar="FILE", help="Where the plan goes.")] = Path("plan.yaml"),
    html: Annotated[
        Path | None, typer.Option("--html", metavar="FILE", help="Also write the screen as an HTML page.")
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
    json: Json = False,
) -> None:
    """Price a job on a cluster, choose the cheapest recipe that fits, and write it as a plan."""
    from rich.console import Group

    from thrifty.cli.common import print_json, resolve
    from thrifty.planner import explain as explaining
    from thrifty.planner import screen
    from thrifty.planner.emit import write_plan, write_text
    from thrifty.planner.search import search

    request = resolve(job, on, recipe, sets)
    found = search(request.job, request.cluster, request.recipe)
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
    if json:
        added = {key: value for one in more for key, value in one.content.items()}
        print_json(told.as_json() | added | {"out": str(out), "html": str(html) if html else None})
        return
    console = screen.console()
    if not explain:
        console.print(screen.render(told, console.width))
    for one in more:
        console.print(one.draw(console.width))
    written = f"{out} and {html}" if html else str(out)
    console.print(f"\nwritten: {written}   next: thrifty train {out}", markup=False, soft_wrap=True)
