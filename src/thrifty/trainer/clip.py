"""Gradient norm and clipping over sharded parameters, with one small all-reduce."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def clip_gradients(parameters: list[Tensor], max_norm: float, group: Any) -> Tensor:
    """Scales gradients so that their global L2 norm is at most `max_norm` (0 = measure only); returns the norm before.

        norm = sqrt(sum over shards of sum g^2),   g <- g x min(1, max_norm / (norm + 1e-6))

    Args:
        group: the ranks among which each gradient is split; None where every rank holds all of it.
    """
    local = [p.grad.to_local() if hasattr(p.grad, "to_local") else p.grad for p in parameters if p.grad is not None]
    local = [gradient for gradient in local if gradient.numel()]
    device = parameters[0].device
    if local:
        norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(local)))
    else:
        norm = torch.zeros((), device=device)
    if group is not None:
        square = norm.square()
        dist.all_reduce(square, group=group)
        norm = square.sqrt()
    if max_norm > 0 and local:
        torch._foreach_mul_(local, torch.clamp(max_norm / (norm + 1e-6), max=1.0))
    return norm
