"""Tokenizers: text to ids and back. Bytes, characters, a byte-level BPE trained here, or a local Hugging Face one."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from thrifty.data import corpus as corpora
from thrifty.data.corpus import Corpus, Scan
from thrifty.data.readers import import_optional
from thrifty.spec import job
from thrifty.spec.errors import ThriftyError, did_you_mean

DESCRIPTION = "thrifty-tokenizer.json"
BPE_SAMPLE_BYTES = 32 * 2**20  # merges hardly change beyond this, the time to train them does
_END_TEXT = "<|endoftext|>"
_END_NAMES = (_END_TEXT, "<|end_of_text|>", "</s>", "<eos>", "<|im_end|>")
_PIECE = 1 << 16  # characters
_GROUP = 1 << 22  # characters
# The byte-level BPE below never joins across a single newline between two other characters, so cutting there changes
# no token, and the pieces can be encoded in parallel.
_CUT = re.compile(r"(?<=\S)\n(?=\S)")


@dataclass(frozen=True)
class Tokenizer:
    """One tokenizer, whatever its kind.

    Attributes:
        kind: `bytes`, `chars`, `bpe` or `hf`.
        vocab_size: ids run from 0 to vocab_size - 1.
        end_id: written after each document; none where the kind has no such id.
        encode: text to ids, int32 (tokens,).
        encode_batch: the same for several documents at once.
        decode: ids to text; end-of-document ids leave nothing, bytes that are no UTF-8 become U+FFFD.
    """

    kind: str
    vocab_size: int
    end_id: int | None
    encode: Callable[[str], np.ndarray]
    encode_batch: Callable[[Sequence[str]], list[np.ndarray]]
    decode: Callable[[Iterable[int]], str]
    files: dict[str, str] = field(repr=False)  # what `save` writes: file name to content


def bytes_tokenizer() -> Tokenizer:
    """Ids 0..255 are the bytes of UTF-8; 256 ends a document."""

    def encode(text: str) -> np.ndarray:
        return np.frombuffer(text.encode(), dtype=np.uint8).astype(np.int32)  # (bytes,)

    def decode(ids: Iterable[int]) -> str:
        return bytes(i for i in map(int, ids) if i < 256).decode(errors="replace")

    return _described("bytes", 257, 256, encode, decode)


def chars_tokenizer(alphabet: str, ends: bool) -> Tokenizer:
    """One id a character, in sorted order; with `ends` one more id, the last, ends a document.

    `encode` raises ThriftyError for a character that is not in the alphabet, and names it.
    """
    points = np.unique(corpora.code_points(alphabet))  # sorted
    alphabet = "".join(map(chr, points))
    characters = [*alphabet, ""] if ends else list(alphabet)
    end_id = len(points) if ends else None
    table = np.full(int(points[-1]) + 2, -1, dtype=np.int32)  # code point to id; the last entry is for all beyond
    table[points] = np.arange(len(points))

    def encode(text: str) -> np.ndarray:
        codes = corpora.code_points(text)  # (characters,)
        ids = table[np.minimum(codes, table.size - 1)]
        if ids.min(initial=0) < 0:
            strange = ids < 0
            named = ", ".join(repr(chr(code)) for code in np.unique(codes[strange])[:8])
            hint = f"only the {len(points)} characters of the corpus have an id; leave others out, or use bytes or bpe"
            raise ThriftyError(
                f"not in the vocabulary: {named} (first at character {int(strange.argmax())})",
                where="the text",
                hint=hint,
            )
        return ids

    def decode(ids: Iterable[int]) -> str:
        return "".join(characters[i] for i in ids)

    return _described("chars", len(characters), end_id, encode, decode, {"alphabet": alphabet})


def bpe_tokenizer(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """A byte-level BPE (Sennrich et al. 2016, arXiv:1508.07909; bytes as in GPT-2) trained on `texts`.

    The same texts give the same tokenizer. The last id ends a document.

    Raises:
        ThriftyError: fewer than 257 ids asked for, or more than the texts have pairs to merge for.
    """
    if vocab_size < 257:
        raise ThriftyError(
            f"vocab_size {vocab_size} is too small for BPE",
            where="data.tokenizer.vocab_size",
            hint="256 bytes and an end-of-document id need at least 257",
        )
    library = import_optional("tokenizers", "a BPE tokenizer", "'thrifty[train]'")
    engine = library.Tokenizer(library.models.BPE())
    engine.pre_tokenizer = library.pre_tokenizers.ByteLevel(add_prefix_space=False)
    engine.decoder = library.decoders.ByteLevel()
    alphabet = sorted(library.pre_tokenizers.ByteLevel.alphabet())
    # The end id is added after training: the trainer would put it first.
    trainer = library.trainers.BpeTrainer(vocab_size=vocab_size - 1, initial_alphabet=alphabet, show_progress=False)
    engine.train_from_iterator((piece for text in texts for piece in _pieces(text)), trainer)
    learnt = engine.get_vocab_size() + 1
    if learnt < vocab_size:
        raise ThriftyError(
            f"the corpus is too small for {vocab_size} ids: its pairs of bytes run out at {learnt}",
            where="data.tokenizer.vocab_size",
            hint=f"ask for at most {learnt}, or give more text",
        )
    engine.add_special_tokens([_END_TEXT])
    return _of_engine("bpe", engine, vocab_size - 1, cut=True)


def hf_tokenizer(path: Path | str) -> Tokenizer:
    """A local `tokenizer.json` of Hugging Face, or the folder that holds one. Nothing is downloaded.

    The end-of-document id is `eos_token` of tokenizer_config.json beside it, else a special token with a usual name.

    Raises:
        ThriftyError: no such file, or not a tokenizer.
    """
    given = Path(path).expanduser()
    file = given / "tokenizer.json" if given.is_dir() else given
    if not file.is_file():
        around = file.parent.iterdir() if file.parent.is_dir() else []
        names = [entry.name for entry in around]
        hint = did_you_mean(file.name, names) if names else "give a folder with tokenizer.json, or that file itself"
        raise ThriftyError("no such tokenizer file", where=str(file), hint=hint)
    engine = _engine(file.read_bytes(), str(file))
    engine.no_truncation()
    engine.no_padding()
    end = next(
        iter(name for name in (_eos_token(file.parent), *_END_NAMES) if name and engine.token_to_id(name) is not None),
        None,
    )
    return _of_engine("hf", engine, engine.token_to_id(end) if end else None, cut=False)


def build_tokenizer(spec: job.Tokenizer, corpus: Corpus, scanned: Scan) -> Tokenizer:
    """The tokenizer that `data.tokenizer` asks for; `scanned` holds the alphabet where the kind is `chars`.

    A BPE is trained on at most `BPE_SAMPLE_BYTES` of text, in pieces spread evenly over the corpus.
    """
    if spec.kind == "bytes":
        return bytes_tokenizer()
    if spec.kind == "chars":
        return chars_tokenizer(scanned.alphabet, ends=scanned.documents > 1)
    if spec.kind == "hf":
        return hf_tokenizer(spec.path)
    every = -(-scanned.bytes // BPE_SAMPLE_BYTES)
    pieces = (piece for text in corpus.documents() for piece in _pieces(text))
    return bpe_tokenizer((piece for number, piece in enumerate(pieces) if number % every == 0), spec.vocab_size)


def vocabulary_size(data: job.Data) -> int:
    """The number of ids that `data` will have: what `vocab_size: auto` of a model becomes.

    Known at once but for `chars`, which reads the corpus and counts.
    """
    if corpora.resolve_format(data) == "shards":
        return load_tokenizer(Path(data.path).expanduser() / "tokenizer").vocab_size
    if data.tokenizer.kind == "bytes":
        return 257
    if data.tokenizer.kind == "bpe":
        return data.tokenizer.vocab_size
    if data.tokenizer.kind == "hf":
        return hf_tokenizer(data.tokenizer.path).vocab_size
    scanned = corpora.scan(corpora.open_corpus(data), alphabet=True)
    return len(scanned.alphabet) + (scanned.documents > 1)


def save_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    """Writes the tokenizer into a folder (JSON files); `bpe` and `hf` leave a tokenizer.json that others read too."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in tokenizer.files.items():
        (folder / name).write_text(content, encoding="utf-8")


