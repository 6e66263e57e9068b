"""Training on islands with unequal links and compute: seconds, tokens, bytes and waiting of each, by scheme.

A round is what lies between two exchanges of the same values: one step, or `local_steps` of them. Islands start a
collective when each is ready and wait for what it owes them (`cost.island_links`); nothing else couples them. Time is
followed event by event, round by round, until it repeats. Bytes are payloads, without headers of TCP: `cost.wire`.

With equal islands: (H c + coding + collective) / H a step, and the collective is that of `cost.traffic`.
"""

from __future__ import annotations

import math
import random
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from thrifty.cost.exchange import Route, linear, messages
from thrifty.cost.island_links import Island, Limit, everyone_to_everyone, ring
from thrifty.spec.codec import LowRankStage, stages_of
from thrifty.spec.errors import ThriftyError

WARM_UP = 3  # rounds before counting: who runs ahead has been stopped by then


@dataclass(frozen=True)
class Scheme:
    """How islands keep together.

    Attributes:
        route: `all_reduce` in a ring, of plain values; `all_to_all` of parts to who sums them, and all_gather of the
            sums; `all_gather` of everything to everybody.
        codec: of what is sent, as text (`spec.codec`); none = values of `value_bits`.
        local_steps: between two exchanges of the same values, of the fastest island.
        by_speed: a slower island takes as many steps as end before the fastest has taken its own.
        fragments: parts of the model that are exchanged one by one, evenly spread over the round
            (arXiv:2501.18512). They cross while islands compute where there is a delay.
        delay: steps after which the mean of a fragment is needed.
        quorum: share of islands that an exchange waits for, the first ones, two at least; what the others did is lost,
            and they go on from the new values.
        gather: `ring`, as gloo gathers: each passes on what it got; `direct`: each sends to all others at once.
    """

    route: Route = "all_reduce"
    codec: str | None = None
    value_bits: int = 16
    local_steps: int = 1
    by_speed: bool = False
    fragments: int = 1
    delay: int = 0
    quorum: float = 1.0
    gather: Literal["ring", "direct"] = "ring"

    def __post_init__(self) -> None:
        if not 1 <= self.fragments <= self.local_steps:
            raise ThriftyError(
                f"{self.fragments} fragments in {self.local_steps} local steps",
                hint="each fragment is exchanged once a round, after a step of its own: 1 to local_steps",
            )
        if not 0 <= self.delay < self.local_steps:
            raise ThriftyError(
                f"a delay of {self.delay} steps in a round of {self.local_steps}",
                hint="use less: what is done while a mean is under way is replaced by it",
            )
        if not 0 < self.quorum <= 1:
            raise ThriftyError(f"a quorum of {self.quorum:g}", hint="a share of the islands, above 0 and up to 1")
        ring = self.route == "all_reduce" or self.gather == "ring"
        if self.quorum < 1 and (ring or self.fragments > 1 or self.delay):
            raise ThriftyError(
                "a quorum needs whole exchanges that are waited for, and no ring",
                hint="gather direct, fragments 1, delay 0",
            )
        if self.codec is None and self.route != "all_reduce":
            raise ThriftyError("plain values are summed in a ring", hint="route all_reduce, or a codec")
        stages = stages_of(self.codec) if self.codec is not None else ()
        if self.route == "low_rank" or any(isinstance(stage, LowRankStage) for stage in stages):
            hint = "any other codec, with route all_to_all or all_gather"
            raise ThriftyError("low rank goes by the shapes of matrices, and only their size is known here", hint=hint)
        if stages and self.route == "all_reduce" and not linear(stages):
            raise ThriftyError(
                f"encoded values of {self.codec} cannot be summed", hint="route all_to_all or all_gather"
            )


