"""`thrifty plan JOB --on CLUSTER`: prices a job, picks what the recipe leaves open, and writes the plan."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from thrifty.cli.common import Json, On, ProfileFile, RecipeFile, Sets


def command(
    job: Annotated[str, typer.Argument(metavar="JOB", help="Job file, plan file, or model name.", show_default=False)],
    on: On = None,
    recipe: RecipeFile = None,
    sets: Sets = None,
    profile: ProfileFile = None,
    out: Annotated[Path, typer.Option("--out", metavar="FILE", help="Where the plan goes.")] = Path("plan.yaml"),
    html: Annotated[
        Path | None, typer.Option("--html", metavar="FILE", help="Also write the screen as an HTML page.")
    ] = None,
    json: Json = False,
) -> None:
    """Price a job on a cluster, choose the cheapest recipe that fits, and write it as a plan."""
    from thrifty.cli.common import print_json, resolve
    from thrifty.planner import screen
    from thrifty.planner.emit import write_plan, write_text
    from thrifty.planner.explain import explain
    from thrifty.planner.search import search

    request = resolve(job, on, recipe, sets, profile)
    told = explain(search(request.job, request.cluster, request.recipe))
    write_plan(told.plan, out)
    if html is not None:
        write_text(html, screen.html_page(told, f"{told.plan.job.name} on {told.plan.cluster.name}"), "--html")
    if json:
        print_json(told.as_json() | {"out": str(out), "html": str(html) if html else None})
        return
    console = screen.console()
    console.print(screen.render(told, console.width))
    written = f"{out} and {html}" if html else str(out)
    console.print(f"\nwritten: {written}   next: thrifty train {out}", markup=False, soft_wrap=True)
