"""What one rank sends to take the mean of encoded tensors over a group: for the exchange and for whoever prices it.

Four routes, for W ranks, N values and a payload of P(N) bytes:

    all_reduce  linear codecs: encoded values are summed on their way       2 (W - 1)/W P
    all_gather  every payload to every rank, which sums them in fp32         (W - 1) P
    all_to_all  part j of each rank's values to rank j, fp32 sum there,      2 (W - 1)/W P
                encoded again and gathered
    low_rank    two all_reduces: of P and whole tensors, and of Q           2 (W - 1)/W of each

Two ranks send the same either way, so that the single hop wins. The second hop of sparse payloads would hold the places
of all ranks, W times as many, or drop most of them: sparse codecs are gathered up to `SPARSE_RANKS`.

The parts of an all_to_all are those of each tensor, so that who reduces what does not depend on what is fused.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

from thrifty.cost.payload import HEADER_BYTES, LENGTH_BYTES, factored, payload_bytes
from thrifty.spec.codec import LowRankStage, RandomKStage, Stage, ThresholdStage, TopKStage, ZstdStage

Kind = Literal["all_reduce", "reduce_scatter", "all_gather", "all_to_all"]
Route = Literal["all_reduce", "all_gather", "all_to_all", "low_rank"]
ROUTES: tuple[Route, ...] = ("all_reduce", "all_gather", "all_to_all")
LINEAR = (RandomKStage,)
SPARSE = (TopKStage, ThresholdStage, RandomKStage)
VARIABLE = (ZstdStage,)
SPARSE_RANKS = 16
SIZE_BYTES = 8  # of a message that says how long a payload is


class Message(NamedTuple):
    """One collective.

    Attributes:
        kind: all_reduce, reduce_scatter, all_gather or all_to_all.
        payload_bytes: that the rank hands in; of an all_to_all, without what stays with itself.
        sent_bytes: by this rank: by a ring for all_reduce, reduce_scatter and all_gather.
    """

    kind: Kind
    payload_bytes: int
    sent_bytes: float


def linear(stages: Sequence[Stage]) -> bool:
    """Whether encoded values may be summed on their way."""
    return all(isinstance(stage, LINEAR) for stage in stages)


def route_of(stages: Sequence[Stage], ranks: int) -> Route:
    """The route that sends the fewest bytes, in the fewest hops."""
    if any(isinstance(stage, LowRankStage) for stage in stages):
        return "low_rank"
    if linear(stages):
        return "all_reduce"
    sparse = any(isinstance(stage, SPARSE) for stage in stages)
    return "all_gather" if ranks <= (SPARSE_RANKS if sparse else 2) else "all_to_all"


def cut(values: int, part: int, parts: int) -> tuple[int, int]:
    """First and past-last value of one of the parts of a tensor."""
    return values * part // parts, values * (part + 1) // parts


def part_sizes(numels: Sequence[int], parts: int) -> list[int]:
    """Values in each part of a unit of such tensors."""
    bounds = [sum(cut(values, part, parts)[0] for values in numels) for part in range(parts)]
    return [end - begin for begin, end in zip(bounds, [*bounds[1:], sum(numels)], strict=True)]


def messages(
    stages: Sequence[Stage],
    shapes: Sequence[int | Sequence[int]],
    ranks: int,
    *,
    route: Route | None = None,
    rank: int = 0,
    within: int = 1,
) -> list[Message]:
    """The collectives of one mean of one unit of fp32 tensors, in order; none in a group of one.

    Args:
        stages: of the codec.
        shapes: of each tensor of the unit, or how many values it has, where the codec needs no matrix.
        ranks: of the group that the payloads cross.
        route: `route_of` by default.
        rank: in that group: parts may differ by a value for each tensor.
        within: ranks of the island, which takes its own plain mean first; `shapes` are then of the whole tensors.

    Sizes of payloads behind zstandard are upper bounds.
    """
    numels = [shape if isinstance(shape, int) else math.prod(shape) for shape in shapes]
    if within > 1:
        slices = [cut(values, 0, within)[1] for values in numels]
        widest = 4 * max(part_sizes(numels, within))
        inner = messages(stages, slices, ranks, route=route, rank=rank)
        first = Message("reduce_scatter", widest * within, widest * (within - 1))
        return [first, *inner, Message("all_gather", widest + 4, (widest + 4.0) * (within - 1))]
    if ranks == 1:
        return []
    others = ranks - 1
    variable = any(isinstance(stage, VARIABLE) for stage in stages)
    match route or route_of(stages, ranks):
        case "all_reduce":
            size = payload_bytes(stages, (sum(numels),)) - HEADER_BYTES - LENGTH_BYTES
            return [Message("all_reduce", size, 2 * others / ranks * size)]
        case "all_gather":
            size = payload_bytes(stages, (sum(numels),))
            return [*_sizes("all_gather", 1, others, variable), Message("all_gather", size, float(others * size))]
        case "low_rank":
            (rank_of_factors,) = [stage.rank for stage in stages if isinstance(stage, LowRankStage)]
            return _low_rank(rank_of_factors, shapes, ranks)
        case "all_to_all":
            parts = [payload_bytes(stages, (values,)) for values in part_sizes(numels, ranks)]
            away = sum(parts) - parts[rank]
            return [
                *_sizes("all_to_all", others, others, variable),
                Message("all_to_all", away, float(away)),
                *_sizes("all_gather", 1, others, variable),
                Message("all_gather", max(parts), float(others * max(parts))),
            ]


def _low_rank(rank: int, shapes: Sequence[int | Sequence[int]], ranks: int) -> list[Message]:
    first = second = 0
    for shape in shapes:
        whole = (shape,) if isinstance(shape, int) else shape
        rows, columns = factored(whole, rank) or (0, 0)
        first += rank * rows if rows else math.prod(whole)
        second += rank * columns
    return [Message("all_reduce", 4 * many, 2 * (ranks - 1) / ranks * 4 * many) for many in (first, second) if many]


def _sizes(kind: Kind, handed: int, others: int, variable: bool) -> list[Message]:
    return [Message(kind, SIZE_BYTES * handed, float(SIZE_BYTES * others))] if variable else []


def sent_bytes(sent: Sequence[Message]) -> int:
    """Bytes that this rank sends for them."""
    return math.ceil(sum(message.sent_bytes for message in sent))
