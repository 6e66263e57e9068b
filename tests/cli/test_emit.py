"""`thrifty emit` and `thrifty plan --emit`: one implementation, files listed, nothing written on a refusal."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from thrifty.cli import emit, plan
from thrifty.planner.emit import read_plan
from thrifty.spec.errors import ThriftyError

APP = typer.Typer()
APP.command("plan")(plan.command)
APP.command("emit")(emit.command)


def run(*words: str) -> str:
    result = CliRunner().invoke(APP, [*words], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


# No pipeline and no tensor ranks, which accelerate and DeepSpeed do not take from a configuration.
SHARDED = [word for axis in ("pipeline", "tensor") for word in ("--set", f"recipe.layout.{axis}=1")]


@pytest.fixture(scope="module")
def planned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("planned") / "plan.yaml"
    run("plan", "llama-3-8b", "--on", "16xh100", "--out", str(path), *SHARDED)
    return path


def test_a_plan_becomes_files_and_the_way_to_run_them_is_told(planned: Path, tmp_path: Path) -> None:
    output = run("emit", str(planned), "slurm", "torchtitan", "--out", str(tmp_path))
    names = {"job.slurm", "plan.yaml", "torchrun-thrifty.sh", "torchtitan_plan.py", "torchrun-torchtitan.sh"}
    assert {path.name for path in tmp_path.iterdir()} == names
    assert f"next: sbatch {tmp_path / 'job.slurm'}" in output
    assert f"next: bash {tmp_path / 'torchrun-torchtitan.sh'}" in output
    assert read_plan(tmp_path / "plan.yaml") == read_plan(planned)


def test_plan_emits_what_emit_does(tmp_path: Path) -> None:
    made, out = tmp_path / "made", str(tmp_path / "plan.yaml")
    words = ["plan", "llama-3-8b", "--on", "16xh100", "--out", out, "--emit-dir", str(made), "--json"]
    words += [*SHARDED, "--set", "recipe.layout.island=1"]
    told: dict[str, Any] = json.loads(run(*words, "--emit", "kubeflow", "--emit", "deepspeed"))["emitted"]
    assert told["kubeflow"]["files"] == [str(made / "trainjob.yaml")]
    assert told["kubeflow"]["next"] == f"kubectl create -f {made / 'trainjob.yaml'}"
    again: dict[str, Any] = json.loads(run("emit", out, "deepspeed", "--out", str(tmp_path / "again"), "--json"))
    for file in told["deepspeed"]["files"]:
        name = Path(file).name
        assert (tmp_path / "again" / name).read_text() == Path(file).read_text()
    assert {Path(file).name for file in again["emitted"]["deepspeed"]["files"]} == {
        "deepspeed.json", "model.json", "torchrun-deepspeed.sh",
    }  # fmt: skip


def test_no_emit_no_folder(planned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run("plan", str(planned), "--out", "again.yaml")
    assert {path.name for path in tmp_path.iterdir()} == {"again.yaml"}


@pytest.mark.parametrize(("word", "near"), [("slrum", "slurm"), ("megatron-lm", "megatron"), ("k8s", "valid choices")])
def test_an_unknown_target_names_the_nearest(planned: Path, tmp_path: Path, word: str, near: str) -> None:
    for words in (
        ["emit", str(planned), word, "--out", str(tmp_path / "out")],
        ["plan", "llama-3-8b", "--on", "16xh100", "--emit", word, "--out", str(tmp_path / "plan.yaml")],
    ):
        with pytest.raises(ThriftyError, match="is no target") as error:
            run(*words)
        assert near in error.value.hint
    assert list(tmp_path.iterdir()) == [], "nothing is written, and nothing planned"


def test_a_refusal_writes_none_of_the_files(planned: Path, tmp_path: Path) -> None:
    with pytest.raises(ThriftyError) as error:
        run("emit", str(planned), "slurm", "accelerate", "--out", str(tmp_path / "out"))
    assert error.value.where == "recipe.exchange.dtype"
    assert "--set recipe.exchange.dtype=bf16" in error.value.hint
    assert not (tmp_path / "out").exists()


def test_what_is_no_plan_is_told(tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text("job: {model: llama-3-8b}\n")
    with pytest.raises(ThriftyError, match="is not a plan"):
        run("emit", str(tmp_path / "job.yaml"), "slurm")
