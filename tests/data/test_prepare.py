"""From a path to shards: made once, found again, safe against others at the same work and against a full disk."""

import json
import os
import subprocess
import sys
from itertools import pairwise

import numpy as np
import pytest

from thrifty.data.loader import Samples
from thrifty.data.prepare import default_cache, prepare
from thrifty.data.tokenizer import vocabulary_size
from thrifty.spec import job
from thrifty.spec.errors import ThriftyError
from thrifty.spec.job import Data

TEXT = "".join(f"line {n} of the text, {n * n}\n" for n in range(400))


def text_data(folder, **settings) -> Data:
    (folder / "a.txt").write_text(TEXT)
    return Data(path=str(folder / "a.txt"), **settings)


def quiet(line: str) -> None: ...


@pytest.mark.parametrize(("kind", "ends"), [("bytes", True), ("chars", False), ("bpe", True)])
def test_the_shards_hold_the_text(tmp_path, kind, ends):
    data = text_data(tmp_path, tokenizer=job.Tokenizer(kind=kind, vocab_size=300))
    lines: list[str] = []
    ready = prepare(data, tmp_path / "cache", lines.append)
    ids = ready.shards.window(0, ready.tokens)
    assert ready.tokenizer.decode(ids) == TEXT
    assert (ids[-1] == ready.tokenizer.end_id) == ends
    assert ready.documents == 1
    assert ready.manifest["bytes"] == len(TEXT)
    assert ready.manifest["vocab_size"] == ready.tokenizer.vocab_size == vocabulary_size(data)
    json.dumps(ready.manifest)
    assert len(lines) == 1
    for figure in ("1 document,", ready.manifest["sha256"], f"{ready.tokens:,} tokens", kind):
        assert figure in lines[0]


@pytest.mark.parametrize("kind", ["bytes", "chars"])
def test_documents_keep_their_borders(tmp_path, kind):
    texts = ["one", "zwei", "3" * 1000]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in texts))
    ready = prepare(Data(path=str(tmp_path / "a.jsonl"), tokenizer=job.Tokenizer(kind=kind)), tmp_path / "c", quiet)
    starts = [*ready.shards.document_starts.tolist(), ready.tokens]
    found = [ready.shards.window(low, high) for low, high in pairwise(starts)]
    assert [ready.tokenizer.decode(ids) for ids in found] == texts
    assert [ids[-1] for ids in found] == [ready.tokenizer.end_id] * 3


def test_many_documents_come_out_in_their_order(tmp_path):
    texts = [f"document {n}" for n in range(25)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in texts))
    ready = prepare(Data(path=str(tmp_path / "a.jsonl")), tmp_path / "c", quiet)
    assert ready.tokenizer.decode(ready.shards.window(0, ready.tokens)) == "".join(texts)
    assert ready.documents == 25


def test_a_second_run_reads_no_text(tmp_path, monkeypatch):
    data = text_data(tmp_path)
    first = prepare(data, tmp_path / "cache", quiet)
    monkeypatch.setattr("thrifty.data.prepare._make", None)
    assert prepare(data, tmp_path / "cache", quiet).folder == first.folder
    later = data.model_copy(update={"packing": "documents", "validation_fraction": 0.3})
    assert prepare(later, tmp_path / "cache", quiet).folder == first.folder


def test_changed_text_or_tokenizer_is_prepared_anew(tmp_path):
    data = text_data(tmp_path)
    folders = {prepare(data, tmp_path / "cache", quiet).folder}
    chars = data.model_copy(update={"tokenizer": job.Tokenizer(kind="chars")})
    folders.add(prepare(chars, tmp_path / "cache", quiet).folder)
    (tmp_path / "a.txt").write_text(TEXT + "more")
    ready = prepare(data, tmp_path / "cache", quiet)
    folders.add(ready.folder)
    assert len(folders) == 3
    assert ready.manifest["bytes"] == len(TEXT) + 4


