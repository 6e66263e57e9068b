"""Every optimizer, in a line: how it is made, what it is in doubles, and how far from that it may be."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from thrifty.optim import Adam8bit, AdamW4bit, AdamW8bit, Lamb, Lars, Lion8bit, Muon, reference
from thrifty.optim.travel import moment_of

NONE_SMALL = 1 << 40  # values: all moments in fp32


@dataclass(frozen=True)
class Entry:
    """An optimizer under test.

    Args:
        make: from parameters and settings.
        reference: one step of one tensor in doubles.
        settings: of both.
        extra: of the optimizer alone.
        off: relative error of one update, as a share of the learning rate: of arithmetic in fp32, or of bfloat16.
        largest: of an update's values, in learning rates.
    """

    make: Callable[..., torch.optim.Optimizer]
    reference: Callable[..., Tensor]
    settings: dict[str, Any]
    extra: dict[str, Any] = field(default_factory=dict)
    off: float = 32 * 2.0**-24
    largest: float = 10.0

    def made(self, params: Any, **other: Any) -> torch.optim.Optimizer:
        return self.make(params, **{**self.settings, **self.extra, **other})


# Newton-Schulz in bfloat16: values of 8 bits through sums of two products, five times.
MUON_OFF = 0.05
ADAM = {"lr": 1e-2, "betas": (0.9, 0.99), "eps": 1e-8, "weight_decay": 0.1}
OPTIMIZERS = {
    "AdamW8bit": Entry(AdamW8bit, reference.adamw, ADAM),
    "AdamW8bit in 32": Entry(AdamW8bit, reference.adamw, ADAM, {"small": NONE_SMALL}),
    "AdamW4bit": Entry(AdamW4bit, reference.adamw, ADAM),
    "AdamW8bit stable": Entry(AdamW8bit, partial(reference.adamw, stable=True), ADAM, {"stable": True}),
    "AdamW4bit stable": Entry(AdamW4bit, partial(reference.adamw, stable=True), ADAM, {"stable": True}),
    "AdamW stable in 32": Entry(
        AdamW8bit, partial(reference.adamw, stable=True), ADAM, {"stable": True, "small": NONE_SMALL}
    ),
    "Adam8bit": Entry(Adam8bit, reference.adam, ADAM),
    "Adam8bit in 32": Entry(Adam8bit, reference.adam, ADAM, {"small": NONE_SMALL}),
    "Lion8bit": Entry(Lion8bit, reference.lion, {"lr": 1e-3, "weight_decay": 0.1}),
    "Lion8bit in 32": Entry(Lion8bit, reference.lion, {"lr": 1e-3, "weight_decay": 0.1}, {"small": NONE_SMALL}),
    "Lamb": Entry(Lamb, reference.lamb, {**ADAM, "eps": 1e-6}, {"max_grad_norm": None}),
    "Lamb on all": Entry(
        partial(Lamb, always_adapt=True, max_grad_norm=None),
        partial(reference.lamb, always_adapt=True),
        {"lr": 1e-2, "weight_decay": 0.0},
    ),
    "Lars": Entry(Lars, reference.lars, {"lr": 1.0, "momentum": 0.9, "weight_decay": 0.01}),
    "Lars Nesterov": Entry(Lars, reference.lars, {"lr": 1.0, "momentum": 0.8, "nesterov": True, "dampening": 0.2}),
    "Muon": Entry(Muon, reference.muon, {"lr": 1e-2}, off=MUON_OFF),
    "Muon 8 bit": Entry(Muon, reference.muon, {"lr": 1e-2}, {"bits": 8}, off=MUON_OFF),
    "Muon 16 bit": Entry(Muon, reference.muon, {"lr": 1e-2}, {"bits": 16}, off=MUON_OFF),
    "Muon as AdamW": Entry(
        partial(Muon, adjust_lr_fn="match_rms_adamw"), partial(reference.muon, scale="match_rms_adamw"),
        {"lr": 1e-2, "momentum": 0.9, "nesterov": False}, off=MUON_OFF,
    ),
}  # fmt: skip
SHAPES = [(96, 48), (40, 129), (129, 40), (8, 8), (1, 5)]


def parameters(shapes: list[tuple[int, ...]], seed: int = 0) -> list[torch.nn.Parameter]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.nn.Parameter(torch.randn(shape, generator=generator)) for shape in shapes]


def gradients(shapes: list[tuple[int, ...]], step: int) -> list[Tensor]:
    """Heavy-tailed, of sizes that differ by column, and every seventh time ten times as large."""
    generator = torch.Generator().manual_seed(10_000 + step)
    made = []
    for shape in shapes:
        x = torch.randn(shape, generator=generator)
        made.append(x * x.abs() * torch.logspace(-1, 0, shape[-1]) * (10.0 if step % 7 == 3 else 1.0))
    return made


def run(optimizer: torch.optim.Optimizer, params: list, steps: range, shapes: list | None = None) -> None:
    for step in steps:
        for p, g in zip(params, gradients(shapes or [tuple(p.shape) for p in params], step), strict=True):
            p.grad = g.to(p.dtype)
        optimizer.step()


def moments(optimizer: torch.optim.Optimizer, p: Tensor) -> dict[str, Tensor]:
    """The moments of a parameter in fp32."""
    state = optimizer.state[p]
    return {name: moment_of(state, name, square, p) for name, square in optimizer.kind.items()}
