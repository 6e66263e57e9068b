"""The exchange in other people's loops: a hook for DDP, and hooks that start as soon as gradients are there."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from thrifty.compress.adaptive import Adaptive
from thrifty.compress.exchange import Exchange
from thrifty.spec.errors import ThriftyError

UNIT_BYTES = 25 * 2**20  # DDP's own choice for its buckets


def ddp_hook(exchange: Exchange, model: nn.Module | None = None) -> Callable[[Any, Any], Any]:
    """A hook for `DistributedDataParallel.register_comm_hook(None, ddp_hook(exchange))`.

    Buckets are exchanged on the exchange's thread while backward goes on. With `Identity` gradients are bit for bit
    what DDP has without a hook. With gradient accumulation, use DDP's own `no_sync` for all but the last microbatch:
    errors are then fed back once a step. What fails is raised by `backward`, as torch's RuntimeError with our words.

    Args:
        model: names the parameters, which errors are kept by; without, they are numbered in the order of first sight.
    """
    names = {} if model is None else {id(parameter): name for name, parameter in model.named_parameters()}

    def hook(_, bucket):  # DDP refuses annotations other than its own
        for parameter in bucket.parameters():
            names.setdefault(id(parameter), f"parameter {len(names)}")
        keys = [names[id(parameter)] for parameter in bucket.parameters()]
        # DDP divides nothing when there is a hook, and an exchange gives means.
        pending = exchange.submit(dict(zip(keys, bucket.gradients(), strict=True)))
        ended: Any = torch.futures.Future()
        pending.then(ended.set_result)
        buffer = bucket.buffer()

        def reduced(done: Any) -> Tensor:
            error = done.value()
            if error is not None:
                raise error
            return buffer

        # The error itself as result would reach DDP as a gradient; raised in `then` it is an error of the future.
        return ended.then(reduced)

    return hook


class Overlap:
    """Starts the exchange of a unit when all its gradients are there; made by `overlap_hooks`.

    for microbatch in step:                          # gradients add up in .grad
        if last: overlap.arm()
        loss(microbatch).backward()
    overlap.wait()                                   # now .grad holds means
    optimizer.step()
    """

    def __init__(self, exchange: Exchange | Adaptive, units: Sequence[dict[str, nn.Parameter]]) -> None:
        self._exchange, self._units = exchange, units
        self._missing: list[set[str]] = []  # of each unit: whose gradients are not there yet
        self._next = 0  # units start in their order, the same on every rank
        self._handles = [
            parameter.register_post_accumulate_grad_hook(self._hook(place, name))
            for place, unit in enumerate(units)
            for name, parameter in unit.items()
        ]

    def arm(self) -> None:
        """The next backward pass is the last of this optimizer step: its gradients complete the sums.

        Raises:
            ThriftyError: the step before was not waited for.
        """
        if self._missing:
            raise ThriftyError("armed twice", where="overlap", hint="call wait() before the optimizer steps")
        self._missing = [set(unit) for unit in self._units]
        self._next = 0

    def wait(self) -> None:
        """Exchanges what is left and returns when all gradients are means. No gradient takes part as zeros.

        Raises:
            ThriftyError: not armed, or the exchange failed.
        """
        if not self._missing:
            raise ThriftyError("not armed", where="overlap", hint="call arm() before the last backward pass of a step")
        self._start(until=len(self._units))
        self._missing = []
        self._exchange.wait()

    def remove(self) -> None:
        """Takes the hooks away."""
        for handle in self._handles:
            handle.remove()

    def _hook(self, place: int, name: str) -> Callable[[Tensor], None]:
        def arrived(_: Tensor) -> None:
            if self._missing:
                self._missing[place].discard(name)
                self._start()

        return arrived

    def _start(self, until: int = 0) -> None:
        while self._next < len(self._units) and (self._next < until or not self._missing[self._next]):
            unit = self._units[self._next]
            for parameter in unit.values():
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
            self._exchange.start({name: p.grad for name, p in unit.items() if p.grad is not None})
            self._next += 1


def overlap_hooks(
    model: nn.Module,
    exchange: Exchange | Adaptive,
    units: Sequence[Sequence[str]] | None = None,
    *,
    unit_bytes: int = UNIT_BYTES,
) -> Overlap:
    """Exchanges the gradients of a plain module, or of FSDP2's shards, while backward goes on.

    FSDP2 calls the hooks of a shard when its gradient is reduced over the shard group; `exchange` is then of the ranks
    that hold the same shard.

    Args:
        units: names of parameters that are exchanged together, in the order in which backward meets them; by default
            from the last parameter to the first, `unit_bytes` each.

    Raises:
        ThriftyError: `units` leaves out a parameter that is trained, or has one twice.
    """
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    if units is None:
        units = _by_size(trained, unit_bytes)
    listed = [name for unit in units for name in unit]
    if sorted(listed) != sorted(trained):
        odd = sorted(set(trained) ^ set(listed)) or sorted(name for name in set(listed) if listed.count(name) > 1)
        raise ThriftyError(f"units must hold each trained parameter once: {', '.join(odd[:3])}", where="overlap")
    return Overlap(exchange, [{name: trained[name] for name in unit} for unit in units])


def _by_size(trained: dict[str, nn.Parameter], unit_bytes: int) -> list[list[str]]:
    units: list[list[str]] = []
    filled = 0
    for name, parameter in reversed(trained.items()):
        size = 4 * parameter.numel()
        if not units or filled + size > unit_bytes:
            units.append([])
            filled = 0
        units[-1].append(name)
        filled += size
    return units
