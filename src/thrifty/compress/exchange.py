"""The mean of tensors over a group of ranks, sent encoded.

    exchange = Exchange(chain(TopK(1 / 64), Blockwise(2)), group)
    exchange.mean({name: p.grad for name, p in model.named_parameters()})    # in place, the same bits on every rank

All tensors of one call travel as one flat tensor. Every rank decodes the same bytes in the same order, so that replicas
stay equal to the last bit.
"""

from __future__ import annotations

import copy
import hashlib
import time
import zlib
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from thrifty.compress.codec import Codec, Identity
from thrifty.compress.feedback import Feedback, Kept
from thrifty.compress.fifo import Fifo, Pending
from thrifty.compress.islands import over_islands
from thrifty.compress.lowrank import LowRank, by_low_rank
from thrifty.compress.routes import Sent, by_all_gather, by_all_reduce, by_all_to_all
from thrifty.compress.unit import Unit, local
from thrifty.compress.wire import WHERE, Wire
from thrifty.cost.exchange import ROUTES, Message, Route, messages, route_of, sent_bytes
from thrifty.spec.errors import ThriftyError, did_you_mean

How = Literal["auto", "all_to_all", "all_reduce", "all_gather"]
AGREED = ("codec", "settings", "tensors", "number of means so far")


class Exchange:
    """Means over a group, sent encoded, with error feedback.

    Every rank of the job makes it at the same time, calls it with the same tensors in the same order, and ends with a
    `ThriftyError` if any of them fails, at the latest when the group's timeout is over. A group of one changes nothing.

    Args:
        codec: of what is sent.
        group: the ranks that the mean is over; all by default.
        feedback: for codecs that lose something and are biased; others take none, and `feedback` is then None.
        how: the route, see `thrifty.cost.exchange`. auto is the one that sends the least.
        warmup: means of each tensor that are sent as they are, before the first encoded one.
        within: ranks of an island with fast links. It takes its own plain mean first, each of its ranks of one slice;
            `group` holds the ranks with the same place in every island, and the payloads are of slices.
        seed: of what the codec draws.
        timeout_seconds: of one collective; the group's own by default.

    Attributes:
        blocked_seconds: wall time in which callers waited: for encoding, decoding and links.

    Raises:
        ThriftyError: no such route, or a sum of encoded values of a codec that is not linear.
    """

    def __init__(
        self,
        codec: Codec,
        group: Any = None,
        *,
        feedback: Feedback | None = Feedback(),  # noqa: B008  frozen
        how: How = "auto",
        warmup: int = 0,
        within: Any = None,
        seed: int = 0,
        timeout_seconds: float | None = None,
    ) -> None:
        if how != "auto" and how not in ROUTES:
            raise ThriftyError(f"no route {how!r}", where=WHERE, hint=did_you_mean(how, ["auto", *ROUTES]))
        if how == "all_reduce" and not codec.linear:
            told = f"encoded values of {codec!r} cannot be summed"
            raise ThriftyError(told, where=WHERE, hint="take how='auto'")
        alone = isinstance(codec, LowRank) and how == "auto" and within is None
        if not alone and any(isinstance(stage, LowRank) for stage in codec.stages):
            hint = "it sums the factors of whole matrices in a route of its own: without chain, how and within"
            raise ThriftyError("LowRank is exchanged alone", where=WHERE, hint=hint)
        self.codec, self.warmup, self.seed = codec, warmup, seed
        self._asked = feedback
        self.feedback = feedback if feeds_back(codec) else None
        self._wire = Wire(group, timeout_seconds)
        self._island = Wire(within, timeout_seconds) if within is not None else None
        self.route: Route = route_of(codec.descriptions(), self._wire.size) if how == "auto" else how
        store = self.feedback.store if self.feedback else "fp32"
        self._own = Kept(store)  # errors of what this rank hands in, or its estimate
        self._server = Kept(store)  # errors of the part that this rank sums
        self._common = Kept()  # the mean of all estimates, which every rank has in the same bits
        self._bases = Kept()  # of LowRank, the same on every rank
        self._rounds: dict[str, int] = {}
        self._agreed: set[Unit] = set()
        self._fifo = Fifo()
        self._started: list[Pending] = []
        self.blocked_seconds = 0.0

    def sibling(self, codec: Codec) -> Exchange:
        """Another exchange of the same ranks, thread and feedback, for other tensors by another codec, from the start.

        Needs no new process group. Closing either closes both.
        """
        other = copy.copy(self)
        other.codec, other.warmup = codec, 0
        other.feedback = self._asked if feeds_back(codec) else None
        other.route = route_of(codec.descriptions(), self._wire.size)
        store = other.feedback.store if other.feedback else "fp32"
        other._own, other._server, other._common = Kept(store), Kept(store), Kept()
        other._rounds, other._agreed, other._started = {}, set(), []
        return other

    @property
    def ranks(self) -> int:
        """Ranks that the mean is over."""
        return self._wire.size * (self._island.size if self._island else 1)

    def mean(self, tensors: Mapping[str, Tensor]) -> None:
        """Each tensor becomes its mean over the group, in place.

        Raises:
            ThriftyError: a rank died or was too late, has another codec or other tensors, or a payload is broken.
        """
        self._wait(self.submit(tensors))

    def start(self, tensors: Mapping[str, Tensor]) -> Pending:
        """`mean` in the background, one after the other. The tensors are not to be touched until `wait` returns.

        Raises:
            ThriftyError: a tensor that is not fp32, bf16 or fp16.
        """
        pending = self.submit(tensors)
        self._started.append(pending)
        return pending

    def submit(self, tensors: Mapping[str, Tensor]) -> Pending:
        """`start`, for who waits for it alone: `wait` does not."""
        mine = local(tensors)
        event = torch.cuda.current_stream().record_event() if any(t.is_cuda for t in mine.values()) else None
        return self._fifo.submit(lambda: self._run(mine, event))

    def wait(self) -> None:
        """Returns when all that was started has ended.

        Raises:
            ThriftyError: of the first that failed.
        """
        started, self._started = self._started, []
        for pending in started:
            self._wait(pending)

    def _wait(self, pending: Pending) -> None:
        begin = time.perf_counter()
        try:
            pending.wait()
        finally:
            self.blocked_seconds += time.perf_counter() - begin

    def odd_ranks(self, number: int) -> list[int]:
        """Ranks of the group that give another number than its first, such as a checksum; all ask at the same time."""
        self.wait()
        if self._wire.size == 1:
            return []
        everybody = self._wire.gather(torch.tensor([number])).view(-1)
        return (everybody != everybody[0]).nonzero().view(-1).tolist()

    def messages(self, shapes: int | Sequence[int | Sequence[int]]) -> list[Message]:
        """The collectives of one unit of so many values, or of tensors of such sizes or shapes."""
        sizes = [shapes] if isinstance(shapes, int) else list(shapes)
        within = self._island.size if self._island else 1
        wire = self._wire
        stages = self.codec.descriptions()
        return messages(stages, sizes, wire.size, route=self.route, rank=wire.rank, within=within)

    def predicted_bytes(self, shapes: int | Sequence[int | Sequence[int]]) -> int:
        """Bytes that this rank sends for one unit of so many values, or of tensors of such sizes or shapes.

        An upper bound where the codec's `exact_size` is false.
        """
        return sent_bytes(self.messages(shapes))

    def state_dict(self) -> dict[str, Tensor]:
        """What the next mean depends on; each rank has its own. Not while means are under way: `wait` first."""
        kept = {"own": self._own, "server": self._server, "common": self._common, "basis": self._bases}
        state = {f"{part}/{name}": values for part, one in kept.items() for name, values in one.state_dict().items()}
        return state | {f"rounds/{name}": torch.tensor(many) for name, many in self._rounds.items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Goes on from a `state_dict` of the same rank. Ranks compare theirs at the next mean.

        Raises:
            ThriftyError: not a state of an exchange.
        """
        parts: dict[str, dict[str, Tensor]] = {"own": {}, "server": {}, "common": {}, "basis": {}, "rounds": {}}
        for key, values in state.items():
            part, _, name = key.partition("/")
            if part not in parts:
                raise ThriftyError(f"{key!r} is nothing that an exchange keeps", where=WHERE)
            parts[part][name] = values
        self._own.load_state_dict(parts["own"])
        self._server.load_state_dict(parts["server"])
        self._common.load_state_dict(parts["common"])
        self._bases.load_state_dict(parts["basis"])
        self._rounds = {name: int(many) for name, many in parts["rounds"].items()}
        self._agreed.clear()

    def reset(self) -> str:
        """Forgets all errors and starts with the warm-up, as after a change of layout; returns what to tell users."""
        kept = len(self._own) + len(self._server)
        self.load_state_dict({})
        warmup = f", {self.warmup} plain means first" if self.warmup else ""
        return f"error feedback starts from zero: what was kept of {kept} tensors is dropped{warmup}"

    @property
    def kept_bytes(self) -> int:
        """Memory that error feedback takes on this rank."""
        return self._own.nbytes + self._server.nbytes + self._common.nbytes + self._bases.nbytes

    def close(self) -> None:
        """Ends the thread and the process groups, when what was started has ended."""
        self._fifo.close()
        self._wire.close()
        if self._island:
            self._island.close()

    # On the thread.

    @torch.no_grad()
    def _run(self, tensors: dict[str, Tensor], event: Any) -> None:
        if event is None:
            return self._whole(tensors)
        side = torch.cuda.Stream()
        with torch.cuda.stream(side):
            side.wait_event(event)
            self._whole(tensors)
        side.synchronize()
        return None

    def _whole(self, tensors: dict[str, Tensor]) -> None:
        if self.ranks == 1:
            return
        straight = {name: tensor.contiguous() for name, tensor in tensors.items()}
        if self._island and self._island.size > 1:
            flat = {name: tensor.view(-1) for name, tensor in straight.items()}
            over_islands(self._island, flat, self._over_group)
        else:
            self._over_group(straight)
        for name, tensor in tensors.items():
            if straight[name] is not tensor:
                tensor.copy_(straight[name])

    def _over_group(self, tensors: dict[str, Tensor]) -> None:
        if self._wire.size == 1:
            return
        parts = self._wire.size if self.route == "all_to_all" else 1
        unit = Unit(tuple(tensors), tuple(tensor.numel() for tensor in tensors.values()), parts)
        self._agree(unit)
        flats = [tensor.view(-1) for tensor in tensors.values()]
        shapes = [tensor.shape for tensor in tensors.values()]
        x = unit.joined(flats)
        if not finite(x):
            x.fill_(float("nan"))  # visible whatever the codec leaves out; then nobody's errors change
        done = min((self._rounds.get(name, 0) for name in unit.names), default=0)
        result = self._plain(unit, x) if done < self.warmup else self._encoded(unit, x, shapes, done)
        unit.split(result, flats)
        for name in unit.names:
            self._rounds[name] = self._rounds.get(name, 0) + 1

    def _plain(self, unit: Unit, x: Tensor) -> Tensor:
        mean = by_all_reduce(self._wire, Identity(), x, 0).mean
        if self.feedback and self.feedback.kind == "ef21" and finite(mean):
            self._own.keep(unit, x)
            self._common.keep(unit, mean)
        return mean

    def _encoded(self, unit: Unit, x: Tensor, shapes: Sequence[Sequence[int]], done: int) -> Tensor:
        how, seed = self.feedback, self._seed_of(unit, done)
        if how is None:
            return self._route(unit, x, shapes, seed).mean
        given = x.clone() if how.kind == "ef21" else x
        self._own.add_to(unit, x, how.decay if how.kind == "classic" else -1.0)
        sent = self._route(unit, x, shapes, seed)  # leaves in x what was lost
        if not finite(sent.mean):
            return sent.mean
        if sent.server is not None:
            self._server.keep(unit.of_part(self._wire.rank), sent.server)
        if how.kind == "classic":
            self._own.keep(unit, x)
            return sent.mean
        self._own.keep(unit, given.sub_(x))  # estimate + D(C(given - estimate))
        mean = self._common.joined(unit, x.device).add_(sent.mean)
        self._common.keep(unit, mean)
        return mean

    def _route(self, unit: Unit, x: Tensor, shapes: Sequence[Sequence[int]], seed: int) -> Sent:
        if isinstance(self.codec, LowRank):
            return by_low_rank(self._wire, self.codec.rank, self._bases, unit, x, shapes, seed)
        subtract = self.feedback is not None
        if self.route == "all_reduce":
            return by_all_reduce(self._wire, self.codec, x, seed, subtract)
        if self.route == "all_gather":
            return by_all_gather(self._wire, self.codec, x, seed, subtract)
        kept = None
        if self.feedback and self.feedback.two_sided:
            kept = self._server.joined(unit.of_part(self._wire.rank), x.device).mul_(self.feedback.decay)
        return by_all_to_all(self._wire, self.codec, x.split(unit.sizes), seed, subtract, kept)

    def _seed_of(self, unit: Unit, done: int) -> int:
        """Another for each unit and mean, the same on every rank."""
        text = repr((self.seed, done, unit.names[:1])).encode()
        return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little")

    def _agree(self, unit: Unit) -> None:
        """Compares codec, settings, tensors and state with the other ranks, the first time that a unit comes.

        Raises:
            ThriftyError: they differ; says in what, and where.
        """
        if unit in self._agreed:
            return
        rounds = [self._rounds.get(name, 0) for name in unit.names]
        told = (self.codec.fingerprint(), (self.route, self.feedback, self.warmup, self.seed), unit, rounds)
        digests = [zlib.crc32(repr(one).encode()) for one in told]
        everybody = self._wire.gather(torch.tensor(digests))
        for place, what in enumerate(AGREED):
            others = (everybody[:, place] != everybody[0, place]).nonzero().view(-1).tolist()
            if others:
                mine = (self.codec, told[1], unit.names, rounds)[place]
                raise ThriftyError(
                    f"rank {others[0]} and rank 0 of the group differ in {what}",
                    where=WHERE,
                    hint=f"give every rank the same; here: {str(mine)[:200]}",
                )
        self._agreed.add(unit)


def feeds_back(codec: Codec) -> bool:
    """Whether errors of a codec are fed back: it loses something, and not without bias.

    An unbiased one that is not a contraction, such as RandomK, would make its errors grow without bound.
    """
    return not codec.unbiased and codec.contraction(1 << 20) < 1


def finite(values: Tensor) -> bool:
    """Whether no value is inf or nan. A sum that is finite has none; only one that is not needs a closer look."""
    return bool(values.sum().isfinite()) or bool(values.isfinite().all())
