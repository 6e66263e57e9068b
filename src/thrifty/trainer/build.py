"""Turns a Recipe into modules, optimizer and mesh. The one place that does."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from thrifty.model.transformer import Transformer, initialise
from thrifty.parallel.mesh import build_mesh
from thrifty.parallel.shard import shard
from thrifty.spec.job import Job
from thrifty.spec.recipe import Optimizer, Recipe
from thrifty.trainer.world import World


@dataclass
class Built:
    """What a step needs."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    shard_group: object | None  # ranks that share one copy of the parameters; None where each has all of them


def build(job: Job, recipe: Recipe, world: World) -> Built:
    """Model on its device, initialised from the job's seed alone, compiled and sharded as the recipe says.

    Order: meta construction, compile each block, shard, allocate, initialise. A sharded parameter is filled with its
    part of the same full tensor, so every layout starts from the same numbers.
    """
    with torch.device("meta"):
        model = Transformer(job.model, precision=recipe.precision, recompute=recipe.recompute == "full")
    if recipe.compile:
        for block in model.blocks:
            block.compile()
    group = None
    if world.size > 1:
        mesh = build_mesh(recipe.layout, world.device.type)
        shard(
            model,
            mesh,
            blocks=list(model.blocks),
            precision=recipe.precision,
            exchange_dtype=recipe.exchange.dtype,
            reshard_after_forward=recipe.layout.reshard_after_forward,
        )
        group = mesh.get_group("shard") if recipe.layout.shard > 1 else None
    model.to_empty(device=world.device)
    initialise(model, job.seed)
    return Built(model, build_optimizer(model, recipe.optimizer), group)


OPTIMIZERS = {"adamw": torch.optim.AdamW}


def build_optimizer(model: nn.Module, settings: Optimizer) -> torch.optim.Optimizer:
    """The recipe's optimizer in two groups: matrices decay, norms and biases do not."""
    named = list(model.named_parameters())
    groups = [
        {"params": [p for _, p in named if p.dim() >= 2], "weight_decay": settings.weight_decay},
        {"params": [p for _, p in named if p.dim() < 2], "weight_decay": 0.0},
    ]
    return OPTIMIZERS[settings.name](
        [group for group in groups if group["params"]],
        lr=settings.lr,
        betas=(settings.beta1, settings.beta2),
        eps=settings.eps,
        fused=True,
    )
