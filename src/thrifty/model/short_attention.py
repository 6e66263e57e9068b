"""Causal attention for short sequences on CPUs, faster there than the flash kernel of torch 2.13: twice in bf16.

Queries are taken in a few blocks, each against the keys up to its end: plain batched matrix products on the lower
triangle, with the probabilities kept for the backward pass instead of computed again. That is memory for time, in
favour of time only while seq is short; `scaled_dot_product_attention` is the reference beside it.

In the compute dtype of the scores a sequence of one block needs no more than the products and the softmax themselves.

Scores, softmax and their gradients are in fp32 (fp64 for fp64); products with the probabilities in the compute dtype.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from thrifty.model.layers import accumulation_dtype

LONGEST = 512  # tokens; beyond, the kept probabilities outweigh the rest of a block
BLOCK = 64  # query rows per block; T = 256 computes 62.5% of the square


def suits(query: Tensor, key: Tensor) -> bool:
    """True where this form is the faster: on a CPU, queries as keys, up to LONGEST of them in bf16, BLOCK in fp32."""
    longest = {torch.bfloat16: LONGEST, torch.float32: BLOCK}.get(query.dtype, 0)
    return query.device.type == "cpu" and key.shape[2] == query.shape[2] <= longest


def short_attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(head_dim) + causal mask) v.

    Args:
        query: (batch, heads, seq, head_dim).
        key: (batch, kv_heads, seq, head_dim); kv_heads divides heads. `value` alike.

    Returns:
        (batch, heads, seq, head_dim).
    """
    if query.shape[2] <= BLOCK and query.dtype == accumulation_dtype(query.dtype):
        return _OneBlock.apply(query, key, value)
    return _ShortAttention.apply(query, key, value)


def _spans(seq: int) -> list[tuple[int, int]]:
    return [(begin, min(begin + BLOCK, seq)) for begin in range(0, seq, BLOCK)]


class _ShortAttention(torch.autograd.Function):
    # Inside, g = heads / kv_heads queries share a key head: q is (batch * kv_heads, g, seq, head_dim) and a block of it
    # becomes the rows (g * block) of one matrix, so that keys are never repeated.

    @staticmethod
    def forward(ctx, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        batch, heads, seq, width = query.shape
        kv = batch * key.shape[1]
        wide = accumulation_dtype(query.dtype)
        q = query.reshape(kv, -1, seq, width)
        k, v = key.reshape(kv, seq, width), value.reshape(kv, seq, width)
        q_wide, k_wide = q.to(wide) * (1 / math.sqrt(width)), k.to(wide).mT  # (kv, g, seq, width), (kv, width, seq)
        above = torch.full((BLOCK, BLOCK), -math.inf, dtype=wide).triu_(1)
        out = torch.empty(batch, seq, heads, width, dtype=query.dtype).transpose(1, 2)
        kept = []
        for begin, end in _spans(seq):
            rows = end - begin
            score = torch.bmm(q_wide[:, :, begin:end].reshape(kv, -1, width), k_wide[:, :, :end])
            score = score.view(kv, -1, rows, end)
            score[..., begin:].add_(above[:rows, :rows])
            p = torch.softmax(score, -1).to(query.dtype).view(kv, -1, end)  # (kv, g * rows, keys)
            out[:, :, begin:end] = torch.bmm(p, v[:, :end]).view(batch, heads, rows, width)
            kept.append(p)
        ctx.save_for_backward(q, k, v, out, *kept)
        return out

    @staticmethod
    def backward(ctx, grad_out: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v, out, *kept = ctx.saved_tensors
        kv, groups, seq, width = q.shape
        wide = accumulation_dtype(q.dtype)
        grad_wide = grad_out.to(wide) * (1 / math.sqrt(width))
        along = (grad_wide * out).sum(-1, keepdim=True).view(kv, groups, seq, 1)
        grad, grad_wide = (g.reshape(kv, groups, seq, width) for g in (grad_out, grad_wide))
        v_wide = v.to(wide).mT
        grad_q = torch.empty_like(q)
        grad_k, grad_v = torch.zeros_like(k, dtype=wide), torch.zeros_like(v, dtype=wide)
        for (begin, end), p in zip(_spans(seq), kept, strict=True):
            rows = slice(begin, end)
            grad_p = torch.bmm(grad_wide[:, :, rows].reshape(kv, -1, width), v_wide[:, :, :end])
            grad_score = grad_p.sub_(along[:, :, rows].reshape(kv, -1, 1)).mul_(p).to(q.dtype)
            grad_v[:, :end] += torch.bmm(p.mT, grad[:, :, rows].reshape(kv, -1, width))
            grad_k[:, :end] += torch.bmm(grad_score.mT, q[:, :, rows].reshape(kv, -1, width))
            grad_q[:, :, rows] = torch.bmm(grad_score, k[:, :end]).view(kv, groups, -1, width)
        shape = (grad_out.shape[0], -1, seq, width)
        return grad_q.view(shape), grad_k.to(k.dtype).view(shape), grad_v.to(v.dtype).view(shape)


class _OneBlock(torch.autograd.Function):
    # Shapes as above: (kv, g * seq, width) queries against (kv, seq, width) keys.

    @staticmethod
    def forward(ctx, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        batch, heads, seq, width = query.shape
        kv = batch * key.shape[1]
        q = query.reshape(kv, -1, width)
        k, v = key.reshape(kv, seq, width), value.reshape(kv, seq, width)
        above = torch.full((seq, seq), -math.inf, dtype=q.dtype).triu_(1).repeat(q.shape[1] // seq, 1)
        p = torch.softmax(torch.baddbmm(above, q, k.mT, alpha=1 / math.sqrt(width)), -1)  # (kv, g * seq, seq)
        ctx.save_for_backward(q, k, v, p)
        return torch.bmm(p, v).view(batch, heads, seq, width)

    @staticmethod
    def backward(ctx, grad_out: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v, p = ctx.saved_tensors
        batch, _, seq, width = grad_out.shape
        grad = grad_out.reshape(q.shape)
        grad_p = torch.bmm(grad, v.mT)
        grad_score = torch._softmax_backward_data(grad_p, p, -1, p.dtype).mul_(1 / math.sqrt(width))
        grads = torch.bmm(grad_score, k), torch.bmm(grad_score.mT, q), torch.bmm(p.mT, grad)
        grad_q, grad_k, grad_v = (g.view(batch, -1, seq, width) for g in grads)
        return grad_q, grad_k, grad_v
