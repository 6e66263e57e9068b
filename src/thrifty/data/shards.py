"""Token shards: the ids of a corpus on disk, memory-mapped, and checked before anything trains on them.

    shards.json        type and number of ids, documents, and size and sha256 of each file below
    tokens-00000.bin   ids end to end, little-endian uint16 (uint32 where the vocabulary needs it), then -00001, ...
    documents.bin      where each document starts: little-endian int64 offsets in ids
    tokenizer/         how the ids were made

A document may span files. `data.path` may name such a folder.
"""

from __future__ import annotations

import bisect
import contextlib
import errno
import hashlib
import json
import os
import shutil
import socket
import time
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from thrifty.spec.errors import ThriftyError
from thrifty.spec.units import show

HEADER = "shards.json"
SHARD_BYTES = 256 * 2**20
VERIFY_BYTES = 64 * 2**20  # up to this size every opening hashes the files: well under a second
_ABANDONED_SECONDS = 24 * 3600.0


@dataclass(frozen=True)
class Shards:
    """An open folder of token shards.

    Attributes:
        tokens: ids in all files.
        vocab_size: every id is below it.
        document_starts: offset of each document's first id, int64 (documents,), ascending from 0.
        corpus: what the text was: name, bytes, sha256 and more, as `write_shards` was told.
    """

    folder: Path
    tokens: int
    vocab_size: int
    document_starts: np.ndarray
    corpus: dict[str, Any]
    _parts: tuple[np.ndarray, ...]
    _starts: tuple[int, ...]  # offset of each part's first id

    def window(self, start: int, stop: int) -> np.ndarray:
        """The ids from `start` up to `stop`, (stop - start,): a read-only view where one file holds them all."""
        part = bisect.bisect_right(self._starts, start) - 1
        low = start - self._starts[part]
        ids = self._parts[part][low : low + stop - start]
        while ids.size < stop - start and (part := part + 1) < len(self._parts):
            ids = np.concatenate([ids, self._parts[part][: stop - start - ids.size]])
        return ids


@contextlib.contextmanager
def written_beside(folder: Path, needs_bytes: int) -> Iterator[Path]:
    """A new folder to write into, which becomes `folder` if all goes well and vanishes if anything does not.

    If `folder` is there by then, somebody else was faster: theirs stays and this one vanishes.

    Args:
        needs_bytes: about what will be written; said when the disk is full.

    Raises:
        ThriftyError: the disk is full, or the place cannot be written to.
    """
    part = folder.with_name(f"{folder.name}.part-{socket.gethostname()}-{os.getpid()}-{time.monotonic_ns():x}")
    try:
        try:
            part.mkdir(parents=True)
            _remove_abandoned(folder)
            yield part
            _rename(part, folder)
        finally:
            shutil.rmtree(part, ignore_errors=True)
    except OSError as error:
        raise _cannot_write(error, folder.parent, needs_bytes) from None


