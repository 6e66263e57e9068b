"""`thrifty islands FILE`: training on unequal machines over unequal links, by scheme."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from thrifty.cli.common import Json, Sets


def command(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Islands, model and scheme, as YAML.")],
    sets: Sets = None,
    json: Json = False,
) -> None:
    """Simulate training on islands: time, tokens, dollars, bytes and waiting of every way to keep them together."""
    from thrifty.cli.common import print_json
    from thrifty.planner import islands_screen, screen
    from thrifty.spec.islands import Islands
    from thrifty.spec.load import build, parse_set, read_yaml

    settings = read_yaml(file, "islands file")
    for text in sets or ():
        settings = parse_set(text).over(settings)
    told = islands_screen.told(build(Islands, settings, ""))
    if json:
        print_json(told.as_json())
        return
    console = screen.console()
    console.print(islands_screen.render(told, console.width))
