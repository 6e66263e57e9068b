"""Checkpoints: written beside by DCP, read back, hashed, then renamed; loaded on any number of ranks.

    checkpoints/step-00001200/
        __0_0.distcp ...  .metadata     torch.distributed.checkpoint: every tensor under its unsharded name
        progress.json                   step, and the ledger so far
        files.json                      size and sha256 of each file above; written last

Optimizer tensors are stored as `optimizer.<parameter name>.<state name>`, moments of 8 and 4 bits in fp32. Learning
rates, betas and implementation flags are not stored: they follow from the plan.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import warnings
from collections.abc import Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from thrifty.optim.stored import stored_scales, stored_states, take_states
from thrifty.spec.errors import ThriftyError
from thrifty.spec.units import show
from thrifty.trainer.run_folder import finished_steps, write_atomically
from thrifty.trainer.world import World

# DCP remarks on this from its writer thread too; one rank without a process group is meant.
warnings.filterwarnings("ignore", message="torch.distributed is disabled")


def state(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Parameters and optimizer tensors by unsharded name; the tensors themselves, but for moments of 8 or 4 bits.

    Those are in fp32; this rank's scales of them are under its number.
    """
    tensors = {f"model.{name}": parameter.detach() for name, parameter in model.named_parameters()}
    names = {parameter: name for name, parameter in model.named_parameters()}
    for parameter, values in stored_states(optimizer):
        for key, value in values.items():
            if isinstance(value, Tensor):
                tensors[f"optimizer.{names[parameter]}.{key}"] = value
    scales = stored_scales(optimizer)
    if scales is not None:
        tensors[_scales_name()] = scales
    return tensors


