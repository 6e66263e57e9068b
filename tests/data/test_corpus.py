"""Documents come out whole and in a fixed order, and each mistake in the input is named with its place."""

import gzip
import hashlib
import json
import sys
from pathlib import Path

import pytest

from thrifty.data.corpus import open_corpus, resolve_format, scan
from thrifty.spec.errors import ThriftyError
from thrifty.spec.job import Data


def read(path, **settings) -> list[str]:
    return list(open_corpus(Data(path=str(path), **settings)).documents())


def jsonl(file: Path, *rows) -> Path:
    file.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return file


def test_one_file_is_one_document_as_it_is(tmp_path):
    text = "to be\r\nor not\n\n zwölf €\x00"
    (tmp_path / "a.txt").write_bytes(text.encode())
    assert read(tmp_path / "a.txt") == [text]


def test_a_folder_is_read_in_the_order_of_its_paths(tmp_path):
    (tmp_path / "sub").mkdir()
    for name in ("b.txt", "a.md", "sub/c.txt", ".hidden.txt", "image.png"):
        (tmp_path / name).write_text(name)
    (tmp_path / "empty.txt").write_text("")
    assert read(tmp_path) == ["a.md", "b.txt", "sub/c.txt"]
    assert read(tmp_path, format="text") == ["a.md", "b.txt", "image.png", "sub/c.txt"]


def test_jsonl_gives_a_document_a_line(tmp_path):
    file = jsonl(tmp_path / "a.jsonl", {"text": "one"}, "", {"text": None}, {"text": ""}, {"n": 1, "text": "zwei\nü"})
    assert read(file) == ["one", "zwei\nü"]
    assert read(jsonl(tmp_path / "b.jsonl", {"body": "x"}), text_field="body") == ["x"]


def test_formats_are_told_by_ending_and_data_win_over_their_description(tmp_path):
    jsonl(tmp_path / "data.jsonl", {"text": "x"})
    (tmp_path / "README.md").write_text("about")
    assert resolve_format(Data(path=str(tmp_path))) == "jsonl"
    assert read(tmp_path) == ["x"]
    assert read(tmp_path / "data.jsonl", format="text") == ['{"text": "x"}\n']
    (tmp_path / "data.parquet").touch()
    with pytest.raises(ThriftyError, match=r"data\.format=parquet or data\.format=jsonl"):
        read(tmp_path)


def test_the_standard_library_is_there_and_the_same_each_time():
    corpus = open_corpus(Data())
    first, again = scan(corpus), scan(open_corpus(Data()))
    assert first == again
    assert first.documents > 200
    assert first.bytes > 4e6
    assert any("class JSONDecoder" in text for text in corpus.documents())


def test_scan_counts_and_hashes_the_documents_end_to_end(tmp_path):
    file = jsonl(tmp_path / "a.jsonl", {"text": "ba€"}, {"text": "ab\n"})
    scanned = scan(open_corpus(Data(path=str(file))), alphabet=True)
    assert (scanned.documents, scanned.bytes, scanned.characters) == (2, 8, 6)
    assert scanned.sha256 == hashlib.sha256("ba€ab\n".encode()).hexdigest()
    assert scanned.alphabet == "\nab€"


def test_identity_follows_the_files(tmp_path):
    file = tmp_path / "a.txt"
    file.write_text("one")
    before = open_corpus(Data(path=str(file))).identity
    assert open_corpus(Data(path=str(file))).identity == before
    file.write_text("three")
    assert open_corpus(Data(path=str(file))).identity != before
    json.dumps(before)


def test_a_missing_path_names_its_nearest_neighbour(tmp_path):
    (tmp_path / "shakespeare.txt").write_text("x")
    with pytest.raises(ThriftyError, match=r"no such file(?s:.)*did you mean 'shakespeare.txt'"):
        read(tmp_path / "shakespere.txt")
    with pytest.raises(ThriftyError, match="does not exist either"):
        read(tmp_path / "no" / "a.txt")
    with pytest.raises(ThriftyError, match="cannot be read"):
        read("x" * 5000)


@pytest.mark.parametrize("size", [0, 3])
def test_a_corpus_without_text_is_an_error(tmp_path, size):
    for number in range(size):
        (tmp_path / f"{number}.txt").touch()
    (tmp_path / "a.txt").touch()
    with pytest.raises(ThriftyError, match="holds no text"):
        scan(open_corpus(Data(path=str(tmp_path / "a.txt" if not size else tmp_path))))


