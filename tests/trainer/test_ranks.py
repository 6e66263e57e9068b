"""Several real processes: the same losses on any number of them, and what happens when one is lost."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from thrifty.planner.emit import write_plan
from thrifty.spec import Plan
from thrifty.trainer.run_folder import RunFolder

pytestmark = pytest.mark.dist
Make = Callable[..., Plan]
THRIFTY = [sys.executable, "-m", "thrifty"]
DOCUMENTS = {"packing": "documents"}


def run(*arguments: object, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*THRIFTY, *map(str, arguments)], capture_output=True, text=True, timeout=180, check=False, env=env
    )


def losses(root: Path, split: str = "train") -> list[float]:
    return [row["loss"] for row in RunFolder(root).read_metrics() if row["split"] == split]


@pytest.fixture
def documents(tmp_path: Path) -> str:
    """Short documents of unequal length: each sample has its own number of targets."""
    folder = tmp_path / "documents"
    folder.mkdir()
    for i in range(120):
        (folder / f"{i:03}.txt").write_text("the cost of a run is paid in steps " * (1 + i % 3) + "." * (i % 11))
    return str(folder)


def on_two_ranks(plan: Plan, make_plan: Make) -> Plan:
    recipe = plan.recipe.model_dump() | {"layout": {"shard": 2}, "batch": {"sequences": 4, "micro_sequences": 1}}
    return make_plan(recipe=recipe, data=plan.job.data.model_dump(), steps=plan.job.steps)


def test_two_processes_train_like_one_and_resume_like_each_other(
    make_plan: Make, documents: str, tmp_path: Path
) -> None:
    """Unequal token counts, accumulation, clipping and tied embeddings over 30 steps; then 2 -> 1 processes midway."""
    one = make_plan(data={"path": documents, **DOCUMENTS}, recipe={"optimizer": {"lr": 3e-3, "clip_norm": 0.5}})
    both = on_two_ranks(one, make_plan)
    for name, plan in (("one", one), ("two", both)):
        write_plan(plan, tmp_path / f"{name}.yaml")
        done = run("train", tmp_path / f"{name}.yaml", "--run-dir", tmp_path / name)
        assert done.returncode == 0, done.stderr
    # Sums in another order: fp32 rounding, carried through 30 steps.
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=1e-4)
    assert losses(tmp_path / "two", "val") == pytest.approx(losses(tmp_path / "one", "val"), rel=1e-4)
    bill = RunFolder(tmp_path / "two").read_bill()
    for term in ("parameters", "gradients", "optimizer"):
        assert bill["measured"].memory[term].value == bill["predicted"].memory[term].value, term
    assert bill["measured"].link_bytes["intra_node"].value > 0

    # Drop the last two checkpoints of the two-process run and finish it in one process.
    for step in (20, 30):
        shutil.rmtree(tmp_path / "two" / "checkpoints" / f"step-{step:08d}")
    done = run("train", tmp_path / "two", "--resume", "--nproc", "1")
    assert done.returncode == 0, done.stderr
    assert "resumed from step 10" in done.stderr
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=1e-4)


@pytest.mark.parametrize("layout", [{"tensor": 2}, {"tensor": 2, "sequence_parallel": False}, {"context": 2}])
def test_two_ranks_of_one_sample_train_like_one_process(
    make_plan: Make, documents: str, tmp_path: Path, layout: dict
) -> None:
    """Both see every sample, or half of each: the loss, validation too, counts each target once; what they send is what
    was predicted."""
    data = {"path": documents, **DOCUMENTS}
    one = make_plan(data=data, steps=12)
    both = make_plan(data=data, steps=12, recipe={"layout": layout, "recompute": "selective"})
    for name, plan in (("one", one), ("two", both)):
        write_plan(plan, tmp_path / f"{name}.yaml")
        done = run("train", tmp_path / f"{name}.yaml", "--run-dir", tmp_path / name)
        assert done.returncode == 0, done.stderr
    for split in ("train", "val"):
        assert losses(tmp_path / "two", split) == pytest.approx(losses(tmp_path / "one", split), rel=1e-4)
    bill = RunFolder(tmp_path / "two").read_bill()
    predicted, measured = bill["predicted"], bill["measured"]
    assert measured.tokens.value == predicted.tokens.value
    assert measured.link_bytes["intra_node"].value == pytest.approx(predicted.link_bytes["intra_node"].value, rel=1e-9)
    # The model of that run, whole, in one process.
    done = run("generate", tmp_path / "two", "--prompt", "the", "--tokens", 2)
    assert done.returncode == 0, done.stderr


def ranks_of(process: subprocess.Popen[str], count: int) -> list[psutil.Process]:
    """The rank processes that the launcher started."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        found = [
            p
            for p in psutil.Process(process.pid).children(recursive=True)
            if "thrifty.trainer.launch" in " ".join(p.cmdline())
        ]
        if len(found) == count:
            return found
        time.sleep(0.05)
    raise TimeoutError("the ranks did not start")


