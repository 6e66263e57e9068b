"""Documents: the text that a job trains on, one string each, read in a fixed order from wherever it lies.

`open_corpus` looks at names, sizes and dates only. Text is read by iterating `Corpus.documents()`, one document at a
time, as often as needed; a document has to fit in memory, a corpus does not. Empty documents are passed over.
"""

from __future__ import annotations

import hashlib
import os
import platform
import sysconfig
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from thrifty.data import readers
from thrifty.spec.errors import ThriftyError, did_you_mean
from thrifty.spec.job import Data

STDLIB = "python-stdlib"
_ENDINGS = {
    "parquet": (".parquet",),
    "jsonl": (".jsonl", ".ndjson", ".json"),
    "text": (".txt", ".text", ".md", ".markdown", ".rst", ".tex", ".html", ".py"),
}
# Not the library itself: what others installed, tests, and tables generated for this build of Python.
_STDLIB_SKIPPED_FOLDERS = {"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__"}
_STDLIB_SKIPPED_PREFIX = "_sysconfigdata"
_SAVED_DATASET = ("dataset_info.json", "dataset_dict.json")  # what `save_to_disk` of the datasets library leaves


@dataclass(frozen=True)
class Corpus:
    """Documents and what tells this corpus from others.

    Attributes:
        name: as the user wrote it.
        format: `stdlib`, `text`, `jsonl`, `parquet` or `dataset`.
        identity: JSON values that change whenever the text may have changed; known without reading any text.
        documents: starts a new pass over the documents.
    """

    name: str
    format: str
    identity: dict[str, Any]
    documents: Callable[[], Iterator[str]]


@dataclass(frozen=True)
class Scan:
    """What one pass over a corpus counts.

    Attributes:
        bytes: of the documents in UTF-8, end to end; `sha256` is over the same bytes.
        characters: code points.
        alphabet: the distinct ones, sorted; empty unless asked for.
    """

    documents: int
    bytes: int
    characters: int
    sha256: str
    alphabet: str


def open_corpus(data: Data) -> Corpus:
    """The documents that `data` names.

    Raises:
        ThriftyError: nothing at that path, nothing of that format in it, or a library that it needs is missing.
            Iterating raises it for text that is not UTF-8, a bad JSON line, or a missing text field.
    """
    kind = resolve_format(data)
    if kind == "stdlib":
        return _stdlib()
    if kind == "dataset":
        return _dataset(data)
    if kind == "shards":
        raise ThriftyError("token shards hold ids, not text", where=data.path, hint="set data.path to the text itself")
    root = Path(data.path).expanduser()
    files = _files(root, kind, every=data.format == "text")

    def documents() -> Iterator[str]:
        for file in files:
            if kind == "text":
                yield readers.read_text(file)
            else:
                yield from (readers.read_jsonl if kind == "jsonl" else readers.read_parquet)(file, data.text_field)

    identity: dict[str, Any] = {"path": str(root.resolve()), "format": kind, "files": _stamps(root, files)}
    if kind != "text":
        identity["text_field"] = data.text_field
    return Corpus(data.path, kind, identity, lambda: filter(None, documents()))


def scan(corpus: Corpus, alphabet: bool = False) -> Scan:
    """Counts and hashes a corpus in one pass; with `alphabet` also its distinct characters.

    Raises:
        ThriftyError: no document has any text in it.
    """
    count = size = characters = 0
    digest = hashlib.sha256()
    seen = np.zeros(0x110000 if alphabet else 0, dtype=bool)  # one flag a code point
    for text in corpus.documents():
        raw = text.encode()
        digest.update(raw)
        count, size, characters = count + 1, size + len(raw), characters + len(text)
        if alphabet:
            seen[code_points(text)] = True
    if not size:
        raise ThriftyError(
            "holds no text", where=corpus.name, hint="data.path must lead to at least one document that is not empty"
        )
    return Scan(count, size, characters, digest.hexdigest(), "".join(map(chr, np.flatnonzero(seen))))


def code_points(text: str) -> np.ndarray:
    """Unicode code points of a string, uint32."""
    return np.frombuffer(text.encode("utf-32-le"), dtype="<u4")  # (characters,)


def resolve_format(data: Data) -> str:
    """Where `data.format` is `auto`, the format that path and endings speak for.

    In a folder, Parquet or JSONL files win over text files, which often only describe them.

    Raises:
        ThriftyError: the path does not exist (with the nearest name beside it), or a folder holds nothing usable.
    """
    if data.path == STDLIB and data.format in ("auto", "text"):
        return "stdlib"
    if data.format == "dataset":
        return "dataset"
    path = Path(data.path).expanduser()
    try:
        if not path.exists():
            raise _missing(path)
    except OSError as error:
        raise ThriftyError(f"cannot be read: {error.strerror}", where=str(path)) from None
    if data.format != "auto":
        return data.format
    if path.is_file():
        return next((kind for kind, endings in _ENDINGS.items() if path.suffix.lower() in endings), "text")
    if (path / "shards.json").exists():
        return "shards"
    if any((path / name).exists() for name in _SAVED_DATASET):
        return "dataset"
    there = {file.suffix.lower() for file in _walk(path)}
    found = [kind for kind, endings in _ENDINGS.items() if there & set(endings)]
    if found[:2] == ["parquet", "jsonl"]:
        raise ThriftyError(
            "holds Parquet and JSONL files", where=str(path), hint="say which: data.format=parquet or data.format=jsonl"
        )
    if not found:
        raise ThriftyError(
            f"no text in this folder: its files end in {', '.join(sorted(there)) or 'nothing, it is empty'}",
            where=str(path),
            hint="data.format=text reads every file as text; auto looks for "
            + ", ".join(e for group in _ENDINGS.values() for e in group),
        )
    return found[0]


