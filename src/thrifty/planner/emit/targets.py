"""The names that `--emit` knows, and the one function that writes a plan for them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from thrifty.planner.emit import (
    accelerate,
    deepspeed,
    kubeflow,
    launch,
    megatron,
    skypilot,
    slurm,
    torchtitan,
    write_text,
)
from thrifty.spec.errors import ThriftyError, did_you_mean
from thrifty.spec.plan import Plan

Files = dict[str, str]

# The first four start the software that the plan is for; the others are configurations for one software.
TARGETS: dict[str, Callable[[Plan], Files]] = {
    "torchrun": launch.torchrun,
    "slurm": slurm.emit,
    "skypilot": skypilot.emit,
    "kubeflow": kubeflow.emit,
    "torchtitan": lambda plan: launch.with_script(plan, torchtitan.entry(plan)),
    "megatron": lambda plan: launch.with_script(plan, megatron.entry(plan)),
    "deepspeed": lambda plan: launch.with_script(plan, deepspeed.entry(plan)),
    "accelerate": lambda plan: launch.with_script(plan, accelerate.entry(plan)),
}


def check(targets: Sequence[str], option: str) -> None:
    """Refuses a name that is no target, before anything is planned or written.

    Raises:
        ThriftyError: with the nearest target.
    """
    for target in targets:
        if target not in TARGETS:
            raise ThriftyError(
                f"{target!r} is no target", where=f"{option} {target}".strip(), hint=did_you_mean(target, TARGETS)
            )


def emit(plan: Plan, target: str) -> Files:
    """Name -> text of the files that a target reads.

    Raises:
        ThriftyError: unknown target, or it cannot express the plan: what, the plan's key, a way out.
    """
    check([target], "")
    return TARGETS[target](plan)


def write_all(plan: Plan, targets: Sequence[str], folder: Path, option: str) -> dict[str, Files]:
    """Writes the files of all targets into a folder, or none where one of them cannot express the plan.

    Args:
        option: that named the folder, for the message of a file that cannot be written.

    Returns:
        Target -> its files.

    Raises:
        ThriftyError: as `emit`, or a file cannot be written.
    """
    made = {target: emit(plan, target) for target in targets}
    for files in made.values():
        for name, text in files.items():
            write_text(folder / name, text, option)
    return made
