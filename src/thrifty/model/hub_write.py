"""Writes a Hugging Face folder piece by piece, alone or on many ranks at once; nobody ever holds a file or the model.

A safetensors file is 8 bytes (the length of the header), a JSON header with the place of every tensor, and their bytes
one after the other (github.com/huggingface/safetensors, README, "Format"). The header follows from shapes alone, so
values can be appended as they come.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from thrifty.model.hub_files import (
    INDEX,
    MAX_FILE_BYTES,
    PIECE_BYTES,
    File,
    Piece,
    Shapes,
    folder_config,
    index,
    pieces,
    plan_files,
    require_new,
)
from thrifty.spec.errors import ThriftyError
from thrifty.spec.job import ModelShape

SHARED = "all ranks must see the same folder: name one on shared storage"
_NAMES = {torch.float64: "F64", torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}

Round = Sequence[Piece | None]  # the piece that each rank writes next, None for one that is done
Assemble = Callable[[Round], list[Tensor]]  # the values of this rank's piece, one tensor for each of its boxes


def write_folder(
    folder: Path,
    shape: ModelShape,
    shapes: Shapes,
    assemble: Assemble,
    *,
    dtype: torch.dtype,
    max_file_bytes: int = MAX_FILE_BYTES,
    piece_bytes: int = PIECE_BYTES,
    rank: int = 0,
    ranks: int = 1,
    gather: Callable[[Any], list[Any]] = lambda value: [value],
    end_id: int | None = None,
    others: Mapping[str, str] | None = None,
) -> list[File]:
    """Writes config.json and safetensors that `transformers` and `load_pretrained` read; complete or not at all.

    Every rank calls this and writes its share; rank 0 writes the index and the config. All see the same disk.

    Args:
        shapes: of all parameters of the model by name, whoever holds them.
        assemble: called on every rank as often as on any other, with what each of them writes next.
        gather: every rank's value, on every rank.
        end_id: the token that ends a text.
        others: more text files by name.

    Raises:
        ThriftyError: on every rank: no family holds this shape, the folder is not empty, or a disk refuses.
    """
    if dtype not in _NAMES:
        raise ThriftyError(f"safetensors files of {dtype} are not written", hint="use fp32 or bf16")
    beside = folder.with_name(folder.name + ".partial")
    _agree(_problem(lambda: _begin(folder, beside, shape) if rank == 0 else None), gather, folder, None)
    files = plan_files(shape, shapes, dtype.itemsize, max_file_bytes, ranks)
    problem = _write_share(beside, files, assemble, dtype, piece_bytes, rank, ranks)
    leftover = beside if rank == 0 else None
    _agree(problem, gather, folder, leftover)

    def finish() -> None:
        for file in files:
            _require_size(beside / file.name, len(_header(file, dtype)) + _bytes(file, dtype), file.writer)
        if len(files) > 1:
            _write_json(beside / INDEX, index(files, dtype.itemsize))
        for name, text in (others or {}).items():
            (beside / name).write_text(text, encoding="utf-8")
        _write_json(beside / "config.json", folder_config(shape, str(dtype).removeprefix("torch."), end_id))
        beside.replace(folder)

    _agree(_problem(finish) if rank == 0 else None, gather, folder, leftover)
    return files


def _begin(folder: Path, beside: Path, shape: ModelShape) -> None:
    require_new(folder, shape)
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir(parents=True)


def _write_share(
    beside: Path, files: list[File], assemble: Assemble, dtype: torch.dtype, piece_bytes: int, rank: int, ranks: int
) -> ThriftyError | None:
    """This rank's files, and its part in those of others, which goes on when its own disk fails."""
    problem: ThriftyError | None = None
    file: BinaryIO | None = None
    shares = [pieces(files, writer, dtype.itemsize, piece_bytes) for writer in range(ranks)]
    try:
        for current in zip_longest(*shares):
            parts = assemble(current)
            piece = current[rank]
            if piece is None or problem is not None:
                continue
            try:
                if piece.opens:
                    if file is not None:
                        file.close()
                    file = (beside / piece.file.name).open("wb")
                    file.write(_header(piece.file, dtype))
                if file is not None:
                    file.write(_stored(piece, parts, dtype).view(torch.uint8).numpy().data)
            except OSError as error:
                problem = _refused(error)
    finally:
        if file is not None:
            closing = file
            problem = problem or _problem(closing.close)
    return problem


def _stored(piece: Piece, parts: list[Tensor], dtype: torch.dtype) -> Tensor:
    """The rows of a piece as they stand in the file, on the host. A bias that the model does not have is zero."""
    if not parts:
        return torch.zeros(piece.rows, dtype=dtype)
    whole = torch.cat(parts) if len(parts) > 1 else parts[0]
    return (whole.t() if piece.entry.transposed else whole).to("cpu", dtype).contiguous()


def _header(file: File, dtype: torch.dtype) -> bytes:
    content: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for entry in file.entries:
        end = offset + entry.elements * dtype.itemsize
        content[entry.key] = {"dtype": _NAMES[dtype], "shape": list(entry.shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(content, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _bytes(file: File, dtype: torch.dtype) -> int:
    return dtype.itemsize * sum(entry.elements for entry in file.entries)


def _require_size(path: Path, size: int, writer: int) -> None:
    found = path.stat().st_size if path.exists() else 0
    if found != size:
        what = f"{path.name}, which rank {writer} wrote, has {found} bytes here, not {size}"
        raise ThriftyError(what, hint=SHARED)


def _problem(action: Callable[[], None]) -> ThriftyError | None:
    try:
        action()
    except OSError as error:
        return _refused(error)
    except ThriftyError as error:
        return error
    return None


def _refused(error: OSError) -> ThriftyError:
    missing = isinstance(error, FileNotFoundError)  # rank 0 has made the folder
    return ThriftyError(f"cannot be written: {error}", hint=SHARED if missing else "")


def _agree(
    problem: ThriftyError | None, gather: Callable[[Any], list[Any]], folder: Path, leftover: Path | None
) -> None:
    """Stops every rank with the first rank's problem; `leftover` is removed then."""
    found = gather(problem and (problem.what, problem.hint))
    first = next((one for one in found if one is not None), None)
    if first is None:
        return
    if leftover is not None:
        shutil.rmtree(leftover, ignore_errors=True)
    raise ThriftyError(first[0], where=str(folder), hint=first[1])


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