def test_a_folder_without_text_says_what_it_holds(tmp_path):
    with pytest.raises(ThriftyError, match="it is empty"):
        read(tmp_path)
    (tmp_path / "a.png").touch()
    with pytest.raises(ThriftyError, match=r"end in \.png"):
        read(tmp_path)
    with pytest.raises(ThriftyError, match="no jsonl files"):
        read(tmp_path, format="jsonl")


def test_what_is_not_utf8_is_named_by_its_offset(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"caf\xe9")
    with pytest.raises(ThriftyError, match=r"a\.txt: not UTF-8 text: byte 0xe9 at offset 3"):
        read(tmp_path / "a.txt")
    (tmp_path / "b.jsonl").write_bytes(b'{"text": "a"}\n{"text": "\xff"}\n')
    with pytest.raises(ThriftyError, match=r"b\.jsonl:2: not UTF-8"):
        read(tmp_path / "b.jsonl")
    (tmp_path / "c.txt").write_bytes(gzip.compress(b"text"))
    with pytest.raises(ThriftyError, match="compressed: unpack"):
        read(tmp_path / "c.txt")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"text": "a"', "not valid JSON"),
        ("plain text", "not valid JSON"),
        ('{"n": ' + "9" * 5000 + "}", "not valid JSON"),
        ("[" * 100_000, "not valid JSON"),
        ('["a"]', "wants a JSON object, got list"),
        ('{"title": "a", "body": "b"}', "no field 'text'; fields there: title, body"),
        ('{"text": 3}', "field 'text' holds int, not text"),
        ('{"text": "\\ud800"}', "field 'text' holds half a surrogate pair"),
    ],
)
def test_a_bad_line_is_named_by_its_number(tmp_path, line, message):
    file = jsonl(tmp_path / "a.jsonl", {"text": "fine"}, line)
    with pytest.raises(ThriftyError, match=rf"a\.jsonl:2: {message}"):
        read(file)


def test_parquet(tmp_path):
    arrow = pytest.importorskip("pyarrow")
    import pyarrow.parquet

    rows = arrow.table({"text": ["one", None, "", "zwei ü"], "n": [1, 2, 3, 4]})
    pyarrow.parquet.write_table(rows, tmp_path / "a.parquet", row_group_size=2)
    assert read(tmp_path / "a.parquet") == ["one", "zwei ü"]
    with pytest.raises(ThriftyError, match="no field 'body'; fields there: text, n"):
        read(tmp_path, text_field="body")
    with pytest.raises(ThriftyError, match="'n' holds int64, not text"):
        read(tmp_path, text_field="n")
    (tmp_path / "a.parquet").write_bytes(b"PAR1 but not really")
    with pytest.raises(ThriftyError, match="not a Parquet file"):
        read(tmp_path)


def test_a_missing_library_says_how_to_install_it(tmp_path, monkeypatch):
    (tmp_path / "a.parquet").touch()
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ThriftyError, match="pip install pyarrow"):
        read(tmp_path)
    with pytest.raises(ThriftyError, match=r"pip install 'thrifty\[hf\]'"):
        read("owner/name", format="dataset")


def test_a_dataset_on_disk(tmp_path):
    datasets = pytest.importorskip("datasets")
    table = datasets.Dataset.from_dict({"text": ["one", None, "two"], "n": [1, 2, 3]})
    table.save_to_disk(tmp_path / "flat")
    assert read(tmp_path / "flat") == ["one", "two"]
    datasets.DatasetDict({"train": table, "validation": table.select([0])}).save_to_disk(tmp_path / "split")
    assert read(tmp_path / "split") == ["one", "two"]
    assert read(f"{tmp_path}/split::validation", format="dataset") == ["one"]
    with pytest.raises(ThriftyError, match="did you mean 'validation'"):
        read(f"{tmp_path}/split::valid", format="dataset")
    with pytest.raises(ThriftyError, match="no field 'body'; fields there: text, n"):
        read(tmp_path / "flat", text_field="body")
    with pytest.raises(ThriftyError, match="holds int, not text"):
        read(tmp_path / "flat", text_field="n")