def test_a_folder_of_shards_brings_its_tokenizer(tmp_path):
    made = prepare(text_data(tmp_path, tokenizer=job.Tokenizer(kind="chars")), tmp_path / "cache", quiet)
    data = Data(path=str(made.folder))
    again = prepare(data, tmp_path / "other", quiet)
    assert vocabulary_size(data) == again.tokenizer.vocab_size == made.tokenizer.vocab_size
    assert again.manifest["sha256"] == made.manifest["sha256"]
    np.testing.assert_array_equal(Samples(again, "train", 8, 1).batch(0, 4), Samples(made, "train", 8, 1).batch(0, 4))
    assert not (tmp_path / "other").exists()
    with pytest.raises(ThriftyError, match="made with the tokenizer 'chars'"):
        prepare(data.model_copy(update={"tokenizer": job.Tokenizer(kind="bpe")}), tmp_path / "other", quiet)


def test_a_damaged_cache_is_mended_as_its_message_says(tmp_path):
    data = text_data(tmp_path)
    ready = prepare(data, tmp_path / "cache", quiet)
    os.truncate(ready.folder / "tokens-00000.bin", 10)
    with pytest.raises(ThriftyError, match=r"10 bytes, \d+ expected") as caught:
        prepare(data, tmp_path / "cache", quiet)
    assert f"remove the folder {ready.folder}" in caught.value.hint
    for file in sorted(ready.folder.rglob("*"), reverse=True):
        file.rmdir() if file.is_dir() else file.unlink()
    ready.folder.rmdir()
    assert prepare(data, tmp_path / "cache", quiet).tokens == ready.tokens


def test_bad_text_leaves_no_cache(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"fine\xff")
    with pytest.raises(ThriftyError, match="not UTF-8"):
        prepare(Data(path=str(tmp_path / "a.txt")), tmp_path / "cache", quiet)
    assert not list((tmp_path / "cache").glob("*"))


def test_the_cache_is_where_the_desktop_standard_puts_it(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_cache() == tmp_path / "thrifty" / "data"
    assert prepare(text_data(tmp_path), notify=quiet).folder.parent == default_cache()
    monkeypatch.setenv("XDG_CACHE_HOME", "relative/paths/do/not/count")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert default_cache() == tmp_path / "home" / ".cache" / "thrifty" / "data"


def test_a_cache_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ThriftyError, match="cannot write token shards") as caught:
        prepare(text_data(tmp_path), tmp_path / "file" / "cache", quiet)
    assert "XDG_CACHE_HOME" in caught.value.hint


@pytest.fixture
def small_disk(tmp_path):
    """One MiB of disk."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(place)]
    try:
        done = subprocess.run(mount, capture_output=True, text=True)
    except OSError as error:
        pytest.skip(f"cannot mount a tmpfs: {error}")
    if done.returncode:
        pytest.skip(f"cannot mount a tmpfs: {done.stderr.strip()}")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def test_a_full_disk_is_a_clear_error_and_leaves_nothing(tmp_path, small_disk):
    (tmp_path / "big.txt").write_text(TEXT * 100)
    with pytest.raises(ThriftyError, match=r"disk full: the token shards need about 2\.\d+ MiB, .* are free") as caught:
        prepare(Data(path=str(tmp_path / "big.txt")), small_disk / "cache", quiet)
    assert str(small_disk) in caught.value.where
    assert list((small_disk / "cache").iterdir()) == []


def test_two_processes_at_once_get_the_same_shards(tmp_path):
    (tmp_path / "a.txt").write_text(TEXT * 200)
    script = (
        "import sys, pathlib, time\n"
        "from thrifty.data.prepare import prepare\n"
        "from thrifty.spec.job import Data\n"
        "print('ready', flush=True); sys.stdin.readline()\n"
        "ready = prepare(Data(path=sys.argv[1]), pathlib.Path(sys.argv[2]), lambda line: None)\n"
        "print(ready.folder, ready.tokens, int(ready.shards.window(0, ready.tokens).astype('int64').sum()))\n"
    )
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    command = [sys.executable, "-c", script, str(tmp_path / "a.txt"), str(tmp_path / "cache")]
    processes = [subprocess.Popen(command, **pipes) for _ in range(2)]
    for process in processes:
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        process.stdin.write("go\n")
        process.stdin.flush()
    answers = [process.communicate(timeout=60)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert answers[0] == answers[1] != ""
    assert len(list((tmp_path / "cache").iterdir())) == 1


def test_data_imports_no_torch():
    script = "import sys, thrifty.data.loader, thrifty.data.prepare; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, text=True).stdout == "False\n"
