"""What each rank of a pipeline computes, in order, and when: the schedules as lists, and a clock that runs them.

    gpipe         all forward passes, then all backward passes                  Huang et al. 2018, arXiv:1811.06965
    1f1b          fill, then one forward and one backward in turn, then drain   Narayanan et al. 2021, arXiv:2104.04473
    interleaved   the same over several parts a rank, in rounds of microbatches
    zero_bubble   the backward pass in two: gradients of weights fill what would be idle (ZB-H1, Qi et al. 2023,
                  arXiv:2401.10241)
    zbv           two parts a rank, there and back (Qi et al. 2024, arXiv:2405.15362)

The orders are those of torch.distributed.pipelining, which executes them; a test holds both side by side.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from typing import Literal, NamedTuple

from thrifty.cost.stages import placement
from thrifty.spec.recipe import Layout


class Action(NamedTuple):
    """`F` forward, `B` whole backward, `I` gradients of inputs, `W` gradients of weights, of one part's microbatch."""

    kind: str
    part: int
    microbatch: int


class Span(NamedTuple):
    """An action and when it took place, in seconds."""

    kind: str
    part: int
    microbatch: int
    begin: float
    end: float


class PartSeconds(NamedTuple):
    """Time of one microbatch in one part: forward, gradients of inputs (with what is computed again), of weights."""

    forward: float
    by_input: float
    by_weight: float


Schedule = Literal["gpipe", "1f1b", "interleaved", "zero_bubble", "zbv"]


@lru_cache(maxsize=256)
def order(layout: Layout, microbatches: int) -> tuple[tuple[Action, ...], ...]:
    """What each pipeline rank computes, in order."""
    make = {"gpipe": _gpipe, "1f1b": _one_by_one, "zbv": _vee}.get(layout.schedule, _rounds)
    return tuple(tuple(make(layout, rank, microbatches)) for rank in range(layout.pipeline))


def _gpipe(layout: Layout, rank: int, m: int) -> list[Action]:
    return [Action(kind, rank, i) for kind in "FB" for i in range(m)]


def _one_by_one(layout: Layout, rank: int, m: int) -> list[Action]:
    ahead = min(m, layout.pipeline - rank)
    found = [Action("F", rank, i) for i in range(ahead)]
    for i in range(m):
        found.append(Action("B", rank, i))
        if ahead + i < m:
            found.append(Action("F", rank, ahead + i))
    return found


