"""kill -9 at random instants, resume each time: the losses are those of a run that was never killed."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from thrifty.planner.emit import write_plan
from thrifty.spec import Plan
from thrifty.trainer.checkpoint import check
from thrifty.trainer.run_folder import RunFolder

pytestmark = pytest.mark.kill
KILLS = 20


def start(plan: Path, root: Path, *more: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "thrifty", "train", str(plan), "--run-dir", str(root), *more]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )


def losses(root: Path) -> dict[tuple[str, int], float]:
    return {(row["split"], row["step"]): row["loss"] for row in RunFolder(root).read_metrics()}


@pytest.mark.timeout(1500)
def test_twenty_kills_change_nothing(make_plan: Callable[..., Plan], tmp_path: Path) -> None:
    checkpoint = {"every_steps": 20, "keep": 2, "asynchronous": True}
    evaluation = {"every_steps": 100, "sequences": 8}
    # One core: two threads would wait for each other all the time on a machine that does other work.
    recipe = {"checkpoint": checkpoint, "evaluation": evaluation}
    plan = make_plan(steps=1500, recipe=recipe, cluster={"per_node": 1})
    write_plan(plan, tmp_path / "plan.yaml")
    whole = start(tmp_path / "plan.yaml", tmp_path / "whole")
    assert whole.wait(400) == 0, whole.stdout and whole.stdout.read()

    chooser = random.Random(20)
    root = tmp_path / "killed"
    kills, lived_seconds = 0, 0.0
    while kills < KILLS:
        more = ["--resume"] if root.exists() else []
        metrics = root / "metrics.jsonl"
        before = metrics.stat().st_mtime_ns if metrics.exists() else 0
        process = start(tmp_path / "plan.yaml", root, *more)
        begin = time.monotonic()
        if kills % 4 == 3:  # some time in start-up
            time.sleep(chooser.uniform(0.5, 3.0))
        else:  # between the first instants after training has begun again and some tens of steps later
            while time.monotonic() < begin + 60 and process.poll() is None:
                if metrics.exists() and metrics.stat().st_mtime_ns != before:
                    break
                time.sleep(0.01)
            time.sleep(chooser.uniform(0.0, 0.35))
        if process.poll() is not None:
            assert process.returncode == 0, process.stdout and process.stdout.read()
            break
        os.killpg(process.pid, signal.SIGKILL)
        lived_seconds += time.monotonic() - begin
        process.wait()
        kills += 1
        for step in sorted((root / "checkpoints").glob("step-????????")):
            assert check(step) is None, f"{step} cannot be read after kill {kills}"
    last = start(tmp_path / "plan.yaml", root, "--resume")
    assert last.wait(400) == 0, last.stdout and last.stdout.read()
    assert kills >= KILLS, f"the run ended after {kills} kills; it must be longer for this test to mean anything"
    assert losses(root) == losses(tmp_path / "whole")
    bill = RunFolder(root).read_bill()["measured"]
    # Their lives were paid for, but for the first moments of each interpreter and the last ones of each process.
    assert bill.seconds.value > 0.7 * lived_seconds
    assert sum(part.value for part in bill.seconds_by_part.values()) == pytest.approx(bill.seconds.value)
    assert bill.usd.value == pytest.approx(bill.seconds.value / 3600 * 3.6)
    idle_watts = (1 + 1) * 1.25  # a device of 1 W and its host of 1 W, at the made-up cluster's PUE
    assert bill.energy.value > 0.99 * idle_watts * bill.seconds.value
