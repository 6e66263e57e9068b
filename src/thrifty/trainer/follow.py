"""Sends metrics on to TensorBoard, Weights & Biases or trackio. All optional, all off unless asked for."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from thrifty.spec.errors import ThriftyError, did_you_mean
from thrifty.spec.plan import Plan

_PACKAGES = {"tensorboard": "tensorboard", "wandb": "wandb", "trackio": "trackio"}


def open_follower(name: str, root: Path, plan: Plan) -> Callable[[dict[str, Any]], None]:
    """A function that takes each row of metrics.jsonl.

    Raises:
        ThriftyError: an unknown name, or its package is not installed.
    """
    if name not in _PACKAGES:
        raise ThriftyError(f"unknown metrics target {name!r}", where="--follow", hint=did_you_mean(name, _PACKAGES))
    try:
        if name == "tensorboard":
            return _tensorboard(root)
        return _wandb_like(importlib.import_module(name), root, plan)
    except ImportError:
        raise ThriftyError(
            f"{name} is not installed", where="--follow", hint=f"pip install {_PACKAGES[name]}"
        ) from None


def _tensorboard(root: Path) -> Callable[[dict[str, Any]], None]:
    writer = importlib.import_module("torch.utils.tensorboard").SummaryWriter(str(root / "tensorboard"))

    def follow(row: dict[str, Any]) -> None:
        for key, value in _scalars(row).items():
            writer.add_scalar(key, value, row["step"])

    return follow


def _wandb_like(module: Any, root: Path, plan: Plan) -> Callable[[dict[str, Any]], None]:
    """W&B and trackio share `init` and `log`."""
    module.init(
        project="thrifty", name=root.name, config={"job": plan.job.model_dump(), "recipe": plan.recipe.model_dump()}
    )

    def follow(row: dict[str, Any]) -> None:
        module.log(_scalars(row), step=row["step"])

    return follow


def _scalars(row: dict[str, Any]) -> dict[str, float]:
    """`train/loss`, `val/loss`, ...: every number of a row but its step."""
    return {
        f"{row['split']}/{key}": value for key, value in row.items() if isinstance(value, int | float) and key != "step"
    }
