"""What several verbs share: options, the resolver's two questions to this machine, and how a mistake is told."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from thrifty.planner.request import Request
    from thrifty.spec.job import Data
    from thrifty.spec.load import Settings

On = Annotated[
    str | None, typer.Option("--on", metavar="CLUSTER", help="local, a YAML file, or a short form such as 64xh100.")
]
RecipeFile = Annotated[
    Path | None, typer.Option("--recipe", metavar="FILE", help="Recipe keys to keep, over those of the job file.")
]
Sets = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Over everything, e.g. recipe.optimizer.lr=3e-4. Repeatable."),
]
ProfileFile = Annotated[
    Path | None,
    typer.Option("--profile", metavar="FILE", help="Price with what `thrifty calibrate` found on the same hardware."),
]
Json = Annotated[bool, typer.Option("--json", help="Print the figures as JSON.")]


def resolve(
    job: str,
    on: str | None = None,
    recipe_file: Path | None = None,
    sets: Sequence[str] | None = None,
    profile: Path | None = None,
) -> Request:
    """Job, cluster and partial recipe, with this machine at hand for `local` and `vocab_size: auto`."""
    from dataclasses import replace

    from thrifty.planner.calibrated import with_profile
    from thrifty.planner.request import read_request

    request = read_request(job, on, recipe_file, list(sets or ()), local=local_cluster, vocabulary=vocabulary)
    return request if profile is None else replace(request, cluster=with_profile(request.cluster, profile))


def local_cluster() -> Settings:
    """This machine as a cluster; measured once, then cached."""
    need_torch("--on local measures this machine")
    from thrifty.trainer.local import local_cluster as measure

    return measure()


def vocabulary(data: Data) -> int:
    """How many ids the tokenizer of the data has."""
    need_torch("vocab_size: auto reads the data")
    from thrifty.data.tokenizer import vocabulary_size

    return vocabulary_size(data)


def need_torch(what: str) -> None:
    """Says what to install when the [train] extra is missing."""
    from thrifty.spec.errors import ThriftyError

    if importlib.util.find_spec("torch") is None or importlib.util.find_spec("numpy") is None:
        hint = "pip install 'thrifty[train]'; planning for a catalog cluster works without: --on 8xh100"
        raise ThriftyError(f"{what}, which needs torch", hint=hint)


def quantity(text: str | None, kind: str, option: str) -> float | None:
    """An option with a unit, such as `--budget 5usd`."""
    from thrifty.spec import units
    from thrifty.spec.errors import ThriftyError

    if text is None:
        return None
    try:
        value = units.parse(text, kind)
    except ValueError as error:
        raise ThriftyError(str(error), where=f"{option} {text}") from None
    if value <= 0:
        raise ThriftyError("must be above zero", where=f"{option} {text}")
    return value


def print_json(content: Any) -> None:
    """JSON on standard output, for programs."""
    import json

    typer.echo(json.dumps(content, indent=1))
