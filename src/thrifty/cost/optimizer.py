"""What an optimizer keeps and moves: bytes of its state, of an update, and what an update needs beside them.

State of one tensor of n values, or of one rank's piece of it; each optimizer but SGD keeps a step count of 4 bytes too:

    32, 16 bits        4 n, 2 n a moment
    8 bits             n a moment, and a scale of 2 bytes for each 256 values
    4 bits             n / 2 a moment, and a scale of 2 bytes for each 64 values
    adafactor          4 (rows + columns) of a matrix, 4 n of the rest (Shazeer & Stern 2018, arXiv:1804.04235)

Tensors with fewer than 4,096 values keep fp32 moments. Muon keeps one moment of the matrices inside the blocks; AdamW
of the same width steps the rest. Equal to what the trainer counts: `tests/cost/test_optimizer.py`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

from thrifty.cost.payload import block_bytes
from thrifty.spec.formats import FORMATS, ROOT4, ROOT8, SQUARE4
from thrifty.spec.recipe import Optimizer

SMALL = 4096  # values; below, moments stay in fp32: such tensors weigh nothing, and norms and biases are touchy
# The first moment of a pair, or the only one, and the mean of squares.
_FORMATS = {8: (FORMATS["int8"], ROOT8), 4: (SQUARE4, ROOT4)}
_MOMENTS = {"adamw": 2, "adam": 2, "lamb": 2, "lion": 1, "muon": 1, "lars": 1, "adagrad": 1, "sgd": 0, "rmsprop": 1}

# Bytes of an update beside the moments, an element: the gradient read and the parameter read and written (12), and
# clipping, which reads the gradient twice and writes it once (12).
PLAIN_BYTES = 24.0
# Further passes: LAMB writes its update, reads update and parameter for their norms, and the update again; LARS reads
# parameter and gradient for their norms; torch's RMSProp and Adafactor run an operation after the other over lists of
# tensors. Assumed, but for the last: 5 times the time of a fused AdamW on a CPU (torch 2.13, 2026-11).
FURTHER_BYTES = {"lamb": 16.0, "lars": 8.0, "rmsprop": 40.0, "adafactor": 100.0}
STABLE_BYTES = 8.0  # gradient and second moment read once more; assumed
# Bytes of matrices that Muon makes orthogonal in one go: enough for full speed, little beside the model.
MUON_BATCH_BYTES = 1 << 26


class Kept(NamedTuple):
    """All of an optimizer that the size of its state depends on."""

    name: str = "adamw"
    state_bits: int = 32
    momentum: bool = True


Piece = tuple[bool, tuple[int, ...], int]  # inside the blocks, what a rank keeps of a tensor, how many of these it has


def kept_of(optimizer: Optimizer) -> Kept:
    """What of a recipe's optimizer decides the size of its state."""
    return Kept(optimizer.name, optimizer.state_bits, optimizer.momentum > 0)


def moments(kept: Kept) -> int:
    """Values kept for each parameter (Muon: of its matrices); 0 for Adafactor, which keeps rows and columns."""
    if kept.name == "adafactor":
        return 0
    return _MOMENTS[kept.name] + (kept.momentum if kept.name in ("sgd", "rmsprop") else 0)


def tensor_bytes(kept: Kept, size: tuple[int, ...], inside: bool = True) -> int:
    """Bytes of state of a tensor, or of a rank's piece of it, in this project's trainer.

    Args:
        inside: the blocks, where Muon takes matrices.
    """
    if kept.name == "muon" and not (inside and len(size) == 2):
        return tensor_bytes(Kept("adamw", kept.state_bits), size)
    count, values = 0 if kept.name == "sgd" else 4, math.prod(size)
    if kept.name == "adafactor":
        return count + 4 * (sum(size) if len(size) == 2 else values)
    bits = max(8, kept.state_bits) if kept.name == "muon" else kept.state_bits
    number = moments(kept)
    if bits == 32 or values < SMALL:
        return count + 4 * number * values
    if bits == 16:
        return count + 2 * number * values
    return count + sum(sum(block_bytes(values, form, form.block)) for form in _FORMATS[bits][:number])


@lru_cache(maxsize=65536)
def state_bytes(kept: Kept, pieces: tuple[Piece, ...]) -> int:
    """Bytes of state of all that a rank keeps."""
    return sum(number * tensor_bytes(kept, size, inside) for inside, size, number in pieces)


@lru_cache(maxsize=4096)
def update_bytes(optimizer: Optimizer, kind: str, inside: float = 1.0) -> float:
    """Bytes that clipping and an update read and write for each parameter that a rank owns.

    On a CPU moments in few bits save no time: what they save in bytes their decoding takes in arithmetic
    (docs/optimizers.md).

    Args:
        kind: of the accelerator.
        inside: share of the parameters that Muon takes.
    """
    if optimizer.name == "muon":
        rest = optimizer.model_copy(update={"name": "adamw"})
        # Momentum, and in bfloat16: what is orthogonalised written and read, the result written and read.
        own = PLAIN_BYTES + 2 * _nominal(1, max(8, optimizer.state_bits), kind) + 8
        return inside * own + (1 - inside) * update_bytes(rest, kind)
    further = FURTHER_BYTES.get(optimizer.name, 0.0) + (STABLE_BYTES if optimizer.stable else 0.0)
    return PLAIN_BYTES + further + 2 * _nominal(moments(kept_of(optimizer)), optimizer.state_bits, kind)


def _nominal(number: int, bits: int, kind: str) -> float:
    return number * (4 if kind == "cpu" else bits / 8)


def working_bytes(kept: Kept, pieces: Sequence[Piece], ranks: int) -> float:
    """Bytes that an update needs beside states and gradients.

    Muon: momenta and results in bfloat16; where ranks share, what was received, the matrices put together, and both
    again on their way back; and a batch of matrices in four copies. torch's RMSProp and Adafactor: one list of
    temporaries as large as the parameters.
    """
    if kept.name in ("rmsprop", "adafactor"):
        return 4.0 * sum(number * math.prod(size) for _, size, number in pieces)
    if kept.name != "muon":
        return 0.0
    taken = [(math.prod(size), number) for inside, size, number in pieces if inside and len(size) == 2]
    values = sum(size * number for size, number in taken)
    largest = 2.0 * ranks * max((size for size, _ in taken), default=0)
    return (12.0 if ranks > 1 else 4.0) * values + 4 * max(largest, min(float(MUON_BATCH_BYTES), 2.0 * values))
