"""Thrifty prices a training run before it is paid for, runs the cheapest plan on PyTorch, and bills it afterwards.

    import thrifty
    plan = thrifty.plan("jobs/tiny.yaml", "local")     # Plan, with a predicted bill
    bill = thrifty.train(plan, "runs/tiny")            # Bill, measured

Importing this package imports neither torch nor pydantic.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from thrifty.api import plan, predict, train
    from thrifty.spec import Bill, Cluster, Figure, Job, ModelShape, Plan, Recipe, ThriftyError

__version__ = "0.1.0"
_API = ("plan", "predict", "train")
_NOUNS = ("Bill", "Cluster", "Figure", "Job", "ModelShape", "Plan", "Recipe", "ThriftyError")
__all__ = [
    "Bill",
    "Cluster",
    "Figure",
    "Job",
    "ModelShape",
    "Plan",
    "Recipe",
    "ThriftyError",
    "plan",
    "predict",
    "train",
]


def __getattr__(name: str) -> Any:
    if name in _API:
        from thrifty import api

        return getattr(api, name)
    if name in _NOUNS:
        from thrifty import spec

        return getattr(spec, name)
    raise AttributeError(f"module 'thrifty' has no attribute {name!r}")
