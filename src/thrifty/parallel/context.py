"""Context parallelism: each sequence over the ranks of the mesh axis `context`, for sequences that one cannot hold.

A sequence is cut into 2C chunks, and rank r holds two of them, r and 2C - 1 - r (C = 3):

    chunk   0   1   2   3   4   5
    rank    0   1   2   2   1   0

A later chunk sees more keys, so that an early and a late one together make equal work (zigzag, as in Llama 3, Dubey et
al. 2024, arXiv:2407.21783, section 3.3.2). All but attention works on tokens apart and needs no exchange: there each
rank has the ids, targets, positions and losses of its chunks alone. Attention goes round the ring (`parallel.ring`).

Parameters are whole on every context rank, like on ranks of other samples; their gradients are sums over tokens, so
that FSDP2 shards them over both (`parallel.shard`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh

from thrifty.parallel.collectives import Group, gather_in
from thrifty.parallel.ring import ring_attention


def own_part(x: Tensor, rank: int, ranks: int, dim: int = 1) -> Tensor:
    """The two chunks that a rank holds, the early one first; 2 x ranks divides the dimension. Inverse of `whole`."""
    if ranks == 1:
        return x
    chunks = x.unflatten(dim, (2 * ranks, -1)).unbind(dim)
    return torch.cat([chunks[rank], chunks[-1 - rank]], dim)


def whole(parts: Sequence[Tensor], dim: int = 1) -> Tensor:
    """The sequence, from every rank's part in rank order."""
    early, late = zip(*(part.chunk(2, dim) for part in parts), strict=True)
    return torch.cat([*early, *reversed(late)], dim)


def places(seq: int, device: torch.device, rank: int, ranks: int) -> Tensor:
    """Positions in the whole sequence of a rank's `seq` tokens, (seq,)."""
    return own_part(torch.arange(seq * ranks, device=device), rank, ranks, dim=0)


def parallelize_context(model: nn.Module, mesh: DeviceMesh) -> None:
    """Splits sequences over the axis `context`, in place: the model then takes `own_part` of tokens and targets.

    Args:
        model: a decoder, or a stage of one, without windows narrower than the sequence.
        mesh: with the axis `context`.
    """
    axis = mesh["context"]
    rank, ranks = axis.get_local_rank(), axis.size()
    # One object for all: the compiler compares them, and would compile every block anew. It calls the ring as it is.
    ring = torch.compiler.disable(partial(ring_attention, group=axis.get_group()))
    for block in model.blocks.children():
        block.attention.ring = ring
    model.places = partial(places, rank=rank, ranks=ranks)
    if model.positions is not None:
        model.positions.forward = partial(_own_rows, model.positions.forward, rank, ranks)


def _own_rows(rows: Callable[..., Tensor], rank: int, ranks: int, start: int, seq: int) -> Tensor:
    """Learned positions of this rank's tokens, (seq, hidden)."""
    return own_part(rows(start, seq * ranks), rank, ranks, dim=0)


def gathered_attention(query: Tensor, key: Tensor, value: Tensor, group: Group) -> Tensor:
    """What `ring_attention` computes, the obvious way: every rank gathers all keys and values. Tests compare."""
    ranks, heads = group.size(), query.shape[1]

    def everybodys(x: Tensor) -> Tensor:  # (batch, kv_heads, seq / ranks, width) -> (batch, heads, seq, width)
        together = gather_in(x.transpose(1, 2).flatten(2), group).unflatten(2, (x.shape[1], -1)).transpose(1, 2)
        return whole(together.chunk(ranks, 2), 2).repeat_interleave(heads // x.shape[1], 1)

    mine = places(query.shape[2], query.device, group.rank(), ranks)
    seen = mine[:, None] >= torch.arange(query.shape[2] * ranks, device=query.device)
    plain: Any = torch.nn.functional.scaled_dot_product_attention
    return plain(query, everybodys(key), everybodys(value), attn_mask=seen)
