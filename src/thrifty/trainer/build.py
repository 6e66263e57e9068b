"""Turns a Recipe into modules, optimizer and mesh. The one place that does."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh

from thrifty.model.transformer import Transformer, initialise, keep_stage
from thrifty.parallel.context import parallelize_context
from thrifty.parallel.mesh import build_mesh, sharing
from thrifty.parallel.pipeline import Around, Chunks, Part, Pipeline, Tied, parts_of, tie
from thrifty.parallel.shard import set_last_microbatch, shard
from thrifty.parallel.tensor import parallelize_tensor, sum_partial_gradients
from thrifty.spec.job import Job
from thrifty.spec.legal import SPLIT_BACKWARD
from thrifty.spec.recipe import Layout, Recipe
from thrifty.trainer.optimizers import build_optimizer
from thrifty.trainer.world import World


@dataclass
class Built:
    """What a step needs.

    Attributes:
        model: what this rank holds: the whole model, a part of it, or several (`parallel.pipeline.Chunks`).
        finish: completes the gradients after the last backward pass of a step, each in order.
        norm_groups: process groups whose ranks hold different parts of the gradients.
        pipeline: runs the forward and backward passes where the model is in stages.
        tied: this rank's copies of an embedding that is in two stages.
        mesh: the ranks as a grid, where there are several.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    finish: list[Callable[[], None]] = field(default_factory=list)
    norm_groups: list[Any] = field(default_factory=list)
    pipeline: Pipeline | None = None
    tied: Tied | None = None
    mesh: DeviceMesh | None = None

    @property
    def counted_elsewhere(self) -> tuple[nn.Parameter, ...]:
        """Parameters whose gradients another rank counts in the global norm."""
        return self.tied.copies if self.tied is not None and self.tied.counted_elsewhere else ()


def build(job: Job, recipe: Recipe, world: World, stages: Sequence[range] | None = None) -> Built:
    """Model on its device, initialised from the job's seed alone, split, compiled and sharded as the recipe says.

    Order: meta construction, stage, `parallelize`, allocate, initialise. A split parameter is filled with its part of
    the same full tensor, so every layout starts from the same numbers.

    Args:
        stages: layers of each part of a pipeline, from `cost.stages.stage_layers`; spread evenly when left out.
    """
    layout = recipe.layout
    mesh = build_mesh(layout, world.mesh_device) if world.size > 1 else None
    mine = parts_of(job.model.layers, layout, world.rank, stages)
    parts = [(part, _part(job, recipe, world, mesh, part)) for part in mine]
    model = parts[0][1] if len(parts) == 1 else Chunks([module for _, module in parts])
    built = Built(model, build_optimizer(model, recipe.optimizer), mesh=mesh)
    if mesh is None:
        return built
    built.norm_groups = [mesh.get_group(axis) for axis in ("tensor", "pipeline") if mesh[axis].size() > 1]
    if layout.shard * layout.context > 1:
        built.norm_groups.append(sharing(mesh).get_group())
    if layout.tensor > 1:
        split = layout.sequence_parallel
        built.finish.append(partial(sum_partial_gradients, model, mesh, sequence_parallel=split))
    if layout.pipeline > 1:
        length = job.sequence_length // layout.context
        built.pipeline = Pipeline(
            parts,
            layout,
            microbatches=recipe.accumulation,
            tokens=(recipe.batch.micro_sequences, length),
            handed=(recipe.batch.micro_sequences, length // _stream_parts(layout), job.model.hidden),
            dtype=torch.bfloat16 if recipe.precision == "bf16" else next(model.parameters()).dtype,
            group=mesh.get_group("pipeline"),
            device=world.device,
        )
        built.tied = tie(parts, layout, world.rank) if job.model.tied_embeddings else None
        if built.tied is not None:
            built.finish.append(built.tied.sum_gradients)
    return built


def _part(job: Job, recipe: Recipe, world: World, mesh: DeviceMesh | None, part: Part) -> Transformer:
    """One part of the model, or all of it. No rank ever allocates what others hold; a dry run allocates nothing."""
    with torch.device("meta"):
        model = Transformer(job.model, precision=recipe.precision, recompute=recipe.recompute)
    if part.of > 1:
        keep_stage(model, part.layers, first=part.first, last=part.last)
        model.twice = recipe.layout.schedule in SPLIT_BACKWARD
        model.sequence_parts = _stream_parts(recipe.layout)
    parallelize(model, mesh, recipe)
    model.to_empty(device=world.device)
    if world.device.type != "meta":
        initialise(model, job.seed)
    return model


def _stream_parts(layout: Layout) -> int:
    """Ranks that split what stages hand on along the sequence."""
    return layout.tensor if layout.sequence_parallel else 1


def parallelize(model: Transformer, mesh: DeviceMesh | None, recipe: Recipe) -> None:
    """Applies what a recipe says to a model, or a stage of one, on the meta device; in place, always in this order.

    Tensor and context parallelism decide what a rank computes; the compiler sees that, one block at a time; sharding
    wraps what the compiler made, and splits what a tensor rank holds. Recomputation is the model's own.
    """
    layout = recipe.layout
    if mesh is not None and layout.tensor > 1:
        parallelize_tensor(model, mesh, sequence_parallel=layout.sequence_parallel)
    if mesh is not None and layout.context > 1:
        parallelize_context(model, mesh)
    if recipe.compile:
        for block in model.blocks.children():
            block.compile()
    apart = recipe.exchange.between_islands
    if mesh is not None and (layout.shard if apart else layout.data_ranks) * layout.context > 1:
        shard(
            model,
            mesh,
            blocks=list(model.blocks.children()),
            precision=recipe.precision,
            exchange_dtype=recipe.exchange.dtype,
            # A stage passes its blocks many times in a step and keeps them gathered meanwhile.
            reshard_after_forward=layout.reshard_after_forward and layout.pipeline == 1,
            islands_apart=apart,
        )


def passes(
    built: Built,
    batches: Sequence[tuple[Tensor, Tensor]],
    scale: float,
    forward: Callable[[Tensor, Tensor], Tensor] | None = None,
    around: Around | None = None,
    before_last: Callable[[], None] = lambda: None,
) -> list[Tensor]:
    """Forward and backward passes of all microbatches of a step; gradients of scale x the sum of losses are added up.

    Args:
        batches: tokens and targets of each, (micro_sequences, length).
        forward: in place of the model's own, where there is no pipeline.
        around: see `Pipeline.step`.
        before_last: called before the last microbatch's, where there is no pipeline.

    Returns:
        The loss of each microbatch, a sum over targets, on the ranks that know it.
    """
    if built.pipeline is not None:
        tokens, targets = (torch.cat([batch[i] for batch in batches]) for i in (0, 1))
        return built.pipeline.step(tokens, targets, scale, around=around)
    losses = []
    for i, (tokens, targets) in enumerate(batches):
        set_last_microbatch(built.model, i == len(batches) - 1)
        if i == len(batches) - 1:
            before_last()
        loss = (forward or built.model)(tokens, targets)
        (loss * scale).backward()
        losses.append(loss.detach())
    return losses
