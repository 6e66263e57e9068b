"""Gradient norm and clipping over split parameters, with one small all-reduce for each axis that splits them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor


def clip_gradients(
    parameters: list[Tensor], max_norm: float, groups: Sequence[Any], counted_elsewhere: Sequence[Tensor] = ()
) -> Tensor:
    """Scales gradients so that their global L2 norm is at most `max_norm` (0 = measure only); returns the norm before.

        norm = sqrt(sum over ranks of sum g^2 / copies),   g <- g x min(1, max_norm / (norm + 1e-6))

    where `copies` is the number of tensor ranks for what each of them holds whole (norms, some biases), else 1.

    Args:
        groups: the process groups among whose ranks gradients are split; none where every rank holds all of them.
        counted_elsewhere: parameters of which another rank holds the same gradient and counts it.
    """
    gradients = [p.grad for p in parameters if p.grad is not None]
    repeated = {id(p.grad) for p in counted_elsewhere}
    local = [local_of(g) for g in gradients if local_of(g).numel()]
    found = [(local_of(g), copies_of(g)) for g in gradients if local_of(g).numel() and id(g) not in repeated]
    square = torch.zeros((), device=parameters[0].device)
    for copies in dict.fromkeys(copies for _, copies in found):
        norms = torch._foreach_norm([gradient for gradient, n in found if n == copies])
        square = square + torch.linalg.vector_norm(torch.stack(norms)).square() / copies
    for group in groups:
        dist.all_reduce(square, group=group)
    norm = square.sqrt()
    if max_norm > 0 and local:
        torch._foreach_mul_(local, torch.clamp(max_norm / (norm + 1e-6), max=1.0))
    return norm


def local_of(gradient: Tensor) -> Tensor:
    return gradient.to_local() if isinstance(gradient, DTensor) else gradient


def copies_of(gradient: Tensor) -> int:
    """How many tensor ranks hold the same values of a parameter or its gradient."""
    if not isinstance(gradient, DTensor):
        return 1
    axes = zip(gradient.device_mesh.mesh_dim_names or (), gradient.placements, strict=True)
    return next((gradient.device_mesh["tensor"].size() for axis, p in axes if axis == "tensor" and p.is_replicate()), 1)
