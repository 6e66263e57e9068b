"""`thrifty calibrate` and what `plan` makes of a profile: by name, gates by measured levers, and mistakes told."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from thrifty.catalog import lookup
from thrifty.cli import calibrate, plan
from thrifty.planner.calibrated import with_profile, write_calibration
from thrifty.planner.emit import read_plan
from thrifty.planner.request import read_cluster
from thrifty.planner.search import plan as make_plan
from thrifty.spec import Cluster, Job, ThriftyError
from thrifty.spec.calibration import Calibration
from thrifty.spec.load import from_dict
from thrifty.spec.profile import CalibratedProfile, LeverRatio, block_signature

APP = typer.Typer()
APP.command("plan")(plan.command)
APP.command("calibrate")(calibrate.command)


def run(*words: str) -> str:
    result = CliRunner().invoke(APP, words, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def no_machine() -> Any:
    raise AssertionError("this machine is not asked")


def cluster_of(short: str) -> Cluster:
    return read_cluster(short, local=no_machine)[0]


def calibration(cluster: Cluster, **changes: Any) -> Calibration:
    known: dict[str, Any] = {"software": "thrifty", "hardware": cluster.accelerator.name, "low": 0.95, "high": 1.06}
    own = CalibratedProfile(
        name="ours", source="own runs, torch 2.13", date="2026-11-20", runs=7, error_before=0.3, error=0.04,
        **(known | changes),
    )  # fmt: skip
    return Calibration(torch="2.13", accelerator=cluster.accelerator, profile=own)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "ours.yaml"
    write_calibration(calibration(cluster_of("8xh100"), gemm=0.5), path)
    return path


def test_every_plan_names_its_profile(tmp_path: Path) -> None:
    out = str(tmp_path / "plan.yaml")
    words = " ".join(run("plan", "gpt2-124m", "--on", "8xh100", "--out", out).split())
    assert "priced with profile thrifty: " in words
    assert "80% interval 0.85 to 1.22" in words
    content = json.loads(run("plan", "gpt2-124m", "--on", "8xh100", "--json", "--out", out))
    assert content["profile"]["name"] == "thrifty"
    assert content["profile"]["calibrated"] is False
    assert "profile thrifty" in read_plan(Path(out)).predicted.step_seconds.source


def test_a_profile_file_prices_the_same_hardware_and_travels_in_the_plan(tmp_path: Path, file: Path) -> None:
    out = tmp_path / "plan.yaml"
    asked = ("plan", "gpt2-124m", "--on", "8xh100", "--out", str(out))
    run(*asked)
    before = read_plan(out)
    words = " ".join(run(*asked, "--profile", str(file)).split())
    after = read_plan(out)
    assert "profile ours: own runs, torch 2.13, 2026-11-20; 7 runs, median error 4%; 80% interval 0.95 to 1.06" in words
    assert after.cluster.profile is not None
    assert after.cluster.profile.gemm == 0.5
    assert after.hash != before.hash
    assert after.predicted.step_seconds.value > before.predicted.step_seconds.value
    content = json.loads(run(*asked, "--profile", str(file), "--json"))["profile"]
    assert (content["calibrated"], content["runs"], content["error"]) == (True, 7, 0.04)
    # A plan is whole: planned again without the file, it is priced alike.
    run("plan", str(out), "--out", str(tmp_path / "again.yaml"))
    assert read_plan(tmp_path / "again.yaml").predicted.step_seconds == after.predicted.step_seconds


def test_other_hardware_is_refused_by_name(tmp_path: Path, file: Path) -> None:
    with pytest.raises(ThriftyError, match="was measured on H100-SXM-80GB, and 8xA100-SXM-80GB has A100") as told:
        run("plan", "gpt2-124m", "--on", "8xa100", "--profile", str(file), "--out", str(tmp_path / "plan.yaml"))
    assert told.value.where == f"--profile {file}"


@pytest.mark.parametrize("text", ["{", "torch: '2'\n", "torch: '2'\nprofile: {nme: x}\n"])
def test_a_damaged_file_is_told(tmp_path: Path, text: str) -> None:
    path = tmp_path / "damaged.yaml"
    path.write_text(text)
    with pytest.raises(ThriftyError) as told:
        with_profile(cluster_of("8xh100"), path)
    assert "damaged.yaml" in told.value.where
    with pytest.raises(ThriftyError):
        with_profile(cluster_of("8xh100"), tmp_path / "absent.yaml")


@pytest.mark.parametrize(
    ("words", "what"),
    [
        (("--on", "8xh100"), "only the machine at hand"),
        (("--levers",), "whose levers"),
        (("--nproc", "4096", "--quick"), "4096 ranks; this machine has"),
        (("no-such-job.yaml",), "no-such-job"),
    ],
)
def test_mistakes_are_told_before_anything_is_measured(
    words: tuple[str, ...], what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(ThriftyError) as told:
        run("calibrate", *words)
    assert what in str(told.value)


def test_a_folder_that_cannot_be_written_is_told_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    (tmp_path / "file").write_text("")
    with pytest.raises(ThriftyError, match="cannot be written") as told:
        run("calibrate", "--out", str(tmp_path / "file" / "profile.yaml"))
    assert "--out" in told.value.hint
    with pytest.raises(ThriftyError, match="cannot be written"):
        write_calibration(calibration(cluster_of("8xh100")), tmp_path / "file" / "profile.yaml")


@pytest.mark.parametrize(("ratio", "chosen"), [(0.6, "bf16"), (1.3, "fp32")])
def test_a_measured_lever_goes_over_the_model(ratio: float, chosen: str) -> None:
    tree = from_dict({"model": lookup.model("gpt2-124m").tree, "steps": 100, "sequence_length": 512}, "test").tree
    asked, bare = Job.model_validate(tree), cluster_of("8xh100")
    lever = LeverRatio(
        shape=block_signature(asked.model, 512), lever="precision", value="bf16", ratio=ratio
    )  # fmt: skip
    own = calibration(bare, levers=(lever,)).profile
    found = make_plan(asked, bare.model_copy(update={"profile": own}))
    assert found.recipe.precision == chosen
    (reason,) = (r for r in found.reasons if r.startswith("precision"))
    assert f"measured here: bf16 {ratio:.2f}x" in reason
    longer = make_plan(asked.model_copy(update={"sequence_length": 256}), bare.model_copy(update={"profile": own}))
    assert longer.recipe.precision == "bf16", "another shape is gated by the model"
