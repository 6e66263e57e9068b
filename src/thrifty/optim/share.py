"""Work on whole matrices, shared out over ranks: each takes some, and all receive what they hold a piece of."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor, Shard, distribute_tensor

from thrifty.cost.muon import owners

Whole = Callable[[list[Tensor]], list[Tensor]]


def shared_out(
    pieces: list[Tensor], params: list[Tensor], group: dist.ProcessGroup | None, whole: Whole
) -> list[Tensor]:
    """This rank's pieces of `whole` of all matrices, in bfloat16.

    Args:
        pieces: what this rank holds of each, in bfloat16.
        params: DTensors that are all split alike, or whole tensors.
        group: ranks that hold the same whole tensors; none to do all of the work here.
    """
    first = params[0]
    if not isinstance(first, DTensor):
        return (
            _of_equals(pieces, group, whole) if group is not None and dist.get_world_size(group) > 1 else whole(pieces)
        )
    split = [dim for dim, how in enumerate(first.placements) if isinstance(how, Shard)]
    if not split:
        return whole(pieces)
    if len(split) == 1 and first.placements[split[0]].dim == 0:
        return _of_rows(pieces, params, first.device_mesh.get_group(split[0]), whole)
    full = [
        DTensor.from_local(
            x, p.device_mesh, p.placements, run_check=False, shape=p.shape, stride=p.stride()
        ).full_tensor()
        for x, p in zip(pieces, params, strict=True)
    ]
    made = zip(whole(full), params, strict=True)
    return [
        distribute_tensor(x.contiguous(), p.device_mesh, p.placements, src_data_rank=None).to_local() for x, p in made
    ]


def _of_equals(pieces: list[Tensor], group: dist.ProcessGroup, whole: Whole) -> list[Tensor]:
    """Each rank works on its share; one all-gather hands all results to all."""
    rank, ranks = dist.get_rank(group), dist.get_world_size(group)
    taken = owners(tuple((x.shape[0], x.shape[1]) for x in pieces), ranks)
    mine = [place for place, owner in enumerate(taken) if owner == rank]
    sizes = [sum(x.numel() for x, owner in zip(pieces, taken, strict=True) if owner == r) for r in range(ranks)]
    sent = pieces[0].new_zeros(max(sizes))
    made = whole([pieces[place] for place in mine])
    if made:
        torch.cat([x.reshape(-1) for x in made], out=sent[: sizes[rank]])
    got = sent.new_empty(ranks * max(sizes))
    dist.all_gather_into_tensor(got, sent, group=group)
    at = [r * max(sizes) for r in range(ranks)]
    results = []
    for x, owner in zip(pieces, taken, strict=True):
        results.append(got[at[owner] : at[owner] + x.numel()].view(x.shape))
        at[owner] += x.numel()
    return results


def rows_of(rows: int, rank: int, ranks: int) -> int:
    """Rows that a rank holds of a tensor split along its first dimension, as DTensor cuts."""
    each = -(-rows // ranks)
    return max(0, min(rows, (rank + 1) * each) - rank * each)


def _of_rows(pieces: list[Tensor], params: list[Tensor], group: dist.ProcessGroup, whole: Whole) -> list[Tensor]:
    """Rows travel to the owners of their matrices, and back as rows of the results: two all-to-alls."""
    rank, ranks = dist.get_rank(group), dist.get_world_size(group)
    taken = owners(tuple((p.shape[0], p.shape[1]) for p in params), ranks)
    held = [[rows_of(p.shape[0], r, ranks) * p.shape[1] for p in params] for r in range(ranks)]  # values, by rank
    mine = [place for place, owner in enumerate(taken) if owner == rank]
    leaving = [sum(held[rank][place] for place, owner in enumerate(taken) if owner == r) for r in range(ranks)]
    coming = [sum(held[r][place] for place in mine) for r in range(ranks)]
    order = sorted(range(len(params)), key=taken.__getitem__)  # by owner, as the pieces leave
    got = _exchanged(torch.cat([pieces[place].reshape(-1) for place in order]), leaving, coming, group)
    parts = [list(some.split([held[r][place] for place in mine])) for r, some in enumerate(got.split(coming))]
    full = [torch.cat([part[at] for part in parts]).view(params[place].shape) for at, place in enumerate(mine)]
    made = [
        x.reshape(-1).split([held[r][place] for r in range(ranks)]) for x, place in zip(whole(full), mine, strict=True)
    ]
    back = torch.cat([some[r] for r in range(ranks) for some in made]) if made else got.new_empty(0)
    got = _exchanged(back, coming, leaving, group)
    results = list(pieces)
    for place, piece in zip(order, got.split([held[rank][place] for place in order]), strict=True):
        results[place] = piece.view(pieces[place].shape)
    return results


def _exchanged(x: Tensor, leaving: list[int], coming: list[int], group: dist.ProcessGroup) -> Tensor:
    got = x.new_empty(sum(coming))
    dist.all_to_all_single(got, x, coming, leaving, group=group)
    return got
