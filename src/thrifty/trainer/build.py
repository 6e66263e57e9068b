"""Turns a Recipe into modules, optimizer and mesh. The one place that does."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh

from thrifty.model.transformer import Transformer, initialise
from thrifty.parallel.mesh import build_mesh
from thrifty.parallel.shard import shard
from thrifty.parallel.tensor import parallelize_tensor, sum_partial_gradients
from thrifty.spec.job import Job
from thrifty.spec.recipe import Optimizer, Recipe
from thrifty.trainer.world import World


@dataclass
class Built:
    """What a step needs.

    Attributes:
        finish: completes the gradients after the last backward pass of a step, each in order.
        norm_groups: process groups whose ranks hold different parts of the gradients.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    finish: list[Callable[[], None]] = field(default_factory=list)
    norm_groups: list[Any] = field(default_factory=list)


def build(job: Job, recipe: Recipe, world: World) -> Built:
    """Model on its device, initialised from the job's seed alone, split, compiled and sharded as the recipe says.

    Order: meta construction, `parallelize`, allocate, initialise. A split parameter is filled with its part of the same
    full tensor, so every layout starts from the same numbers.
    """
    layout = recipe.layout
    with torch.device("meta"):
        model = Transformer(job.model, precision=recipe.precision, recompute=recipe.recompute)
    mesh = build_mesh(layout, world.device.type) if world.size > 1 else None
    parallelize(model, mesh, recipe)
    model.to_empty(device=world.device)
    initialise(model, job.seed)
    built = Built(model, build_optimizer(model, recipe.optimizer))
    if mesh is not None:
        built.norm_groups = [mesh.get_group(axis) for axis in ("shard", "tensor") if mesh[axis].size() > 1]
        if layout.tensor > 1:
            split = layout.sequence_parallel
            built.finish.append(partial(sum_partial_gradients, model, mesh, sequence_parallel=split))
    return built


def parallelize(model: Transformer, mesh: DeviceMesh | None, recipe: Recipe) -> None:
    """Applies what a recipe says to a model, or a stage of one, on the meta device; in place, always in this order.

    Tensor parallelism decides what a rank computes; the compiler sees that, one block at a time; sharding wraps what
    the compiler made, and splits what a tensor rank holds. Recomputation is the model's own.
    """
    layout = recipe.layout
    if mesh is not None and layout.tensor > 1:
        parallelize_tensor(model, mesh, sequence_parallel=layout.sequence_parallel)
    if recipe.compile:
        for block in model.blocks.children():
            block.compile()
    if mesh is not None and layout.data_ranks > 1:
        shard(
            model,
            mesh,
            blocks=list(model.blocks.children()),
            precision=recipe.precision,
            exchange_dtype=recipe.exchange.dtype,
            reshard_after_forward=layout.reshard_after_forward,
        )


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