@dataclass(frozen=True)
class Outcome:
    """What a scheme comes to, a round; sequences are by island.

    Attributes:
        seconds: of a round.
        steps: that each island takes in it.
        kept: share of its rounds that were not lost to a quorum.
        utilisation: share of time that it computes what is kept.
        sent: bytes.
        received: bytes.
        limit: what to make faster first.
    """

    seconds: float
    steps: tuple[int, ...]
    kept: tuple[float, ...]
    utilisation: tuple[float, ...]
    sent: tuple[float, ...]
    received: tuple[float, ...]
    limit: str

    @property
    def steps_per_s(self) -> float:
        """Steps of all islands together whose result is kept; times tokens of a step, the throughput."""
        return sum(s * k for s, k in zip(self.steps, self.kept, strict=True)) / self.seconds


def hops(scheme: Scheme, values: int, islands: int) -> list[tuple[str, float]]:
    """The collectives of an exchange: their kind, and bytes of one message; of an all-reduce, of all values."""
    if scheme.codec is None:
        return [("all_reduce", values * scheme.value_bits / 8)]
    found = messages(stages_of(scheme.codec), [values], islands, route=scheme.route)
    return [
        (one.kind, one.payload_bytes if one.kind == "all_reduce" else one.sent_bytes / (islands - 1)) for one in found
    ]


def own_steps(islands: Sequence[Island], scheme: Scheme) -> tuple[int, ...]:
    """Inner steps that each island takes in a round."""
    fastest = min(one.compute_s for one in islands)
    if not scheme.by_speed:
        return (scheme.local_steps,) * len(islands)
    return tuple(max(1, math.floor(scheme.local_steps * fastest / one.compute_s + 1e-9)) for one in islands)


@dataclass
class _State:
    """Where an island stands."""

    draw: random.Random
    now: float = 0.0
    step: int = 0
    link_free: float = 0.0
    busy: float = 0.0  # seconds of compute in this round
    useful: float = 0.0
    kept: int = 0
    sent: float = 0.0
    received: float = 0.0
    owed: deque[tuple[int, float]] = field(default_factory=deque)  # step after which a mean is needed, when it is there


class _Done(NamedTuple):
    """An exchange: when each island has the mean, who sent, and what the last one waited for."""

    when: list[float]
    senders: frozenset[int]
    limit: Limit


def _compute(island: Island, state: _State, until: int) -> None:
    """Takes inner steps up to number `until`, and waits for each mean at the step that needs it."""
    while state.owed and state.owed[0][0] <= until:
        needed, there = state.owed.popleft()
        _run(island, state, max(0, needed - state.step))
        state.now = max(state.now, there)
    _run(island, state, until - state.step)


def _run(island: Island, state: _State, steps: int) -> None:
    if steps <= 0:
        return
    if island.jitter:  # a sum of steps that are gamma distributed
        spread = island.jitter**2
        taken = state.draw.gammavariate(steps / spread, island.compute_s * spread)
    else:
        taken = steps * island.compute_s
    state.now, state.step, state.busy = state.now + taken, state.step + steps, state.busy + taken


def _exchange(islands: Sequence[Island], scheme: Scheme, states: Sequence[_State], values: int, share: float) -> _Done:
    """One exchange of `values`, `share` of the model, of which every byte is booked."""
    n = len(islands)
    ready = [
        max(state.now, state.link_free) + island.coding_s * share for state, island in zip(states, islands, strict=True)
    ]
    senders = list(range(n))
    if scheme.quorum < 1:
        message = hops(scheme, values, n)[-1][1] if n > 1 else 0.0
        first = sorted(senders, key=lambda j: ready[j] + (n - 1) * message / islands[j].up)
        senders = sorted(first[: max(min(2, n), math.ceil(scheme.quorum * n - 1e-9))])
        begun, kept = min(ready[j] for j in senders), set(senders)
        ready = [there if j in kept else begun for j, there in enumerate(ready)]  # the others drop what they are at
    when, slow = list(ready), Limit(0.0, "compute", 0)
    for hop, (kind, size) in enumerate(hops(scheme, values, len(senders))):
        if kind == "all_reduce" or (kind == "all_gather" and scheme.gather == "ring"):
            piece, times = (size / n, 2 * (n - 1)) if kind == "all_reduce" else (size, n - 1)
            when, limit = ring(islands, when, piece, times, idle=hop == 0)
            for state in states:
                state.sent, state.received = state.sent + piece * times, state.received + piece * times
            slow = max(slow, limit)
            continue
        whole = kind == "all_gather"
        among = range(n) if whole else senders  # parts go to those that sum them, sums to all
        ends, limit = everyone_to_everyone(
            [islands[j] for j in among],
            [when[j] for j in among],
            senders if whole else range(len(senders)),
            size,
            idle=hop == 0,
        )
        for j, end in zip(among, ends, strict=True):
            when[j] = end
            states[j].received += len(senders) * size
        for j in senders:
            states[j].sent += (len(among) - 1) * size
            states[j].received -= size  # its own
        slow = max(slow, Limit(limit.seconds, limit.part, among[limit.island]))
    return _Done(when, frozenset(senders), slow)


