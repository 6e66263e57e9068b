"""`thrifty emit PLAN TARGET...`: a plan as a launcher's script or another trainer's configuration."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from thrifty.cli.common import Json

if TYPE_CHECKING:
    from thrifty.spec.plan import Plan


def command(
    plan: Annotated[Path, typer.Argument(metavar="PLAN", help="A plan that `thrifty plan` wrote.", show_default=False)],
    targets: Annotated[
        list[str],
        typer.Argument(
            metavar="TARGET...",
            help="torchrun, slurm, skypilot, kubeflow; torchtitan, megatron, deepspeed, accelerate.",
            show_default=False,
        ),
    ],
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder for the files.")] = Path("emitted"),
    json: Json = False,
) -> None:
    """Write a plan for SLURM, SkyPilot, Kubeflow or torchrun, or for torchtitan, Megatron-LM, DeepSpeed, Accelerate."""
    from thrifty.cli.common import print_json
    from thrifty.planner.emit import read_plan
    from thrifty.planner.emit.targets import check

    check(targets, "")
    written = write(read_plan(plan), targets, out, "--out")
    if json:
        print_json({"emitted": written})
        return
    for line in told(written):
        typer.echo(line)


def write(plan: Plan, targets: Sequence[str], folder: Path, option: str) -> dict[str, Any]:
    """Writes the targets' files; returns, for each target, the files and the command that starts them."""
    from thrifty.planner.emit.launch import next_step
    from thrifty.planner.emit.targets import write_all

    return {
        target: {"files": [str(folder / name) for name in files], "next": next_step(files, folder)}
        for target, files in write_all(plan, targets, folder, option).items()
    }


def told(written: dict[str, Any]) -> list[str]:
    """One line a target, for people."""
    return [f"{target}: {', '.join(it['files'])}   next: {it['next']}" for target, it in written.items()]
