"""Runs of two islands, each a process: compressed gradients and local steps, which go on where they stopped."""

from __future__ import annotations

import shutil
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from test_ranks import THRIFTY, losses, ranks_of, run, wait_for_steps

from thrifty.planner.emit import write_plan
from thrifty.spec import Plan
from thrifty.trainer.checkpoint import check
from thrifty.trainer.run_folder import RunFolder, finished_steps

pytestmark = pytest.mark.dist
Make = Callable[..., Plan]
STEPS = 24
EXCHANGES: dict[str, dict[str, Any]] = {
    "int4": {"codec": "int4", "residual": "bf16", "warmup_steps": 2},
    "adaptive": {"codec": "int4", "adaptive": True, "warmup_steps": 4},
    "sparse": {"local_steps": 6, "codec": "topk(1/16) + means2", "decay": 0.95, "outer_lr": 1.0, "outer_momentum": 0.0},
    "streaming": {"local_steps": 6, "codec": "int4", "fragments": 2, "delay_steps": 2, "alpha": 0.5},
}


def islands(make_plan: Make, **exchange: Any) -> Plan:
    recipe = {
        "layout": {"island": 2}, "batch": {"sequences": 4, "micro_sequences": 1}, "exchange": exchange,
        "evaluation": {"every_steps": 12, "sequences": 8}, "checkpoint": {"every_steps": 9, "keep": 5},
    }  # fmt: skip
    return make_plan(recipe=recipe, steps=STEPS)


def trained(plan: Plan, root: Path) -> Path:
    write_plan(plan, root.with_suffix(".yaml"))
    done = run("train", root.with_suffix(".yaml"), "--run-dir", root)
    assert done.returncode == 0, done.stderr
    return root


@pytest.mark.parametrize("name", EXCHANGES)
def test_a_run_of_islands_goes_on_where_it_stopped_in_the_same_numbers(
    make_plan: Make, tmp_path: Path, name: str
) -> None:
    """From step 9, in the middle of a round, with errors to feed back and, streaming, means on their way."""
    root = trained(islands(make_plan, **EXCHANGES[name]), tmp_path / "run")
    train, val = losses(root), losses(root, "val")
    assert len(train) == STEPS
    assert train[-1] < train[0]
    bill = RunFolder(root).read_bill()
    sent = {maker: bill[maker].link_bytes["intra_node"].value for maker in ("predicted", "measured")}
    agreed = 32 * 40  # checksums, once for each unit and attempt
    if name != "adaptive":  # which chooses codecs as it goes
        assert -1 <= sent["measured"] - sent["predicted"] <= agreed

    for step in (18, 24):
        shutil.rmtree(root / "checkpoints" / f"step-{step:08d}")
    done = run("train", root, "--resume")
    assert done.returncode == 0, done.stderr
    assert "resumed from step 9" in done.stderr
    assert losses(root) == train
    assert losses(root, "val") == val


def test_islands_hand_over_to_one_process_and_back(make_plan: Make, tmp_path: Path) -> None:
    """A checkpoint holds the parameters that all islands have in common; what no longer fits is told."""
    root = trained(islands(make_plan, **EXCHANGES["sparse"]), tmp_path / "run")
    shutil.rmtree(root / "checkpoints" / "step-00000024")
    done = run("train", root, "--resume", "--nproc", "1")
    assert done.returncode == 0, done.stderr
    assert "resumed from step 18" in done.stderr
    assert losses(root)[-1] < losses(root)[0]
    done = run("generate", root, "--prompt", "the", "--tokens", 2)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", ["int4", "sparse"])
def test_an_island_that_dies_ends_the_run_in_words_and_leaves_its_checkpoint(
    make_plan: Make, tmp_path: Path, name: str
) -> None:
    plan = islands(make_plan, **EXCHANGES[name])
    write_plan(make_plan(recipe=plan.recipe.model_dump(), steps=100_000), tmp_path / "plan.yaml")
    command = [*THRIFTY, "train", str(tmp_path / "plan.yaml"), "--run-dir", str(tmp_path / "run")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    wait_for_steps(tmp_path / "run", 15)
    next(one for one in ranks_of(process, 2) if one.environ()["RANK"] == "1").send_signal(signal.SIGKILL)
    _, errors = process.communicate(timeout=90)
    assert process.returncode == 2, errors
    assert "rank 1 was killed (SIGKILL)" in errors
    assert "Traceback" not in errors
    folder = RunFolder(tmp_path / "run").checkpoints
    steps = finished_steps(folder)
    assert steps
    assert all(check(folder / f"step-{step:08d}") is None for step in steps)
