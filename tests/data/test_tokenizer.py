"""Every tokenizer gives back the text it was given, from memory and from disk."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from thrifty.data import tokenizer as tokenizers
from thrifty.data.corpus import open_corpus, scan
from thrifty.data.tokenizer import (
    bpe_tokenizer,
    build_tokenizer,
    bytes_tokenizer,
    chars_tokenizer,
    grouped,
    hf_tokenizer,
    load_tokenizer,
    save_tokenizer,
    vocabulary_size,
)
from thrifty.spec import job
from thrifty.spec.errors import ThriftyError
from thrifty.spec.job import Data

_NOUNS, _VERBS = ["dog", "fox", "hen", "cow", "owl"], ["jump", "run", "hop", "sing"]
PROSE = "".join(
    f"The {_NOUNS[n % 5]} {_VERBS[n % 4]}s over the {_NOUNS[n % 3]}.\nIt's {_VERBS[n % 3]}ing {n}!\n"
    for n in range(200)
)
ALPHABET = "\x00\n abcé€😀"


@pytest.fixture(scope="module")
def bpe():
    return bpe_tokenizer([PROSE], 300)


@given(st.text())
def test_bytes_round_trip(text):
    tokenizer = bytes_tokenizer()
    ids = tokenizer.encode(text)
    assert ids.tolist() == list(text.encode())
    assert tokenizer.decode([*ids, tokenizer.end_id]) == text


@given(st.text(ALPHABET), st.booleans())
def test_chars_round_trip(text, ends):
    tokenizer = chars_tokenizer(ALPHABET[::-1], ends)
    ids = tokenizer.encode(text)
    assert ids.tolist() == [sorted(ALPHABET).index(c) for c in text]
    assert tokenizer.decode(ids.tolist() + [tokenizer.end_id] * ends) == text
    assert tokenizer.vocab_size == len(ALPHABET) + ends


@given(text=st.text())
def test_bpe_round_trip(bpe, text):
    ids = bpe.encode(text)
    assert bpe.decode([*ids, bpe.end_id]) == text
    assert ids.max(initial=0) < bpe.end_id == bpe.vocab_size - 1 == 299


def test_bpe_shortens_and_is_the_same_each_time(bpe):
    assert bpe.encode(PROSE).size < len(PROSE) / 1.5
    assert bpe_tokenizer([PROSE], 300).files == bpe.files


def test_text_that_spells_the_end_is_only_text(bpe):
    ids = bpe.encode("a <|endoftext|> b")
    assert bpe.end_id not in ids
    assert bpe.decode(ids) == "a <|endoftext|> b"


@given(st.text("ab \n\t\r\x0b\x1c\x85'é", max_size=200))
def test_long_texts_are_cut_only_where_no_token_can_span(bpe, text):
    """Encoding in small pieces gives the ids of the whole text."""
    whole = bpe.encode(text)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tokenizers, "_PIECE", 3)
        pieces = list(tokenizers._pieces(text))
        cut = bpe.encode(text)
    assert "".join(pieces) == text
    np.testing.assert_array_equal(cut, whole)


def test_a_batch_is_the_texts_one_by_one(bpe):
    texts = ["one", "", "It's two\nthree", PROSE]
    for tokenizer in (bpe, bytes_tokenizer()):
        for ids, text in zip(tokenizer.encode_batch(texts), texts, strict=True):
            np.testing.assert_array_equal(ids, tokenizer.encode(text))
            assert ids.dtype == np.int32


def test_save_and_load(tmp_path, bpe):
    for tokenizer in (bytes_tokenizer(), chars_tokenizer(ALPHABET, True), chars_tokenizer(ALPHABET, False), bpe):
        folder = tmp_path / f"{tokenizer.kind}{tokenizer.vocab_size}"
        save_tokenizer(tokenizer, folder)
        again = load_tokenizer(folder)
        assert (again.kind, again.vocab_size, again.end_id) == (tokenizer.kind, tokenizer.vocab_size, tokenizer.end_id)
        assert again.files == tokenizer.files
        np.testing.assert_array_equal(again.encode("abc a\n"), tokenizer.encode("abc a\n"))


def test_a_saved_bpe_is_a_hugging_face_tokenizer(tmp_path, bpe):
    save_tokenizer(bpe, tmp_path)
    for path in (tmp_path, tmp_path / "tokenizer.json"):
        hf = hf_tokenizer(path)
        assert (hf.kind, hf.vocab_size, hf.end_id) == ("hf", 300, 299)
        np.testing.assert_array_equal(hf.encode(PROSE), bpe.encode(PROSE))
        assert hf.decode(hf.encode("It's ü")) == "It's ü"
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": {"content": "!"}}))
    assert hf_tokenizer(tmp_path).decode([hf_tokenizer(tmp_path).end_id, *bpe.encode("a")]) == "a"
    assert hf_tokenizer(tmp_path).end_id == bpe.encode("!")[0]


def test_a_strange_character_is_named():
    with pytest.raises(ThriftyError, match=r"not in the vocabulary: 'x', 'ß' \(first at character 2\)"):
        chars_tokenizer("ab", False).encode("abßax")


def test_bpe_sizes_that_cannot_be(bpe):
    with pytest.raises(ThriftyError, match="too small for BPE"):
        bpe_tokenizer([PROSE], 256)
    with pytest.raises(ThriftyError, match=r"run out at \d+") as caught:
        bpe_tokenizer([PROSE], 50_000)
    most = int(caught.value.hint.split()[4].rstrip(","))
    assert bpe_tokenizer([PROSE], most).vocab_size == most


def test_tokenizer_files_that_are_not(tmp_path):
    with pytest.raises(ThriftyError, match="no such tokenizer file"):
        hf_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ThriftyError, match="not a tokenizer file"):
        hf_tokenizer(tmp_path)
    with pytest.raises(ThriftyError, match="no tokenizer here"):
        load_tokenizer(tmp_path)
    (tmp_path / tokenizers.DESCRIPTION).write_text("{")
    with pytest.raises(ThriftyError, match="damaged tokenizer file"):
        load_tokenizer(tmp_path)


@given(st.lists(st.text(max_size=5)), st.integers(1, 20))
def test_groups_are_the_texts_in_order_and_bounded(texts, characters):
    groups = list(grouped(texts, characters))
    assert [text for group in groups for text in group] == texts
    assert all(sum(map(len, group[:-1])) < characters for group in groups)


@pytest.mark.parametrize("documents", [1, 3])
@pytest.mark.parametrize("kind", ["bytes", "chars", "bpe", "hf"])
def test_the_vocabulary_is_known_before_the_tokenizer_is_made(tmp_path, kind, documents, bpe):
    save_tokenizer(bpe, tmp_path / "hf")
    file = tmp_path / "a.jsonl"
    file.write_text("".join(json.dumps({"text": PROSE}) + "\n" for _ in range(documents)))
    data = Data(path=str(file), tokenizer=job.Tokenizer(kind=kind, vocab_size=280, path=str(tmp_path / "hf")))
    corpus = open_corpus(data)
    made = build_tokenizer(data.tokenizer, corpus, scan(corpus, alphabet=True))
    assert vocabulary_size(data) == made.vocab_size


def test_a_large_corpus_trains_bpe_on_pieces_of_all_of_it(tmp_path, monkeypatch):
    (tmp_path / "a.txt").write_text(PROSE * 4)
    monkeypatch.setattr(tokenizers, "BPE_SAMPLE_BYTES", len(PROSE))
    monkeypatch.setattr(tokenizers, "_PIECE", 500)
    data = Data(path=str(tmp_path / "a.txt"), tokenizer=job.Tokenizer(kind="bpe", vocab_size=280))
    seen: list[str] = []
    monkeypatch.setattr(tokenizers, "bpe_tokenizer", lambda texts, size: seen.extend(texts))
    corpus = open_corpus(data)
    build_tokenizer(data.tokenizer, corpus, scan(corpus))
    assert 0.5 * len(PROSE) < sum(map(len, seen)) < 1.5 * len(PROSE)
    assert all(piece in PROSE * 4 for piece in seen)
