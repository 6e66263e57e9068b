"""Low rank: a matrix as the product of two thin ones, found by one step of power iteration."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from thrifty.compress.codec import Codec
from thrifty.compress.feedback import Kept
from thrifty.compress.routes import Sent
from thrifty.compress.unit import Unit
from thrifty.compress.wire import Wire
from thrifty.cost.payload import factored
from thrifty.quant.rounding import row_keys, uniforms
from thrifty.spec.codec import LowRankStage
from thrifty.spec.errors import ThriftyError


@dataclass(frozen=True)
class LowRank(Codec):
    """M of (rows, columns) as P Q^T, with P of (rows, rank) and orthonormal, Q = M^T P: the projection on P's columns.

    Vectors are sent whole, and matrices that would not become half as large. Alone it begins with a drawn Q and takes
    two steps; an exchange keeps Q from one mean to the next and takes one, see `by_low_rank`.

    Raises:
        ThriftyError: rank below 1.
    """

    rank: int
    needs_matrix = True

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise ThriftyError(f"LowRank of rank {self.rank}", hint="e.g. LowRank(4)")

    def describe(self) -> LowRankStage:
        return LowRankStage(self.rank)

    def forward(self, values: Tensor, shape: Sequence[int], seed: int) -> tuple[Tensor, tuple[Tensor, ...]]:
        matrix = factored(shape, self.rank)
        if matrix is None:
            return values, ()
        m = values.view(matrix).float()
        p = orthonormal(m @ drawn(matrix[1], self.rank, seed, m.device))
        p = orthonormal(m @ (m.t() @ p))
        return torch.cat([p.reshape(-1), (m.t() @ p).reshape(-1)]).to(values.dtype), ()

    def inverse(
        self, values: Tensor, beside: Sequence[Tensor], count: int, dtype: torch.dtype, shape: Sequence[int], seed: int
    ) -> Tensor:
        matrix = factored(shape, self.rank)
        if matrix is None:
            return values
        p, q = values.float().split([self.rank * matrix[0], self.rank * matrix[1]])
        return (p.view(-1, self.rank) @ q.view(-1, self.rank).t()).to(dtype).view(-1)


def drawn(rows: int, rank: int, seed: int, device: torch.device) -> Tensor:
    """A first Q, (rows, rank), the same wherever it is drawn."""
    return uniforms(row_keys(rows, 0, seed, device), rank) - 0.5


def orthonormal(p: Tensor) -> Tensor:
    """Orthonormal columns that span those of p, and others where p has too few. nan where p is broken."""
    return torch.linalg.qr(p).Q if bool(p.sum().isfinite()) else torch.full_like(p, float("nan"))


def by_low_rank(
    wire: Wire, rank: int, bases: Kept, unit: Unit, x: Tensor, shapes: Sequence[Sequence[int]], seed: int
) -> Sent:
    """Mean of the ranks' tensors, of low rank: PowerSGD, Vogels et al. 2019, arXiv:1905.13727.

    P = orthonormal(mean(M) Q), Q = mean(M)^T P, each in one all_reduce for all matrices; whole tensors go with the
    first. Both sums are linear, so that ranks need not know each other's M. A rank's own M became P (M^T P)^T: what
    that lacks is left in `x`.

    Args:
        bases: Q of the last mean of each matrix, or none: then it is drawn. Overwritten.
        unit: of the tensors, whose flat values are `x`.
    """
    matrices = [factored(shape, rank) for shape in shapes]
    tensors = [values.view(shape or -1) for values, shape in zip(unit.split(x), matrices, strict=True)]
    first = []
    for place, (name, tensor, shape) in enumerate(zip(unit.names, tensors, matrices, strict=True)):
        if shape is not None:
            flat = bases.get(name, rank * shape[1])
            q = drawn(shape[1], rank, seed + place, x.device) if flat is None else flat.view(-1, rank)
            tensor = tensor @ q
        first.append(tensor)
    means = _mean(wire, first)
    left = [orthonormal(p) for p, shape in zip(means, matrices, strict=True) if shape is not None]
    factored_ones = [tensor for tensor, shape in zip(tensors, matrices, strict=True) if shape is not None]
    right = [m.t() @ p for m, p in zip(factored_ones, left, strict=True)]
    factors = zip(left, right, _mean(wire, right), strict=True)
    mean, own = [], []
    for name, tensor, shape, whole in zip(unit.names, tensors, matrices, means, strict=True):
        if shape is None:
            mean.append(whole.view(-1))
            own.append(tensor.view(-1))
            continue
        p, own_q, q = next(factors)
        mean.append((p @ q.t()).view(-1))
        own.append((p @ own_q.t()).view(-1))
        if bool(q.sum().isfinite()):
            bases.keep(Unit((name,), (q.numel(),)), q.reshape(-1))
    x.sub_(torch.cat(own))
    return Sent(torch.cat(mean))


def _mean(wire: Wire, tensors: Sequence[Tensor]) -> list[Tensor]:
    """Means over the ranks, in one message."""
    if not tensors:
        return []
    flat = torch.cat([tensor.reshape(-1) for tensor in tensors]) * (1.0 / wire.size)
    wire.all_reduce(flat)
    parts = flat.split([tensor.numel() for tensor in tensors])
    return [part.view(tensor.shape) for part, tensor in zip(parts, tensors, strict=True)]
