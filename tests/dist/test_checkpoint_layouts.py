"""A checkpoint of one layout continues on any other as if nothing had happened: parameters, optimizer states, losses."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from parity import LLAMA, SHAPES, Case, bound, build_case, gathered, one_step, update, whole
from test_parity import TERMS, named

from thrifty.trainer import checkpoint
from thrifty.trainer.checkpoint import Checkpoints

pytestmark = pytest.mark.dist

HALF, ALL = 3, 6  # steps
SAVED_ON = [
    {"shard": 2, "tensor": 2},
    {"tensor": 2},
    {"island": 2, "tensor": 2, "sequence_parallel": False},
    {"context": 2},
    {},
]
CONTINUED_ON = [
    {},
    {"shard": 2},
    {"tensor": 4},
    {"shard": 2, "tensor": 2, "sequence_parallel": False},
    {"shard": 2, "context": 2},
]


class Begun(NamedTuple):
    """Where a run stands that is to be continued."""

    shape: str
    folder: Path
    losses: list[float]


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


def run(pool: Any, layout: dict[str, Any], folder: Path, first: int, last: int, shape: str) -> Any:
    case = Case(shape=shape, layout=layout, clip=0.3, steps=last)
    ranks = case.recipe.layout.ranks
    if ranks == 1:
        return train(replace(case, micro=4), str(folder), first, last)
    return pool(ranks).run(train, case, str(folder), first, last)[0]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Six steps in one process, of each shape."""
    return {shape: run(None, {}, tmp_path_factory.mktemp(shape), 0, ALL, shape) for shape in ("qwen", "odd")}


@pytest.fixture(scope="module", params=SAVED_ON, ids=named)
def begun(request: pytest.FixtureRequest, pool: Any, tmp_path_factory: pytest.TempPathFactory) -> Begun:
    """The first half of the steps on one layout."""
    layout, folder = request.param, tmp_path_factory.mktemp("begun")
    shape = "odd" if layout == SAVED_ON[0] else "qwen"
    return Begun(shape, folder, run(pool, layout, folder, 0, HALF, shape)[0])


@pytest.mark.parametrize("layout", CONTINUED_ON, ids=named)
def test_saved_on_one_layout_and_continued_on_another(pool, uninterrupted, begun, layout):
    losses, parameters = uninterrupted[begun.shape]
    ended, found = run(pool, layout, begun.folder, HALF, ALL, begun.shape)
    allowed = 1e3 * bound("float64", TERMS, LLAMA["layers"])
    assert begun.losses + ended == pytest.approx(losses, rel=allowed)
    assert found.keys() == parameters.keys()
    for name, expected in parameters.items():
        assert float((found[name] - expected).norm()) <= allowed * float(expected.norm()), name


def test_the_odd_shape_is_odd():
    """Its vocabulary is divided by no axis, so that ranks hold unequal parts of it."""
    assert all(SHAPES["odd"]["vocab_size"] % size for size in (2, 4))
