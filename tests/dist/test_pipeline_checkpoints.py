"""A checkpoint of a pipeline continues on any other layout as if nothing had happened, and the other way round."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from parity import LLAMA, Case, bound, build_case, gathered, one_step, update, whole
from test_parity import TERMS, named

from thrifty.trainer import checkpoint
from thrifty.trainer.checkpoint import Checkpoints

pytestmark = pytest.mark.dist

HALF, ALL = 2, 4  # steps
ZBV = {"pipeline": 2, "schedule": "zbv", "interleave": 2}
PAIRS = [
    ({"pipeline": 2, "shard": 2}, {}),
    ({"pipeline": 2}, {"shard": 2}),
    ({"pipeline": 2}, {"pipeline": 2, "shard": 2}),
    (ZBV, {"pipeline": 4}),
    ({"shard": 2}, ZBV),
    ({}, {"pipeline": 2, "shard": 2}),
    ({"pipeline": 2, "context": 2}, {"shard": 2}),
]


def train(case: Case, folder: str, first: int, last: int) -> tuple[list[float], dict[str, torch.Tensor]]:
    """Steps `first` to `last` on this rank, from the checkpoint of step `first` unless that is 0; saves step HALF."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        built, world = build_case(case)
        checkpoints = Checkpoints(Path(folder), world, keep=9)
        if first:
            checkpoint.allocate_state(built.optimizer)
            checkpoints.load(first, checkpoint.state(built.model, built.optimizer))
            if built.tied is not None:
                built.tied.follow()
        losses = []
        for step in range(first, last):
            losses.append(one_step(case, built, world, step)[0])
            update(built)
            built.optimizer.zero_grad(set_to_none=True)
        if last == HALF:
            checkpoints.save(last, checkpoint.state(built.model, built.optimizer), {})
        return losses, gathered({name: whole(p) for name, p in built.model.named_parameters()}, built)
    finally:
        torch.set_default_dtype(before)


def run(pool: Any, layout: dict[str, Any], folder: Path, first: int, last: int) -> Any:
    case = Case(shape="qwen", layout=layout, clip=0.3)
    ranks = case.recipe.layout.ranks
    asked = (case, str(folder), first, last)
    return train(*asked) if ranks == 1 else pool(ranks).run(train, *asked)[0]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return run(None, {}, tmp_path_factory.mktemp("alone"), 0, ALL)


@pytest.mark.parametrize(("saved_on", "layout"), PAIRS, ids=lambda one: named(one) or "alone")
def test_saved_on_one_layout_and_continued_on_another(pool, uninterrupted, tmp_path, saved_on, layout):
    """A tied embedding is written once, and read by both stages that hold it."""
    losses, parameters = uninterrupted
    begun, _ = run(pool, saved_on, tmp_path, 0, HALF)
    ended, found = run(pool, layout, tmp_path, HALF, ALL)
    allowed = 1e3 * bound("float64", TERMS, LLAMA["layers"])
    assert begun + ended == pytest.approx(losses, rel=allowed)
    assert found.keys() == parameters.keys()
    for name, expected in parameters.items():
        assert float((found[name] - expected).norm()) <= allowed * float(expected.norm()), name
