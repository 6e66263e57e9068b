"""Conjugate pairs of collectives for tensor parallelism: what runs backward is the transpose of what runs forward.

    pair          forward                        backward             between
    copy_in       x                              sum over ranks       whole stream -> split matrices
    sum_out       sum over ranks                 x                    split matrices -> whole stream
    gather_in     concatenate the sequence       sum, keep own part   split stream -> split matrices
    scatter_out   sum, keep own part             concatenate          split matrices -> split stream

The first two are f and g of Megatron-LM (Shoeybi et al. 2019, arXiv:1909.08053), the others those of sequence
parallelism (Korthikanti et al. 2022, arXiv:2205.05198): they move the same bytes, and between them the stream takes a
share of the memory. Sums are taken in the dtype of the activations.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

Group = Any  # a process group


def copy_in(x: Tensor, group: Group) -> Tensor:
    """x, the same on every rank; its gradient is the sum of theirs."""
    return _CopyIn.apply(x, group)


def sum_out(x: Tensor, group: Group) -> Tensor:
    """The sum of the ranks' x, which is overwritten."""
    return _SumOut.apply(x, group)


def gather_in(x: Tensor, group: Group) -> Tensor:
    """The whole sequence from every rank's part: (batch, seq / ranks, width) -> (batch, seq, width)."""
    return _GatherIn.apply(x, group)


def scatter_out(x: Tensor, group: Group) -> Tensor:
    """This rank's part of the sum of the ranks' x: (batch, seq, width) -> (batch, seq / ranks, width)."""
    return _ScatterOut.apply(x, group)


def _all_reduce(x: Tensor, group: Group) -> Tensor:
    x = x.contiguous()
    dist.all_reduce(x, group=group)
    return x


def all_gather(whole: Tensor, part: Tensor, group: Group) -> None:
    """Fills `whole` with every rank's `part`, one after the other, under the name that this torch has for it."""
    name = "all_gather_single" if hasattr(dist, "all_gather_single") else "all_gather_into_tensor"
    getattr(dist, name)(whole, part, group=group)


def _reduce_scatter(part: Tensor, whole: Tensor, group: Group) -> None:
    name = "reduce_scatter_single" if hasattr(dist, "reduce_scatter_single") else "reduce_scatter_tensor"
    getattr(dist, name)(part, whole, group=group)


def _gather(x: Tensor, group: Group) -> Tensor:
    """Ranks deliver one after the other, so that more than one sequence must be put in order by a copy."""
    batch, part, width = x.shape
    parts = x.new_empty(group.size() * batch, part, width)
    all_gather(parts, x.contiguous(), group)
    return parts.view(-1, batch, part, width).transpose(0, 1).reshape(batch, -1, width)


def _scatter(x: Tensor, group: Group) -> Tensor:
    batch, seq, width = x.shape
    part = seq // group.size()
    parts = x.reshape(batch, -1, part, width).transpose(0, 1).reshape(-1, part, width)  # (ranks * batch, part, width)
    mine = x.new_empty(batch, part, width)
    _reduce_scatter(mine, parts.contiguous(), group)
    return mine


# Sums overwrite what they are given: a product's output, which its own backward pass does not need, or the gradient of
# a norm's output, which nothing but the products behind it have written.
class _CopyIn(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, group: Group) -> Tensor:
        ctx.group = group
        return x.view_as(x)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:
        return _all_reduce(grad, ctx.group), None


class _SumOut(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, group: Group) -> Tensor:
        return _all_reduce(x.detach(), group)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:
        return grad, None


class _GatherIn(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, group: Group) -> Tensor:
        ctx.group = group
        return _gather(x, group)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:
        return _scatter(grad, ctx.group), None


class _ScatterOut(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, group: Group) -> Tensor:
        ctx.group = group
        return _scatter(x, group)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:
        return _gather(grad, ctx.group), None
