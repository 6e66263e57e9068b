"""The errors of finished runs: each run leaves one line behind, from which `calibrate` learns.

`thrifty/history.jsonl` in the user's cache folder, one `spec.calibration.PastRun` a line, newest last.
"""

from __future__ import annotations

import json
import statistics
import time
from pathlib import Path

import torch
from pydantic import ValidationError

from thrifty.cost.profiles import profile
from thrifty.cost.step import step_seconds
from thrifty.spec.bill import STEP_PARTS, Bill
from thrifty.spec.calibration import PastRun
from thrifty.spec.plan import Plan
from thrifty.trainer.probe import cache_folder
from thrifty.trainer.run_folder import RunFolder

WARM_UP = 2  # first steps of a run, which are slower
LATEST = 200  # lines that are read: older runs say little about today's software


def history_path() -> Path:
    return cache_folder() / "history.jsonl"


def remember(plan: Plan, bill: Bill, folder: RunFolder) -> None:
    """Appends a finished run. One that is too short is left out, and a history that cannot be written is no error."""
    run = past_run(plan, bill, folder)
    if run is None:
        return
    try:
        history_path().parent.mkdir(parents=True, exist_ok=True)
        with history_path().open("a", encoding="utf-8") as file:
            file.write(run.model_dump_json() + "\n")
    except OSError:
        pass  # a full disk or a read-only home: the run itself is done and billed


def past_run(plan: Plan, bill: Bill, folder: RunFolder) -> PastRun | None:
    """A finished run as `calibrate` learns from it; none when it has no step beyond its first."""
    rows = [r for r in folder.read_metrics() if r["split"] == "train" and "compute_seconds" in r]
    if len(rows) < 2:
        return None
    rows = rows[min(WARM_UP, len(rows) - 1) :]
    chip, step = plan.cluster.accelerator, step_seconds(plan.job, plan.cluster, plan.recipe)
    measured = {part: statistics.median(row[f"{part}_seconds"] for row in rows) for part in STEP_PARTS}
    interval = plan.predicted.step_seconds
    resumed = len(json.loads(folder.manifest.read_text(encoding="utf-8"))["runs"]) > 1
    total = bill.step_seconds.value
    return PastRun(
        date=time.strftime("%Y-%m-%dT%H:%M:%S"),
        hardware=chip.name,
        devices=plan.cluster.devices,
        software=plan.recipe.software,
        torch=torch.__version__,
        profile=profile(plan.recipe.software, plan.cluster).name,
        model=plan.job.model,
        sequence_length=plan.job.sequence_length,
        recipe=plan.recipe,
        steps=int(bill.steps.value),
        predicted={part: getattr(step, part) for part in STEP_PARTS},
        measured=measured,
        startup=0.0 if resumed else bill.seconds_by_part["startup"].value,
        seconds=bill.seconds.value,
        predicted_seconds=plan.predicted.seconds.value,
        peak_bytes=bill.peak_memory.value,
        predicted_peak_bytes=plan.predicted.peak_memory.value,
        inside=interval.low is None or interval.high is None or interval.low <= total <= interval.high,
    )


def read_history(hardware: str, devices: int, software: str) -> list[PastRun]:
    """The latest runs on this hardware, oldest first. Lines of another version, and damaged ones, are passed over."""
    try:
        lines = history_path().read_text(encoding="utf-8").splitlines()[-LATEST:]
    except OSError:
        return []
    found = []
    for line in lines:
        try:
            run = PastRun.model_validate_json(line)
        except ValidationError:
            continue
        if (run.hardware, run.devices, run.software, run.torch) == (hardware, devices, software, torch.__version__):
            found.append(run)
    return found


def median_error(runs: list[PastRun]) -> float | None:
    """Median |predicted / measured - 1| of their steps, as each was predicted then; none without runs."""
    errors = [abs(sum(r.predicted.values()) / total - 1) for r in runs if (total := sum(r.measured.values())) > 0]
    return statistics.median(errors) if errors else None