def take_over(model: nn.Module, optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """Moments of 8 and 4 bits from what `state` gave, filled since; all else is in place. Scales may be left out."""
    values: dict[Tensor, dict[str, Tensor]] = {p: {} for p in model.parameters()}
    names = dict(model.named_parameters())
    for key, value in tensors.items():
        if key.startswith("optimizer."):
            name, _, kind = key.removeprefix("optimizer.").rpartition(".")
            values[names[name]][kind] = value
    take_states(optimizer, values, tensors.get(_scales_name()))


def without_foreign_scales(tensors: dict[str, Tensor], stored: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What of `state` a checkpoint can fill: scales of another layout or width are of no use."""
    name = _scales_name()
    found = next((kept for key, kept in stored.items() if key == name or key.endswith(f".{name}")), None)  # an island's
    fits = name in tensors and found is not None and found.shape == tensors[name].shape
    return tensors if fits else {key: value for key, value in tensors.items() if key != name}


def _scales_name() -> str:
    return f"scales.{dist.get_rank() if dist.is_initialized() else 0}"


def allocate_state(optimizer: torch.optim.Optimizer) -> None:
    """Makes an optimizer allocate its state, changing no parameter: one step of zero gradients at learning rate 0."""
    rates = [group["lr"] for group in optimizer.param_groups]
    for group in optimizer.param_groups:
        group["lr"] = 0.0
        for parameter in group["params"]:
            parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = rate


class Checkpoints:
    """The checkpoints of one run. Every rank calls each method; rank 0 renames and deletes."""

    def __init__(self, folder: Path, world: World, *, keep: int) -> None:
        self.folder, self.world, self.keep = folder, world, keep
        self._pending: tuple[Future[Any], Path, int] | None = None

    def save(
        self, step: int, tensors: dict[str, Tensor], progress: dict[str, Any], *, asynchronous: bool = False
    ) -> None:
        """Writes the checkpoint of a step; asynchronously, it counts only after `finish`.

        Raises:
            ThriftyError: the disk is full or the folder cannot be written. Older checkpoints stay.
        """
        self.finish()
        beside = self.folder / f"step-{step:08d}.part"
        needed = sum(_nbytes(t) for t in tensors.values())
        try:
            if self.world.rank == 0:
                shutil.rmtree(beside, ignore_errors=True)
                beside.mkdir(parents=True)
                (beside / "progress.json").write_text(json.dumps(progress))
            problem: BaseException | None = None
        except OSError as error:
            problem = error
        self._agree(problem, beside, needed)
        try:
            alone = self.world.size == 1
            if asynchronous:
                future = dcp.async_save(tensors, checkpoint_id=beside, process_group=self.world.writer, no_dist=alone)
            else:
                dcp.save(tensors, checkpoint_id=beside, process_group=self.world.writer, no_dist=alone)
        except (OSError, RuntimeError, dcp.CheckpointException) as error:
            problem = error
        self._agree(problem, beside, needed)
        self._pending = (future if asynchronous else _done(), beside, needed)
        if not asynchronous:
            self.finish()

    @property
    def busy(self) -> bool:
        """Whether this rank is still writing."""
        return self._pending is not None and not self._pending[0].done()

    @property
    def unfinished(self) -> bool:
        """Whether a checkpoint waits for `finish`."""
        return self._pending is not None

    def finish(self) -> None:
        """Waits for a pending write, reads it back, hashes it, renames it and drops the oldest ones."""
        if self._pending is None:
            return
        future, beside, needed = self._pending
        self._pending = None
        problem: BaseException | None = None
        try:
            future.result()
        except (Exception, dcp.CheckpointException) as error:  # the latter is no Exception; all are reported below
            problem = error
        self._agree(problem, beside, needed)
        try:
            if self.world.rank == 0:
                _seal(beside)
                final = beside.with_suffix("")
                shutil.rmtree(final, ignore_errors=True)
                os.replace(beside, final)
                _fsync(self.folder)
                for old in self.steps()[: -self.keep]:
                    shutil.rmtree(self.folder / f"step-{old:08d}")
        except (OSError, RuntimeError) as error:
            problem = error
        self._agree(problem, beside, needed)

    def _agree(self, problem: BaseException | None, beside: Path, needed: int) -> None:
        """Stops every rank with one message when any rank failed."""
        (failed,) = self.world.max(float(problem is not None))
        if not failed:
            return
        if self.world.rank == 0:
            shutil.rmtree(beside, ignore_errors=True)
        steps = self.steps()
        last = f"the last good checkpoint is step {steps[-1]}" if steps else "there is no earlier checkpoint"
        if problem is not None and _is_full(problem):
            free = shutil.disk_usage(self.folder).free
            raise ThriftyError(
                f"the disk is full: a checkpoint needs about {show(needed, 'byte')}, {show(free, 'byte')} are free",
                where=str(self.folder),
                hint=f"{last}; free space, or point --run-dir elsewhere, and continue with --resume",
            ) from None
        reason = str(problem).strip().splitlines()[-1] if problem else "another rank could not write"
        raise ThriftyError(f"the checkpoint could not be written: {reason}", where=str(beside), hint=last) from None

    def steps(self) -> list[int]:
        """Steps of the finished checkpoints, oldest first."""
        return finished_steps(self.folder)

    def latest(self, notify: Any) -> tuple[int, dict[str, Any]] | None:
        """Step and progress of the newest checkpoint whose files are all as they were written; None without any.

        A damaged one is passed over, out loud.

        Raises:
            ThriftyError: there are checkpoints, and all are damaged.
        """
        found: Any = None
        if self.world.rank == 0:
            damage = []
            for step in reversed(self.steps()):
                path = self.folder / f"step-{step:08d}"
                problem = check(path)
                if problem is None:
                    found = (step, json.loads((path / "progress.json").read_text()), damage)
                    break
                damage.append(f"{path}: {problem}")
            else:
                found = damage or None
            for line in damage:
                notify(f"damaged checkpoint passed over: {line}")
        found = self.world.share(found)
        if isinstance(found, list):
            hint = "train again without --resume in a new --run-dir; metrics so far stay where they are"
            raise ThriftyError(
                "every checkpoint is damaged:\n  " + "\n  ".join(found), where=str(self.folder), hint=hint
            )
        return None if found is None else (found[0], found[1])

    def stored(self, step: int) -> dict[str, Tensor]:
        """Every tensor of a checkpoint, whole and without memory."""
        metadata = dcp.FileSystemReader(self.folder / f"step-{step:08d}").read_metadata()
        found = (
            (name, one) for name, one in metadata.state_dict_metadata.items() if isinstance(one, TensorStorageMetadata)
        )
        return {name: torch.empty(one.size, dtype=one.properties.dtype, device="meta") for name, one in found}

    def load(self, step: int, tensors: dict[str, Tensor]) -> None:
        """Fills the tensors in place from a checkpoint, whatever layout wrote it.

        Raises:
            ThriftyError: a tensor is missing or has another shape.
        """
        path = self.folder / f"step-{step:08d}"
        try:
            dcp.load(tensors, checkpoint_id=path, process_group=self.world.writer, no_dist=self.world.size == 1)
        except (dcp.CheckpointException, RuntimeError, ValueError, OSError) as error:
            reason = str(error).strip().splitlines()[-1]
            hint = "the model or optimizer of the plan differs from the one that wrote it; use that run's own plan.yaml"
            raise ThriftyError(f"the checkpoint does not fit this plan: {reason}", where=str(path), hint=hint) from None


def check(path: Path) -> str | None:
    """What is wrong with a finished checkpoint, or None: every file has the size and sha256 it was written with."""
    try:
        written = json.loads((path / "files.json").read_text())
    except (OSError, ValueError) as error:
        return f"files.json cannot be read ({error})"
    for name, expected in written.items():
        file = path / name
        if not file.exists():
            return f"{name} is missing"
        if file.stat().st_size != expected["bytes"]:
            return f"{name} has {file.stat().st_size} bytes, not {expected['bytes']}"
        if _sha256(file) != expected["sha256"]:
            return f"{name} does not match its sha256"
    return None


def _seal(folder: Path) -> None:
    """Reads everything back, checks that DCP's index finds its bytes, and writes sizes and hashes."""
    metadata = dcp.FileSystemReader(folder).read_metadata()
    for info in metadata.storage_data.values():
        if info.offset + info.length > (folder / info.relative_path).stat().st_size:
            raise RuntimeError(f"{info.relative_path} is shorter than its index says")
    files = sorted(p for p in folder.iterdir() if p.is_file())
    listing = {p.name: {"bytes": p.stat().st_size, "sha256": _sha256(p)} for p in files}
    for file in files:
        _fsync(file)
    write_atomically(folder / "files.json", json.dumps(listing, indent=1))
    _fsync(folder)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _nbytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _done() -> Future[Any]:
    future: Future[Any] = Future()
    future.set_result(None)
    return future


def _is_full(error: BaseException | None) -> bool:
    """Whether an error, or one that it wraps, says that the disk or the quota is exhausted."""
    seen: list[BaseException] = []
    while error is not None and error not in seen:
        seen.append(error)
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        if "No space left" in str(error) or "unexpected pos" in str(error) or "PytorchStreamWriter" in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False
