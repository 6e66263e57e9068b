"""Gradient norm and clipping over sharded parameters, with one small all-reduce."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def clip_gradients(
    parameters: list[Tensor], max_norm: float, group: Any, counted_elsewhere: Collection[Tensor] = ()
) -> Tensor:
    """Scales gradients so that their global L2 norm is at most `max_norm` (0 = measure only); returns the norm before.

        norm = sqrt(sum over shards of sum g^2),   g <- g x min(1, max_norm / (norm + 1e-6))

    Args:
        group: the ranks among which the gradients are split; None where every rank holds all of them.
        counted_elsewhere: parameters of which another rank of the group holds the same gradient and counts it.
    """
    local = _local([p.grad for p in parameters])
    repeated = {id(p) for p in counted_elsewhere}
    counted = _local([p.grad for p in parameters if id(p) not in repeated])
    device = parameters[0].device
    if counted:
        norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(counted)))
    else:
        norm = torch.zeros((), device=device)
    if group is not None:
        square = norm.square()
        dist.all_reduce(square, group=group)
        norm = square.sqrt()
    if max_norm > 0 and local:
        torch._foreach_mul_(local, torch.clamp(max_norm / (norm + 1e-6), max=1.0))
    return norm


def _local(gradients: list[Tensor | None]) -> list[Tensor]:
    """This rank's part of each gradient that there is, empty parts left out."""
    parts = [g.to_local() if hasattr(g, "to_local") else g for g in gradients if g is not None]
    return [part for part in parts if part.numel()]
