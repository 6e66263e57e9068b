"""Opens what a run has trained: the model of its newest good checkpoint, and its tokenizer."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from thrifty.data.tokenizer import Tokenizer, load_tokenizer
from thrifty.model.transformer import Transformer
from thrifty.planner.emit import read_plan
from thrifty.spec.errors import ThriftyError
from thrifty.spec.plan import Plan
from thrifty.trainer.checkpoint import Checkpoints, check
from thrifty.trainer.run_folder import RunFolder
from thrifty.trainer.world import World


def open_run(root: Path, notify: Callable[[str], None], step: int | None = None) -> tuple[Plan, Checkpoints, int]:
    """The plan of a run, its checkpoints, and the step of the newest good one, or of the one asked for.

    Args:
        root: a run folder; the layout that trained it does not matter.
        notify: told of damaged checkpoints that are passed over.

    Raises:
        ThriftyError: not a run folder, no checkpoint in it is good, or the one asked for is missing or damaged.
    """
    folder = RunFolder(root)
    if not folder.plan.exists():
        raise ThriftyError(
            "is not a run folder (no plan.yaml)", where=str(root), hint="give what `thrifty train` wrote"
        )
    checkpoints = Checkpoints(folder.checkpoints, World(0, 1, 0, 1, torch.device("cpu")), keep=1)
    steps = checkpoints.steps()
    if not steps:
        raise ThriftyError("has no checkpoint yet", where=str(root), hint="train on: thrifty train RUN --resume")
    if step is not None and step not in steps:
        listed = ", ".join(map(str, steps))
        raise ThriftyError(f"has no checkpoint of step {step}", where=str(root), hint=f"there are {listed}")
    if step is None:
        step, _ = checkpoints.latest(notify) or (steps[-1], {})
    elif damage := check(folder.checkpoints / f"step-{step:08d}"):
        raise ThriftyError(f"the checkpoint of step {step} is damaged: {damage}", where=str(root))
    return read_plan(folder.plan), checkpoints, step


def load_trained(root: Path, notify: Callable[[str], None]) -> tuple[Transformer, Tokenizer, int]:
    """Model in fp32 on the CPU, tokenizer, and the step of the checkpoint; arguments and errors as `open_run`."""
    plan, checkpoints, step = open_run(root, notify)
    with torch.device("meta"):
        model = Transformer(plan.job.model)
    model.to_empty(device="cpu")
    checkpoints.load(step, {f"model.{name}": p.detach() for name, p in model.named_parameters()})
    return model.eval(), load_tokenizer(RunFolder(root).tokenizer), step
