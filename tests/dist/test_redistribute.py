"""Tensors moved between layouts over real ranks: what DTensor makes of them, for exactly the bytes that are lacking."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed as dist
from parity import Case, build_case
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor, Partial, Placement, Replicate, Shard, distribute_tensor

from thrifty.model.initialise import held
from thrifty.parallel.count import TrafficCounter
from thrifty.parallel.reshard import Box, TensorLayout, bytes_to_send, lay_out, moves, redistribute, split
from thrifty.parallel.tensor import placement

pytestmark = pytest.mark.dist

SHAPE = (7, 6)
ROWS, COLUMNS, COPY, SUM = Shard(0), Shard(1), Replicate(), Partial()
# Mesh sizes, placements before and after, axis by axis.
CASES: dict[int, list[tuple[tuple[int, ...], list[Placement], list[Placement]]]] = {
    2: [
        ((2,), [ROWS], [COLUMNS]),
        ((2,), [ROWS], [COPY]),
        ((2,), [COPY], [COLUMNS]),
        ((2,), [SUM], [ROWS]),
        ((2,), [SUM], [COPY]),
        ((2,), [COLUMNS], [COLUMNS]),
    ],
    4: [
        ((4,), [ROWS], [COLUMNS]),
        ((4,), [SUM], [COLUMNS]),
        ((2, 2), [ROWS, ROWS], [COPY, COLUMNS]),
        ((2, 2), [COPY, ROWS], [COLUMNS, ROWS]),
        ((2, 2), [ROWS, SUM], [ROWS, COLUMNS]),
        ((2, 2), [COPY, SUM], [COLUMNS, COPY]),
        ((2, 2), [SUM, COPY], [SUM, ROWS]),
    ],
}  # fmt: skip


def described(sizes: tuple[int, ...], placements: list[Placement]) -> TensorLayout:
    axes = {str(axis): size for axis, size in enumerate(sizes)}
    splits = [(str(axis), one.dim) for axis, one in enumerate(placements) if isinstance(one, Shard)]
    return lay_out(SHAPE, axes, splits, sums=[str(axis) for axis, one in enumerate(placements) if one == SUM])


def numbers(seed: int) -> torch.Tensor:
    return torch.randint(-8, 9, SHAPE, generator=torch.Generator().manual_seed(seed)).float()


def started(mesh: DeviceMesh, sizes: tuple[int, ...], placements: list[Placement]) -> DTensor:
    """The same numbers on any layout; of a sum each rank has terms of its own."""
    if SUM not in placements:
        return distribute_tensor(numbers(0), mesh, placements)
    layout = described(sizes, placements)
    part = layout.part_of(dist.get_rank())
    local = numbers(part.term)[tuple(slice(side.start, side.stop) for side in part.box)].contiguous()
    return DTensor.from_local(local, mesh, placements, run_check=False, shape=torch.Size(SHAPE), stride=(SHAPE[1], 1))


def move_all(cases: list[Any]) -> list[tuple[bool, int, int]]:
    """Of each case: whether this rank holds what DTensor holds, bytes it sent, and bytes it was to send."""
    found = []
    meshes: dict[tuple[int, ...], DeviceMesh] = {}
    for sizes, before, after in cases:
        mesh = meshes.setdefault(sizes, init_device_mesh("cpu", sizes)) if sizes not in meshes else meshes[sizes]
        source, target = described(sizes, before), described(sizes, after)
        tensor = started(mesh, sizes, before)
        with TrafficCounter(lambda _: "link") as traffic:
            got = redistribute(tensor.to_local(), source, target)
        expected = tensor.redistribute(mesh, after).to_local()
        mine = [move for move in moves(source, target) if move.source == dist.get_rank()]
        same = got is not None and got.shape == expected.shape and torch.equal(got, expected)
        found.append((same, int(traffic.link_bytes["link"]), 4 * sum(move.elements for move in mine)))
    return found


@pytest.mark.parametrize("ranks", CASES)
def test_the_result_is_that_of_dtensor_for_the_bytes_that_are_lacking(pool, ranks):
    seen = pool(ranks).run(move_all, CASES[ranks])
    for number, (sizes, before, after) in enumerate(CASES[ranks]):
        here = [rank[number] for rank in seen]
        assert all(same for same, _, _ in here), (sizes, before, after)
        assert [sent for _, sent, _ in here] == [planned for _, _, planned in here]
        planned = bytes_to_send(described(sizes, before), described(sizes, after), 4)
        assert sum(sent for _, sent, _ in here) == planned


def sum_in_two_steps() -> tuple[int, int, bool]:
    """Bytes this rank sends for a sum that all are to hold: straight there, and by way of a split layout."""
    axes = {"tensor": dist.get_world_size()}
    terms, copies = lay_out(SHAPE, axes, sums=["tensor"]), lay_out(SHAPE, axes)
    between = lay_out(SHAPE, axes, [("tensor", 1)])
    local = torch.randn(SHAPE, generator=torch.Generator().manual_seed(dist.get_rank()))
    sent, results = [], []
    for way in ([terms, copies], [terms, between, copies]):
        held = local
        with TrafficCounter(lambda _: "link") as traffic:
            for source, target in zip(way, way[1:], strict=False):
                held = redistribute(held, source, target)
        sent.append(int(traffic.link_bytes["link"]))
        results.append(held)
    everybody = [torch.empty(SHAPE) for _ in range(dist.get_world_size())]
    dist.all_gather(everybody, results[0])
    same = torch.equal(*results) and all(torch.equal(one, results[0]) for one in everybody)
    return sent[0], sent[1], same


def test_an_all_reduce_in_two_steps_sends_less_and_copies_agree_to_the_bit(pool):
    seen = pool(4).run(sum_in_two_steps)
    assert all(same for _, _, same in seen)
    size = 4 * SHAPE[0] * SHAPE[1]
    assert sum(straight for straight, _, _ in seen) == 4 * 3 * size
    assert sum(way for _, way, _ in seen) == 2 * 3 * size  # a ring's 2 (n - 1) / n for each rank


def gather_on(last: int) -> tuple[bool, int]:
    """Everything to one rank that holds a part, nothing to the others."""
    whole = numbers(0)
    source = lay_out(SHAPE, {"shard": dist.get_world_size()}, [("shard", 0)])
    target = lay_out(SHAPE, {"one": 1}, ranks=[last])
    with TrafficCounter(lambda _: "link") as traffic:
        got = redistribute(split(whole, source)[dist.get_rank()], source, target)
    right = torch.equal(got, whole) if dist.get_rank() == last else got is None
    return right, int(traffic.link_bytes["link"])


def test_ranks_that_are_to_hold_nothing_get_nothing(pool):
    seen = pool(2).run(gather_on, 1)
    assert seen == [(True, 4 * 4 * 6), (True, 0)]


def held_by_training(case: Case) -> dict[str, tuple[tuple[int, ...], Box]]:
    """Shape, and the box of this rank, of every parameter as the trainer splits it."""
    built, _ = build_case(case)
    boxes = {name: tuple(range(side.start, side.stop) for side in held(p)) for name, p in built.model.named_parameters()}
    return {name: (tuple(p.shape), boxes[name]) for name, p in built.model.named_parameters()}


@pytest.mark.parametrize("shape", ["llama", "odd"])
def test_nested_splits_are_described_as_training_makes_them(pool, shape):
    """Sharding over tensor parallelism, also where nothing divides: rows first over tensor, then over shard."""
    seen = pool(4).run(held_by_training, Case(shape=shape, layout={"shard": 2, "tensor": 2}))
    for name, (size, _) in seen[0].items():
        where = placement(name)
        splits = [("tensor", where.dim)] if isinstance(where, Shard) else []
        layout = lay_out(size, {"shard": 2, "tensor": 2}, [*splits, ("shard", 0)])
        assert [part.box for part in layout.parts] == [rank[name][1] for rank in seen], name
