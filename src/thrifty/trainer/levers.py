"""Times one block of a job's own shape, forward and backward, with and without each lever that runs here.

The block stands between a small embedding and a small head, so that it is called as training calls it. Variants take
turns, so that other work on the machine slows both sides of a ratio.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch

from thrifty.model.transformer import Transformer
from thrifty.spec.job import ModelShape
from thrifty.spec.profile import LeverRatio, block_signature

VOCABULARY = 256  # of the stand-in head: small beside a block
ROUNDS = 7
SECONDS = 6.0  # for one lever, beyond which rounds are left out


class Variant(NamedTuple):
    """A lever's value: how the block is built with it, and how many sequences it sees."""

    lever: str
    value: str
    built: dict[str, Any]
    compiled: bool = False
    sequences: int | None = None


def variants(micro_sequences: int, compiler: bool) -> list[Variant]:
    """Every lever that can be tried here. fp8 and others will enter with a line each."""
    found = [
        Variant("precision", "bf16", {"precision": "bf16"}),
        Variant("recompute", "full", {"recompute": True}),
    ]
    found += [Variant("micro_sequences", str(m), {}, sequences=m) for m in (2, 4, 8, 16) if m <= 2 * micro_sequences]
    return [*found, Variant("compile", "on", {}, compiled=True)] if compiler else found


def compiler_here(kind: str) -> bool:
    """On a CPU torch.compile needs a C++ compiler, which it looks for under these names."""
    return kind == "gpu" or any(shutil.which(name) for name in ("g++", "clang++", "c++"))


def measure_levers(
    shape: ModelShape, sequence_length: int, micro_sequences: int, kind: str, notify: Callable[[str], None]
) -> tuple[LeverRatio, ...]:
    """Time with each lever over time without it, for a block of this shape.

    Levers other than the precision are tried in the faster precision.

    Args:
        micro_sequences: that the job would run with.
        kind: of the device, `cpu` or `gpu`.
    """
    one = shape.model_copy(update={"layers": 1, "vocab_size": VOCABULARY, "tied_embeddings": True})
    signature, found = block_signature(shape, sequence_length), list[LeverRatio]()
    base: dict[str, Any] = {"precision": "fp32"}
    for way in variants(micro_sequences, compiler_here(kind)):
        plain = Variant(way.lever, "", {}, sequences=1 if way.sequences else None)
        sides = [_stepper(one, sequence_length, micro_sequences, kind, base, side) for side in (plain, way)]
        without, with_it = _in_turn(sides)
        ratio = with_it / without / (way.sequences or 1)
        if way.lever == "precision" and ratio < 1:
            base = base | way.built
        found.append(LeverRatio(shape=signature, lever=way.lever, value=way.value, ratio=ratio))
        notify(f"{way.lever} {way.value}: {ratio:.2f}x")
    return tuple(found)


def _stepper(
    shape: ModelShape, length: int, micro_sequences: int, kind: str, base: dict[str, Any], way: Variant
) -> Callable[[], None]:
    """One forward and backward pass of the block in a variant."""
    device = torch.device("cuda" if kind == "gpu" else "cpu")
    model = Transformer(shape, **(base | way.built)).to(device)
    if way.compiled:
        model.blocks[0].compile()
    sequences = way.sequences or micro_sequences
    tokens = torch.randint(0, VOCABULARY, (sequences, length), device=device)

    def step() -> None:
        model(tokens, tokens).backward()
        model.zero_grad(set_to_none=True)
        if device.type == "cuda":
            torch.cuda.synchronize()

    return step


def _in_turn(sides: Sequence[Callable[[], None]]) -> tuple[float, ...]:
    """Median seconds of each side; the first call of each, which warms up, is left out."""
    times: list[list[float]] = [[] for _ in sides]
    for side in sides:
        side()
    begin = time.perf_counter()
    for _ in range(ROUNDS):
        for side, taken in zip(sides, times, strict=True):
            start = time.perf_counter()
            side()
            taken.append(time.perf_counter() - start)
        if time.perf_counter() - begin > SECONDS:
            break
    return tuple(sorted(taken)[len(taken) // 2] for taken in times)
