"""Calibrating for real: tiny runs on one and two ranks, what they leave behind, and what plans make of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from thrifty.cost.profiles import profile
from thrifty.planner.calibrated import read_calibration, write_calibration
from thrifty.planner.measured import measured_ratio
from thrifty.spec import Cluster, Plan, ThriftyError
from thrifty.spec.bill import STEP_PARTS
from thrifty.spec.load import build
from thrifty.spec.profile import block_signature
from thrifty.trainer import calibrate, collectives, history, launch, levers, probe
from thrifty.trainer.calibrate import Asked
from thrifty.trainer.local import calibration_path, local_cluster
from thrifty.trainer.run_folder import RunFolder

Make = Callable[..., Plan]
TINY = {"layers": 1, "hidden": 32, "heads": 2, "ffn": 64, "vocab_size": 272, "max_positions": 32}


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch, text_file: Path, tmp_path: Path) -> None:
    """Everything that is measured made as small as it goes, in a cache folder of its own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(calibrate, "SMALL", TINY)
    monkeypatch.setattr(calibrate, "LENGTH", 16)
    monkeypatch.setattr(calibrate, "MOST_STEPS", 6)
    monkeypatch.setattr(calibrate, "PRODUCT_SECONDS", 0.002)
    monkeypatch.setattr(calibrate, "DEADLINE_SECONDS", {True: 120.0, False: 120.0})
    with_text = calibrate.Data
    monkeypatch.setattr(calibrate, "Data", lambda **how: with_text(path=str(text_file), **how))


def quiet(text: str) -> None:
    """Nobody looks."""


@pytest.mark.dist
def test_one_and_two_ranks_are_measured_fitted_and_used(small: None) -> None:
    before = build(Cluster, local_cluster(), "")
    assert before.profile is None
    two = min(2, probe.cores())
    found = calibrate.calibrate(Asked(tuple(sorted({1, two})), quick=True), quiet)
    own = found.profile
    assert own.runs == 2 + (two > 1)
    assert own.hardware == before.accelerator.name
    assert {r.part for r in found.residuals} == {*STEP_PARTS, "step"}
    assert all(row.measured > 0 for row in found.residuals if row.part == "step")
    assert {p.way for p in found.products} == {"forward", "input gradient", "weight gradient"}
    assert own.low <= 1 <= own.high
    assert own.startup_seconds
    if two > 1:
        assert {fit.kind for fit in found.collectives} == set(collectives.KINDS)
        assert found.link is not None
        assert found.link.bandwidth.provenance == "measured"

    write_calibration(found, calibration_path())
    assert read_calibration(calibration_path()) == found
    after = build(Cluster, local_cluster(), "")
    assert after.profile == own
    assert after.accelerator == found.accelerator
    assert profile("thrifty", after).name == "thrifty-local"

    # Its runs are remembered like any other, and a fit to the history needs no new ones.
    assert len(history.read_history(own.hardware, after.devices, "thrifty")) == own.runs
    again = calibrate.calibrate(Asked((1,), measure=False), quiet)
    assert again.profile.runs == own.runs
    assert again.link == found.link


def test_without_runs_there_is_nothing_to_fit(small: None) -> None:
    with pytest.raises(ThriftyError, match="no finished run of thrifty") as told:
        calibrate.calibrate(Asked((1,), measure=False), quiet)
    assert "--from-history" in told.value.hint + told.value.where


def test_a_finished_run_leaves_its_error(make_plan: Make, tmp_path: Path) -> None:
    plan = make_plan(steps=6)
    launch.run(plan, tmp_path / "run", launch.Options())
    (run,) = history.read_history("a core", 2, "thrifty")
    assert set(run.predicted) == set(run.measured) == set(STEP_PARTS)
    assert run.measured["compute"] > 0
    assert run.seconds == RunFolder(tmp_path / "run").read_bill()["measured"].seconds.value
    assert history.read_history("another core", 2, "thrifty") == []
    error = history.median_error([run])
    assert error == pytest.approx(abs(sum(run.predicted.values()) / sum(run.measured.values()) - 1))
    assert history.median_error([]) is None
    # Damaged lines are passed over; a resumed run's start-up is not known.
    with history.history_path().open("a") as file:
        file.write('{"date": 3}\nhalf a li')
    assert len(history.read_history("a core", 2, "thrifty")) == 1


def test_a_history_that_cannot_be_written_fails_no_run(
    make_plan: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = make_plan(steps=3)
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(history, "history_path", lambda: tmp_path / "file" / "history.jsonl")
    outcome = launch.run(plan, tmp_path / "run", launch.Options())
    assert outcome is not None
    assert outcome.bill.steps.value == 3
    assert history.read_history("a core", 2, "thrifty") == []


def test_a_damaged_profile_is_told_and_replaced(small: None) -> None:
    calibration_path().parent.mkdir(parents=True, exist_ok=True)
    calibration_path().write_text("torch: 2.13\nprofile: {name: half")
    with pytest.raises(ThriftyError):
        local_cluster()
    calibration_path().write_text("torch: '2.13'\nvers: 1\n")
    with pytest.raises(ThriftyError, match="is not a whole calibration") as told:
        local_cluster()
    assert "thrifty calibrate" in told.value.hint
    said: list[str] = []
    assert calibrate._known(Asked((1,)), said.append) is None
    assert "replacing" in said[0]
    with pytest.raises(ThriftyError):
        calibrate._known(Asked((1,), measure=False), said.append)


def test_levers_are_timed_on_the_jobs_own_block(make_plan: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = make_plan()
    monkeypatch.setattr(levers, "compiler_here", lambda kind: False)
    found = levers.measure_levers(plan.job.model, plan.job.sequence_length, 2, "cpu", quiet)
    assert [(f.lever, f.value) for f in found][:2] == [("precision", "bf16"), ("recompute", "full")]
    assert {f.value for f in found if f.lever == "micro_sequences"} == {"2", "4"}
    assert all(f.ratio > 0 for f in found)
    assert {f.shape for f in found} == {block_signature(plan.job.model, plan.job.sequence_length)}
    assert measured_ratio(plan.cluster, plan.job, "precision", "bf16") is None, "nothing is on the cluster yet"
