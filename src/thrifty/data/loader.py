"""Samples: which ids make up sample i. A function of the seed and the global index alone, so the data do not depend on
the number of workers, and a run resumes anywhere.

Both splits come from one stream of ids: the last `validation_fraction` of it validates, cut at the id where that share
begins, also inside a document. Training index i is position i mod n of epoch i div n, and each epoch visits the n
samples in an order of its own. Validation has one order, whatever the seed, spread so that its first samples, however
many are asked for, lie evenly over the split.

Packing `stream`: windows of `sequence_length` + 1 ids that overlap by one, so each id is a target once. Each training
epoch shifts them all by a random phase; what the phase leaves out, at most two windows, is at the ends of the split.
Packing `documents`: each document is cut every `sequence_length` ids from its start; the rest of a row is padding.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy as np

from thrifty.data.order import permute, random_words, spread
from thrifty.data.prepare import Prepared
from thrifty.spec.errors import ThriftyError

NO_TARGET = -100
_BLOCK = 4096  # positions looked up at once: the permutation then costs nothing a step

# (epoch, positions) -> where each sample starts, and how many targets it has; two int64 arrays (positions,)
_Cut = Callable[[int, np.ndarray], tuple[np.ndarray, np.ndarray]]


class Samples:
    """The samples of one split. `len()` is their number, in one epoch.

    Args:
        prepared: open token shards.
        split: `train` repeats for as long as it is asked; `val` has one pass.
        sequence_length: targets in one sample, at most.
        seed: of the training order.

    Raises:
        ThriftyError: the split is too short for one sample.
    """

    def __init__(self, prepared: Prepared, split: Literal["train", "val"], sequence_length: int, seed: int) -> None:
        data, shards = prepared.data, prepared.shards
        border = train_tokens(shards.tokens, data.validation_fraction)
        start, stop = (0, border) if split == "train" else (border, shards.tokens)
        if data.packing == "stream":
            self._length, self._cut = _stream(start, stop, sequence_length, seed if split == "train" else None)
        else:
            self._length, self._cut = _documents(shards.document_starts, start, stop, sequence_length)
        if self._length == 0:
            raise _too_short(prepared, split, stop - start, sequence_length)
        self.split = split
        self.sequence_length = sequence_length
        self._seed, self._shards = seed, shards
        self._padding = prepared.tokenizer.end_id or 0
        self._block: tuple[int, int] = (-1, -1)
        self._starts = self._counts = np.empty(0, dtype=np.int64)

    def __len__(self) -> int:
        return self._length

    def batch(self, first_index: int, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Samples first_index, ..., first_index + count - 1.

        Returns:
            tokens and targets, int64, each (count, sequence_length); targets are `NO_TARGET` where there is none.

        Raises:
            ThriftyError: more samples than the split has.
        """
        self.require(count, first_index)
        shape = (count, self.sequence_length)
        tokens, targets = np.empty(shape, dtype=np.int64), np.empty(shape, dtype=np.int64)
        starts, counts = self._spans(first_index, count)
        for row, (start, length) in enumerate(zip(starts.tolist(), counts.tolist(), strict=True)):
            ids = self._shards.window(start, start + length + 1)  # (length + 1,)
            tokens[row, :length] = ids[:-1]
            targets[row, :length] = ids[1:]
            if length < self.sequence_length:
                tokens[row, length:] = self._padding
                targets[row, length:] = NO_TARGET
        return tokens, targets

    def target_count(self, first_index: int, count: int) -> int:
        """Targets in a batch, without reading it: what the sum of its losses is divided by."""
        self.require(count, first_index)
        return int(self._spans(first_index, count)[1].sum())

    def require(self, count: int, first_index: int = 0) -> None:
        """Checks that `count` samples together, say of one optimizer step over all ranks, are there.

        Raises:
            ThriftyError: the split has fewer; says how many, and the ways out.
        """
        needed = count if self.split == "train" else first_index + count
        if needed <= self._length:
            return
        split, key = (
            ("training", "recipe.batch.sequences")
            if self.split == "train"
            else ("validation", "recipe.evaluation.sequences")
        )
        raise ThriftyError(
            f"{needed} sequences of {self.sequence_length} tokens asked for, the {split} split has {self._length}",
            where=key,
            hint=f"lower {key} to at most {self._length}, shorten job.sequence_length, or give more text",
        )

    def _spans(self, first_index: int, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Start and number of targets of each sample, (count,) each."""
        starts, counts = [], []
        while count > 0:
            epoch, position = divmod(first_index, self._length)
            number, offset = divmod(position, _BLOCK)
            if self._block != (epoch, number):
                positions = np.arange(number * _BLOCK, min((number + 1) * _BLOCK, self._length))
                self._starts, self._counts = self._cut(epoch, self._order(epoch, positions))
                self._block = (epoch, number)
            starts.append(self._starts[offset : offset + count])
            counts.append(self._counts[offset : offset + count])
            first_index, count = first_index + starts[-1].size, count - starts[-1].size
        return (starts[0], counts[0]) if len(starts) == 1 else (np.concatenate(starts), np.concatenate(counts))

    def _order(self, epoch: int, positions: np.ndarray) -> np.ndarray:
        if self.split == "val":
            return spread(positions, self._length)
        return permute(positions, self._length, random_words("order", self._seed, epoch))


def train_tokens(tokens: int, validation_fraction: float) -> int:
    """Ids that train: all but the last `validation_fraction` of the stream."""
    return int(tokens * (1 - validation_fraction))


def _stream(start: int, stop: int, length: int, phase_seed: int | None) -> tuple[int, _Cut]:
    """Windows over ids [start, stop). With a seed, one window fewer than fit, so that the phase has room."""
    fitting = max(0, stop - start - 1) // length
    windows = fitting if phase_seed is None else min(fitting, max(1, fitting - 1))
    slack = stop - start - 1 - windows * length

    def cut(epoch: int, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        phase = 0 if phase_seed is None else int(random_words("phase", phase_seed, epoch)[0]) % (slack + 1)
        return start + phase + positions * length, np.full(positions.shape, length)

    return windows, cut


def _documents(document_starts: np.ndarray, start: int, stop: int, length: int) -> tuple[int, _Cut]:
    """Pieces of the documents within ids [start, stop). Holds 24 bytes a document in memory."""
    low, high = np.searchsorted(document_starts, [start, stop])
    starts = document_starts[low:high]
    if not starts.size or starts[0] != start:
        starts = np.concatenate([[start], starts])  # the document that the border cuts
    # A document's first id is nobody's target.
    targets = np.maximum(np.diff(np.append(starts, stop)) - 1, 0)  # (documents,)
    pieces = -(-targets // length)  # (documents,)
    ends = np.cumsum(pieces)  # (documents,)

    def cut(epoch: int, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        document = np.searchsorted(ends, positions, side="right")
        passed = (positions - (ends - pieces)[document]) * length  # targets in earlier pieces of the same document
        return starts[document] + passed, np.minimum(targets[document] - passed, length)

    return int(ends[-1]), cut


def _too_short(prepared: Prepared, split: str, tokens: int, length: int) -> ThriftyError:
    name = "training" if split == "train" else "validation"
    where = f"data.path={prepared.data.path}"
    if prepared.data.packing == "documents":
        what = f"no document of the {name} split has two tokens, one to read and one to predict"
        return ThriftyError(what, where=where, hint="set data.packing=stream, or give more text")
    ways = [f"shorten job.sequence_length to at most {tokens - 1}"] if tokens > 1 else []
    fraction = (length + 2) / prepared.tokens
    if split == "val" and fraction < 0.5:
        ways.append(f"raise data.validation_fraction to at least {fraction:.2g}")
    return ThriftyError(
        f"the {name} split has {tokens} tokens, fewer than one sequence of {length} and the token after it",
        where=where,
        hint=", ".join([*ways, "or give more text"]),
    )