def _missing(path: Path) -> ThriftyError:
    hint = ""
    if path.parent.is_dir():
        siblings = [entry.name for entry in path.parent.iterdir() if not entry.name.startswith(".")]
        hint = did_you_mean(path.name, siblings) if siblings else f"the folder {path.parent} is empty"
    else:
        hint = f"the folder {path.parent} does not exist either"
    named = f"{STDLIB} is there on every machine; a name for the datasets library needs data.format=dataset"
    return ThriftyError("no such file or folder", where=str(path), hint=f"{hint}\n  {named}")


def _walk(root: Path) -> Iterator[Path]:
    """Files under a folder, hidden ones left out, in the order of their relative paths."""
    found = []
    for folder, inner, names in os.walk(root):
        inner[:] = [name for name in inner if not name.startswith(".")]
        found += [Path(folder, name) for name in names if not name.startswith(".")]
    yield from sorted((file for file in found if file.is_file()), key=lambda file: file.relative_to(root).as_posix())


def _files(root: Path, kind: str, every: bool) -> list[Path]:
    if root.is_file():
        return [root]
    files = [file for file in _walk(root) if every or file.suffix.lower() in _ENDINGS[kind]]
    if not files:
        raise ThriftyError(
            f"no {kind} files in this folder", where=str(root), hint=f"looked for {', '.join(_ENDINGS[kind])}"
        )
    return files


def _stamps(root: Path, files: list[Path]) -> list[list[Any]]:
    """Name, size and time of change of each file."""
    try:
        stats = [(file, file.stat()) for file in files]
    except OSError as error:
        raise ThriftyError(f"cannot be read: {error.strerror}", where=str(error.filename or root)) from None
    return [[file.relative_to(root).as_posix(), stat.st_size, stat.st_mtime_ns] for file, stat in stats]


def _stdlib() -> Corpus:
    root = Path(sysconfig.get_path("stdlib"))
    found: list[Path] = []
    for folder, inner, names in os.walk(root):
        inner[:] = [name for name in inner if name not in _STDLIB_SKIPPED_FOLDERS]
        found += [Path(folder, n) for n in names if n.endswith(".py") and not n.startswith(_STDLIB_SKIPPED_PREFIX)]
    if not found:
        raise ThriftyError(
            "this Python comes without the source text of its library",
            where=str(root),
            hint="set data.path to a text of your own",
        )
    # By digest of the name: the last share of the stream, which validates, is then of one kind with the rest.
    found.sort(key=lambda file: hashlib.sha256(file.relative_to(root).as_posix().encode()).digest())

    def documents() -> Iterator[str]:
        for file in found:
            try:
                yield readers.read_bytes(file).decode("utf-8")
            except UnicodeDecodeError:
                continue  # a few files are there to show other encodings

    sizes = [[file.relative_to(root).as_posix(), file.stat().st_size] for file in found]
    identity = {"path": STDLIB, "python": platform.python_version(), "folder": str(root), "files": sizes}
    return Corpus(STDLIB, "stdlib", identity, lambda: filter(None, documents()))


def _dataset(data: Data) -> Corpus:
    """`NAME[:CONFIG[:SPLIT]]` for `datasets.load_dataset`, or a folder of `save_to_disk`; the split is else `train`."""
    datasets = readers.import_optional("datasets", "data.format=dataset", "'thrifty[hf]'")
    name, _, rest = data.path.partition(":")
    config, _, split = rest.partition(":")
    folder = Path(name).expanduser()
    try:
        if any((folder / mark).exists() for mark in _SAVED_DATASET):
            table = datasets.load_from_disk(str(folder))
        else:
            table = datasets.load_dataset(name, config or None, split=split or "train")
    except Exception as error:  # the library raises its own errors, those of the hub and of the network
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        hint = "write NAME:CONFIG:SPLIT where the dataset asks for it; off line only what was loaded before is there"
        raise ThriftyError(f"the datasets library cannot load it: {first}", where=data.path, hint=hint) from None
    if isinstance(table, dict):  # several splits
        if (split or "train") not in table:
            raise ThriftyError(
                f"has no split {split or 'train'!r}", where=data.path, hint=did_you_mean(split or "train", table)
            )
        table = table[split or "train"]
    if data.text_field not in table.column_names:
        raise readers.no_field(data.text_field, table.column_names, data.path)

    def documents() -> Iterator[str]:
        for number, row in enumerate(table.select_columns([data.text_field])):
            text = row[data.text_field]
            if text is not None and not isinstance(text, str):
                raise ThriftyError(
                    f"field {data.text_field!r} holds {type(text).__name__}, not text",
                    where=f"{data.path}, row {number}",
                )
            yield text or ""

    identity = {
        "path": data.path,
        "format": "dataset",
        "text_field": data.text_field,
        "fingerprint": table._fingerprint,
    }
    return Corpus(data.path, "dataset", identity, lambda: filter(None, documents()))
