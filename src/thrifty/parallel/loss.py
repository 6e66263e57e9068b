"""The vocabulary of a head over several ranks: each holds some rows, and makes the logits of those alone.

log softmax over all of it needs one number a token from every rank, the log of its own sum of exponentials:

    lse = log sum over ranks of exp(lse of the rank),   log p = (log p within the rank) + (lse of the rank) - lse

and the loss needs the logit of the target, which one rank has. Both cross in one gather a chunk of tokens, 8 bytes a
token; logits never do (Shoeybi et al. 2019, arXiv:1909.08053, section 3).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from thrifty.parallel.collectives import all_gather

IGNORE = -100  # a target that does not count


class SplitVocabulary:
    """This rank's rows of a vocabulary that is split as `torch.chunk` splits it: the last ranks may hold fewer.

    Attributes:
        rows: of the largest part.
        first: row of the whole vocabulary that is the first of this part.
        held: rows of this part.
    """

    def __init__(self, vocab_size: int, group: Any) -> None:
        self.vocab_size, self.group = vocab_size, group
        self.rows = -(-vocab_size // group.size())
        self.first = group.rank() * self.rows
        self.held = max(0, min(self.rows, vocab_size - self.first))

    def here(self, ids: Tensor) -> Tensor:
        """Ids as rows of this part; -100 where they are in none of them."""
        mine = ids - self.first
        return mine.masked_fill_((mine < 0) | (mine >= self.held), IGNORE)

    def normalise(self, log_p: Tensor, logits: Tensor, targets: Tensor, counts: Tensor) -> Tensor:
        """Turns log softmax of this part, in place, into that of the whole vocabulary; returns the whole loss.

        Args:
            log_p: (tokens, rows), in fp32 (fp64 for fp64).
            logits: what `log_p` was made from.
            targets: rows of this part; -100 where they are in none of them.
            counts: (tokens,), whether the loss of a token counts.
        """
        lse = logits[:, 0].to(log_p.dtype) - log_p[:, 0]
        logit = log_p.gather(1, targets.clamp_min(0)[:, None])[:, 0].add_(lse).mul_(targets != IGNORE)
        parts = log_p.new_empty(self.group.size() * 2, len(lse))
        all_gather(parts, torch.stack([lse, logit]), self.group)
        every_lse, every_logit = parts.view(-1, 2, len(lse)).unbind(1)  # (ranks, tokens) each
        whole = torch.logsumexp(every_lse, 0)
        log_p.add_((lse - whole)[:, None])
        return (whole - every_logit.sum(0)).mul_(counts).sum()

    def whole(self, logits: Tensor) -> Tensor:
        """Logits of the whole vocabulary from those of every part; no gradient passes."""
        padded = torch.nn.functional.pad(logits.detach(), (0, self.rows - self.held)).flatten(0, -2)
        parts = padded.new_empty(self.group.size() * len(padded), self.rows)
        all_gather(parts, padded.contiguous(), self.group)
        together = parts.view(-1, len(padded), self.rows).transpose(0, 1).flatten(1)
        return together[:, : self.vocab_size].unflatten(0, logits.shape[:-1])
