"""Settings files: where each value came from, and a clear word on every mistake."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from thrifty.spec.errors import ThriftyError
from thrifty.spec.job import Data, Job, Tokenizer
from thrifty.spec.load import Settings, build, fields, from_dict, leaves, parse_set, read_layers, read_yaml, to_yaml
from thrifty.spec.recipe import Recipe

SHAPE = {"layers": 2, "hidden": 8, "heads": 2, "ffn": 16, "vocab_size": 11}
JOB = {"model": SHAPE, "steps": 3, "sequence_length": 4}


def write(folder: Path, text: str, name: str = "job.yaml") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


# ---- reading


def test_each_key_knows_its_line(tmp_path):
    path = write(tmp_path, "# a comment\njob:\n  seed: 7\n\n  data:\n    path: a.txt\n")
    read = read_yaml(path)
    assert read.tree == {"job": {"seed": 7, "data": {"path": "a.txt"}}}
    assert read.where("job.seed") == f"{path}:3"
    assert read.where("job.data.path") == f"{path}:6"
    assert read.where("job.data.format") == f"{path}:5", "a key that is absent is where the key around it is"
    assert read.where("cluster") == ""


@pytest.mark.parametrize(
    ("written", "value"),
    [
        ("3e-4", 3e-4),
        ("1E6", 1e6),
        ("1_000", 1000),
        ("-2", -2),
        ("0.5", 0.5),
        (".5", 0.5),
        ("5.", 5.0),
        ("on", "on"),
        ("off", "off"),
        ("yes", "yes"),
        ("NO", "NO"),
        ("y", "y"),
        ("true", True),
        ("False", False),
        ("1:30", "1:30"),
        ("2024-01-01", "2024-01-01"),
        ("0123", "0123"),
        ("0x10", "0x10"),
        ("1.2.3", "1.2.3"),
        ("80GiB", "80GiB"),
        ("'3e-4'", "3e-4"),
        ("'12'", "12"),
        ("null", None),
        ("~", None),
        ("[1, 2e3, x]", [1, 2000.0, "x"]),
    ],
)
def test_yaml_means_what_people_mean(tmp_path, written, value):
    read = read_yaml(write(tmp_path, f"key: {written}\n")).tree["key"]
    assert read == value
    assert type(read) is type(value)


@pytest.mark.parametrize(
    ("text", "line", "told"),
    [
        ("job:\n  seed: 1\n  seed: 2\n", 3, "given twice"),
        ("job: [1\n", 2, "not valid YAML"),
        ("job:\n\tseed: 1\n", 2, "not valid YAML"),
        ("- a\n- b\n", 1, "must be a mapping"),
        ("a: !!python/object:os.system {}\nb: !!float x\n", 2, "cannot read the value"),
    ],
)
def test_a_bad_file_is_told_with_its_line(tmp_path, text, line, told):
    path = write(tmp_path, text)
    with pytest.raises(ThriftyError, match=told) as caught:
        read_yaml(path)
    assert caught.value.where == f"{path}:{line}"


def test_an_empty_file(tmp_path):
    with pytest.raises(ThriftyError, match="is empty"):
        read_yaml(write(tmp_path, "# nothing\n"))


def test_not_utf8(tmp_path):
    path = tmp_path / "job.yaml"
    path.write_bytes(b"job: caf\xe9\n")
    with pytest.raises(ThriftyError, match=r"not UTF-8 text \(byte 8\)") as caught:
        read_yaml(path)
    assert caught.value.where == str(path)


def test_a_missing_file_names_its_neighbour(tmp_path):
    write(tmp_path, "a: 1", "shakespeare.yaml")
    with pytest.raises(ThriftyError, match="no such job file") as caught:
        read_yaml(tmp_path / "shakespear.yaml", "job file")
    assert "shakespeare.yaml" in caught.value.hint
    with pytest.raises(ThriftyError, match="does not exist either"):
        read_yaml(tmp_path / "nowhere" / "job.yaml")


def test_a_folder_is_not_a_file(tmp_path):
    with pytest.raises(ThriftyError, match="is a folder"):
        read_yaml(tmp_path)


# ---- --set


@pytest.mark.parametrize(
    ("text", "tree"),
    [
        ("a.b=3e-4", {"a": {"b": 3e-4}}),
        ("a=on", {"a": "on"}),
        ("a=", {"a": ""}),
        ("a=b=c", {"a": "b=c"}),
        ("a.b={c: 1, d: 80GiB}", {"a": {"b": {"c": 1, "d": "80GiB"}}}),
        ("a=null", {"a": None}),
        ("a=x: [", {"a": "x: ["}),
    ],
)
def test_set_reads_values_as_a_file_would(text, tree):
    assert parse_set(text).tree == tree


@pytest.mark.parametrize("text", ["a.b", "=1", "a..b=1", ".a=1", "a.=1", ""])
def test_a_malformed_set(text):
    with pytest.raises(ThriftyError, match="wants KEY=VALUE"):
        parse_set(text)


# ---- laying one over another


def test_the_upper_layer_wins_and_keeps_its_origin():
    lower = from_dict({"a": {"x": 1, "y": 2}, "b": 3}, "file")
    both = from_dict({"a": {"y": 5}}, "--set").over(lower)
    assert both.tree == {"a": {"x": 1, "y": 5}, "b": 3}
    assert (both.where("a.x"), both.where("a.y"), both.where("b")) == ("file", "--set", "file")
    assert lower.tree == {"a": {"x": 1, "y": 2}, "b": 3}, "the lower layer is left as it was"


def test_a_value_replaces_a_mapping_and_its_origins():
    both = from_dict({"price": "2usd/h"}, "--set").over(from_dict({"price": {"value": 3, "source": "x"}}, "catalog"))
    assert both.tree == {"price": "2usd/h"}
    assert both.where("price.source") == "--set"


def test_put_and_without():
    one = Settings().put("a.b.c", 1, "here").put("a.d", 2, "there")
    assert one.tree == {"a": {"b": {"c": 1}, "d": 2}}
    assert (one.where("a.b"), one.where("a.d")) == ("", "there"), "only what was put has its origin"
    assert one.without("a.b").tree == {"a": {"d": 2}}
    assert one.without("a.b").where("a.b.c") == ""
    assert one.without("no.such.key").tree == one.tree
    assert one.at("a.b.c") == 1
    assert one.at("a.b.c.d") is None


keys = st.text("abc", min_size=1, max_size=2)
trees = st.recursive(st.integers(0, 9), lambda inner: st.dictionaries(keys, inner, max_size=3), max_leaves=6)


@given(st.dictionaries(keys, trees, max_size=3), st.dictionaries(keys, trees, max_size=3))
def test_every_leaf_of_two_layers_has_the_origin_of_the_layer_that_gave_it(upper, lower):
    both = from_dict(upper, "upper").over(from_dict(lower, "lower"))
    for path, value in leaves(both.tree):
        mine = Settings(upper).at(path)
        if mine == value and mine is not None and mine != {}:
            assert both.where(path) == "upper"
        elif mine is None:
            assert both.where(path) == "lower"


# ---- building nouns


def refused(noun, tree, prefix="job"):
    with pytest.raises(ThriftyError) as caught:
        build(noun, from_dict({prefix: tree}, "job.yaml:4"), prefix)
    return str(caught.value)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"sed": 1}, ["job.yaml:4: job.sed", "unknown key 'sed'", "'seed'"]),
        ({"model": SHAPE | {"layrs": 2}}, ["job.model.layrs", "'layers'"]),
        (
            {"data": {"tokenizer": {"kind": "bpee"}}},
            ["job.data.tokenizer.kind", "'bpee' is not a valid choice", "'bpe'"],
        ),
        ({"tokens": "80GiB", "steps": None}, ["job.tokens", "measures bytes, not tokens"]),
        ({"sequence_length": "long"}, ["job.sequence_length", "'long'"]),
        ({"sequence_length": 0}, ["job.sequence_length", "greater than 0"]),
        ({"sequence_length": 2.5}, ["job.sequence_length", "integer"]),
        ({"steps": None}, ["job.yaml:4: job", "say how long to train"]),
        ({"tokens": 5}, ["tokens or steps, not both"]),
        ({"data": 7}, ["job.data"]),
        ({"seed": {"x": 1}}, ["job.seed"]),
        ({"tokens": ["5"], "steps": None}, ["job.tokens", "wants a quantity"]),
    ],
)
def test_a_mistake_is_told_with_place_key_and_way_out(change, told):
    message = refused(Job, JOB | change)
    for part in told:
        assert part in message


def test_a_missing_key_is_told():
    assert "the key 'sequence_length' is missing" in refused(Job, {"model": SHAPE, "steps": 1})


def test_a_set_does_not_hide_the_line_of_what_is_around_it():
    both = parse_set("job.seed=1").over(from_dict({"job": JOB | {"steps": None}}, "job.yaml:1"))
    with pytest.raises(ThriftyError, match="say how long to train") as caught:
        build(Job, both, "job")
    assert caught.value.where == "job.yaml:1: job"


def test_all_mistakes_are_told_at_once():
    message = refused(Job, JOB | {"sed": 1, "sequence_length": "long", "model": SHAPE | {"layrs": 2}})
    assert all(part in message for part in ("job.sed", "job.sequence_length", "job.model.layrs"))


def test_a_mistake_in_a_set_names_the_set():
    given_ = parse_set("job.sequence_length=80GiB").over(from_dict({"job": JOB}, "job.yaml:1"))
    with pytest.raises(ThriftyError, match=re.escape("job.sequence_length")):
        build(Job, given_, "job")


def test_a_section_that_is_no_mapping():
    with pytest.raises(ThriftyError, match="job must be a mapping"):
        build(Job, from_dict({"job": 5}, "job.yaml:1"), "job")


# ---- writing and reading back

TRAPS = ["on", "off", "yes", "no", "null", "~", "true", "1", "3e-4", "1_000", "0x1F", "1:30", "2024-01-01", ".5", "5."]
TRAPS += [
    "",
    " x",
    "x ",
    "a: b",
    "# x",
    "- x",
    "[x]",
    "{x}",
    "'",
    '"',
    "a\nb",
    "a\tb",
    "é€",
    "!x",
    "&x",
    "*x",
    "%",
    "@",
]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(name=st.one_of(st.sampled_from(TRAPS), st.text()), lr=st.floats(1e-12, 1e3), field=st.sampled_from(TRAPS))
def test_nouns_survive_being_written_and_read(tmp_path, name, lr, field):
    job = Job(**JOB, name=name, data=Data(text_field=field, tokenizer=Tokenizer(kind="hf", path="on")))
    assert build(Job, read_yaml(write(tmp_path, to_yaml(job))), "") == job
    recipe = Recipe.model_validate({"batch": {"sequences": 8, "micro_sequences": 2}, "optimizer": {"lr": lr}})
    assert build(Recipe, read_yaml(write(tmp_path, to_yaml(recipe))), "") == recipe


def test_fields_names_every_key():
    names = set(fields(Job))
    assert {"name", "model.layers", "model.rope_scaling.factor", "data.tokenizer.kind", "tokens", "seed"} <= names
    assert "recompute" in set(fields(Recipe))


def test_a_base_is_laid_under_the_file(tmp_path):
    write(tmp_path, "job: {steps: 3, seed: 1}\n", "lowest.yaml")
    (tmp_path / "in").mkdir()
    write(tmp_path, "base: ../lowest.yaml\njob: {seed: 2}\n", "in/lower.yaml")
    read = read_layers(write(tmp_path, "base: in/lower.yaml\nrecipe: {compile: true}\n"))
    assert read.tree == {"job": {"steps": 3, "seed": 2}, "recipe": {"compile": True}}
    assert read.where("job.steps") == f"{tmp_path / 'in/../lowest.yaml'}:1"
    assert read.where("job.seed") == f"{tmp_path / 'in/lower.yaml'}:2"


@pytest.mark.parametrize(("base", "told"), [("job.yaml", "its own base"), ("[1]", "must be a path"), ("no.yaml", "no")])
def test_a_base_that_leads_nowhere(tmp_path, base, told):
    with pytest.raises(ThriftyError, match=told):
        read_layers(write(tmp_path, f"base: {base}\njob: {{seed: 1}}\n"))
