"""The recipe's optimizer over a model's parameters, in groups derived from their names and shapes."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from thrifty.cost.optimizer import SMALL
from thrifty.optim import Adam8bit, AdamW, AdamW4bit, AdamW8bit, Lamb, Lars, Lion8bit, Muon
from thrifty.optim.groups import ParamGroup, param_groups
from thrifty.optim.together import Together
from thrifty.spec.recipe import Optimizer

EVERY_TENSOR_SMALL = 10**12  # keeps all moments of a blockwise optimizer in fp32


def build_optimizer(model: nn.Module, settings: Optimizer) -> torch.optim.Optimizer:
    """The recipe's optimizer; with `muon` two of them, as one."""
    groups = groups_of(model, settings)
    on_meta = any(p.is_meta for p in model.parameters())
    made = []
    for name in dict.fromkeys(group.optimizer for group in groups):
        params = [
            {"params": list(group.params), "weight_decay": settings.weight_decay if group.decays else 0.0}
            for group in groups
            if group.optimizer == name
        ]
        made.append(_make(name, params, settings, on_meta))
    return made[0] if len(made) == 1 else Together(made)


def groups_of(model: nn.Module, settings: Optimizer) -> list[ParamGroup]:
    """Which tensors the recipe's optimizer steps, and which decay."""
    return param_groups(model.named_parameters(), settings.name)


def _make(name: str, params: list[dict[str, Any]], asked: Optimizer, on_meta: bool) -> torch.optim.Optimizer:
    """One optimizer. On the meta device torch has no fused kernels, but states of the same size."""
    lr, betas, bits = asked.lr, (asked.beta1, asked.beta2), asked.state_bits
    adam = {"lr": lr, "betas": betas, "eps": asked.eps}
    match name:
        case "adamw" if bits == 8:
            return AdamW8bit(params, **adam, stable=asked.stable)
        case "adamw" if bits == 4:
            return AdamW4bit(params, **adam, stable=asked.stable)
        case "adamw" if bits == 16 or asked.stable:
            return AdamW(params, **adam, state_bits=bits, stable=asked.stable)
        case "adamw":
            return torch.optim.AdamW(params, **adam, fused=not on_meta)
        case "adam" if bits == 8:
            return Adam8bit(params, **adam)
        case "adam":
            return torch.optim.Adam(params, **adam, fused=not on_meta)
        case "lion":
            return Lion8bit(params, lr=lr, betas=betas, small=EVERY_TENSOR_SMALL if bits == 32 else SMALL)
        case "lamb":
            return Lamb(params, **adam, max_grad_norm=None)  # the trainer clips
        case "lars":
            return Lars(params, lr=lr, momentum=asked.momentum)
        case "muon":
            return Muon(params, lr=lr, momentum=asked.momentum, adjust_lr_fn="match_rms_adamw", bits=max(8, bits))
        case "sgd":
            nesterov = asked.momentum > 0
            return torch.optim.SGD(params, lr=lr, momentum=asked.momentum, nesterov=nesterov)
        case "rmsprop":
            return torch.optim.RMSprop(params, lr=lr, alpha=asked.beta2, eps=asked.eps, momentum=asked.momentum)
        case "adagrad":
            return torch.optim.Adagrad(params, lr=lr, eps=asked.eps)
        case _:
            return torch.optim.Adafactor(params, lr=lr, eps=(None, asked.eps))
