"""Attention around a ring computes what one rank that gathers everything computes, forward and all gradients."""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

import pytest
import torch
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st
from pool import KEPT

from thrifty.parallel import ring
from thrifty.parallel.context import gathered_attention, own_part, places, whole
from thrifty.parallel.count import TrafficCounter
from thrifty.parallel.ring import ring_attention

EPS = 2.0**-52


@given(st.integers(1, 6), st.integers(1, 5), st.integers(1, 3))
def test_splitting_and_merging_a_sequence_is_a_round_trip(ranks: int, chunk: int, batch: int) -> None:
    x = torch.randn(batch, 2 * ranks * chunk, 2)
    parts = [own_part(x, rank, ranks) for rank in range(ranks)]
    assert torch.equal(whole(parts), x)
    for rank, part in enumerate(parts):
        assert torch.equal(x[:, places(part.shape[1], x.device, rank, ranks)], part)


@given(st.integers(1, 8), st.integers(1, 4))
def test_every_rank_has_the_same_work(ranks: int, chunk: int) -> None:
    """Pairs of queries and keys that the mask leaves: equal, but for what the diagonals of chunks take."""
    pairs = {int((places(2 * chunk, torch.device("cpu"), rank, ranks) + 1).sum()) for rank in range(ranks)}
    assert len(pairs) == 1


class Shape(NamedTuple):
    batch: int
    heads: int
    kv_heads: int
    seq: int  # of the whole sequence
    width: int


SHAPES = [Shape(2, 3, 3, 16, 8), Shape(1, 6, 2, 48, 5), Shape(3, 5, 1, 8, 16), Shape(2, 4, 2, 72, 32)]
FORMS = ("flash", "plain")


@cache
def the_group() -> Any:
    group = dist.new_group(list(range(dist.get_world_size())))
    KEPT.add(group)
    return group


def both_ways(shape: Shape, dtype: torch.dtype, form: str) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Outputs and gradients of queries, keys and values: of the ring, and of fp64 attention that gathers everything."""
    group, generator = the_group(), torch.Generator().manual_seed(7)
    ranks, rank = group.size(), group.rank()
    batch, heads, kv_heads, seq, width = shape
    drawn = [
        torch.randn(batch, number, seq, width, generator=generator, dtype=torch.float64).to(dtype)
        for number in (heads, kv_heads, kv_heads, heads)
    ]
    *inputs, grad = (own_part(x, rank, ranks, dim=2) for x in drawn)
    has_flash = ring._has_flash
    ring._has_flash = has_flash if form == "flash" else lambda _: False
    found = []
    try:
        for attention, kind in ((ring_attention, dtype), (gathered_attention, torch.float64)):
            leaves = [x.to(kind, copy=True).requires_grad_() for x in inputs]
            out = attention(*leaves, group)
            out.backward(grad.to(kind))
            found.append([out.detach(), *(leaf.grad for leaf in leaves)])
    finally:
        ring._has_flash = has_flash
    return list(zip(*found, strict=True))


@pytest.mark.dist
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("ranks", [2, 4])
def test_the_ring_is_exact_in_fp64(pool, ranks, shape, form):
    allowed = 64 * shape.seq**0.5 * EPS
    for rank in pool(ranks).run(both_ways, shape, torch.float64, form):
        for one, other in rank:
            assert float((one - other).norm()) <= allowed * float(other.norm())


@pytest.mark.dist
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("dtype", "eps"), [(torch.float32, 2.0**-23), (torch.bfloat16, 2.0**-8)])
def test_in_other_dtypes_the_ring_rounds(pool, dtype, eps, form):
    for rank in pool(4).run(both_ways, SHAPES[3], dtype, form):
        for one, other in rank:
            assert one.dtype == dtype
            assert float((one.double() - other).norm()) <= 4 * eps * float(other.norm())


def gradients_of_the_sum(shape: Shape) -> list[tuple[torch.Tensor, torch.Tensor]]:
    group, found = the_group(), []
    batch, heads, kv_heads, seq, width = shape
    part = seq // group.size()
    drawn = [torch.randn(batch, n, part, width, dtype=torch.float64) for n in (heads, kv_heads, kv_heads)]
    for attention in (ring_attention, gathered_attention):
        leaves = [x.clone().requires_grad_() for x in drawn]
        out = attention(*leaves, group)
        out.sum().backward()
        found.append([leaf.grad for leaf in leaves])
    return list(zip(*found, strict=True))


@pytest.mark.dist
def test_a_gradient_that_is_one_number_everywhere(pool):
    """Which autograd hands over without memory of its own."""
    shape = Shape(1, 2, 2, 16, 8)
    allowed = 64 * shape.seq**0.5 * EPS
    for rank in pool(2).run(gradients_of_the_sum, shape):
        for one, other in rank:
            assert float((one - other).norm()) <= allowed * max(1.0, float(other.norm()))


def messages(shape: Shape, dtype: torch.dtype) -> tuple[dict[Any, int], dict[Any, int]]:
    group = the_group()
    batch, heads, kv_heads, seq, width = shape
    part = seq // group.size()
    q, k, v = (torch.randn(batch, n, part, width, dtype=dtype, requires_grad=True) for n in (heads, kv_heads, kv_heads))
    with TrafficCounter(lambda _: "link") as traffic:
        out = ring_attention(q, k, v, group)
        ahead = dict(traffic.calls)
        out.sum().backward()
        traffic.calls.subtract(ahead)
        return ahead, {call: number for call, number in traffic.calls.items() if number}


@pytest.mark.dist
@pytest.mark.parametrize("ranks", [2, 4])
def test_keys_and_values_go_round_once_each_way_and_their_gradients_home(pool, ranks):
    """In bf16 the sums of gradients travel in fp32. Grouped heads are not repeated."""
    shape = SHAPES[3]
    keys = 2 * shape.batch * shape.kv_heads * shape.seq // ranks * shape.width
    for ahead, back in pool(ranks).run(messages, shape, torch.bfloat16):
        assert ahead == {("send", ranks, 2 * keys, "link"): ranks - 1}
        assert back == ahead | {("send", ranks, 4 * keys, "link"): ranks - 1}
