"""What a Hugging Face folder is to consist of: files, the tensors in each, who writes them, in pieces of what size.

Arithmetic alone: every rank that exports a model makes the same list.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from thrifty.catalog.hf_config import config_from_shape
from thrifty.model.hub_names import Stored, stored_tensors
from thrifty.spec.errors import ThriftyError
from thrifty.spec.job import ModelShape

INDEX = "model.safetensors.index.json"
WHOLE = "model.safetensors"
MAX_FILE_BYTES = 5_000_000_000
PIECE_BYTES = 64_000_000
_BASE = {"gpt2": "transformer."}  # prefix of the trunk's tensors; "model." elsewhere

Shapes = Mapping[str, Sequence[int]]  # of our parameters, by name
Box = tuple[range, ...]


@dataclass(frozen=True)
class Entry:
    """A tensor in a file.

    Attributes:
        key: its name there.
        shape: as stored.
        parts: the shapes of our parameters that make it, in order; none for a bias that the model does not have.
    """

    key: str
    shape: tuple[int, ...]
    parts: dict[str, tuple[int, ...]]
    transposed: bool

    @property
    def elements(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True)
class File:
    """A safetensors file.

    Attributes:
        writer: the rank that writes it.
    """

    name: str
    writer: int
    entries: tuple[Entry, ...]


@dataclass(frozen=True)
class Piece:
    """Rows of a stored tensor, and the boxes of our parameters that make them.

    Attributes:
        opens: whether its file begins with it.
    """

    file: File
    entry: Entry
    rows: int
    boxes: tuple[tuple[str, Box], ...]
    opens: bool


def folder_config(shape: ModelShape, dtype: str, end_id: int | None = None) -> dict[str, Any]:
    """The config.json of a folder.

    Raises:
        ThriftyError: no family holds this shape.
    """
    return config_from_shape(shape) | {"torch_dtype": dtype, "eos_token_id": end_id}


def require_new(folder: Path, shape: ModelShape) -> None:
    """Whether a model of this shape can be written there.

    Raises:
        ThriftyError: no family holds the shape, or the folder is not empty.
    """
    config_from_shape(shape)
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir())):
        raise ThriftyError("is not empty", where=str(folder), hint="name a new folder")


def plan_files(shape: ModelShape, shapes: Shapes, itemsize: int, max_file_bytes: int, writers: int = 1) -> list[File]:
    """Tensors in the order of the model, dealt to writers in runs of nearly the same bytes, these cut into files.

    Stages and layers come in that order too, so most of what a rank writes lies near it.

    Args:
        max_file_bytes: of one file; a larger tensor has a file of its own.
    """
    entries = [_entry(stored, shape, shapes) for stored in stored_tensors(shape)]
    total, before = sum(entry.elements for entry in entries), 0
    groups: list[tuple[int, list[Entry]]] = []
    filled = 0
    for entry in entries:
        writer = min(writers - 1, (2 * before + entry.elements) * writers // (2 * total))
        size = entry.elements * itemsize
        if not groups or groups[-1][0] != writer or filled + size > max_file_bytes:
            groups.append((writer, []))
            filled = 0
        groups[-1][1].append(entry)
        filled += size
        before += entry.elements
    names = [f"model-{number:05d}-of-{len(groups):05d}.safetensors" for number in range(1, len(groups) + 1)]
    names = [WHOLE] if len(groups) == 1 else names
    return [File(name, writer, tuple(group)) for name, (writer, group) in zip(names, groups, strict=True)]


def _entry(stored: Stored, shape: ModelShape, shapes: Shapes) -> Entry:
    """A bias that the model does not have is as long as its weight has rows, and zero."""
    there = all(name in shapes for name in stored.parts)
    names = stored.parts if there else [name.removesuffix("bias") + "weight" for name in stored.parts]
    rest = tuple(shapes[names[0]][1:]) if there else ()
    whole = (sum(shapes[name][0] for name in names), *rest)
    prefix = "" if stored.name == "lm_head.weight" else _BASE.get(config_from_shape(shape)["model_type"], "model.")
    parts = {name: tuple(shapes[name]) for name in stored.parts} if there else {}
    return Entry(prefix + stored.name, whole[::-1] if stored.transposed else whole, parts, stored.transposed)


def pieces(files: Sequence[File], writer: int, itemsize: int, piece_bytes: int) -> Iterator[Piece]:
    """What a rank writes, in order: rows of `piece_bytes` at most where a tensor can be cut, never less than one row.

    Several parameters one below the other, which only biases are, make one piece.
    """
    for file in files:
        opens = True
        for entry in file.entries if file.writer == writer else ():
            rows = entry.shape[0]
            if entry.transposed or len(entry.parts) == 1:
                rows = max(1, min(rows, piece_bytes // (itemsize * math.prod(entry.shape[1:]))))
            for begin in range(0, entry.shape[0], rows):
                here = range(begin, min(begin + rows, entry.shape[0]))
                boxes = tuple((name, _box(entry, shape, here)) for name, shape in entry.parts.items())
                yield Piece(file, entry, len(here), boxes, opens)
                opens = False


def _box(entry: Entry, shape: tuple[int, ...], rows: range) -> Box:
    """Where rows of a stored tensor lie in one of the parameters that make it."""
    if entry.transposed:
        return (range(shape[0]), rows)
    return (rows if len(entry.parts) == 1 else range(shape[0]), *map(range, shape[1:]))


def index(files: Sequence[File], itemsize: int) -> dict[str, Any]:
    """The content of the index: which file has which tensor."""
    total = itemsize * sum(entry.elements for file in files for entry in file.entries)
    return {
        "metadata": {"total_size": total},
        "weight_map": {entry.key: file.name for file in files for entry in file.entries},
    }
