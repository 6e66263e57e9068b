"""`thrifty serve`: one screen, JSON, and mistakes told in one message."""

from __future__ import annotations

import json
import sys

import pytest
import typer
from typer.testing import CliRunner

from thrifty.cli import serve
from thrifty.cli.main import main

APP = typer.Typer()
APP.command()(serve.command)


def run(*words: str) -> str:
    result = CliRunner().invoke(APP, list(words), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def figures(*words: str) -> dict[str, float]:
    found = json.loads(run(*words, "--json"))["figures"]
    return {name: figure["value"] for name, figure in found.items()}


def test_it_prints_one_screen():
    output = run("llama-3.1-70b", "--on", "8xh100", "--weights", "fp8", "--kv", "fp8", "--lifetime", "10T tokens")
    lines = output.splitlines()
    assert len(lines) <= 32
    assert max(map(len, lines)) <= 100
    assert lines[0].startswith("llama-3.1-70b on 8xH100-SXM-80GB: ")
    for words in ("between tokens", "watts of a device", "cache on a device", "a step spends", "this model"):
        assert words in output
    assert "cheapest size for that loss" in output


def test_every_figure_of_the_json_has_a_unit_and_a_source():
    found = json.loads(run("llama-3.1-8b", "--on", "1xh100", "--batch", "8", "--json"))
    assert found["deployment"] == {"tensor": 1, "data": 1, "replicas": 1, "weights": "bf16", "kv": "bf16"}
    assert all(figure["unit"] and figure["source"] for figure in found["figures"].values())
    assert found["figures"]["batch"]["value"] == 8
    assert sum(found["limits"].values()) == pytest.approx(1)
    assert "lifetime" not in found


def test_options_reach_the_figures():
    plain = figures("llama-3.1-8b", "--on", "1xh100", "--batch", "8")
    assert figures("llama-3.1-8b", "--on", "1xh100", "--batch", "16")["tokens_per_second"] > plain["tokens_per_second"]
    assert figures("llama-3.1-8b", "--on", "1xh100", "--max-load")["batch"] > 50
    long = figures("llama-3.1-8b", "--on", "1xh100", "--batch", "8", "--input", "8k", "--output", "100")
    assert long["first_token"] > plain["first_token"]
    assert long["requests_per_second"] != plain["requests_per_second"]
    assert figures("llama-3.1-8b", "--on", "1xh100", "--batch", "8", "--kv", "fp8")["kv_bytes"] < plain["kv_bytes"]
    other = figures("llama-3.1-8b", "--on", "1xh100", "--batch", "8", "--engine", "tensorrt-llm")
    assert other["token_gap"] != plain["token_gap"]
    dear = figures("llama-3.1-8b", "--on", "1xh100", "--batch", "8", "--set", "cluster.price=100usd/h")
    assert dear["usd_per_million"] > 10 * plain["usd_per_million"]
    drafted = figures("llama-3.1-8b", "--on", "1xh100", "--batch", "8", "--speculative", "llama-3.2-1b:3:0.9")
    assert drafted["tokens_per_second"] != plain["tokens_per_second"]
    split = json.loads(run("llama-3.1-8b", "--on", "4xh100", "--tensor", "4", "--json"))
    assert split["deployment"]["tensor"] == 4


def test_a_life_has_training_beside_serving():
    words = ("llama-3.1-8b", "--on", "8xh100", "--lifetime", "1T tokens", "--json")
    life = json.loads(run(*words))["lifetime"]
    assert life["own"]["usd"]["value"] == pytest.approx(
        life["own"]["training_usd"]["value"] + life["own"]["serving_usd"]["value"]
    )
    assert life["cheapest"]["usd"]["value"] <= life["own"]["usd"]["value"]
    longer = json.loads(run(*words, "--trained-on", "15T tokens"))["lifetime"]
    assert longer["own"]["loss"] < life["own"]["loss"]
    faster = json.loads(run(*words, "--mfu", "50%"))["lifetime"]
    assert faster["own"]["training_usd"]["value"] == pytest.approx(0.8 * life["own"]["training_usd"]["value"])


def test_weights_that_are_only_stored_are_noted():
    assert "products run in bf16 on A100" in run("llama-3.1-8b", "--on", "1xa100", "--weights", "fp8", "--batch", "4")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("llama-3.1-9b", "--on", "1xh100"), "llama-3.1-8b"),
        (("llama-3.1-8b", "--on", "1xh100", "--batch", "8", "--max-load"), "exclude each other"),
        (("llama-3.1-8b", "--on", "1xh100", "--batch", "0"), "at least 1"),
        (("llama-3.1-8b", "--on", "1xh100", "--weights", "fp7"), "fp8"),
        (("llama-3.1-8b", "--on", "1xh100", "--engine", "tgi"), "vllm"),
        (("llama-3.1-8b", "--on", "1xh100", "--input", "many"), "--input"),
        (("llama-3.1-8b", "--on", "1xh100", "--speculative", "llama-3.2-1b"), "DRAFT:LENGTH:RATE"),
        (("llama-3.1-8b", "--on", "1xh100", "--speculative", "llama-3.2-1b:4:1.5"), "rate from 0 to 1"),
        (("llama-3.1-8b", "--on", "1xh100", "--trained-on", "1T tokens"), "--lifetime"),
        (("llama-3.1-8b", "--on", "1xh100", "--lifetime", "1T tokens", "--mfu", "400%"), "at most 1"),
        (("llama-3.1-405b", "--on", "2xh100"), "devices or more"),
        (("llama-3.1-8b", "--on", "8xh100", "--tensor", "5"), "does not divide"),
    ],
)
def test_mistakes(words, says, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["thrifty", "serve", *words])
    with pytest.raises(SystemExit) as stopped:
        main()
    told = capsys.readouterr().err
    assert stopped.value.code == 2
    assert told.startswith("error: ")
    assert says in told
    assert "Traceback" not in told
