"""Cross entropy of a linear head, a chunk of tokens at a time: the logits of a whole batch never exist at once."""

from __future__ import annotations

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from thrifty.model.layers import accumulation_dtype

IGNORE = -100  # a target that does not count
CHUNK_ROWS = 512  # at least so many tokens at once: enough for a full-rate matrix product
CHUNK_BYTES = 2**24  # and as many more as keep a chunk's fp32 logits within 16 MiB, about a cache


def chunk_rows(tokens: int, vocab: int) -> int:
    """Tokens per chunk: the batch in equal parts of at most max(CHUNK_ROWS, CHUNK_BYTES of fp32 logits)."""
    most = max(CHUNK_ROWS, CHUNK_BYTES // (4 * vocab))
    parts = -(-tokens // most)
    return -(-tokens // max(1, parts))


class VocabularyPart(Protocol):
    """Some rows of the head, where ranks share it (`parallel.loss`); every rank sees the same tokens.

    Attributes:
        rows: of the largest part, so that all ranks cut the tokens into the same chunks.
    """

    rows: int

    def here(self, targets: Tensor) -> Tensor:
        """Targets as rows of this part; -100 where they are in none of them."""
        ...

    def normalise(self, log_p: Tensor, logits: Tensor, targets: Tensor, counts: Tensor) -> Tensor:
        """Turns this part's own log softmax, in place, into that over all parts; returns the loss of all of them."""
        ...

    def whole(self, logits: Tensor) -> Tensor:
        """Logits of every row, from those of this part."""
        ...


def linear_cross_entropy(
    x: Tensor, weight: Tensor, targets: Tensor, part: VocabularyPart | None = None, *, twice: bool = False
) -> Tensor:
    """Sum over tokens of -log softmax(x weight^T)[target]; the softmax is taken in fp32 (fp64 for fp64).

    The sum is known to end in one number, so the gradients of x and weight are formed beside the loss while a chunk's
    logits are at hand, and only scaled in the backward pass. Nothing of size tokens x vocab is kept or computed twice.

    Args:
        x: (tokens, hidden).
        weight: (vocab, hidden), cast to the dtype of x.
        targets: (tokens,); -100 counts nothing.
        part: of the vocabulary that `weight` holds, where it is split; the gradient of x is then this part's share.
        twice: the backward pass may run twice, for the gradient of x and later for that of the weight, as in
            zero-bubble pipelines; costs a copy of both.

    Returns:
        A scalar in fp32 (fp64 for fp64).
    """
    rows = chunk_rows(x.shape[0], weight.shape[0] if part is None else part.rows)
    if torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad):
        return _LinearCrossEntropy.apply(x, weight, targets, rows, part, twice)
    w = weight.to(x.dtype)
    pairs = zip(x.split(rows), targets.split(rows), strict=True)
    return sum((_chunk_loss(some, w, goal, part)[0] for some, goal in pairs), torch.zeros((), device=x.device))


def _chunk_loss(
    x: Tensor, weight: Tensor, targets: Tensor, part: VocabularyPart | None
) -> tuple[Tensor, Tensor, Tensor]:
    """The loss of one chunk, log softmax of its logits (rows, vocab), and which of them the targets are."""
    logits = F.linear(x, weight)
    log_p = F.log_softmax(logits, dim=-1, dtype=accumulation_dtype(x.dtype))
    if part is None:
        return F.nll_loss(log_p, targets, reduction="sum", ignore_index=IGNORE), log_p, targets
    here = part.here(targets)
    return part.normalise(log_p, logits, here, targets != IGNORE), log_p, here


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx, x: Tensor, weight: Tensor, targets: Tensor, rows: int, vocabulary: VocabularyPart | None, twice: bool
    ) -> Tensor:
        w = weight.to(x.dtype)
        wide = accumulation_dtype(x.dtype)
        loss = torch.zeros((), dtype=wide, device=x.device)
        grad_x = torch.empty_like(x)
        grad_weight: Tensor | None = None
        for begin in range(0, x.shape[0], rows):
            part, goal = x[begin : begin + rows], targets[begin : begin + rows]
            part_loss, log_p, here = _chunk_loss(part, w, goal, vocabulary)
            loss += part_loss
            # d loss / d logits = softmax - one hot, and zero where the target does not count.
            one_hot = (here != IGNORE)[:, None].to(wide)
            grad = log_p.exp_().scatter_add_(1, here.clamp_min(0)[:, None], one_hot.neg_())
            grad = grad.mul_((goal != IGNORE)[:, None]).to(x.dtype)
            torch.mm(grad, w, out=grad_x[begin : begin + rows])
            part_grad = grad.t() @ part
            grad_weight = part_grad.to(wide) if grad_weight is None else grad_weight.add_(part_grad)
        ctx.save_for_backward(grad_x, grad_weight)
        ctx.twice = twice
        return loss

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, Tensor, None, None, None, None]:
        # In place: a second copy of the head's gradient would be held at the peak. Autograd notices a second backward.
        grad_x, grad_weight = ctx.saved_tensors
        if ctx.twice:
            return grad_x * grad, grad_weight * grad, None, None, None, None
        return grad_x.mul_(grad), grad_weight.mul_(grad), None, None, None, None
