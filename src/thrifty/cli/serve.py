"""`thrifty serve MODEL --on CLUSTER`: what serving a model costs, and a model's whole life with training."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from thrifty.cli.common import Json, On, Sets

if TYPE_CHECKING:
    from thrifty.cost.serving import Speculation
    from thrifty.spec.job import ModelShape


def command(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A model of the catalog.", show_default=False)],
    on: On = None,
    batch: Annotated[
        int | None, typer.Option("--batch", metavar="N", help="Sequences at a time, over all devices.")
    ] = None,
    max_load: Annotated[bool, typer.Option("--max-load", help="As many sequences as fit (the default).")] = False,
    prompt: Annotated[str, typer.Option("--input", metavar="TOKENS", help="Tokens of a prompt.")] = "1000",
    output: Annotated[str, typer.Option("--output", metavar="TOKENS", help="Tokens made for it.")] = "1000",
    weights: Annotated[str, typer.Option("--weights", metavar="FORMAT", help="bf16, fp8, int8, nvfp4, int4.")] = "bf16",
    kv: Annotated[str, typer.Option("--kv", metavar="FORMAT", help="Format of the cache.")] = "bf16",
    engine: Annotated[str, typer.Option("--engine", metavar="NAME", help="vllm or tensorrt-llm.")] = "vllm",
    tensor: Annotated[
        int | None, typer.Option("--tensor", metavar="N", help="Devices that share a layer; best one by default.")
    ] = None,
    speculative: Annotated[
        str | None,
        typer.Option("--speculative", metavar="DRAFT:LENGTH:RATE", help="As in llama-3.2-1b:4:0.7."),
    ] = None,
    lifetime: Annotated[
        str | None, typer.Option("--lifetime", metavar="TOKENS", help="Add training; so much output is served.")
    ] = None,
    trained_on: Annotated[
        str | None,
        typer.Option("--trained-on", metavar="TOKENS", help="With --lifetime; 20 tokens a parameter by default."),
    ] = None,
    mfu: Annotated[str, typer.Option("--mfu", metavar="SHARE", help="With --lifetime: of training.")] = "40%",
    sets: Sets = None,
    json: Json = False,
) -> None:
    """Price serving a model: latency, tokens/s, watts, dollars and joules for a million tokens."""
    from thrifty.cli.common import local_cluster, print_json, quantity
    from thrifty.cost.serving import Traffic
    from thrifty.planner import screen, serve_screen
    from thrifty.planner.deploy import Formats
    from thrifty.planner.request import read_cluster
    from thrifty.spec.errors import ThriftyError

    if batch is not None and max_load:
        raise ThriftyError("--batch and --max-load exclude each other", hint="leave one out")
    if lifetime is None and trained_on is not None:
        raise ThriftyError("--trained-on says nothing without --lifetime", where=f"--trained-on {trained_on}")
    if batch is not None and batch < 1:
        raise ThriftyError("must be at least 1", where=f"--batch {batch}")
    shape = _shape(model)
    cluster, _ = read_cluster("local" if on is None else on, list(sets or ()), local=local_cluster)
    traffic = Traffic(_tokens(prompt, "--input"), _tokens(output, "--output"), None if batch is None else float(batch))
    if speculative is not None and lifetime is not None:
        raise ThriftyError("a lifetime is priced without a draft model", where="--speculative", hint="leave one out")
    told = serve_screen.told(
        shape,
        cluster,
        traffic,
        Formats(weights, kv, engine),
        tensor=tensor,
        speculation=None if speculative is None else _speculation(speculative),
        served_tokens=quantity(lifetime, "tokens", "--lifetime"),
        trained_on=quantity(trained_on, "tokens", "--trained-on"),
        mfu=_share(mfu),
    )
    if json:
        print_json(told.as_json())
        return
    console = screen.console()
    console.print(serve_screen.render(told, console.width))


def _shape(name: str) -> ModelShape:
    from thrifty.catalog import lookup
    from thrifty.spec.job import ModelShape
    from thrifty.spec.load import build

    return build(ModelShape, lookup.model(name, "model"), "")


def _tokens(text: str, option: str) -> float:
    from thrifty.cli.common import quantity

    return quantity(text, "tokens", option) or 0.0


def _share(text: str) -> float:
    from thrifty.cli.common import quantity
    from thrifty.spec.errors import ThriftyError

    share = quantity(text, "ratio", "--mfu") or 0.0
    if share > 1:
        raise ThriftyError("a share of the peak is at most 1", where=f"--mfu {text}", hint="for example  --mfu 40%")
    return share


def _speculation(text: str) -> Speculation:
    """Reads `DRAFT:LENGTH:RATE`."""
    from thrifty.cost.serving import Speculation
    from thrifty.spec.errors import ThriftyError

    where, parts = f"--speculative {text}", text.split(":")
    hint = "a draft model, tokens that it proposes, and the chance that one is kept: llama-3.2-1b:4:0.7"
    try:
        name, length, rate = parts[0], int(parts[1]), float(parts[2])
    except (IndexError, ValueError):
        raise ThriftyError("wants DRAFT:LENGTH:RATE", where=where, hint=hint) from None
    if len(parts) != 3 or length < 1 or not 0 <= rate <= 1:
        raise ThriftyError("wants a length of at least 1 and a rate from 0 to 1", where=where, hint=hint)
    return Speculation(_shape(name), length, rate)
