"""Causal attention over a sequence that lies on a ring of ranks: keys and values go round, queries stay.

A rank holds chunks r and 2C - 1 - r of the 2C that a sequence is cut into (`parallel.context`). In turn t it has the
keys and values of rank j = r - t (mod C), and the causal mask leaves one of three blocks, each of half the products of
a full one, so that all ranks are busy alike:

    j = r    its own queries and keys, below the diagonal
    j < r    all queries, the first half of the keys
    j > r    the second half of the queries, all keys

Blocks are merged by their log-sum-exps (Liu et al. 2023, arXiv:2310.01889, sections 2 and 3):

    lse = log(exp(lse_a) + exp(lse_b)),   out = out_a + sigmoid(lse_b - lse_a) (out_b - out_a)

The backward pass sends keys and values round once more. The sums of their gradients follow one turn behind, begin at
the rank after the owner's and end at the owner, which adds its own block's. What is sent next is on its way while a
block is computed: C - 1 messages of keys and values forward, and backward C - 1 of them and C - 1 of sums.

Statistics and sums are in fp32 (fp64 for fp64), on the wire too; products in the compute dtype, by torch's flash
kernels where the device has them for it. torch's own `context_parallel` has no rule for those of a CPU, and patches a
global function while a context is entered; one ring for all devices is shorter than a second interface to it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from thrifty.parallel.collectives import Group

ALL = slice(None)
Block = tuple[Tensor, Tensor]  # output and log-sum-exp


def ring_attention(query: Tensor, key: Tensor, value: Tensor, group: Group) -> Tensor:
    """softmax(q k^T / sqrt(head_dim) + causal mask) v over the sequence that the ranks of `group` hold together.

    Args:
        query: of this rank's two chunks, (batch, heads, seq / ranks, head_dim).
        key: (batch, kv_heads, seq / ranks, head_dim); kv_heads divides heads. `value` alike.

    Returns:
        (batch, heads, seq / ranks, head_dim), that lies in memory as (batch, seq / ranks, heads, head_dim).
    """
    return _Ring.apply(query, key, value, group)


class _Ring(torch.autograd.Function):
    # Inside, g = heads / kv_heads queries share a key head, and n = batch x kv_heads: queries are (n, g, seq, width),
    # keys (n, seq, width), and never repeated.

    @staticmethod
    def forward(ctx, query: Tensor, key: Tensor, value: Tensor, group: Group) -> Tensor:
        batch, heads, seq, width = query.shape
        q = _grouped(query, key)
        now = torch.stack([key, value]).flatten(1, 2)  # (2, n, seq, width)
        total, lse = q, q  # of the blocks so far
        for turn in range(group.size()):
            arrived = _pass_on(now, group) if turn + 1 < group.size() else None
            rows, keys = _seen(turn, group, seq)
            part, part_lse = _attend(q[:, :, rows], now[0, :, keys], now[1, :, keys], causal=turn == 0)
            if turn == 0:
                total, lse = part.to(part_lse.dtype), part_lse
            else:
                weight = torch.sigmoid(part_lse - lse[:, :, rows])[..., None]
                total[:, :, rows].lerp_(part.to(total.dtype), weight)
                lse[:, :, rows] = torch.logaddexp(lse[:, :, rows], part_lse)
            now = arrived() if arrived is not None else now
        out = query.new_empty(batch, seq, heads, width).transpose(1, 2)
        out.copy_(total.view(batch, heads, seq, width))
        ctx.save_for_backward(query, key, value, out, lse)
        ctx.group = group
        return out

    @staticmethod
    def backward(ctx, grad_out: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        query, key, value, out, lse = ctx.saved_tensors
        group, seq = ctx.group, query.shape[2]
        q, out, grad = (_grouped(x, key) for x in (query, out, grad_out))
        now = torch.stack([key, value]).flatten(1, 2)  # (2, n, seq, width)
        own = torch.zeros_like(now, dtype=lse.dtype)
        grad_q = torch.zeros_like(q, dtype=lse.dtype)
        sums, sums_arrived = own, None  # gradients of `now`, from the ranks that have seen it
        for turn in range(group.size()):
            arrived = _pass_on(now, group) if turn + 1 < group.size() else None
            rows, keys = _seen(turn, group, seq)
            parts = grad[:, :, rows], q[:, :, rows], now[0, :, keys], now[1, :, keys], out[:, :, rows], lse[:, :, rows]
            part_q, *part_kv = _attend_backward(*parts, causal=turn == 0)
            grad_q[:, :, rows] += part_q
            if turn == 1:
                sums = torch.zeros_like(own)
            elif sums_arrived is not None:
                sums = sums_arrived()
            for total, part in zip(sums, part_kv, strict=True):
                total[:, keys] += part
            sums_arrived = _pass_on(sums, group) if turn else None
            now = arrived() if arrived is not None else now
        if sums_arrived is not None:
            own += sums_arrived()
        grad_k, grad_v = own.to(key.dtype).view(2, *key.shape)
        return grad_q.to(query.dtype).view(query.shape), grad_k, grad_v, None


def _grouped(query: Tensor, key: Tensor) -> Tensor:
    """(batch, heads, seq, width) -> (batch x kv_heads, group, seq, width)."""
    return query.reshape(key.shape[0] * key.shape[1], -1, *query.shape[2:])


def _seen(turn: int, group: Group, seq: int) -> tuple[slice, slice]:
    """Which of a rank's queries look at which of the keys that it has in a turn."""
    if turn == 0:
        return ALL, ALL
    earlier = turn <= group.rank()  # the keys come from a rank before this one
    return (ALL, slice(seq // 2)) if earlier else (slice(seq // 2, None), ALL)


def _pass_on(tensor: Tensor, group: Group) -> Callable[[], Tensor]:
    """Begins to send a tensor to the next rank and to receive the like from the one before; call the result for it.

    The tensor must stay as it is until then.
    """
    arriving, rank, ranks = torch.empty_like(tensor), group.rank(), group.size()
    works = dist.batch_isend_irecv([
        dist.P2POp(dist.isend, tensor, group=group, group_peer=(rank + 1) % ranks),
        dist.P2POp(dist.irecv, arriving, group=group, group_peer=(rank - 1) % ranks),
    ])  # fmt: skip

    def arrived() -> Tensor:
        for work in works:
            work.wait()
        return arriving

    return arrived


# One block: queries (n, g, rows, width), keys (n, keys, width). The log-sum-exp, (n, g, rows), is in fp32 (or fp64).
def _has_flash(q: Tensor) -> bool:
    """Whether torch has a flash kernel: on a CPU for every dtype, on a GPU for 16 bits and widths that it can load."""
    return q.device.type == "cpu" or (q.is_cuda and q.element_size() == 2 and q.shape[-1] in range(8, 257, 8))


def _attend(q: Tensor, k: Tensor, v: Tensor, *, causal: bool) -> Block:
    if not _has_flash(q):
        return _attend_plainly(q, k, v, causal=causal)
    k, v = k[:, None], v[:, None]
    if q.is_cuda:  # untested on a GPU
        out, lse, *_ = torch.ops.aten._scaled_dot_product_flash_attention(q, k, v, 0.0, causal)
        return out, lse
    shape = (-1, q.shape[1], -1, -1)
    return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k.expand(shape), v.expand(shape), 0.0, causal)


def _attend_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, *, causal: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of a block, given the output and the log-sum-exp of all blocks together."""
    if not _has_flash(q):
        return _attend_plainly_backward(grad, q, k, v, out, lse, causal=causal)
    k, v = k[:, None], v[:, None]
    if q.is_cuda:  # untested on a GPU
        none, seed = None, torch.zeros(2, dtype=torch.uint64, device=q.device)
        sizes: tuple[Any, ...] = (none, none, q.shape[2], k.shape[2], 0.0, causal, seed, seed[:0])
        kept = (out.contiguous(), lse.contiguous())
        grads = torch.ops.aten._scaled_dot_product_flash_attention_backward(grad.contiguous(), q, k, v, *kept, *sizes)
        return grads[0], grads[1][:, 0], grads[2][:, 0]
    shape = (-1, q.shape[1], -1, -1)
    grad_q, *grads = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
        grad, q, k.expand(shape), v.expand(shape), out, lse, 0.0, causal
    )
    grad_k, grad_v = (g.sum(1, dtype=lse.dtype) for g in grads)
    return grad_q, grad_k, grad_v


def _scores(q: Tensor, k: Tensor, causal: bool, wide: torch.dtype) -> Tensor:
    scores = (q.flatten(1, 2) @ k.mT).to(wide).mul_(1 / math.sqrt(q.shape[-1])).view(*q.shape[:3], -1)
    if causal:
        scores += torch.full(scores.shape[2:], -math.inf, dtype=wide, device=q.device).triu_(1)
    return scores  # (n, g, rows, keys)


def _attend_plainly(q: Tensor, k: Tensor, v: Tensor, *, causal: bool) -> Block:
    """The same by matrix products, with the scores of one block in memory."""
    scores = _scores(q, k, causal, torch.promote_types(q.dtype, torch.float32))
    lse = torch.logsumexp(scores, -1)
    p = scores.sub_(lse[..., None]).exp_().to(q.dtype)
    return (p.flatten(1, 2) @ v).view_as(q), lse


def _attend_plainly_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, *, causal: bool
) -> tuple[Tensor, Tensor, Tensor]:
    p = _scores(q, k, causal, lse.dtype).sub_(lse[..., None]).exp_().flatten(1, 2)  # (n, g * rows, keys)
    along = (grad.to(lse.dtype) * out).sum(-1).flatten(1)[..., None]
    rows = grad.flatten(1, 2)
    grad_scores = ((rows @ v.mT).to(lse.dtype).sub_(along) * p).mul_(1 / math.sqrt(q.shape[-1])).to(q.dtype)
    grad_q, grad_k = (grad_scores @ k).view_as(q), grad_scores.mT @ q.flatten(1, 2)
    return grad_q, grad_k, p.to(q.dtype).mT @ rows