def _rounds(layout: Layout, rank: int, m: int) -> list[Action]:
    """Interleaved 1F1B, and ZB-H1, which runs one microbatch less ahead for each stage behind it."""
    p, parts = layout.pipeline, placement(layout)[rank]
    split = layout.schedule == "zero_bubble"
    together, total = m // max(1, m // p), m * len(parts)
    ahead = min(total, (len(parts) - 1) * together + (1 if split else 2) * (p - 1 - rank))

    def numbered(kind: str, local: Sequence[int]) -> list[Action]:
        seen: Counter[int] = Counter()
        found = []
        for part in local:
            found.append(Action(kind, part, seen[part]))
            seen[part] += 1
        return found

    turns = [i // together % len(parts) for i in range(total)]
    forward = numbered("F", [parts[turn] for turn in turns])
    backward = numbered("I" if split else "B", [parts[-1 - turn] for turn in turns])
    found = forward[:ahead]
    weights = 0
    for i, action in enumerate(backward):
        found += forward[ahead + i : ahead + i + 1]
        found.append(action)
        if split and i >= rank:
            found.append(backward[weights]._replace(kind="W"))
            weights += 1
    return found + ([action._replace(kind="W") for action in backward[weights:]] if split else [])


def _vee(layout: Layout, rank: int, m: int) -> list[Action]:
    """ZB-V: built for at least 2p - 1 microbatches, of which the surplus is left out."""
    p = layout.pipeline
    near, far = placement(layout)[rank]
    count = max(2 * p - 1, m)
    next_of: Counter[tuple[str, int]] = Counter()
    found: list[Action] = []

    def add(kind: str, part: int) -> None:
        found.append(Action(kind, part, next_of[kind, part]))
        next_of[kind, part] += 1

    def backward(part: int) -> None:
        add("I", part)
        add("W", part)

    for _ in range(2 * (p - rank) - 1):
        add("F", near)
    for _ in range(rank):
        add("F", far)
        add("F", near)
    for _ in range(p - rank):
        add("F", far)
        backward(far)
    while next_of["F", far] < next_of["F", near] or next_of["F", near] < count:
        if next_of["F", near] < count:
            add("F", near)
        backward(near)
        add("F", far)
        backward(far)
    for _ in range(rank):
        add("I", near)
        add("I", far)
    for _ in range(p - rank):
        add("I", near)
        add("W", near)
    for part in (far, near):
        while next_of["W", part] < next_of["I", part]:
            add("W", part)
    return [action for action in found if action.microbatch < m]


class Turn(NamedTuple):
    """An action in an order in which each comes after what it needs.

    Attributes:
        need: the place in that order of what must be done before, beside the action before it on its rank; -1 = none.
        arrives: whether that is done on another rank.
    """

    rank: int
    action: Action
    need: int
    arrives: bool


def turns(actions: Sequence[Sequence[Action]]) -> list[Turn]:
    """All actions of all ranks in one order in which they can be done, whatever they take."""
    rank_of = {action.part: rank for rank, mine in enumerate(actions) for action in mine}
    last = max(rank_of)
    place: dict[tuple[str, int, int], int] = {}  # backward passes, whole or of inputs, as "B"
    found: list[Turn] = []
    at = [0] * len(actions)
    waiting = set(range(len(actions)))
    while waiting:
        rank = waiting.pop()
        while at[rank] < len(actions[rank]):
            kind, part, i = action = actions[rank][at[rank]]
            needs = _needs(kind, part, i, last)
            if needs is not None and needs not in place:
                break
            arrives = needs is not None and rank_of[needs[1]] != rank
            if kind != "W":
                place["F" if kind == "F" else "B", part, i] = len(found)
                neighbour = part + 1 if kind == "F" else part - 1
                if 0 <= neighbour <= last:
                    waiting.add(rank_of[neighbour])
            found.append(Turn(rank, action, -1 if needs is None else place[needs], arrives))
            at[rank] += 1
        waiting.discard(rank)
    return found


def run(
    actions: Sequence[Sequence[Action]], seconds: Sequence[PartSeconds], handing: float = 0.0
) -> tuple[tuple[Span, ...], ...]:
    """When each action takes place, if every rank starts it as soon as what it needs is there.

    Args:
        actions: of each rank, in order.
        seconds: of each part of the model. Where the backward pass is split, the first part has no inputs to
            find gradients of and does all of it with the weights, as torch does.
        handing: from the end of an action to its result's arrival on another rank.
    """
    spans: list[list[Span]] = [[] for _ in actions]
    free, ends = [0.0] * len(actions), list[float]()
    for rank, action, need, arrives in turns(actions):
        begin = free[rank]
        if need >= 0:
            begin = max(begin, ends[need] + (handing if arrives else 0.0))
        free[rank] = begin + _lasts(action.kind, action.part, seconds[action.part])
        ends.append(free[rank])
        spans[rank].append(Span(*action, begin, free[rank]))
    return tuple(map(tuple, spans))


def length(layout: Layout, microbatches: int, seconds: Sequence[PartSeconds], handing: float = 0.0) -> float:
    """Seconds from the first action of `run` to its last: the same clock without its spans, which a search need not
    see."""
    lasts = [_lasts(kind, part, one) for part, one in enumerate(seconds) for kind in _KINDS]
    free, ends = [0.0] * layout.pipeline, list[float]()
    for rank, work, need, arrives in _programme(layout.pipeline, layout.schedule, layout.interleave, microbatches):
        begin = free[rank]
        if need >= 0:
            there = ends[need] + handing if arrives else ends[need]
            if there > begin:
                begin = there
        free[rank] = end = begin + lasts[work]
        ends.append(end)
    return max(free)


_KINDS = "FBIW"


@lru_cache(maxsize=1024)
def _programme(
    pipeline: int, schedule: Schedule, interleave: int, microbatches: int
) -> tuple[tuple[int, int, int, bool], ...]:
    """`turns` with the place of each action's time in a list of all parts' four kinds."""
    layout = Layout(pipeline=pipeline, schedule=schedule, interleave=interleave)
    return tuple(
        (rank, 4 * action.part + _KINDS.index(action.kind), need, arrives)
        for rank, action, need, arrives in turns(order(layout, microbatches))
    )


def _needs(kind: str, part: int, microbatch: int, last: int) -> tuple[str, int, int] | None:
    """What must be done before an action: where ranks do things in order, nothing on the same rank but at the turn."""
    if kind == "F":
        return ("F", part - 1, microbatch) if part else None
    if kind == "W":
        return None
    return ("B", part + 1, microbatch) if part < last else ("F", part, microbatch)


def _lasts(kind: str, part: int, seconds: PartSeconds) -> float:
    if kind == "F":
        return seconds.forward
    backward = seconds.by_input + seconds.by_weight
    if kind == "B":
        return backward
    if part == 0:
        return 0.0 if kind == "I" else backward
    return seconds.by_input if kind == "I" else seconds.by_weight


class Use(NamedTuple):
    """Of a timeline: from its first action to its last, and what each rank computed of it, in seconds."""

    seconds: float
    busy: tuple[float, ...]

    @property
    def bubble(self) -> float:
        """Share of the ranks' time that is idle."""
        return 1 - sum(self.busy) / (len(self.busy) * self.seconds) if self.seconds else 0.0


def use(spans: Sequence[Sequence[Span]]) -> Use:
    """How long a timeline takes, and how busy its ranks are."""
    everything = [span for mine in spans for span in mine]
    length = max(span.end for span in everything) - min(span.begin for span in everything)
    return Use(length, tuple(sum(span.end - span.begin for span in mine) for mine in spans))


def draw(spans: Sequence[Sequence[Span]], width: int = 100) -> str:
    """A row for each rank, time across: F, B, I and W as in `Action`, small for the parts behind a rank's first; `.`
    is idle."""
    everything = [span for mine in spans for span in mine]
    start = min(span.begin for span in everything)
    scale = width / max(1e-30, max(span.end for span in everything) - start)
    rows = []
    for rank, mine in enumerate(spans):
        first = min(span.part for span in mine)
        row = ["."] * width
        for span in mine:
            letter = span.kind if span.part == first else span.kind.lower()
            for column in range(round((span.begin - start) * scale), round((span.end - start) * scale)):
                row[column] = letter
        rows.append(f"stage {rank}  {''.join(row)}")
    return "\n".join(rows)


def most_kept(actions: Sequence[Action], size: dict[int, float]) -> float:
    """The most that a rank keeps at once of microbatches whose backward pass is not over.

    Args:
        actions: of the rank.
        size: what one microbatch leaves, by part.
    """
    split = {action.part for action in actions if action.kind == "W"}
    kept = most = 0.0
    for kind, part, _ in actions:
        if kind == "F":
            kept += size[part]
            most = max(most, kept)
        elif kind == ("W" if part in split else "B"):
            kept -= size[part]
    return most
