"""Optimizers in doubles, one tensor at a time, as papers write them: what every fast path is checked against.

Each takes parameter, gradient, its state (a dict that starts empty) and settings, and returns the new parameter.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from thrifty.optim.newton_schulz import ROOM, STEPS, schedule

State = dict[str, Any]


def _started(state: State, *names: str, like: Tensor) -> int:
    for name in names:
        state.setdefault(name, torch.zeros_like(like))
    state["step"] = state.get("step", 0) + 1
    return state["step"]


def adamw(
    p: Tensor, g: Tensor, state: State, *, lr: float = 1e-3, betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8, weight_decay: float = 1e-2, decoupled: bool = True, stable: bool = False,
) -> Tensor:  # fmt: skip
    """arXiv:1711.05101, algorithm 2; with `decoupled` off, Adam with decay in the gradient.

    With `stable`, arXiv:2304.13013, algorithm 2.
    """
    t = _started(state, "exp_avg", "exp_avg_sq", like=p)
    g = g if decoupled else g + weight_decay * p
    m = state["exp_avg"] = betas[0] * state["exp_avg"] + (1 - betas[0]) * g
    v = state["exp_avg_sq"] = betas[1] * state["exp_avg_sq"] + (1 - betas[1]) * g * g
    if stable:
        lr = lr / max(1.0, float((g * g / (v / (1 - betas[1] ** t)).clamp(min=eps * eps)).mean().sqrt()))
    p = p * (1 - lr * weight_decay) if decoupled else p
    return p - lr * (m / (1 - betas[0] ** t)) / ((v / (1 - betas[1] ** t)).sqrt() + eps)


def adam(p: Tensor, g: Tensor, state: State, *, weight_decay: float = 0.0, **settings: Any) -> Tensor:
    """arXiv:1412.6980, algorithm 1."""
    return adamw(p, g, state, weight_decay=weight_decay, decoupled=False, **settings)


def lion(
    p: Tensor, g: Tensor, state: State, *, lr: float = 1e-4, betas: tuple[float, float] = (0.9, 0.99),
    weight_decay: float = 0.0,
) -> Tensor:  # fmt: skip
    """arXiv:2302.06675, algorithm 2."""
    _started(state, "exp_avg", like=p)
    m = state["exp_avg"]
    state["exp_avg"] = betas[1] * m + (1 - betas[1]) * g
    return p * (1 - lr * weight_decay) - lr * (betas[0] * m + (1 - betas[0]) * g).sign()


def trust(p: Tensor, u: Tensor) -> float:
    """|p| / |u|, or 1 where either is zero."""
    size, step = float(p.norm()), float(u.norm())
    return size / step if size > 0 and step > 0 else 1.0


def lamb(
    p: Tensor, g: Tensor, state: State, *, lr: float = 1e-3, betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-6, weight_decay: float = 0.01, bias_correction: bool = True, always_adapt: bool = False,
    clip: float = 1.0,
) -> Tensor:  # fmt: skip
    """arXiv:1904.00962, algorithm 2, as in NVIDIA apex. `clip` is 1 / max(1, global norm / its bound)."""
    t = _started(state, "exp_avg", "exp_avg_sq", like=p)
    g = g * clip
    m = state["exp_avg"] = betas[0] * state["exp_avg"] + (1 - betas[0]) * g
    v = state["exp_avg_sq"] = betas[1] * state["exp_avg_sq"] + (1 - betas[1]) * g * g
    first, second = (1 - betas[0] ** t, 1 - betas[1] ** t) if bias_correction else (1.0, 1.0)
    u = (m / first) / ((v / second).sqrt() + eps) + weight_decay * p
    return p - lr * (trust(p, u) if weight_decay or always_adapt else 1.0) * u


def lars(
    p: Tensor, g: Tensor, state: State, *, lr: float = 1e-3, momentum: float = 0.9, weight_decay: float = 0.0,
    dampening: float = 0.0, nesterov: bool = False, trust_coefficient: float = 1e-3,
) -> Tensor:  # fmt: skip
    """arXiv:1708.03888, algorithm 1."""
    _started(state, "momentum_buffer", like=p)
    if p.ndim > 1:
        size, slope = float(p.norm()), float(g.norm())
        ratio = trust_coefficient * size / (slope + weight_decay * size) if size > 0 and slope > 0 else 1.0
        g = ratio * (g + weight_decay * p)
    first = state["step"] == 1
    state["momentum_buffer"] = g if first else momentum * state["momentum_buffer"] + (1 - dampening) * g
    return p - lr * (g + momentum * state["momentum_buffer"] if nesterov else state["momentum_buffer"])


def orthogonalised(
    x: Tensor, steps: int = STEPS, coefficients: tuple[float, float, float] | None = None, eps: float = 1e-7
) -> Tensor:
    """x = U S V^T to nearly U V^T, by steps of X = a X + (b A + c A^2) X with A = X X^T: Jordan et al. 2024, Muon.

    Without coefficients those of `schedule`, from X over 1.02 (sum of s^8)^(1/8).
    """
    s = torch.linalg.svdvals(x)
    norm = s.square().sum().sqrt() if coefficients else s.pow(8).sum().pow(1 / 8) * ROOM
    tall = x.shape[0] > x.shape[1]
    x = x.T if tall else x
    x = x / max(float(norm), eps)
    for a, b, c in (coefficients,) * steps if coefficients else schedule(steps):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.T if tall else x


def muon(
    p: Tensor, g: Tensor, state: State, *, lr: float = 1e-3, weight_decay: float = 0.1, momentum: float = 0.95,
    nesterov: bool = True, scale: str = "original",
) -> Tensor:  # fmt: skip
    """Jordan et al. 2024, as `torch.optim.Muon`; scales "original" or "match_rms_adamw", arXiv:2502.16982."""
    _started(state, "momentum_buffer", like=p)
    buffer = state["momentum_buffer"] = momentum * state["momentum_buffer"] + (1 - momentum) * g
    update = orthogonalised((1 - momentum) * g + momentum * buffer if nesterov else buffer)
    rows, columns = p.shape
    factor = math.sqrt(max(1, rows / columns)) if scale == "original" else 0.2 * math.sqrt(max(rows, columns))
    return p * (1 - lr * weight_decay) - lr * factor * update
