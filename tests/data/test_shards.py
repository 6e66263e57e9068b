"""Shards give back what was written, and nothing damaged is ever opened."""

import json
import os
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from thrifty.data import shards as module
from thrifty.data.shards import HEADER, open_shards, write_shards, written_beside
from thrifty.spec.errors import ThriftyError


def make(folder, documents, vocab_size=1000, **settings):
    folder.mkdir(exist_ok=True)
    write_shards(folder, [np.array(d, dtype=np.int64) for d in documents], vocab_size, {"name": "test"}, **settings)
    return folder


@given(
    documents=st.lists(st.lists(st.integers(0, 70_000), min_size=1, max_size=30), min_size=1, max_size=10),
    shard_bytes=st.integers(1, 100),
    wide=st.booleans(),
    window=st.tuples(st.integers(0, 300), st.integers(0, 300)),
)
def test_what_was_written_is_read(tmp_path_factory, documents, shard_bytes, wide, window):
    if not wide:
        documents = [[i % 65_536 for i in d] for d in documents]
    folder = make(tmp_path_factory.mktemp("s"), documents, 80_000 if wide else 65_536, shard_bytes=shard_bytes)
    shards = open_shards(folder)
    stream = [i for d in documents for i in d]
    assert shards.tokens == len(stream)
    assert shards.window(0, len(stream)).tolist() == stream
    low, high = sorted(min(edge, len(stream)) for edge in window)
    assert shards.window(low, high).tolist() == stream[low:high]
    assert shards.document_starts.tolist() == np.cumsum([0, *map(len, documents)])[:-1].tolist()
    assert all(p.stat().st_size <= max(shard_bytes, 4) for p in folder.glob("tokens-*"))
    header = json.loads((folder / HEADER).read_text())
    assert header["dtype"] == ("uint32" if wide else "uint16")


def test_a_truncated_shard_says_how_it_is_mended(tmp_path):
    folder = make(tmp_path / "s", [range(500)])
    os.truncate(folder / "tokens-00000.bin", 600)
    with pytest.raises(ThriftyError, match=r"tokens-00000\.bin: token shard has 600 bytes, 1000 expected") as caught:
        open_shards(folder)
    assert f"remove the folder {folder}" in caught.value.hint


@pytest.mark.parametrize("name", ["tokens-00000.bin", "documents.bin"])
def test_a_missing_file_is_named(tmp_path, name):
    folder = make(tmp_path / "s", [range(5)])
    (folder / name).unlink()
    with pytest.raises(ThriftyError, match=rf"{name}: token shard cannot be read"):
        open_shards(folder)


def test_a_changed_byte_is_found_in_small_shards_and_in_all_when_asked(tmp_path, monkeypatch):
    folder = make(tmp_path / "s", [range(500)])
    file = folder / "tokens-00000.bin"
    raw = bytearray(file.read_bytes())
    raw[77] ^= 1
    file.write_bytes(raw)
    with pytest.raises(ThriftyError, match="token shard was changed"):
        open_shards(folder)
    monkeypatch.setattr(module, "VERIFY_BYTES", 100)
    open_shards(folder)
    with pytest.raises(ThriftyError, match="token shard was changed"):
        open_shards(folder, verify=True)


def test_ids_beyond_the_vocabulary_are_found(tmp_path):
    with pytest.raises(ThriftyError, match="beyond its vocabulary of 1000"):
        open_shards(make(tmp_path / "s", [[1, 2, 1000]]))


@pytest.mark.parametrize(
    "header",
    ["", "[]", "{}", '{"version": 2}', "not json"],
)
def test_a_bad_header_is_named(tmp_path, header):
    folder = make(tmp_path / "s", [[1, 2]])
    (folder / HEADER).write_text(header)
    with pytest.raises(ThriftyError, match=r"shards\.json: not a header"):
        open_shards(folder)


@pytest.mark.parametrize(
    ("key", "value"),
    [("tokens", 3), ("documents", 2), ("dtype", "int7"), ("files", []), ("vocab_size", "x"), ("document_starts", None)],
)
def test_a_header_that_does_not_add_up_is_refused(tmp_path, key, value):
    folder = make(tmp_path / "s", [[1, 2]])
    header = json.loads((folder / HEADER).read_text())
    (folder / HEADER).write_text(json.dumps(header | {key: value}))
    with pytest.raises(ThriftyError):
        open_shards(folder)


def test_a_header_cannot_lead_out_of_its_folder(tmp_path):
    folder = make(tmp_path / "s", [[1, 2]])
    header = json.loads((folder / HEADER).read_text())
    header["files"][0]["name"] = "../s/tokens-00000.bin"
    (folder / HEADER).write_text(json.dumps(header))
    with pytest.raises(ThriftyError, match="not a header"):
        open_shards(folder)


def test_a_folder_without_shards(tmp_path):
    with pytest.raises(ThriftyError, match="no token shards here"):
        open_shards(tmp_path)


def test_a_failure_leaves_nothing(tmp_path):
    def fail():
        with written_beside(tmp_path / "s", 1) as part:
            make(part, [[1]])
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert list(tmp_path.iterdir()) == []


def test_who_comes_second_leaves_the_first_alone(tmp_path):
    with written_beside(tmp_path / "s", 1) as slow:
        make(slow, [[1, 2, 3]])
        with written_beside(tmp_path / "s", 1) as fast:
            make(fast, [[4]])
    assert [p.name for p in tmp_path.iterdir()] == ["s"]
    assert open_shards(tmp_path / "s").window(0, 1).tolist() == [4]


def test_leftovers_of_killed_processes_go_once_they_are_old(tmp_path):
    old, young = tmp_path / "s.part-a-1", tmp_path / "s.part-b-2"
    for left in (old, young):
        make(left, [[1]])
    for entry in (old, *old.iterdir()):
        os.utime(entry, (time.time() - 1e6,) * 2)
    with written_beside(tmp_path / "s", 1) as part:
        make(part, [[1]])
    assert sorted(p.name for p in tmp_path.iterdir()) == ["s", "s.part-b-2"]
