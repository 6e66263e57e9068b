"""`thrifty config`: what a job resolves to, where each value came from, and what may be written."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from thrifty.cli.common import Json, On, RecipeFile, Sets

if TYPE_CHECKING:
    from thrifty.spec.load import Settings

app = typer.Typer(no_args_is_help=True, help="Show resolved settings and their origin, or what may be written.")


class Row(NamedTuple):
    """One key: its value for programs, the same for people, and where it came from."""

    key: str
    value: Any
    shown: str
    origin: str


@app.command()
def show(
    job: Annotated[
        str | None, typer.Argument(metavar="[JOB]", help="Job file, plan file, model name or config.json.")
    ] = None,
    on: On = None,
    recipe: RecipeFile = None,
    sets: Sets = None,
    origin: Annotated[bool, typer.Option("--origin", help="Also print where each value came from.")] = False,
    json: Json = False,
) -> None:
    """Print every key that a plan is made from. Without JOB: the cluster alone."""
    from thrifty.cli.common import local_cluster, print_json, resolve
    from thrifty.planner.request import read_cluster

    if job is None:
        cluster, settings = read_cluster(on or "local", sets or [], local=local_cluster)
        rows = list(_rows(cluster, "cluster", settings))
    else:
        request = resolve(job, on, recipe, sets)
        settings = request.settings
        rows = [
            *_rows(request.job, "job", settings),
            *_recipe_rows(request.recipe, settings),
            *_rows(request.cluster, "cluster", settings),
        ]
    if json:
        print_json({row.key: {"value": row.value, "origin": row.origin} for row in rows})
        return
    for row in rows:
        line = f"{row.key} = {row.shown}"
        typer.echo(f"{line:<64}  # {row.origin}" if origin else line)


@app.command()
def schema() -> None:
    """Print the JSON schema of job, recipe and cluster, as files may write them."""
    from thrifty.cli.common import print_json
    from thrifty.planner.request import SECTIONS

    print_json({name: _as_written(noun.model_json_schema()) for name, noun in SECTIONS.items()})


def _as_written(node: Any) -> Any:
    """Loosens the schema of a noun to what a file may say: units in numbers, names for mappings, keys left out."""
    if isinstance(node, list):
        return [_as_written(item) for item in node]
    if not isinstance(node, dict):
        return node
    name = str(node.get("$ref", "")).removeprefix("#/$defs/")
    if name in ("Figure", "ModelShape", "Accelerator"):
        return {"anyOf": [node, {"type": ["string", "number"] if name == "Figure" else "string"}]}
    loose = {key: _as_written(value) for key, value in node.items() if key != "required"}
    if loose.get("type") in ("integer", "number"):
        loose["type"] = [loose["type"], "string"]
    if loose.get("title") in ("ModelShape", "Accelerator"):
        loose["properties"]["base"] = {"type": "string"}
    return loose


def _rows(value: Any, path: str, settings: Settings) -> Iterator[Row]:
    """The rows of a noun and all that is in it. A figure is one row and tells its provenance beside its origin."""
    from pydantic import BaseModel

    from thrifty.spec.figure import Figure

    origin = settings.origins.get(path, "default")
    if isinstance(value, Figure):
        provenance = ", ".join(filter(None, [value.provenance, value.date]))
        told = f"{origin}; {provenance}: {value.source}"
        yield Row(path, value.model_dump(exclude_none=True), str(value), told)
    elif isinstance(value, BaseModel):
        for name in type(value).model_fields:
            yield from _rows(getattr(value, name), f"{path}.{name}", settings)
    elif isinstance(value, dict):
        for name, inner in value.items():
            yield from _rows(inner, f"{path}.{name}", settings)
    else:
        yield Row(path, value, _plain(value), origin)


def _recipe_rows(recipe: Settings, settings: Settings) -> Iterator[Row]:
    """Every key of a recipe: as given, or left to the plan."""
    from thrifty.spec.load import fields
    from thrifty.spec.recipe import Recipe

    for key in fields(Recipe):
        given = recipe.at(key)
        if given is None:
            yield Row(f"recipe.{key}", None, "(left to the plan)", "plan")
        else:
            yield Row(f"recipe.{key}", given, _plain(given), settings.where(f"recipe.{key}"))


def _plain(value: Any) -> str:
    """A value as a YAML file has it."""
    import json

    return value if isinstance(value, str) and value else json.dumps(value, ensure_ascii=False)
