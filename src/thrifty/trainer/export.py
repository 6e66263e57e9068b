"""A trained model as a Hugging Face folder: from a checkpoint in one process, or from the ranks that have just trained.

Either way it is written piece by piece (`model.hub_write`). From a checkpoint one tensor is in memory at a time. Live
ranks each write a run of tensors, nearly the same bytes each, and get every piece from whoever holds it, on whatever
layout, over the host: a rank holds what it trained with and some pieces of 64 MB.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from thrifty.data.tokenizer import Tokenizer, load_tokenizer
from thrifty.model.hub_files import MAX_FILE_BYTES, PIECE_BYTES, require_new
from thrifty.model.hub_write import Round, write_folder
from thrifty.model.initialise import held
from thrifty.model.transformer import Transformer
from thrifty.parallel.reshard import Box, Part, TensorLayout, Transfer, overlap, redistribute_all, slices, volume
from thrifty.parallel.shard import release_gathered
from thrifty.spec.job import ModelShape
from thrifty.trainer.run_folder import RunFolder
from thrifty.trainer.trained import open_run
from thrifty.trainer.world import World


@dataclass(frozen=True)
class Exported:
    """What was written: the checkpoint of which step, the safetensors files, and the values in them."""

    step: int
    files: tuple[str, ...]
    elements: int


def export_checkpoint(
    root: Path,
    folder: Path,
    notify: Callable[[str], None],
    *,
    step: int | None = None,
    dtype: torch.dtype = torch.float32,
    max_file_bytes: int = MAX_FILE_BYTES,
) -> Exported:
    """Writes a checkpoint of any layout, in this process, holding one tensor at a time.

    Args:
        root: a run folder.
        folder: must not exist, or be empty.
        notify: told of damaged checkpoints that are passed over.
        step: of the checkpoint; the newest good one when left out.
        dtype: of the written tensors.
        max_file_bytes: beyond, several files and an index are written.

    Raises:
        ThriftyError: not a run folder, no such checkpoint or a damaged one, no family of models there holds this shape,
            or the folder cannot be written.
    """
    plan, checkpoints, step = open_run(root, notify, step)
    require_new(folder, plan.job.model)  # before anything is read
    with torch.device("meta"):
        shapes = {name: p.shape for name, p in Transformer(plan.job.model).named_parameters()}
    loaded: dict[str, Tensor] = {}

    def assemble(current: Round) -> list[Tensor]:
        (piece,) = current
        boxes = () if piece is None else piece.boxes
        if loaded.keys() != {name for name, _ in boxes}:
            loaded.clear()
            loaded.update({name: torch.empty(shapes[name]) for name, _ in boxes})
            checkpoints.load(step, {f"model.{name}": tensor for name, tensor in loaded.items()})
        return [loaded[name][slices(box)] for name, box in boxes]

    tokenizer = load_tokenizer(RunFolder(root).tokenizer)
    files = write_folder(
        folder, plan.job.model, shapes, assemble, dtype=dtype, max_file_bytes=max_file_bytes,
        end_id=tokenizer.end_id, others=tokenizer_files(tokenizer),
    )  # fmt: skip
    elements = sum(entry.elements for file in files for entry in file.entries)
    return Exported(step, tuple(file.name for file in files), elements)


@torch.no_grad()
def export_ranks(
    model: nn.Module,
    shape: ModelShape,
    folder: Path,
    world: World,
    *,
    tokenizer: Tokenizer | None = None,
    dtype: torch.dtype = torch.float32,
    max_file_bytes: int = MAX_FILE_BYTES,
    piece_bytes: int = PIECE_BYTES,
) -> None:
    """Writes the model that these ranks hold together, whole, in parts or in stages. All call this, all write.

    Args:
        model: what this rank holds; parameters have the names of the whole model, DTensors where they are split.
        shape: of the whole model.
        folder: must not exist, or be empty; every rank must see it.
        dtype: of the written tensors, in which they are also sent.
        piece_bytes: of a tensor, that are sent and written at a time.

    Raises:
        ThriftyError: on every rank: no family holds this shape, or the folder cannot be written on one of them.
    """
    release_gathered(model)
    local = {n: p.to_local() if isinstance(p, DTensor) else p.detach() for n, p in model.named_parameters()}
    layouts = _layouts(model, world)

    def assemble(current: Round) -> list[Tensor]:
        transfers: list[Transfer] = []
        mine: list[int] = []
        for writer, piece in enumerate(current):
            for name, box in () if piece is None else piece.boxes:
                layout = layouts[name]
                target = TensorLayout(layout.shape, (Part(writer, box),))
                if writer == world.rank:
                    mine.append(len(transfers))
                part = _crop(local.get(name), layout.part_of(world.rank), box, dtype)
                transfers.append(Transfer(part, layout.within(box), target))
        arrived = redistribute_all(transfers, world.writer, world.node_of) if world.size > 1 else None
        parts = [transfers[i].local if arrived is None else arrived[i] for i in mine]
        return [part for part in parts if part is not None]

    write_folder(
        folder, shape, {name: layout.shape for name, layout in layouts.items()}, assemble,
        dtype=dtype, max_file_bytes=max_file_bytes, piece_bytes=piece_bytes,
        rank=world.rank, ranks=world.size, gather=world.gather,
        end_id=None if tokenizer is None else tokenizer.end_id,
        others={} if tokenizer is None else tokenizer_files(tokenizer),
    )  # fmt: skip


def _layouts(model: nn.Module, world: World) -> dict[str, TensorLayout]:
    """Who holds which box of every parameter, as the ranks tell each other."""
    mine = {name: (tuple(p.shape), _box(p)) for name, p in model.named_parameters()}
    parts: dict[str, list[Part]] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    for rank, told in enumerate(world.gather(mine)):
        for name, (shape, box) in told.items():
            shapes[name] = shape
            parts.setdefault(name, []).append(Part(rank, box))
    return {name: TensorLayout(shapes[name], tuple(found)) for name, found in parts.items()}


def _box(parameter: Tensor) -> Box:
    return tuple(range(side.start, side.stop) for side in held(parameter))


def _crop(local: Tensor | None, part: Part | None, box: Box, dtype: torch.dtype) -> Tensor:
    """Of this rank's part what lies in a box, on the host; empty where nothing does."""
    if local is None or part is None or not volume(inside := overlap(part.box, box)):
        return torch.empty(0, dtype=dtype)
    return local[slices(inside, part.box)].to("cpu", dtype)


def tokenizer_files(tokenizer: Tokenizer) -> dict[str, str]:
    """What `transformers` needs to read and write text; nothing for tokenizers of bytes and characters."""
    if "tokenizer.json" not in tokenizer.files:
        return {}
    text = tokenizer.files["tokenizer.json"]
    settings = {"tokenizer_class": "PreTrainedTokenizerFast"}
    ends = [one["content"] for one in json.loads(text)["added_tokens"] if one["id"] == tokenizer.end_id]
    if ends:
        settings["eos_token"] = ends[0]
    return {"tokenizer.json": text, "tokenizer_config.json": json.dumps(settings, indent=1) + "\n"}
