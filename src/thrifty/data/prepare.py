"""From `data` to open token shards and a tokenizer, made once and kept in a cache folder."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from thrifty.data.corpus import Corpus, Scan, open_corpus, resolve_format, scan
from thrifty.data.shards import HEADER, Shards, open_shards, write_shards, written_beside
from thrifty.data.tokenizer import Tokenizer, build_tokenizer, grouped, hf_tokenizer, load_tokenizer, save_tokenizer
from thrifty.spec.errors import ThriftyError
from thrifty.spec.job import Data
from thrifty.spec.units import show

_VERSION = 1  # raise it when the same settings would give other ids
_SLOW_BYTES = 256 * 2**20  # from here on, say so before starting


@dataclass(frozen=True)
class Prepared:
    """Data ready to be trained on.

    Attributes:
        folder: where the token shards lie.
        manifest: what was prepared, as JSON values: name, documents, bytes and sha256 of the text, tokens, tokenizer.
    """

    data: Data
    folder: Path
    tokenizer: Tokenizer
    shards: Shards
    manifest: dict[str, Any]

    @property
    def tokens(self) -> int:
        """Ids in both splits."""
        return self.shards.tokens

    @property
    def documents(self) -> int:
        """Documents in both splits."""
        return int(self.shards.document_starts.size)


def prepare(data: Data, cache: Path | None = None, notify: Callable[[str], None] = print) -> Prepared:
    """Token shards and tokenizer for `data`: found in the cache, or made there.

    Several processes may prepare the same data at once; all get the same folder. Only what decides the ids is part of
    its key: data that differ in split or packing share it.

    Args:
        cache: folder of folders; by default thrifty/data under $XDG_CACHE_HOME or ~/.cache.
        notify: gets one line with what the data are.

    Raises:
        ThriftyError: the corpus or tokenizer cannot be read, the cache cannot be written, or shards are damaged.
    """
    if resolve_format(data) == "shards":
        return _open(data, Path(data.path).expanduser(), notify)
    corpus = open_corpus(data)
    folder = (cache or default_cache()) / _key(data, corpus)
    if not (folder / HEADER).exists():
        _make(data, corpus, folder, notify)
    return _open(data, folder, notify)


def default_cache() -> Path:
    """thrifty/data under $XDG_CACHE_HOME, or under ~/.cache where that is not set."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(base) if os.path.isabs(base) else Path("~/.cache").expanduser()) / "thrifty" / "data"


def _key(data: Data, corpus: Corpus) -> str:
    wanted: dict[str, Any] = {"kind": data.tokenizer.kind}
    if data.tokenizer.kind == "bpe":
        wanted["vocab_size"] = data.tokenizer.vocab_size
    if data.tokenizer.kind == "hf":
        wanted["files"] = hf_tokenizer(data.tokenizer.path).files
    content = json.dumps([_VERSION, wanted, corpus.identity], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()[:32]


def _make(data: Data, corpus: Corpus, folder: Path, notify: Callable[[str], None]) -> None:
    scanned = scan(corpus, alphabet=data.tokenizer.kind == "chars")
    if scanned.bytes >= _SLOW_BYTES:
        notify(f"data: {corpus.name}: making token ids of {show(scanned.bytes, 'byte')} of text; this happens once")
    tokenizer = build_tokenizer(data.tokenizer, corpus, scanned)
    described = {"name": corpus.name, "format": corpus.format, "bytes": scanned.bytes, "sha256": scanned.sha256}
    with written_beside(folder, _shard_bytes(scanned, tokenizer)) as part:
        save_tokenizer(tokenizer, part / "tokenizer")
        ids = (ids for texts in grouped(corpus.documents()) for ids in tokenizer.encode_batch(texts))
        write_shards(part, ids, tokenizer.vocab_size, described, end_id=tokenizer.end_id)


def _shard_bytes(scanned: Scan, tokenizer: Tokenizer) -> int:
    """Exact for bytes and characters; a BPE is taken to make one id of three bytes."""
    ids = {"bytes": scanned.bytes, "chars": scanned.characters}.get(
        tokenizer.kind, scanned.bytes // 3
    ) + scanned.documents
    return ids * (2 if tokenizer.vocab_size <= 1 << 16 else 4) + scanned.documents * 8


def _open(data: Data, folder: Path, notify: Callable[[str], None]) -> Prepared:
    shards, tokenizer = open_shards(folder), load_tokenizer(folder / "tokenizer")
    if data.tokenizer.kind not in ("bytes", tokenizer.kind):
        raise ThriftyError(
            f"made with the tokenizer {tokenizer.kind!r}, data.tokenizer.kind asks for {data.tokenizer.kind!r}",
            where=str(folder),
            hint="leave data.tokenizer out: shards bring their own; or set data.path to the text",
        )
    if shards.vocab_size != tokenizer.vocab_size:
        raise ThriftyError(
            f"the shards have {shards.vocab_size} ids, the tokenizer beside them {tokenizer.vocab_size}",
            where=str(folder),
        )
    documents = int(shards.document_starts.size)
    manifest = {
        "path": data.path, **shards.corpus, "documents": documents, "tokens": shards.tokens,
        "tokenizer": tokenizer.kind, "vocab_size": tokenizer.vocab_size, "shards": str(folder),
    }  # fmt: skip
    notify(f"data: {_line(manifest)}")
    return Prepared(data, folder, tokenizer, shards, manifest)


def _line(manifest: dict[str, Any]) -> str:
    documents = f"{manifest['documents']:,} document{'s' if manifest['documents'] > 1 else ''}"
    text = f"{show(manifest.get('bytes', 0), 'byte')}, sha256 {manifest.get('sha256', 'unknown')}"
    ids = f"{manifest['tokens']:,} tokens, vocabulary {manifest['vocab_size']:,} ({manifest['tokenizer']})"
    return f"{manifest['path']}: {documents}, {text}, {ids}"
