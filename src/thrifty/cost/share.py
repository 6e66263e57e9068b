"""What of a model one rank has, as far as it decides what the rank sends: exactly, or of a rank that stands for all."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

from thrifty.cost.held import Held, ends_of, held, local_size, part_of, sharing_ranks
from thrifty.cost.params import Named, block_shapes, parameter_shapes
from thrifty.cost.stages import messages, placement, sends
from thrifty.spec.job import ModelShape
from thrifty.spec.recipe import Layout


@dataclass(frozen=True, slots=True)
class Unit:
    """What is gathered or reduced at once: elements whole and on the fullest rank, and how many of them a rank has."""

    name: str
    elements: float
    shard: float
    number: int


class Share(NamedTuple):
    """What of a model a rank has: of this the collectives are made.

    Attributes:
        units: what data ranks gather and reduce at once.
        layers: of the rank's stage.
        first: whether the embedding is here; a part of one for a stage that stands for all. Likewise `last`, the head.
        tied: elements of an embedding that another stage holds too, on this rank; 0 where there is none.
        partial: elements of gradients that tensor ranks must add up.
        sends: messages forward and backward for one microbatch.
    """

    units: tuple[Unit, ...]
    layers: int
    first: float
    last: float
    tied: float
    partial: int
    sends: tuple[int, int]


@lru_cache(maxsize=8192)
def of_all(shape: ModelShape, layout: Layout, software: str, runs: tuple[range, ...] | None) -> Share:
    """One rank that stands for all of them: the fullest stage, and an equal part of what embedding and head send."""
    n = sharing_ranks(layout, software)
    tied: float = 0
    if shape.tied_embeddings and layout.pipeline > 1 and layout.schedule != "zbv":
        head = shape.vocab_size * shape.hidden / layout.tensor
        tied = -(-shape.vocab_size // n) * shape.hidden if layout.tensor == 1 else head / n
    return Share(
        units(shape, layout, software, runs),
        -(-shape.layers // layout.pipeline),
        1 / layout.pipeline,
        1 / layout.pipeline,
        tied,
        _partial_of_all(shape, layout.tensor, layout.expert, n, layout.sequence_parallel) // layout.pipeline,
        sends(layout),
    )


def of_one(
    shape: ModelShape, layout: Layout, software: str, runs: tuple[range, ...] | None, place: dict[str, int]
) -> Share:
    """What one rank has, exactly."""
    stage, tensor = place["pipeline"], place["tensor"]
    at = place["shard"] * layout.context + place["context"]
    mine = placement(layout)[stage]
    is_first, is_last = 0 in mine, layout.pipeline * layout.interleave - 1 in mine
    # Gathers and reductions are padded to the fullest of the ranks that share.
    piece = held(shape, layout, software, runs, (tensor, 0))[stage]
    before, after = ends_of(shape)
    named = [item for layer in piece.layers for item in block_shapes(shape, layer)]
    named += (before if is_first else ()) + (after if is_last else ())
    tied = 0
    if shape.tied_embeddings and is_first != is_last:
        rows = part_of(part_of(shape.vocab_size, layout.tensor, tensor), sharing_ranks(layout, software), at)
        tied = rows * shape.hidden
    return Share(
        (*_blocks(piece), *(Unit("root", whole, shard, 1) for whole, shard in piece.roots)),
        len(piece.layers),
        float(is_first),
        float(is_last),
        tied,
        _partial_elements(
            shape, named, layout.tensor, layout.expert, layout.shard * layout.context, at, layout.sequence_parallel
        ),
        messages(layout, stage),
    )


@lru_cache(maxsize=8192)
def units(shape: ModelShape, layout: Layout, software: str, runs: tuple[range, ...] | None = None) -> tuple[Unit, ...]:
    """Blocks, on average, and root of the fullest pipeline stage, as tensor and expert ranks leave them to one rank."""
    piece = max(held(shape, layout, software, runs), key=lambda stage: stage.shard)
    return *_blocks(piece), Unit("root", piece.root, piece.root_shard, 1)


def _blocks(piece: Held) -> tuple[Unit]:
    number = len(piece.layers)
    shard = piece.shard + piece.copied - piece.root_shard
    return (Unit("block", (piece.whole - piece.root) / number, shard / number, number),)


@lru_cache(maxsize=4096)
def _partial_of_all(shape: ModelShape, tensor: int, expert: int, sharing: int, sequence_parallel: bool) -> int:
    return _partial_elements(shape, parameter_shapes(shape), tensor, expert, sharing, 0, sequence_parallel)


def _partial_elements(
    shape: ModelShape, named: Iterable[Named], tensor: int, expert: int, sharing: int, at: int, sequence_parallel: bool
) -> int:
    """Gradients that tensor ranks must add up, on one of the ranks that share them: of parameters that each holds whole
    but uses on a part of the tokens (under sequence parallelism all such) or of the heads (norms of queries and keys).
    """
    found = 0
    for name, size in named:
        whole = local_size(name, size, shape, tensor, expert) == size
        if whole and (sequence_parallel or name.endswith(("query_norm.weight", "key_norm.weight"))):
            found += part_of(size[0], sharing, at) * math.prod(size[1:])
    return found
