"""Readers: the documents in one file of text, JSONL or Parquet. Each mistake in a file is named with its place."""

from __future__ import annotations

import importlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from thrifty.spec.errors import ThriftyError

_HALF_PAIR = re.compile("[\ud800-\udfff]")


def import_optional(module: str, purpose: str, install: str) -> Any:
    """Imports a library that only some inputs need.

    Raises:
        ThriftyError: it is not installed; names the command that installs it.
    """
    try:
        return importlib.import_module(module)
    except ImportError:
        raise ThriftyError(
            f"{purpose} needs the library {module.split('.')[0]!r}", hint=f"install it: pip install {install}"
        ) from None


def read_bytes(file: Path) -> bytes:
    """A whole file. Raises ThriftyError where it cannot be read."""
    try:
        return file.read_bytes()
    except OSError as error:
        raise ThriftyError(f"cannot be read: {error.strerror}", where=str(file)) from None


def _not_utf8(raw: bytes, offset: int, where: str) -> ThriftyError:
    packed = raw.startswith((b"\x1f\x8b", b"\x28\xb5\x2f\xfd", b"PK\x03\x04", b"BZh", b"\xfd7zXZ"))
    hint = (
        "it is compressed: unpack it first"
        if packed
        else "save it as UTF-8, for example: iconv -f LATIN1 -t UTF-8 OLD > NEW"
    )
    return ThriftyError(f"not UTF-8 text: byte 0x{raw[offset]:02x} at offset {offset}", where=where, hint=hint)


def read_text(file: Path) -> str:
    """A whole file as one document, line ends as they are. Raises ThriftyError with the offset of what is no UTF-8."""
    raw = read_bytes(file)
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise _not_utf8(raw, error.start, str(file)) from None


def read_jsonl(file: Path, field: str) -> Iterator[str]:
    """One document a line, from one field; null is an empty document.

    Raises:
        ThriftyError: a line that is no JSON object, or has no text in that field; says which line.
    """
    try:
        lines = file.open("rb")
    except OSError as error:
        raise ThriftyError(f"cannot be read: {error.strerror}", where=str(file)) from None
    with lines:
        for number, raw in enumerate(lines, 1):
            if raw.strip():
                yield _json_text(raw, field, f"{file}:{number}")


def _json_text(raw: bytes, field: str, where: str) -> str:
    try:
        row = json.loads(raw.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise _not_utf8(raw, error.start, where) from None
    except (ValueError, RecursionError) as error:
        hint = "JSONL is one JSON object a line; for plain text set data.format=text"
        raise ThriftyError(f"not valid JSON: {error}", where=where, hint=hint) from None
    if not isinstance(row, dict):
        raise ThriftyError(
            f"wants a JSON object, got {type(row).__name__}", where=where, hint="JSONL is one JSON object a line"
        )
    if field not in row:
        raise no_field(field, list(row), where)
    text = row[field]
    if text is None:
        return ""
    if not isinstance(text, str):
        raise ThriftyError(
            f"field {field!r} holds {type(text).__name__}, not text",
            where=where,
            hint="set data.text_field to a field that holds text",
        )
    if _HALF_PAIR.search(text):
        raise ThriftyError(
            f"field {field!r} holds half a surrogate pair, which is no character",
            where=where,
            hint="repair or remove this line",
        )
    return text


def no_field(field: str, fields: list[str], where: str) -> ThriftyError:
    """The error for a text field that is not there; lists those that are."""
    listed = ", ".join(fields) or "none"
    return ThriftyError(
        f"no field {field!r}; fields there: {listed}",
        where=where,
        hint="set data.text_field to the one that holds the text",
    )


def read_parquet(file: Path, field: str) -> Iterator[str]:
    """One document a row, from one column; row groups are read one batch at a time.

    Raises:
        ThriftyError: pyarrow is missing, the file is damaged, or has no such column of strings.
    """
    parquet = import_optional("pyarrow.parquet", "reading Parquet", "pyarrow")
    arrow = import_optional("pyarrow", "reading Parquet", "pyarrow")
    try:
        table = parquet.ParquetFile(file)
    except (OSError, arrow.ArrowException) as error:
        raise ThriftyError(
            f"not a Parquet file that can be read: {str(error).splitlines()[0]}", where=str(file)
        ) from None
    with table:
        schema = table.schema_arrow
        if field not in schema.names:
            raise no_field(field, schema.names, str(file))
        kind = schema.field(field).type
        if kind not in (arrow.string(), arrow.large_string()):
            raise ThriftyError(
                f"column {field!r} holds {kind}, not text",
                where=str(file),
                hint="set data.text_field to a column of strings",
            )
        try:
            for batch in table.iter_batches(columns=[field]):
                yield from (text for text in batch.column(0).to_pylist() if text)
        except (OSError, arrow.ArrowException) as error:
            raise ThriftyError(f"damaged Parquet file: {str(error).splitlines()[0]}", where=str(file)) from None
