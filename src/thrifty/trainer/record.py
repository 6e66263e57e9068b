"""What a run writes down: metrics, manifest, bill and the progress line. Rank 0 writes; the others stay silent."""

from __future__ import annotations

import errno
import json
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from importlib import metadata
from typing import Any, TextIO

import torch

from thrifty.data.prepare import Prepared
from thrifty.data.tokenizer import save_tokenizer
from thrifty.planner.emit import write_plan
from thrifty.spec.bill import Bill
from thrifty.spec.errors import ThriftyError
from thrifty.spec.plan import Plan
from thrifty.trainer.probe import cpu_name
from thrifty.trainer.progress import Progress
from thrifty.trainer.run_folder import RunFolder, write_atomically
from thrifty.trainer.spent import SpentFile
from thrifty.trainer.world import World

_PACKAGES = ("thrifty", "torch", "numpy", "safetensors", "tokenizers", "pydantic")


class Record:
    """The run folder and the progress line of one run.

    Args:
        spent: what all attempts have cost; None on all ranks but 0.
        follow: called with every row; the adapters for TensorBoard, W&B and trackio.
    """

    def __init__(
        self,
        folder: RunFolder,
        *,
        rank: int,
        spent: SpentFile | None,
        follow: Callable[[dict[str, Any]], None] | None = None,
    ) -> None:
        self.folder = folder
        self.spent = spent
        self._rank = rank
        self._follow = follow
        self._progress: Progress | None = None
        self._metrics: TextIO | None = None

    def begin(self, plan: Plan, world: World, prepared: Prepared, resumed_from: int | None) -> None:
        """Writes plan, manifest and tokenizer, and opens the metrics for appending."""
        if self._rank != 0:
            return
        self._guard(lambda: self._write_head(plan, world, prepared, resumed_from))
        self._metrics = self.folder.metrics.open("a", encoding="utf-8")
        per_rank = plan.cluster.accelerator.memory.value * plan.cluster.devices_per_rank(world.size)
        self._progress = Progress(plan.total_steps, per_rank, plan.predicted.usd.value)

    def _write_head(self, plan: Plan, world: World, prepared: Prepared, resumed_from: int | None) -> None:
        self.folder.root.mkdir(parents=True, exist_ok=True)
        self.folder.checkpoints.mkdir(exist_ok=True)
        if self.folder.plan.exists() and self.folder.plan.read_text(encoding="utf-8").find(plan.hash) < 0:
            self.folder.plan.rename(self.folder.root / f"plan-until-step-{resumed_from or 0:08d}.yaml")
        write_plan(plan, self.folder.plan)
        save_tokenizer(prepared.tokenizer, self.folder.tokenizer)
        runs = json.loads(self.folder.manifest.read_text())["runs"] if self.folder.manifest.exists() else []
        runs.append(_this_run(world, resumed_from))
        write_atomically(
            self.folder.manifest, json.dumps({"plan": plan.hash, "data": prepared.manifest, "runs": runs}, indent=1)
        )

    def add(self, row: dict[str, Any]) -> None:
        """Appends a row to metrics.jsonl at once, so that a kill loses at most the row being written."""
        if self._metrics is None:
            return
        metrics = self._metrics

        def write() -> None:
            metrics.write(json.dumps(row) + "\n")
            metrics.flush()

        self._guard(write)
        if self._follow is not None:
            self._follow(row)

    def show(self, row: dict[str, Any], eta_seconds: float) -> None:
        if self._progress is not None:
            self._progress.show(row, eta_seconds)

    def note(self, text: str) -> None:
        """A line for people."""
        if self._rank != 0:
            return
        if self._progress is not None:
            self._progress.note(text)
        else:
            print(text, file=sys.stderr, flush=True)

    def step_seconds(self) -> list[float]:
        """Step times of the steps that are kept."""
        return [row["step_seconds"] for row in self.folder.read_metrics() if row["split"] == "train"]

    def truncate(self, step: int) -> None:
        """Forgets rows after the step that a run resumes from; they will come again."""
        if self._rank == 0 and self.folder.metrics.exists():
            self._guard(lambda: self.folder.truncate_metrics(step))

    def finish(self, predicted: Bill, bill: Bill) -> None:
        if self._rank == 0:
            self._guard(lambda: self.folder.write_bill(predicted, bill))

    def close(self) -> None:
        if self._progress is not None:
            self._progress.close()
        if self._metrics is not None:
            self._metrics.close()

    def _guard(self, write: Callable[[], None]) -> None:
        try:
            write()
        except OSError as error:
            full = error.errno in (errno.ENOSPC, errno.EDQUOT)
            what = "the disk is full" if full else f"cannot be written: {error.strerror}"
            hint = "free space, or point --run-dir elsewhere; continue with --resume: checkpoints so far are kept"
            raise ThriftyError(what, where=str(self.folder.root), hint=hint) from None


def _this_run(world: World, resumed_from: int | None) -> dict[str, Any]:
    gpu = torch.cuda.get_device_name() if world.device.type == "cuda" else None
    return {
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"), "resumed_from_step": resumed_from, "ranks": world.size,
        "python": platform.python_version(), "system": platform.platform(), "processor": cpu_name(), "gpu": gpu,
        "threads": torch.get_num_threads(), "packages": {name: _version(name) for name in _PACKAGES},
        "git": _git_commit(),
    }  # fmt: skip


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _git_commit() -> str | None:
    """Commit of the current folder, with `+changes` when there are any; None outside a repository."""
    try:
        command = ["git", "describe", "--always", "--dirty=+changes", "--abbrev=40", "--exclude=*"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=5, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None
