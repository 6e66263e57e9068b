"""A collective among islands with unequal links: when each has what it is owed, and the bytes of each.

An island's link has a rate up, a rate down and a delay; the network between is as fast as asked. A message from j to i
waits for the delays of both links once: i tells that it is ready, then data comes (`cost.wire.gloo_delays`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from thrifty.cost.wire import transfer_seconds

RING_EXACT = 256  # islands, up to which a ring is followed hop by hop: the work grows with their square


@dataclass(frozen=True, slots=True)
class Island:
    """One worker of the exchange, whatever it is made of.

    Attributes:
        compute_s: seconds of one inner step.
        up: bytes/s that it sends.
        down: bytes/s that it receives.
        latency_s: one-way delay that its link adds; between two islands a round trip takes both, once each.
        jitter: standard deviation of a step's seconds over their mean.
        coding_s: seconds that it encodes and decodes in an exchange of all values.
        usd_per_hour: its price.
    """

    name: str
    compute_s: float
    up: float
    down: float
    latency_s: float = 0.0
    jitter: float = 0.0
    coding_s: float = 0.0
    usd_per_hour: float = 0.0


class Limit(NamedTuple):
    """What the last one waited for: seconds after the last island was ready, the part of the link, and whose."""

    seconds: float
    part: str
    island: int


def everyone_to_everyone(
    islands: Sequence[Island], ready: Sequence[float], senders: Sequence[int], payload: float, idle: bool = True
) -> tuple[list[float], Limit]:
    """Each sender gives every other island `payload` bytes of its own, all at once.

    A sender shares its rate evenly among its messages, so that each takes as long as all of them. An island has all
    once the last sender has ended, once its own link has let all through since the first byte could come, and once
    what came last is through.

    Args:
        idle: whether connections have been, and have to find the links' rates first.

    Returns:
        when each island has everything and has sent everything, and what the last one waited for.
    """
    n = len(islands)
    if n == 1 or not senders:
        return list(ready), Limit(0.0, "compute", max(range(n), key=ready.__getitem__))
    farthest = max(one.latency_s for one in islands)
    sending_s = {
        j: transfer_seconds(payload, islands[j].up / (n - 1), islands[j].latency_s + farthest if idle else 0.0)
        for j in senders
    }
    ends = _Extremes((ready[j] + sending_s[j] + islands[j].latency_s, j) for j in senders)
    begins = _Extremes((ready[j] + islands[j].latency_s, j) for j in senders)
    done, last, limit = [], max(ready), Limit(0.0, "compute", max(range(n), key=ready.__getitem__))
    for i, island in enumerate(islands):
        own = i in sending_s
        incoming = (len(senders) - own) * payload
        found = [(ready[i] + (sending_s[i] if own else 0.0), "up-link", i)]
        if incoming:
            slowest, who = ends.most_but(i)
            found.append((slowest + island.latency_s, "up-link", who))
            found.append((begins.most_but(i)[0] + island.latency_s + payload / island.down, "down-link", i))
            found.append((begins.least_but(i)[0] + island.latency_s + incoming / island.down, "down-link", i))
        end, part, who = max(found)
        done.append(end)
        if end - last > limit.seconds:
            limit = Limit(end - last, part, who)
    return done, limit


class _Extremes:
    """Largest and smallest of numbers with owners, leaving out one owner: two of each are enough."""

    def __init__(self, numbers: Iterable[tuple[float, int]]) -> None:
        ordered = sorted(numbers)
        self.least, self.most = ordered[:2], ordered[-2:][::-1]

    def most_but(self, owner: int) -> tuple[float, int]:
        return self.most[0] if self.most[0][1] != owner else self.most[1]

    def least_but(self, owner: int) -> tuple[float, int]:
        return self.least[0] if self.least[0][1] != owner else self.least[1]


def ring(
    islands: Sequence[Island], ready: Sequence[float], piece: float, times: int, idle: bool = True
) -> tuple[list[float], Limit]:
    """So many times each passes a piece of so many bytes on to the next: an all-reduce, or gloo's all-gather.

    Up to RING_EXACT islands every hop is followed: a piece leaves once it has come and the piece before it is out.
    Beyond, an upper bound: all wait for the last to be ready, and for the slowest hop each time.

    Args:
        idle: whether connections have been, and have to find the links' rates first.
    """
    n = len(islands)
    last = max(ready)
    if n == 1:
        return list(ready), Limit(0.0, "compute", 0)
    rates = [min(one.up, islands[(i + 1) % n].down) for i, one in enumerate(islands)]
    through = [piece / rate for rate in rates]
    delays = [one.latency_s + islands[(i + 1) % n].latency_s for i, one in enumerate(islands)]
    first = [transfer_seconds(piece, rate, d) for rate, d in zip(rates, delays, strict=True)] if idle else through
    slowest = max(range(n), key=lambda i: through[i] + delays[i])
    down = islands[(slowest + 1) % n].down < islands[slowest].up
    part, who = ("down-link", (slowest + 1) % n) if down else ("up-link", slowest)
    if n > RING_EXACT:
        done = [last + max(first) - min(through) + times * (through[slowest] + delays[slowest])] * n
        return done, Limit(done[0] - last, part, who)
    out, here = list(ready), list(ready)  # when i's last piece was out, and when i has what it passes on next
    for turn in range(times):
        out = [max(a, b) + t for a, b, t in zip(out, here, through if turn else first, strict=True)]
        came = [a + d for a, d in zip(out, delays, strict=True)]
        here = [max(a, b) for a, b in zip(here, came[-1:] + came[:-1], strict=True)]
    done = [max(a, b) for a, b in zip(out, here, strict=True)]
    return done, Limit(max(done) - last, part, who)
