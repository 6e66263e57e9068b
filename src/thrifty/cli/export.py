"""`thrifty export`: a run's model as a folder that `transformers` and other Hugging Face software load."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from thrifty.cli.common import Json


class Dtype(StrEnum):
    """Of the written tensors."""

    fp32 = "fp32"
    bf16 = "bf16"


def command(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run folder.")],
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Where the model goes: a new folder.")],
    step: Annotated[
        int | None, typer.Option(min=0, metavar="N", help="Of the checkpoint; the newest good one by default.")
    ] = None,
    dtype: Annotated[Dtype, typer.Option(help="Of the written tensors.")] = Dtype.fp32,
    max_file: Annotated[str, typer.Option(metavar="SIZE", help="Of one file, beyond which there are several.")] = "5GB",
    json: Json = False,
) -> None:
    """Write a checkpoint, whatever layout trained it, as a Hugging Face folder."""
    from thrifty.cli.common import need_torch, print_json, quantity
    from thrifty.spec.units import show

    max_file_bytes = int(quantity(max_file, "bytes", "--max-file") or 0)
    need_torch("exporting")
    import torch

    from thrifty.trainer.export import export_checkpoint

    written = export_checkpoint(
        run,
        folder,
        lambda text: typer.echo(text, err=True),
        step=step,
        dtype={Dtype.fp32: torch.float32, Dtype.bf16: torch.bfloat16}[dtype],
        max_file_bytes=max_file_bytes,
    )
    size = written.elements * {Dtype.fp32: 4, Dtype.bf16: 2}[dtype]
    if json:
        print_json({"dir": str(folder), "step": written.step, "files": list(written.files), "bytes": size})
        return
    count = len(written.files)
    typer.echo(
        f"{folder}: step {written.step}, {show(written.elements, 'token')} parameters in {dtype}, "
        f"{show(size, 'byte')} in {count} file{'s' * (count > 1)}"
    )
