"""`thrifty plan`: one screen, one file, fast, and without torch."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from thrifty.cli import plan
from thrifty.planner.emit import read_plan
from thrifty.planner.space import OPTIONAL
from thrifty.spec.errors import ThriftyError

APP = typer.Typer()
APP.command()(plan.command)


def run(*words: str, folder: Path) -> str:
    out = [] if "--out" in words else ["--out", str(folder / "plan.yaml")]
    result = CliRunner().invoke(APP, [*words, *out], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def test_it_prints_one_screen_and_writes_the_plan(tmp_path: Path) -> None:
    output = run("llama-3-8b", "--on", "64xh100", folder=tmp_path)
    assert len(output.splitlines()) <= 45
    assert max(map(len, output.splitlines()[:-1])) <= 100
    made = read_plan(tmp_path / "plan.yaml")
    assert output.startswith(f"llama-3-8b on 64xH100-SXM-80GB: {made.predicted.usd}")
    assert made.recipe.layout.ranks == 64


def test_given_keys_and_files_are_kept(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("recompute: full\nbatch: {sequences: 128}\n")
    run("gpt2-124m", "--on", "8xa100", "--recipe", str(recipe), "--set", "recipe.optimizer.lr=1e-4", folder=tmp_path)
    made = read_plan(tmp_path / "plan.yaml").recipe
    assert (made.recompute, made.batch.sequences, made.optimizer.lr) == ("full", 128, 1e-4)


def test_json_and_html(tmp_path: Path) -> None:
    page = tmp_path / "plan.html"
    output = run("gpt2-124m", "--on", "8xa100", "--json", "--html", str(page), folder=tmp_path)
    content = json.loads(output)
    assert content["plan"]["hash"] == read_plan(tmp_path / "plan.yaml").hash
    assert content["html"] == str(page)
    assert "gpt2-124m" in page.read_text()


def test_a_plan_can_be_planned_again(tmp_path: Path) -> None:
    run("gpt2-124m", "--on", "8xa100", folder=tmp_path)
    before = read_plan(tmp_path / "plan.yaml")
    run(str(tmp_path / "plan.yaml"), "--set", "recipe.precision=fp32", folder=tmp_path)
    after = read_plan(tmp_path / "plan.yaml")
    assert after.recipe == before.recipe.model_copy(update={"precision": "fp32"})
    assert after.hash != before.hash


def test_what_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ThriftyError, match="cannot be written") as error:
        run("gpt2-124m", "--on", "a100", "--out", str(tmp_path / "file" / "plan.yaml"), folder=tmp_path)
    assert "--out" in error.value.hint


def test_it_needs_neither_torch_nor_numpy(tmp_path: Path) -> None:
    script = (
        "import sys\n"
        "from thrifty.cli.main import app\n"
        f"sys.argv = ['thrifty', 'plan', 'llama-3-8b', '--on', '64xh100', '--out', {str(tmp_path / 'plan.yaml')!r}]\n"
        "try:\n    app()\nexcept SystemExit as stop:\n    assert not stop.code, stop.code\n"
        "loaded = {'torch', 'numpy', 'tokenizers', 'altair'} & set(sys.modules)\n"
        "assert not loaded, loaded\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("llama-3-8b on 64xH100")


def test_a_range_of_devices_prints_what_nothing_beats(tmp_path: Path) -> None:
    words = ("gpt2-124m", "--on", "1..8xa100", "--set", "job.tokens=2e9", "--objective", "time")
    output = run(*words, folder=tmp_path)
    assert output.startswith("devices that nothing beats")
    made = read_plan(tmp_path / "plan.yaml")
    assert made.cluster.devices == 8
    assert f"the plan is for {made.cluster.devices} devices" in output
    sizes = json.loads(run(*words, "--json", folder=tmp_path))["sizes"]
    assert [one["devices"] for one in sizes] == [1, 2, 4, 8]
    assert [one["devices"] for one in sizes if one["chosen"]] == [8]
    assert min(sizes, key=lambda one: one["seconds"])["devices"] == 8


def test_software_levers_and_limits_reach_the_search(tmp_path: Path) -> None:
    words = ("llama-3-8b", "--on", "16xh100", "--software", "torchtitan", "--levers", "lowbit,localsteps")
    content = json.loads(run(*words, "--json", folder=tmp_path))
    recipe = content["plan"]["recipe"]
    assert recipe["software"] == "torchtitan"
    assert recipe["precision"] == "fp8"
    assert sum(content["excluded_by"].values()) < content["tried"]
    with pytest.raises(ThriftyError, match="stays within"):
        run("llama-3-8b", "--on", "16xh100", "--deadline", "1h", folder=tmp_path)


def test_the_help_names_every_lever() -> None:
    assert tuple(OPTIONAL) == plan._LEVERS
