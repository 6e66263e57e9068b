"""`thrifty islands`: one screen, JSON, and mistakes told with their line."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from thrifty.cli.main import main

EXAMPLE = Path(__file__).resolve().parents[2] / "jobs" / "islands.yaml"


@pytest.fixture
def run(monkeypatch, capsys):
    """`run(file, ...)` is `thrifty islands file ...`: exit code, standard output, standard error."""

    def call(*words):
        monkeypatch.setattr(sys, "argv", ["thrifty", "islands", *map(str, words)])
        code = 0
        try:
            main()
        except SystemExit as end:
            code = int(end.code or 0)
        return code, *capsys.readouterr()

    return call


def test_it_prints_one_screen(run):
    code, out, _ = run(EXAMPLE)
    lines = out.splitlines()
    assert code == 0
    assert len(lines) <= 30
    assert max(map(len, lines)) <= 100
    assert lines[0].startswith("racks and labs: 12 islands, 1B parameters: ")
    for words in (
        "16-bit ring",
        "200 steps, codec",
        "streaming, own steps",
        "quorum 90%",
        "link of lab",
        "20B tokens take",
    ):
        assert words in out


def read(run, *words):
    code, out, errors = run(EXAMPLE, "--json", *words)
    assert code == 0, errors
    return json.loads(out)


def test_figures_of_the_json_have_units_and_sources_and_agree(run):
    found = read(run)
    figures = [f for scheme in found["schemes"].values() for f in scheme["figures"].values()]
    figures += [f for scheme in found["schemes"].values() for g in scheme["islands"].values() for f in g.values()]
    assert all(f["unit"] and f["source"] and f["provenance"] == "modelled" for f in figures)
    best = found["schemes"][found["best"]]["figures"]
    assert best["seconds"]["value"] == pytest.approx(20e9 / best["tokens_per_second"]["value"])
    assert best["usd"]["value"] == pytest.approx(20 * best["usd_per_billion_tokens"]["value"])
    hours = best["seconds"]["value"] / 3600
    assert best["usd"]["value"] == pytest.approx(hours * (2 * 16 + 10 * 3))
    every, rare = (found["schemes"][name]["figures"] for name in ("every step, codec", "200 steps, codec"))
    assert rare["tokens_per_second"]["value"] > every["tokens_per_second"]["value"]


def test_each_group_is_priced_without_the_other(run):
    found = read(run)
    assert set(found["without"]) == {"rack", "lab"}
    assert set(found["without"]["lab"]["islands"]) == {"rack"}


def test_keys_reach_the_figures(run):
    base = read(run)["schemes"]
    codec = read(run, "--set", "codec=int8")["schemes"]
    key = "200 steps, codec"
    sent = [one[key]["islands"]["lab"]["sent_bytes_per_round"]["value"] for one in (base, codec)]
    assert sent[1] > 1.5 * sent[0]
    direct = read(run, "--set", "gather=direct")["schemes"]
    assert direct[key]["figures"]["round_seconds"] != base[key]["figures"]["round_seconds"]
    parts = read(run, "--set", "route=all_to_all")["schemes"]
    assert parts[key]["islands"]["lab"]["sent_bytes_per_round"]["value"] < sent[0] / 4
    summed = read(run, "--set", "codec=randomk(64)")["schemes"]
    assert summed["every step, codec"]["islands"]["rack"]["sent_bytes_per_round"]["value"] < sent[0] / 1.5
    catalog = read(run, "--set", "parameters=null", "--set", "model=llama-3.2-1b")
    assert 1.2e9 < catalog["parameters"] < 1.3e9
    assert "  streaming" not in read(run, "--set", "fragments=1", "--set", "delay=0")["schemes"]


@pytest.mark.parametrize(
    ("written", "instead", "told"),
    [
        ("count: 10", "cont: 10", ("islands.yaml:", "islands.1.cont: unknown key 'cont'", "'count'")),
        ("flops: 3PFLOP/s", "flops: 3PFLOP/s, compute: 1s", ("say how fast it is, once", "islands.0")),
        ("up: 100Mbit/s", "up: 100GiB", ("islands.1.up", "measures bytes, not bytes per second")),
        ("up: 100Mbit/s", "up: 0", ("up must be above zero",)),
        ("topk(1/64) + means2", "topc(1/64)", ("codec", "no codec 'topc(1/64)'", "topk")),
        ("topk(1/64) + means2", "lowrank(4)", ("low rank goes by the shapes of matrices",)),
        ("fragments: 5", "fragments: 201", ("201 fragments in 200 local steps",)),
        ("delay: 30", "delay: 200", ("a delay of 200 steps in a round of 200",)),
        ("parameters: 1B", "model: llama-3.2-1c", ("llama-3.2-1c", "'llama-3.2-1b'")),
        ("parameters: 1B", "seed: 1", ("unknown key 'seed'",)),
        ("name: lab", "name: rack", ("two groups of islands have the same name",)),
    ],
)
def test_mistakes_are_told_with_a_way_out(run, tmp_path, written, instead, told):
    text = EXAMPLE.read_text()
    assert written in text
    file = tmp_path / "islands.yaml"
    file.write_text(text.replace(written, instead))
    code, out, errors = run(file)
    assert code == 2, out
    assert "Traceback" not in errors
    for words in told:
        assert words in errors


def test_no_islands_at_all(run, tmp_path):
    file = tmp_path / "islands.yaml"
    file.write_text("parameters: 1B\nstep_tokens: 1k\nislands: []\n")
    code, _, errors = run(file)
    assert (code, "no islands: at least one group" in errors) == (2, True)
