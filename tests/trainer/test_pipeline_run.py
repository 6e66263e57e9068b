"""`thrifty train` on a pipeline: the losses of one process, a bill with its bubble, and checkpoints for any layout."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from test_ranks import DOCUMENTS, documents, losses, run

from thrifty.cost.timeline import order
from thrifty.planner.emit import write_plan
from thrifty.spec import Plan
from thrifty.trainer.run_folder import RunFolder

pytestmark = pytest.mark.dist
Make = Callable[..., Plan]
PIPELINES: dict[str, dict[str, Any]] = {
    "1f1b": {"pipeline": 2},
    "zbv": {"pipeline": 2, "schedule": "zbv", "interleave": 2},
}
__all__ = ["documents"]


@pytest.fixture
def plans(make_plan: Make, documents: str) -> Callable[[dict[str, Any]], Plan]:
    """Tied embeddings, documents of unequal length, clipping, accumulation."""

    def make(layout: dict[str, Any]) -> Plan:
        recipe = {
            "layout": layout,
            "batch": {"sequences": 4, "micro_sequences": 1},
            "optimizer": {"lr": 3e-3, "clip_norm": 0.5},
        }
        return make_plan(recipe=recipe, model={"layers": 4}, data={"path": documents, **DOCUMENTS})

    return make


def trained(plan: Plan, folder: Path, *options: str) -> Path:
    write_plan(plan, folder.with_suffix(".yaml"))
    done = run("train", folder.with_suffix(".yaml"), "--run-dir", folder, *options)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.parametrize("schedule", PIPELINES)
def test_a_pipeline_trains_like_one_process_and_hands_its_checkpoint_to_other_layouts(plans, tmp_path, schedule):
    alone = trained(plans({}), tmp_path / "alone")
    plan = plans(PIPELINES[schedule])
    piped = trained(plan, tmp_path / "piped")
    # Sums in another order: fp32 rounding, carried through 30 steps.
    for split in ("train", "val"):
        assert losses(piped, split) == pytest.approx(losses(alone, split), rel=1e-4)
    measured = RunFolder(piped).read_bill()["measured"]
    assert measured.link_bytes["intra_node"].value > 0
    timeline = json.loads(RunFolder(piped).timeline.read_text())
    ran = [[tuple(span[:3]) for span in mine] for mine in timeline["spans"]]
    assert ran == [list(map(tuple, mine)) for mine in order(plan.recipe.layout, plan.recipe.accumulation)]
    shown = run("report", piped, "--no-html")
    assert "bubble" in shown.stdout
    assert "stage 1" in shown.stdout

    for step in (20, 30):
        shutil.rmtree(piped / "checkpoints" / f"step-{step:08d}")
    other = plans({"shard": 2} if schedule == "1f1b" else {})
    write_plan(other, piped / "plan.yaml")
    done = run("train", piped, "--resume")
    assert done.returncode == 0, done.stderr
    assert "resumed from step 10" in done.stderr
    assert losses(piped) == pytest.approx(losses(alone), rel=1e-4)


def test_a_checkpoint_of_one_process_continues_in_a_pipeline(plans, tmp_path):
    alone = trained(plans({}), tmp_path / "alone")
    copy = shutil.copytree(alone, tmp_path / "copy")
    for step in (20, 30):
        shutil.rmtree(copy / "checkpoints" / f"step-{step:08d}")
    write_plan(plans(PIPELINES["zbv"]), copy / "plan.yaml")
    done = run("train", copy, "--resume")
    assert done.returncode == 0, done.stderr
    assert losses(copy) == pytest.approx(losses(alone), rel=1e-4)
