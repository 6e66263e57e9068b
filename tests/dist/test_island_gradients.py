"""Islands that send each other encoded gradients: beside the plain all-reduce, on every axis, and as planned."""

from __future__ import annotations

from typing import Any

import pytest
from parity import Case, bound, build_case, compare, one_step, take_steps, update
from test_audit import expected
from test_parity import named

import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor

from thrifty.parallel.count import TrafficCounter
from thrifty.trainer.islands import Islands

pytestmark = pytest.mark.dist

ISLANDS: list[dict[str, Any]] = [
    {"island": 2},
    {"island": 2, "shard": 2},
    {"island": 2, "tensor": 2},
    {"island": 2, "pipeline": 2},
    {"island": 2, "context": 2},
]
AGREED_BYTES = 32  # four checksums that ranks compare once for each unit


@pytest.mark.parametrize("layout", ISLANDS, ids=named)
@pytest.mark.parametrize("shape", ["llama", "odd"])
def test_a_codec_that_loses_nothing_gives_the_gradients_of_one_process(pool, layout, shape):
    case = Case(shape=shape, dtype="float32", steps=3, clip=1.0)
    one = take_steps(case)
    islands = Case(shape=shape, layout=layout, dtype="float32", steps=3, clip=1.0, islands={"codec": "randomk(1)"})
    for other in pool(islands.recipe.layout.ranks).run(take_steps, islands):
        assert not compare(one, other, bound("float32", 8 * 32, 4))


def steps_and_hash(case: Case) -> tuple[list[float], dict[str, float], dict[str, int]]:
    """Losses of some steps, sums of what this rank holds then, and what it sent by (kind, ranks, bytes)."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        with TrafficCounter(lambda _: "link") as traffic:
            built, world = build_case(case)
            islands = Islands(built, case.recipe)
            losses = []
            for step in range(case.steps):
                built.optimizer.zero_grad(set_to_none=True)
                losses.append(one_step(case, built, world, step, islands)[0])
                update(built)
            islands.exchange.close()
            calls = {key[:3]: number for key, number in traffic.calls.items() if key[2] not in (8, AGREED_BYTES)}
    finally:
        torch.set_default_dtype(before)
    return losses, {name: _sum(p) for name, p in built.model.named_parameters()}, calls


def _sum(parameter: torch.Tensor) -> float:
    local = parameter.to_local() if isinstance(parameter, DTensor) else parameter
    return float(local.detach().double().sum())


@pytest.mark.parametrize("layout", ISLANDS, ids=named)
@pytest.mark.parametrize("codec", ["int8", "topk(1/8) + means2"])
def test_replicas_stay_equal_and_what_is_sent_is_what_was_planned(pool, layout, codec):
    case = Case(shape="qwen", layout=layout, dtype="float32", steps=3, clip=1.0, islands={"codec": codec})
    found = pool(case.recipe.layout.ranks).run(steps_and_hash, case)
    each = case.recipe.layout.ranks // 2
    for rank, (losses, sums, calls) in enumerate(found):
        assert losses == found[0][0]
        assert sums == found[rank % each][1], "islands hold other parameters"
        planned = expected(case, rank).calls
        assert calls == {one: case.steps * count for one, count in planned.items()}
    if layout.get("tensor"):
        whole = [name for name in found[0][1] if name.endswith("norm.weight")]
        assert whole and all(found[0][1][name] == found[1][1][name] for name in whole), "tensor ranks drift apart"
