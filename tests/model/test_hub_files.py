"""What a Hugging Face folder is to consist of: every tensor once, shares of nearly the same bytes, pieces that fit."""

from __future__ import annotations

from collections import Counter

import torch
from hypothesis import given
from hypothesis import strategies as st

from thrifty.model.hub_files import index, pieces, plan_files
from thrifty.model.hub_names import stored_tensors
from thrifty.model.transformer import Transformer
from thrifty.spec.job import ModelShape

SMALL = {"layers": 3, "hidden": 32, "heads": 4, "ffn": 40, "vocab_size": 61, "max_positions": 64}
GPT2 = SMALL | {"norm": "layernorm", "mlp": "gelu", "positions": "learned", "tied_embeddings": True}
SHAPES = [ModelShape(**content) for content in (SMALL, GPT2, GPT2 | {"bias": "all"})]
ITEM = 4  # bytes a value


def parameters(shape):
    with torch.device("meta"):
        return {name: tuple(p.shape) for name, p in Transformer(shape).named_parameters()}


FOUND = [(shape, parameters(shape)) for shape in SHAPES]
plans = st.tuples(st.sampled_from(FOUND), st.integers(1, 7), st.integers(1, 60_000), st.integers(1, 9_000))


@given(plans)
def test_every_tensor_is_in_one_file_and_files_are_no_larger_than_asked(drawn):
    (shape, shapes), writers, max_file_bytes, _ = drawn
    files = plan_files(shape, shapes, ITEM, max_file_bytes, writers)
    keys = [entry.key for file in files for entry in file.entries]
    assert len(keys) == len(set(keys)) == len(list(stored_tensors(shape)))
    assert len({file.name for file in files}) == len(files)
    for file in files:
        size = ITEM * sum(entry.elements for entry in file.entries)
        assert size <= max_file_bytes or len(file.entries) == 1
    assert index(files, ITEM)["weight_map"].keys() == set(keys)
    values = {part: entry for file in files for entry in file.entries for part in entry.parts}
    assert values.keys() == shapes.keys(), "every parameter is written"


@given(plans)
def test_writers_share_the_bytes(drawn):
    (shape, shapes), writers, max_file_bytes, _ = drawn
    written: Counter[int] = Counter()
    entries = []
    for file in plan_files(shape, shapes, ITEM, max_file_bytes, writers):
        written[file.writer] += sum(entry.elements for entry in file.entries)
        entries.extend(file.entries)
    even = sum(written.values()) / writers
    assert max(written.values()) <= even + max(entry.elements for entry in entries)
    assert set(written) <= set(range(writers))


@given(plans)
def test_pieces_make_every_tensor_in_order_and_fit(drawn):
    (shape, shapes), writers, max_file_bytes, piece_bytes = drawn
    files = plan_files(shape, shapes, ITEM, max_file_bytes, writers)
    for writer in range(writers):
        mine = [file for file in files if file.writer == writer]
        found = list(pieces(files, writer, ITEM, piece_bytes))
        assert [piece.file.name for piece in found if piece.opens] == [file.name for file in mine]
        rows: Counter[str] = Counter()
        for piece in found:
            rows[piece.entry.key] += piece.rows
            size = ITEM * piece.entry.elements // piece.entry.shape[0] * piece.rows
            can_be_cut = piece.entry.transposed or len(piece.entry.parts) == 1
            assert size <= piece_bytes or piece.rows == 1 or not can_be_cut
            values = sum(torch.Size(map(len, box)).numel() for _, box in piece.boxes)
            assert values == (size // ITEM if piece.entry.parts else 0)
        assert rows == {entry.key: entry.shape[0] for file in mine for entry in file.entries}
        assert list(dict.fromkeys(piece.entry.key for piece in found)) == list(rows)
