"""Tensors that are split over ranks, as optimizers see them: this rank's piece, and sums over all pieces."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor, Shard

from thrifty.spec.errors import ThriftyError


def local(tensor: Tensor) -> Tensor:
    """This rank's piece of a tensor that may be split."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def local_gradient(p: Tensor, who: str) -> Tensor:
    """This rank's piece of the gradient, split as its parameter is.

    Raises:
        ThriftyError: a sparse gradient.
    """
    g = p.grad
    if g.is_sparse:
        raise ThriftyError(f"{who} takes no sparse gradients", hint="use torch.optim.SparseAdam for them")
    if isinstance(p, DTensor) and isinstance(g, DTensor) and g.placements != p.placements:
        g = g.redistribute(p.device_mesh, p.placements)
    return local(g)


def split_over(p: Tensor) -> tuple[dist.ProcessGroup, ...]:
    """Groups of ranks, one a mesh dimension, that hold different pieces of a tensor."""
    if not isinstance(p, DTensor):
        return ()
    return tuple(p.device_mesh.get_group(dim) for dim, how in enumerate(p.placements) if isinstance(how, Shard))


def summed_over_shards(values: Tensor, params: Sequence[Tensor]) -> Tensor:
    """Sums (..., tensors) of each tensor's values over the ranks that hold its pieces.

    One all-reduce for all tensors that are split alike: under FSDP2 one in all.
    """
    alike: dict[tuple[dist.ProcessGroup, ...], list[int]] = {}
    for place, p in enumerate(params):
        alike.setdefault(split_over(p), []).append(place)
    for groups, places in alike.items():
        if not groups:
            continue
        some = values[..., places].contiguous()
        for group in groups:
            dist.all_reduce(some, group=group)
        values = values.clone() if len(alike) > 1 else torch.empty_like(values)
        values[..., places] = some
    return values