def simulate(
    islands: Sequence[Island], values: int, scheme: Scheme, *, rounds: int | None = None, seed: int = 0
) -> Outcome:
    """Follows the islands through rounds of a scheme, and gives means over those after the first few.

    Args:
        values: of the model, that are exchanged.
        rounds: to count; when left out 4, or up to 40 where steps have a jitter.
        seed: of the jitter.

    Raises:
        ThriftyError: no islands; by the scheme, on a combination that does not exist.
    """
    if not islands:
        raise ThriftyError("no islands", where="islands", hint="at least one, with its compute and its link")
    if rounds is None:
        rounds = max(4, min(40, 20_000 // len(islands))) if any(one.jitter for one in islands) else 4
    states = [_State(random.Random(f"{seed} {place}")) for place in range(len(islands))]
    steps = own_steps(islands, scheme)
    ended: list[float] = []
    for number in range(WARM_UP + rounds):
        if number == WARM_UP:
            began = [state.now for state in states]
            for state in states:
                state.useful, state.kept, state.sent, state.received = 0.0, 0, 0.0, 0.0
        done = _round(islands, states, steps, scheme, values, number)
        ended.append(max(states[j].now for j in done.senders))
    seconds = (ended[-1] - ended[WARM_UP - 1]) / rounds
    used = tuple(min(1.0, state.useful / (state.now - start)) for state, start in zip(states, began, strict=True))
    return Outcome(
        seconds=seconds,
        steps=steps,
        kept=tuple(state.kept / rounds for state in states),
        utilisation=used,
        sent=tuple(state.sent / rounds for state in states),
        received=tuple(state.received / rounds for state in states),
        limit=_limit(islands, used, done.limit),
    )


def _round(
    islands: Sequence[Island], states: Sequence[_State], steps: Sequence[int], scheme: Scheme, values: int, number: int
) -> _Done:
    """All fragments once. Fragment p is ready after step (p + 1) H / F of the round."""
    for state in states:
        state.busy = 0.0
    parts = scheme.fragments
    for part in range(parts):
        for island, state, own in zip(islands, states, steps, strict=True):
            _compute(island, state, number * own + (part + 1) * own // parts)
        size = (part + 1) * values // parts - part * values // parts
        done = _exchange(islands, scheme, states, size, size / values)
        for place, (state, own) in enumerate(zip(states, steps, strict=True)):
            state.link_free = done.when[place]
            delay = scheme.delay * own // scheme.local_steps
            if delay:
                state.owed.append((state.step + delay, state.link_free))
            else:
                state.now = state.link_free
    for place, state in enumerate(states):
        if place in done.senders:
            state.useful, state.kept = state.useful + state.busy, state.kept + 1
    return done


def _limit(islands: Sequence[Island], used: Sequence[float], slow: Limit) -> str:
    """Compute of the busiest where that is most of the time, else the link that the last exchange waited for."""
    busiest = max(range(len(islands)), key=used.__getitem__)
    if used[busiest] >= 0.5 or slow.seconds == 0:
        return f"compute of {islands[busiest].name}"
    return f"{slow.part} of {islands[slow.island].name}"