def wait_for_steps(root: Path, steps: int) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if len(losses(root)) >= steps:
            return
        time.sleep(0.05)
    raise TimeoutError(f"no {steps} steps after 60 s")


def start_long(make_plan: Make, tmp_path: Path) -> subprocess.Popen[str]:
    write_plan(on_two_ranks(make_plan(steps=100_000), make_plan), tmp_path / "plan.yaml")
    command = [*THRIFTY, "train", str(tmp_path / "plan.yaml"), "--run-dir", str(tmp_path / "run")]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_a_rank_that_dies_is_named(make_plan: Make, tmp_path: Path) -> None:
    process = start_long(make_plan, tmp_path)
    wait_for_steps(tmp_path / "run", 15)
    victim = next(p for p in ranks_of(process, 2) if p.environ()["RANK"] == "1")
    victim.send_signal(signal.SIGKILL)
    _, errors = process.communicate(timeout=90)
    assert process.returncode == 2, errors
    assert "rank 1 was killed (SIGKILL)" in errors
    assert "the last good checkpoint is step" in errors
    assert "Traceback" not in errors


def test_sigterm_on_any_rank_checkpoints_all(make_plan: Make, tmp_path: Path) -> None:
    process = start_long(make_plan, tmp_path)
    wait_for_steps(tmp_path / "run", 13)
    next(p for p in ranks_of(process, 2) if p.environ()["RANK"] == "1").send_signal(signal.SIGTERM)
    out, errors = process.communicate(timeout=90)
    assert process.returncode == 0, errors
    assert "stopped early: SIGTERM" in out
    last = int(RunFolder(tmp_path / "run").read_bill()["measured"].steps.value)
    assert (tmp_path / "run" / "checkpoints" / f"step-{last:08d}" / "files.json").exists()


def test_sigterm_to_the_launcher_checkpoints_all(make_plan: Make, tmp_path: Path) -> None:
    process = start_long(make_plan, tmp_path)
    wait_for_steps(tmp_path / "run", 13)
    process.send_signal(signal.SIGTERM)
    out, errors = process.communicate(timeout=90)
    assert process.returncode == 0, errors
    assert "stopped early: SIGTERM" in out


def test_a_taken_port_is_told(make_plan: Make, tmp_path: Path) -> None:
    write_plan(on_two_ranks(make_plan(), make_plan), tmp_path / "plan.yaml")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        torchrun = {
            "RANK": "0",
            "LOCAL_RANK": "0",
            "WORLD_SIZE": "2",
            "LOCAL_WORLD_SIZE": "2",
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": port,
        }
        done = run("train", tmp_path / "plan.yaml", "--run-dir", tmp_path / "run", env={**os.environ, **torchrun})
    assert done.returncode == 2
    assert f"port {port} is in use" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_same_command_runs_under_torchrun(make_plan: Make, tmp_path: Path) -> None:
    write_plan(on_two_ranks(make_plan(steps=5), make_plan), tmp_path / "plan.yaml")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "thrifty"]
    command = [*torchrun, "train", str(tmp_path / "plan.yaml"), "--run-dir", str(tmp_path / "run")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=180, check=False)
    assert done.returncode == 0, done.stderr
    assert RunFolder(tmp_path / "run").read_bill()["measured"].steps.value == 5
    assert done.stdout.count("thrifty report") == 1, "only rank 0 speaks"


def test_more_processes_than_data(make_plan: Make, tmp_path: Path) -> None:
    (tmp_path / "short.txt").write_text("one two three " * 12)
    plan = make_plan(data={"path": str(tmp_path / "short.txt")})
    write_plan(on_two_ranks(plan, make_plan), tmp_path / "plan.yaml")
    done = run("train", tmp_path / "plan.yaml", "--run-dir", tmp_path / "run")
    assert done.returncode == 2, done.stderr
    assert "sequences" in done.stderr
    assert "Traceback" not in done.stderr


def test_too_many_processes_are_refused(make_plan: Make, tmp_path: Path) -> None:
    write_plan(make_plan(), tmp_path / "plan.yaml")
    done = run("train", tmp_path / "plan.yaml", "--run-dir", tmp_path / "run", "--nproc", 3)
    assert done.returncode == 2
    assert "--nproc" in done.stderr
