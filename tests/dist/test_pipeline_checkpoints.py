"""A checkpoint of a pipeline continues on any other layout as if nothing had happened, and the other way round."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from parity import LLAMA, Case, bound
from test_checkpoint_layouts import ALL, HALF, train
from test_parity import TERMS, named

pytestmark = pytest.mark.dist

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
