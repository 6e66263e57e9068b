"""StableAdamW: a tensor whose gradients have outgrown its second moment takes a smaller step.

    RMS = sqrt(mean over the tensor of g^2 / max(v / (1 - b2^t), eps^2));  lr = lr / max(1, RMS)

Wortsman et al. 2023, arXiv:2304.13013, algorithm 2: losses jump a few steps after the second moment lags behind, and
this keeps them from it better than a bound on the gradient's norm does.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor

from thrifty.cost.payload import tail_block
from thrifty.optim.sharded import summed_over_shards
from thrifty.quant.fuse import COMPILE_FROM, can_compile, fused
from thrifty.quant.kernels import decode_rows
from thrifty.spec.formats import BlockFormat


def surprise(g: Tensor, v: Tensor, h: Tensor) -> Tensor:
    """Sum of g^2 / max(v, eps^2), v after this step and without its bias; h are the scalars of an Adam rule."""
    squares = g.float().square()
    fresh = (h[2] * v + h[3] * squares) * (h[5] * h[5])
    return (squares / fresh.clamp(min=(h[6] * h[6]).clamp(min=2.0**-126))).sum(-1).sum()


def surprise_of_blocks(
    g: Tensor, codes: Tensor, scales: Tensor, h: Tensor, form: BlockFormat, compiled: bool | None
) -> Tensor:
    """As `surprise`, of a flat gradient and a second moment in blocks."""
    whole, rest = divmod(g.numel(), form.block)
    if compiled is None:
        compiled = g.numel() >= COMPILE_FROM and can_compile(g.device.type)
    told, cut, coded = g.new_zeros((), dtype=torch.float32), whole * form.block, whole * form.block * form.bits // 8
    if whole:
        rows = [g[:cut].view(whole, -1), codes[:coded].view(whole, -1), scales[:whole].view(whole, 1)]
        told = told + (_compiled(form, g.dtype) if compiled and whole > 1 else _of_rows)(*_dynamic(rows), h, form)
    if rest:
        last = g.new_zeros(1, tail_block(rest))
        last[0, :rest] = g[cut:]
        told = told + _of_rows(last, codes[coded:].view(1, -1), scales[whole:].view(1, 1), h, form)
    return told


def _of_rows(g: Tensor, codes: Tensor, scales: Tensor, h: Tensor, form: BlockFormat) -> Tensor:
    return surprise(g, decode_rows(scales, codes, form, g.shape[1], torch.float32), h)


def _dynamic(rows: list[Tensor]) -> list[Tensor]:
    for tensor in rows:
        torch._dynamo.mark_dynamic(tensor, 0)  # else every number of rows would be compiled anew
    return rows


@cache
def _compiled(form: BlockFormat, dtype: torch.dtype):
    return fused(lambda g, codes, scales, h, form: _of_rows(g, codes, scales, h, form), f"surprise_{form.name}_{dtype}")


def smaller(sums: Sequence[Tensor], params: Sequence[Tensor]) -> Tensor:
    """1 / max(1, RMS) (tensors,) from each tensor's sum over this rank's piece; one all-reduce for all of them."""
    means = summed_over_shards(torch.stack([one.to(sums[0].device) for one in sums]), params)
    sizes = torch.tensor([float(p.numel()) for p in params], device=means.device)  # of whole tensors
    return 1 / (means / sizes).sqrt().clamp(min=1.0)