def load_tokenizer(folder: Path) -> Tokenizer:
    """Reads what `save_tokenizer` wrote.

    Raises:
        ThriftyError: the folder holds no tokenizer, or a damaged one.
    """
    file = folder / DESCRIPTION
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        kind, end_id = content["kind"], content["end_id"]
        if kind == "bytes":
            return bytes_tokenizer()
        if kind == "chars":
            return chars_tokenizer(content["alphabet"], ends=end_id is not None)
        raw = (folder / "tokenizer.json").read_bytes()
    except OSError as error:
        raise ThriftyError(
            f"no tokenizer here: {error.strerror}",
            where=str(error.filename or file),
            hint="name a folder that a run wrote",
        ) from None
    except (ValueError, KeyError, TypeError) as error:
        raise ThriftyError(f"damaged tokenizer file: {error}", where=str(file)) from None
    return _of_engine(kind, _engine(raw, str(folder / "tokenizer.json")), end_id, cut=kind == "bpe")


def grouped(texts: Iterable[str], characters: int = _GROUP) -> Iterator[list[str]]:
    """Texts in order, in lists of about so many characters: enough to share out, and their ids fit in memory."""
    waiting: list[str] = []
    size = 0
    for text in texts:
        waiting.append(text)
        size += len(text)
        if size >= characters:
            yield waiting
            waiting, size = [], 0
    if waiting:
        yield waiting


