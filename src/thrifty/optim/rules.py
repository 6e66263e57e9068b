"""What elementwise optimizers do to one value: the same functions for tensors of any dtype, on any path.

A rule advances its moments and moves the parameter. `h` are the scalars of a step, in one tensor, so that neither a
schedule nor a step count makes a compiler start again.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

Moments = Sequence[Tensor]


@dataclass(frozen=True)
class Rule:
    """An elementwise optimizer.

    Args:
        name: for messages and compiled code.
        moments: names in the state, in order; those of `torch.optim` where it has the optimizer.
        squares: which of them are means of squares, never negative.
        scalars: h of a group's settings at a step, counted from 1.
        advance: new moments from parameter, gradient, old moments and h.
        move: new parameter from parameter, gradient, old moments, new moments and h.
    """

    name: str
    moments: tuple[str, ...]
    squares: tuple[bool, ...]
    scalars: Callable[[dict[str, Any], int], list[Any]]
    advance: Callable[[Tensor, Tensor, Moments, Tensor], Moments]
    move: Callable[[Tensor, Tensor, Moments, Moments, Tensor], Tensor]


def _adam_scalars(group: dict[str, Any], step: int) -> list[Any]:
    beta1, beta2 = group["betas"]
    lr, decay = group["lr"], group["weight_decay"]
    sign = -1.0 if group.get("maximize") else 1.0
    size, root = lr / (1 - beta1**step), 1 / math.sqrt(1 - beta2**step)
    return [beta1, sign * (1 - beta1), beta2, 1 - beta2, size, root, group["eps"], 1 - lr * decay, sign * decay]


def _adam_advance(p: Tensor, g: Tensor, old: Moments, h: Tensor) -> Moments:
    return h[0] * old[0] + h[1] * g, h[2] * old[1] + h[3] * (g * g)


def _adam_step(new: Moments, h: Tensor) -> Tensor:
    return h[4] * new[0] / (new[1].sqrt() * h[5] + h[6])


# m = b1 m + (1 - b1) g;  v = b2 v + (1 - b2) g^2
# p = (1 - lr wd) p - lr m / (1 - b1^t) / (sqrt(v / (1 - b2^t)) + eps)     Loshchilov & Hutter 2019, arXiv:1711.05101
ADAMW = Rule(
    "AdamW", ("exp_avg", "exp_avg_sq"), (False, True), _adam_scalars, _adam_advance,
    lambda p, g, old, new, h: p * h[7] - _adam_step(new, h),
)  # fmt: skip

# As AdamW, but the decay goes through the moments: g + wd p in place of g.      Kingma & Ba 2015, arXiv:1412.6980
ADAM = Rule(
    "Adam", ("exp_avg", "exp_avg_sq"), (False, True), _adam_scalars,
    lambda p, g, old, h: _adam_advance(p, g + h[8] * p, old, h),
    lambda p, g, old, new, h: p - _adam_step(new, h),
)  # fmt: skip


def _lion_scalars(group: dict[str, Any], step: int) -> list[Any]:
    beta1, beta2 = group["betas"]
    lr = group["lr"]
    return [beta1, 1 - beta1, beta2, 1 - beta2, lr, 1 - lr * group["weight_decay"]]


def _sign(x: Tensor) -> Tensor:
    """-1, 0 or 1, and nan of nan and inf, which torch.sign would pass over in silence."""
    return torch.sign(x) + (x - x)


# p = (1 - lr wd) p - lr sign(b1 m + (1 - b1) g);  m = b2 m + (1 - b2) g           Chen et al. 2023, arXiv:2302.06675
LION = Rule(
    "Lion", ("exp_avg",), (False,), _lion_scalars,
    lambda p, g, old, h: (h[2] * old[0] + h[3] * g,),
    lambda p, g, old, new, h: p * h[5] - h[4] * _sign(h[0] * old[0] + h[1] * g),
)  # fmt: skip


def _momentum_scalars(group: dict[str, Any], step: int) -> list[Any]:
    keep = group["momentum"]
    return [keep, 1 - keep, *((1 - keep, keep) if group["nesterov"] else (0.0, 1.0))]


# b = k b + (1 - k) g; what comes out in place of p is b, or with Nesterov's look ahead (1 - k) g + k b
MOMENTUM = Rule(
    "Momentum", ("momentum_buffer",), (False,), _momentum_scalars,
    lambda p, g, old, h: (h[0] * old[0] + h[1] * g,),
    lambda p, g, old, new, h: h[2] * g + h[3] * new[0],
)  # fmt: skip

# What an update that is known already does: p = (1 - lr decay) p - lr scale g, with h of those two factors.
STEP = Rule(
    "Step", (), (), lambda group, step: [1 - group["lr"] * group["weight_decay"], group["lr"] * group["scale"]],
    lambda p, g, old, h: (),
    lambda p, g, old, new, h: h[0] * p - h[1] * g,
)  # fmt: skip


def scalars(rule: Rule, group: dict[str, Any], step: int, like: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """h of a step on the device of `like`; a learning rate that is a tensor stays on its device."""
    values = rule.scalars(group, step)
    if not any(isinstance(value, Tensor) for value in values):
        return torch.tensor(values, dtype=dtype, device=like.device)
    return torch.stack([torch.as_tensor(value).to(like.device, dtype).reshape(()) for value in values])
