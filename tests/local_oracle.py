"""Local steps in plain loops over numbers, as the papers write them; and islands of one process to compare with."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

SIZES = {"a": (3, 4), "b": (6,), "c": (5,), "d": (1,)}
INNER_LR = 0.1


def start(dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(1)
    return {name: torch.randn(shape, generator=draw, dtype=torch.float64).to(dtype) for name, shape in SIZES.items()}


def gradient(values: Mapping[str, Tensor], island: int, step: int) -> dict[str, Tensor]:
    """Of a loss that differs between islands and steps; every entry of a tensor in its own way."""
    found = {}
    for place, (name, value) in enumerate(values.items()):
        slope = torch.linspace(0.2, 1.0, value.numel(), dtype=value.dtype).view(value.shape)
        found[name] = slope * (value - island - 0.1 * place) + 0.3 * torch.sin(slope * step + island)
    return found


class Toy(nn.Module):
    """The parameters as a module."""

    def __init__(self, dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        for name, value in start(dtype).items():
            self.register_parameter(name, nn.Parameter(value))

    def set_gradients(self, island: int, step: int) -> None:
        values = dict(self.named_parameters())
        with torch.no_grad():
            for name, one in gradient(values, island, step).items():
                values[name].grad = one

    def values(self) -> dict[str, Tensor]:
        return {name: one.detach().clone() for name, one in self.named_parameters()}


@dataclass
class Oracle:
    """All islands at once: `own[i]` are the parameters of island i, `anchor` the global ones."""

    islands: int
    every: int
    kind: str
    lr: float
    momentum: float
    fragments: Sequence[Sequence[str]]
    delay: int = 0
    alpha: float = 0.0
    own: list[dict[str, Tensor]] = field(default_factory=list)
    anchor: dict[str, Tensor] = field(default_factory=dict)

    def train(self, steps: int) -> Oracle:
        self.own = [start() for _ in range(self.islands)]
        self.anchor, velocity = start(), {name: torch.zeros(shape).double() for name, shape in SIZES.items()}
        sent: list[tuple[int, dict[str, Tensor]]] = []
        for step in range(1, steps + 1):
            for island in range(self.islands):
                slopes = gradient(self.own[island], island, step)
                self.own[island] = {name: one - INNER_LR * slopes[name] for name, one in self.own[island].items()}
            for when, means in [one for one in sent if one[0] == step]:
                self.move(means, velocity)
                sent.remove((when, means))
            for part, names in enumerate(self.fragments):
                offset = (part + 1) * self.every // len(self.fragments)
                if (step - offset) % self.every == 0:
                    means = {
                        name: sum(self.anchor[name] - own[name] for own in self.own) / self.islands for name in names
                    }
                    if self.delay:
                        sent.append((step + self.delay, means))
                    else:
                        self.move(means, velocity)
        return self

    def move(self, means: Mapping[str, Tensor], velocity: dict[str, Tensor]) -> None:
        for name, mean in means.items():
            velocity[name] = self.momentum * velocity[name] + mean
            step = mean + self.momentum * velocity[name] if self.kind == "nesterov" else velocity[name]
            self.anchor[name] = self.anchor[name] - self.lr * step
            for own in self.own:
                own[name] = self.alpha * own[name] + (1 - self.alpha) * self.anchor[name]


class Threads:
    """Islands of one process, each a thread; `exchange(i)` is what island i hands to its LocalSteps."""

    def __init__(self, islands: int) -> None:
        self.islands = islands
        self.barrier = threading.Barrier(islands, timeout=30)
        self.handed: list[dict[str, Tensor]] = [{} for _ in range(islands)]
        self.exchanges = 0

    def run(self, function: Callable[[int, Any], Any]) -> list[Any]:
        """`function(island, exchange)` on every island."""
        with ThreadPoolExecutor(self.islands) as pool:
            running = [pool.submit(function, island, _ThreadExchange(self, island)) for island in range(self.islands)]
            return [one.result(60) for one in running]


@dataclass
class _ThreadExchange:
    """The exact mean. What is submitted is written only when it is waited for, so that nobody can read it early."""

    threads: Threads
    island: int

    def odd_ranks(self, number: int) -> list[int]:
        return []

    def submit(self, tensors: Mapping[str, Tensor]) -> _Later:
        self.threads.handed[self.island] = {name: one.clone() for name, one in tensors.items()}
        self.threads.barrier.wait()
        handed = list(self.threads.handed)
        assert all(list(one) == list(tensors) for one in handed), "islands exchange the same tensors in the same order"
        found = {name: sum(one[name] for one in handed) / self.threads.islands for name in tensors}
        if self.threads.barrier.wait() == 0:
            self.threads.exchanges += 1
        return _Later(tensors, found)

    def mean(self, tensors: Mapping[str, Tensor]) -> None:
        self.submit(tensors).wait()


@dataclass
class _Later:
    tensors: Mapping[str, Tensor]
    found: Mapping[str, Tensor]

    def wait(self) -> None:
        for name, one in self.tensors.items():
            one.copy_(self.found[name])