def _described(
    kind: str,
    vocab_size: int,
    end_id: int | None,
    encode: Callable[[str], np.ndarray],
    decode: Callable[[Iterable[int]], str],
    more: dict[str, Any] | None = None,
) -> Tokenizer:
    """A tokenizer that its description alone brings back."""
    description = json.dumps({"kind": kind, "vocab_size": vocab_size, "end_id": end_id, **(more or {})}, indent=1)
    return Tokenizer(
        kind, vocab_size, end_id, encode, lambda texts: [encode(t) for t in texts], decode, {DESCRIPTION: description}
    )


def _of_engine(kind: str, engine: Any, end_id: int | None, cut: bool) -> Tokenizer:
    """A tokenizer around one of the `tokenizers` library; text that spells a special token stays text."""
    engine.encode_special_tokens = True
    vocab_size = 1 + max(engine.get_vocab(with_added_tokens=True).values())  # ids may have gaps

    def encode_batch(texts: Sequence[str]) -> list[np.ndarray]:
        pieces = [list(_pieces(text)) if cut else [text] for text in texts]
        ids: list[np.ndarray] = []
        for group in grouped(piece for each in pieces for piece in each):
            ids += [np.array(e.ids, dtype=np.int32) for e in engine.encode_batch_fast(group, add_special_tokens=False)]
        found = iter(ids)
        return [np.concatenate([next(found) for _ in each]) for each in pieces]

    def decode(ids: Iterable[int]) -> str:
        return engine.decode([int(i) for i in ids if i != end_id], skip_special_tokens=False)

    described = _described(kind, vocab_size, end_id, lambda text: encode_batch([text])[0], decode)
    files = described.files | {"tokenizer.json": engine.to_str()}
    return Tokenizer(kind, vocab_size, end_id, described.encode, encode_batch, decode, files)


def _engine(raw: bytes, where: str) -> Any:
    library = import_optional("tokenizers", "this tokenizer", "'thrifty[train]'")
    try:
        return library.Tokenizer.from_str(raw.decode("utf-8"))
    except Exception as error:  # the library raises plain Exception
        raise ThriftyError(
            f"not a tokenizer file: {error}", where=where, hint="it has to be the tokenizer.json of Hugging Face"
        ) from None


def _eos_token(folder: Path) -> str | None:
    try:
        token = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8")).get("eos_token")
    except (OSError, ValueError, AttributeError):
        return None
    token = token.get("content") if isinstance(token, dict) else token
    return token if isinstance(token, str) else None


def _pieces(text: str) -> Iterator[str]:
    """Cuts a long text at newlines where no token of the byte-level BPE can span the cut."""
    start = 0
    while len(text) - start > _PIECE:
        cut = _CUT.search(text, start + _PIECE)
        if cut is None:
            break
        yield text[start : cut.end()]
        start = cut.end()
    yield text[start:]