def write_shards(
    folder: Path,
    documents: Iterable[np.ndarray],
    vocab_size: int,
    corpus: dict[str, Any],
    end_id: int | None = None,
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Writes the ids of each document, in order, into an existing folder. The header comes last.

    Args:
        documents: ids of one document each, (tokens,).
        end_id: written after each document, and counted with it; none writes nothing.
        corpus: JSON values kept in the header.
        shard_bytes: most bytes in one file.
    """
    dtype = np.dtype("<u2" if vocab_size <= 1 << 16 else "<u4")
    end = np.array([] if end_id is None else [end_id], dtype=dtype)
    starts, total = array("q"), 0
    with _Stream(folder, dtype, shard_bytes) as stream:
        for ids in documents:
            starts.append(total)
            total += ids.size + end.size
            stream.write(ids)
            stream.write(end)
    index = _File(folder / "documents.bin")
    index.write(np.array(starts, dtype="<i8").tobytes())
    header = {
        "format": "thrifty token shards", "version": 1, "dtype": dtype.name, "tokens": total, "documents": len(starts),
        "vocab_size": vocab_size, "files": stream.files, "document_starts": index.close(), "corpus": corpus,
    }  # fmt: skip
    content = _File(folder / HEADER)
    content.write((json.dumps(header, indent=1) + "\n").encode())
    content.close()


def open_shards(folder: Path, verify: bool = False) -> Shards:
    """Opens a folder of token shards. Sizes are always checked; contents where they are small or `verify` asks for it.

    Raises:
        ThriftyError: no shards there, a file missing, cut short or changed, or ids outside the vocabulary.
    """
    hint = f"remove the folder {folder}: a run whose data.path is the text makes the shards again"
    header = _read_header(folder, hint)
    dtype = np.dtype("<u2" if header["dtype"] == "uint16" else "<u4")
    entries = [*header["files"], header["document_starts"]]
    small = sum(entry["bytes"] for entry in entries) <= VERIFY_BYTES
    for entry in entries:
        _check_file(folder / entry["name"], entry, small or verify, hint)
    parts = tuple(np.asarray(np.memmap(folder / entry["name"], dtype=dtype, mode="r")) for entry in header["files"])
    document_starts = np.asarray(np.memmap(folder / header["document_starts"]["name"], dtype="<i8", mode="r"))
    lengths = [part.size for part in parts]
    if sum(lengths) != header["tokens"] or document_starts.size != header["documents"] or document_starts[0] != 0:
        raise ThriftyError(f"{HEADER} does not add up with the files beside it", where=str(folder), hint=hint)
    if (small or verify) and max(int(part.max()) for part in parts) >= header["vocab_size"]:
        raise ThriftyError(f"holds ids beyond its vocabulary of {header['vocab_size']}", where=str(folder), hint=hint)
    starts = tuple(np.cumsum([0, *lengths[:-1]]).tolist())
    return Shards(folder, header["tokens"], header["vocab_size"], document_starts, header["corpus"], parts, starts)


class _File:
    """A file being written and hashed; `close` makes sure that it is on the disk and says what to expect of it."""

    def __init__(self, path: Path) -> None:
        self.file = path.open("wb")
        self.name, self.written, self.digest = path.name, 0, hashlib.sha256()

    def write(self, raw: bytes) -> None:
        self.file.write(raw)
        self.digest.update(raw)
        self.written += len(raw)

    def close(self) -> dict[str, Any]:
        with self.file:
            self.file.flush()
            os.fsync(self.file.fileno())
        return {"name": self.name, "bytes": self.written, "sha256": self.digest.hexdigest()}


class _Stream:
    """Token files of bounded size, written end to end."""

    def __init__(self, folder: Path, dtype: np.dtype[Any], shard_bytes: int) -> None:
        self.folder, self.dtype = folder, dtype
        self.capacity = max(1, shard_bytes // dtype.itemsize) * dtype.itemsize
        self.files: list[dict[str, Any]] = []
        self.current: _File | None = None

    def write(self, ids: np.ndarray) -> None:
        while ids.size:
            self.current = self.current or _File(self.folder / f"tokens-{len(self.files):05d}.bin")
            room = (self.capacity - self.current.written) // self.dtype.itemsize
            self.current.write(ids[:room].astype(self.dtype).tobytes())
            ids = ids[room:]
            if self.current.written == self.capacity:
                self._close()

    def _close(self) -> None:
        if self.current is not None:
            closing, self.current = self.current, None
            self.files.append(closing.close())

    def __enter__(self) -> _Stream:
        return self

    def __exit__(self, failed: type[BaseException] | None, *_: object) -> None:
        if failed is None:
            self._close()
        elif self.current is not None:
            with contextlib.suppress(OSError):  # a full disk fails once more when its buffer is let go
                self.current.file.close()


def _read_header(folder: Path, hint: str) -> dict[str, Any]:
    file = folder / HEADER
    try:
        header: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        wanted = {
            "dtype": str,
            "tokens": int,
            "documents": int,
            "vocab_size": int,
            "files": list,
            "document_starts": dict,
            "corpus": dict,
        }
        known = header["version"] == 1 and header["dtype"] in ("uint16", "uint32")
        for entry in (*header["files"], header["document_starts"]):
            known = known and entry["bytes"] > 0 and entry["name"] == Path(entry["name"]).name and bool(entry["sha256"])
        if not known or any(not isinstance(header[key], kind) for key, kind in wanted.items()):
            raise ValueError("unknown version or values")
    except OSError as error:
        raise ThriftyError(
            f"no token shards here: {error.strerror}", where=str(file), hint="a folder of shards has a shards.json"
        ) from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ThriftyError(
            f"not a header of token shards: {type(error).__name__} {error}", where=str(file), hint=hint
        ) from None
    return header


def _check_file(file: Path, entry: dict[str, Any], whole: bool, hint: str) -> None:
    try:
        actual = file.stat().st_size
        if actual != entry["bytes"]:
            raise ThriftyError(
                f"token shard has {actual} bytes, {entry['bytes']} expected: it was cut short or changed",
                where=str(file),
                hint=hint,
            )
        if whole:
            with file.open("rb") as opened:
                found = hashlib.file_digest(opened, "sha256").hexdigest()
            if found != entry["sha256"]:
                raise ThriftyError(
                    f"token shard was changed: sha256 {found[:16]}, {entry['sha256'][:16]} expected",
                    where=str(file),
                    hint=hint,
                )
    except OSError as error:
        raise ThriftyError(f"token shard cannot be read: {error.strerror}", where=str(file), hint=hint) from None


def _rename(part: Path, folder: Path) -> None:
    try:
        part.rename(folder)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise


def _remove_abandoned(folder: Path) -> None:
    """Removes what processes that were killed while writing this folder left, once nobody can still be at it."""
    for left in folder.parent.glob(f"{folder.name}.part-*"):
        try:
            if time.time() - max(entry.stat().st_mtime for entry in (left, *left.iterdir())) > _ABANDONED_SECONDS:
                shutil.rmtree(left, ignore_errors=True)
        except OSError:
            continue  # somebody else is renaming or removing it


def _cannot_write(error: OSError, folder: Path, needs_bytes: int) -> ThriftyError:
    elsewhere = "set XDG_CACHE_HOME to a folder with room"
    if error.errno not in (errno.ENOSPC, errno.EDQUOT):
        return ThriftyError(
            f"cannot write token shards: {error.strerror or error}", where=str(error.filename or folder), hint=elsewhere
        )
    there = next(place for place in (folder, *folder.parents) if place.exists())
    free = shutil.disk_usage(there).free
    sizes = f"the token shards need about {show(needs_bytes, 'byte')}, {show(free, 'byte')} are free"
    return ThriftyError(
        f"disk full: {sizes}; nothing was kept", where=str(folder), hint=f"free some space, or {elsewhere}"
    )
