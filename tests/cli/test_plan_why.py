"""`thrifty plan --why`, `--rival` and `--explain`: on the screen, in JSON and on the page."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from thrifty.cli import plan
from thrifty.planner.emit import read_plan
from thrifty.spec.errors import ThriftyError

APP = typer.Typer()
APP.command()(plan.command)
KEYS = {"waterfall", "sensitivity", "bandwidth", "explained"}


def run(folder: Path, *words: str) -> str:
    asked = ["gpt2-124m", "--on", "8xa100", *words, "--out", str(folder / "plan.yaml")]
    result = CliRunner().invoke(APP, asked, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def content(folder: Path, *words: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(run(folder, *words, "--json"))
    return found


def test_why_fills_two_screens_after_the_first(tmp_path: Path) -> None:
    output = run(tmp_path, "--why")
    assert output.startswith(run(tmp_path).rpartition("\n\nwritten")[0])
    lines = output.splitlines()
    assert len(lines) <= 135
    assert max(map(len, lines[:-1])) <= 100
    for heading in (
        "from the plain way to this plan",
        "why the next best lost",
        "what the money and the time hang on, one figure at a time",
        "what would change the answer",
        "what bandwidth it needs",
    ):
        assert heading in lines


def test_json_has_a_key_for_each_part_only_when_asked(tmp_path: Path) -> None:
    assert not KEYS & set(content(tmp_path))
    why = content(tmp_path, "--why")
    assert KEYS - {"explained"} <= set(why)
    made = read_plan(tmp_path / "plan.yaml").predicted
    assert why["waterfall"]["rows"][-1]["usd"] == pytest.approx(made.usd.value)
    assert {swing["name"] for swing in why["sensitivity"]["swings"]} >= {"price", "goodput", "pue", "grid"}
    assert why["sensitivity"]["rivals"]
    assert why["bandwidth"]["links"][0]["link"] == "intra_node"
    assert why["bandwidth"]["growth"]["sizes"]
    assert all(way["why"] for way in why["runners_up"])


def test_a_rival_is_compared_without_further_words(tmp_path: Path) -> None:
    found = content(tmp_path, "--rival", "l4", "--rival", "h100")["sensitivity"]["rivals"]
    assert [one["accelerator"] for one in found[:2]] == ["L4", "H100-SXM-80GB"]
    assert "L4" in run(tmp_path, "--rival", "l4")


def test_explain_shows_formula_numbers_and_sources(tmp_path: Path) -> None:
    output = run(tmp_path, "--explain", "usd", "--explain", "steps")
    made = read_plan(tmp_path / "plan.yaml")
    assert output.startswith(f"usd: {made.predicted.usd}")
    assert "= devices x price x seconds / 3600" in output
    assert f"= 8 x {made.cluster.price.value:g} x {made.predicted.seconds.value:,.6g} / 3600" in output
    assert made.cluster.price.date in output
    assert "steps: " in output
    assert "why" not in output, "the plan's own screen is left out"
    told = content(tmp_path, "--explain", "usd")["explained"]
    assert [one["term"] for one in told] == ["usd"]
    assert told[0]["value"] == pytest.approx(made.predicted.usd.value)


def test_explain_list_names_every_term(tmp_path: Path) -> None:
    output = run(tmp_path, "--explain", "list")
    made = dict(read_plan(tmp_path / "plan.yaml").predicted.terms())
    shown = [line.split()[0] for line in output.splitlines() if line and not line.startswith(" ")]
    assert shown[: len(made)] == list(made)
    told = content(tmp_path, "--explain", "list")["explained"]
    assert [one["term"] for one in told] == list(made)


def test_the_page_has_them_too(tmp_path: Path) -> None:
    page = tmp_path / "plan.html"
    run(tmp_path, "--why", "--explain", "usd", "--html", str(page))
    text = page.read_text()
    assert "from the plain way to this plan" in text
    assert "devices x price x seconds / 3600" in text


@pytest.mark.parametrize(
    ("words", "what", "hint"),
    [
        (["--explain", "usdd"], "no term 'usdd'", "did you mean 'usd'"),
        (["--explain", "memory"], "no term 'memory'", "memory.activations"),
        (["--rival", "h1000"], "no accelerator 'h1000'", "'h100'"),
    ],
)
def test_a_wrong_name_is_told_before_anything_is_written(
    tmp_path: Path, words: list[str], what: str, hint: str
) -> None:
    with pytest.raises(ThriftyError, match=what) as error:
        run(tmp_path, *words)
    assert hint in error.value.hint
    assert error.value.where == words[0]
    assert not (tmp_path / "plan.yaml").exists()


def test_a_plan_file_can_be_asked_why(tmp_path: Path) -> None:
    run(tmp_path)
    path = str(tmp_path / "plan.yaml")
    result = CliRunner().invoke(APP, [path, "--why", "--out", str(tmp_path / "again.yaml")], catch_exceptions=False)
    assert "left nothing open" in result.output
    assert read_plan(tmp_path / "again.yaml").hash == read_plan(tmp_path / "plan.yaml").hash
