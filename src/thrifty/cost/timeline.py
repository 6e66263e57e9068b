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
from typing import NamedTuple

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
    rank_of = {action.part: rank for rank, mine in enumerate(actions) for action in mine}
    last = len(seconds) - 1
    done: dict[tuple[str, int, int], float] = {}  # backward passes, whole or of inputs, as "B"
    spans: list[list[Span]] = [[] for _ in actions]
    free, at = [0.0] * len(actions), [0] * len(actions)
    waiting = set(range(len(actions)))
    while waiting:
        rank = waiting.pop()
        while at[rank] < len(actions[rank]):
            kind, part, i = actions[rank][at[rank]]
            begin = free[rank]
            needs = _needs(kind, part, i, last)
            if needs is not None:
                if needs not in done:
                    break
                begin = max(begin, done[needs] + (handing if rank_of[needs[1]] != rank else 0.0))
            end = begin + _lasts(kind, part, seconds[part])
            spans[rank].append(Span(kind, part, i, begin, end))
            free[rank], at[rank] = end, at[rank] + 1
            if kind != "W":
                done["F" if kind == "F" else "B", part, i] = end
                neighbour = part + 1 if kind == "F" else part - 1
                if 0 <= neighbour <= last:
                    waiting.add(rank_of[neighbour])
        waiting.discard(rank)
    return tuple(map(tuple, spans))


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
