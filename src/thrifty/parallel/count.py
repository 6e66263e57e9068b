"""Counts the collectives that this process really starts: kind, group, bytes, and the time they block.

`torch.distributed`'s functions are wrapped while a `TrafficCounter` is entered, so whatever calls them (FSDP2, an
optimizer, a hook) is seen. Bytes sent by one rank follow from the payload by the ring algorithm, which moves the least
any algorithm can (Patarasuk & Yuan 2009, doi:10.1016/j.jpdc.2008.09.002), with n ranks:

    all-gather of n shards of b bytes      (n - 1) b
    reduce-scatter of an input of B bytes  (n - 1)/n B
    all-reduce of B bytes                  2 (n - 1)/n B
    broadcast of B bytes                   B (n - 1)/n, averaged over the ranks
    all-to-all of B bytes for the others   B
    send of B bytes                        B

Blocking sends steer (torch's pipelines agree on their set-up that way) and are no part of the traffic.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, Self

import torch.distributed as dist
from torch import Tensor
from torch.distributed import distributed_c10d

# name in torch.distributed -> (kind, keyword of the tensor that is sent, its position)
_COLLECTIVES = {
    "all_gather_into_tensor": ("all_gather", ("input_tensor", "input"), 1),
    "all_gather_single": ("all_gather", ("input_tensor", "input"), 1),
    "reduce_scatter_tensor": ("reduce_scatter", ("input", "input_tensor"), 1),
    "reduce_scatter_single": ("reduce_scatter", ("input", "input_tensor"), 1),
    "all_reduce": ("all_reduce", ("tensor",), 0),
    "broadcast": ("broadcast", ("tensor",), 0),
    "all_to_all_single": ("all_to_all", ("input", "input_tensor"), 1),
}


def bytes_sent(kind: str, payload_bytes: float, ranks: int) -> float:
    """Bytes that one of `ranks` sends for one collective; `payload_bytes` is the size of its input tensor."""
    share = (ranks - 1) / ranks
    factor = {"all_gather": ranks * share, "reduce_scatter": share, "all_reduce": 2 * share, "broadcast": share}
    return factor.get(kind, 1.0) * payload_bytes  # the payload of an all-to-all is what goes to the others


def _kept_bytes(args: Sequence[Any], kwargs: Mapping[str, Any], payload: int, ranks: int) -> int:
    """Of what is handed to an all-to-all, the part that stays with its rank."""
    splits = args[3] if len(args) > 3 else kwargs.get("input_split_sizes")
    if not splits:
        return payload // ranks
    return payload * int(splits[dist.get_rank(kwargs.get("group"))]) // max(1, sum(splits))


class _TimedWork:
    """Stands in for a Work handle and adds the time that `wait` blocks to the counter."""

    def __init__(self, work: Any, counter: TrafficCounter) -> None:
        self._work, self._counter = work, counter

    def wait(self, *args: Any, **kwargs: Any) -> Any:
        begin = time.perf_counter()
        try:
            return self._work.wait(*args, **kwargs)
        finally:
            self._counter.blocked(begin)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._work, name)


class TrafficCounter:
    """Context manager that counts.

    Attributes:
        calls: (kind, ranks, payload bytes, link) -> how often.
        link_bytes: bytes sent by this rank, by link.
        blocked_seconds: wall time in which the thread that counts waited inside collectives; those of other threads
            run behind its back. On a GPU they run on streams of their own and return at once; there this says nothing.
    """

    def __init__(self, link_of: Callable[[list[int]], str], ignore: Sequence[Any] = ()) -> None:
        """Starts at zero.

        Args:
            link_of: the name of the slowest link between the given global ranks.
            ignore: process groups whose messages steer a run and are no part of the training's traffic.
        """
        self.calls: Counter[tuple[str, int, int, str]] = Counter()
        self.link_bytes: Counter[str] = Counter()
        self.blocked_seconds = 0.0
        self._link_of = link_of
        self._ignore = [group for group in ignore if group is not None]
        self._links: dict[int, tuple[int, str]] = {}
        self._originals: dict[tuple[Any, str], Any] = {}
        self._steering = False
        self._thread = threading.get_ident()

    def blocked(self, begin: float) -> None:
        """Adds the time since `begin`, on the clock of `time.perf_counter`."""
        if threading.get_ident() == self._thread:
            self.blocked_seconds += time.perf_counter() - begin

    @property
    def largest_buffer_bytes(self) -> int:
        """The whole tensor of the largest collective so far: what is gathered, or what is reduced."""
        return max((size * (ranks if kind == "all_gather" else 1) for kind, ranks, size, _ in self.calls), default=0)

    def __enter__(self) -> Self:
        self._thread = threading.get_ident()
        for name, (kind, keywords, position) in _COLLECTIVES.items():
            if hasattr(dist, name):
                self._replace(name, self._wrap(getattr(dist, name), kind, keywords, position), dist)
        # Batched ones look these up where they are defined.
        for name, kind in (("isend", "send"), ("irecv", None)):
            self._replace(name, self._wrap_message(getattr(dist, name), kind), dist, distributed_c10d)
        self._replace("send", self._wrap_steering(dist.send), dist)
        return self

    def _replace(self, name: str, counted: Any, *modules: Any) -> None:
        for module in modules:
            self._originals[module, name] = getattr(module, name)
            setattr(module, name, counted)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for (module, name), original in self._originals.items():
            setattr(module, name, original)
        self._originals.clear()

    def _group(self, group: Any) -> tuple[int, str]:
        key = id(group)
        if key not in self._links:
            ranks = dist.get_process_group_ranks(group) if group is not None else list(range(dist.get_world_size()))
            self._links[key] = (len(ranks), self._link_of(ranks))
        return self._links[key]

    def _wrap(self, original: Any, kind: str, keywords: tuple[str, ...], position: int) -> Any:
        def counted(*args: Any, **kwargs: Any) -> Any:
            if any(kwargs.get("group") is group for group in self._ignore):
                return original(*args, **kwargs)
            tensor: Tensor = (
                args[position] if len(args) > position else next(kwargs[k] for k in keywords if k in kwargs)
            )
            ranks, link = self._group(kwargs.get("group"))
            payload = tensor.numel() * tensor.element_size()
            if kind == "all_to_all":
                payload -= _kept_bytes(args, kwargs, payload, ranks)
            if ranks > 1:
                self.calls[kind, ranks, payload, link] += 1
                self.link_bytes[link] += bytes_sent(kind, payload, ranks)
            begin = time.perf_counter()
            try:
                work = original(*args, **kwargs)
            finally:
                self.blocked(begin)
            return _TimedWork(work, self) if kwargs.get("async_op") and work is not None else work

        # What `torch.compiler.disable` sets, without its import, which takes a second: a compiled block that traced the
        # counter's state would be compiled anew whenever that changes.
        counted._torchdynamo_disable = True  # type: ignore[attr-defined]
        return counted

    def _wrap_message(self, original: Any, kind: str | None) -> Any:
        """Of one rank to another: sent ones are counted (`kind`), and waiting for either is timed."""

        def counted(tensor: Tensor, *args: Any, **kwargs: Any) -> Any:
            group = kwargs.get("group")
            if self._steering or any(group is ignored for ignored in self._ignore):
                return original(tensor, *args, **kwargs)
            if kind is not None:
                ranks, link = self._group(group)
                payload = tensor.numel() * tensor.element_size()
                self.calls[kind, ranks, payload, link] += 1
                self.link_bytes[link] += bytes_sent(kind, payload, ranks)
            work = original(tensor, *args, **kwargs)
            return None if work is None else _TimedWork(work, self)

        return counted

    def _wrap_steering(self, original: Any) -> Any:
        def steering(*args: Any, **kwargs: Any) -> Any:
            self._steering = True
            try:
                return original(*args, **kwargs)
            finally:
                self._steering = False

        return steering
