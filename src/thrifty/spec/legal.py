"""Which recipes a model, a job and a software allow. Planner and trainer ask here, so both refuse in the same words."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from thrifty.spec.errors import ThriftyError
from thrifty.spec.job import Job, ModelShape
from thrifty.spec.recipe import Layout, Recipe
from thrifty.spec.trained import WAY_OUT, untrained


@dataclass(frozen=True, slots=True)
class Illegal:
    """Why a recipe cannot run: the key at fault, what is wrong with it, and a way out."""

    key: str
    what: str
    hint: str


# What this version of the trainer does not run: field of the recipe -> the only value that it does.
_TRAINER_LAYOUT = {"pipeline": 1, "context": 1, "expert": 1, "zero": 3}


def illegal(job: Job, recipe: Recipe) -> Illegal | None:
    """The first reason why a recipe cannot run, or None."""
    for reasons in (_by_model(job, recipe.layout), _by_schedule(job.model, recipe), _by_software(job.model, recipe)):
        for reason in reasons:
            return reason
    return None


def require(job: Job, recipe: Recipe) -> None:
    """Refuses a recipe that cannot run.

    Raises:
        ThriftyError: with the reason that `illegal` gives.
    """
    reason = illegal(job, recipe)
    if reason is not None:
        raise ThriftyError(reason.what, where=reason.key, hint=reason.hint)


def _by_model(job: Job, layout: Layout) -> Iterator[Illegal]:
    """The axes that split the model or the sequence must divide what they split."""
    shape = job.model
    for name, size in (("heads", shape.heads), ("ffn", shape.ffn), ("hidden", shape.hidden)):
        if size % layout.tensor:
            yield Illegal(
                "recipe.layout.tensor", f"tensor {layout.tensor} does not divide {name} {size}", _divisors(size)
            )
    if shape.latent is None and max(shape.kv_heads, layout.tensor) % min(shape.kv_heads, layout.tensor):
        what = f"tensor {layout.tensor} and kv_heads {shape.kv_heads} do not divide one another"
        yield Illegal("recipe.layout.tensor", what, _divisors(shape.kv_heads))
    split = layout.context * (layout.tensor if layout.sequence_parallel else 1)
    if job.sequence_length % split:
        what = f"context {layout.context} x tensor {layout.tensor} does not divide sequence_length"
        yield Illegal("recipe.layout.context", f"{what} {job.sequence_length}", _divisors(job.sequence_length))
    if layout.expert > 1:
        if shape.experts is None:
            yield Illegal("recipe.layout.expert", f"{shape.name} has no experts to split", "use expert: 1")
        elif shape.experts.count % layout.expert:
            what = f"expert {layout.expert} does not divide experts.count {shape.experts.count}"
            yield Illegal("recipe.layout.expert", what, _divisors(shape.experts.count))
        elif (layout.data_ranks * layout.context) % layout.expert:
            ranks = layout.data_ranks * layout.context
            what = f"expert {layout.expert} does not divide the {ranks} data and context ranks it is taken from"
            yield Illegal("recipe.layout.expert", what, _divisors(ranks))


def _by_schedule(shape: ModelShape, recipe: Recipe) -> Iterator[Illegal]:
    layout = recipe.layout
    if layout.pipeline * layout.interleave > shape.layers:
        what = f"pipeline {layout.pipeline} x interleave {layout.interleave} exceeds layers {shape.layers}"
        yield Illegal("recipe.layout.pipeline", what, f"use at most {shape.layers} stages in all")
    if layout.schedule == "interleaved" and layout.interleave < 2:
        hint = "say recipe.layout.interleave=2 or more, or use schedule 1f1b"
        yield Illegal("recipe.layout.interleave", "schedule interleaved needs two chunks a stage or more", hint)
    if layout.interleave > 1 and layout.schedule not in ("interleaved", "zbv"):
        what = f"interleave {layout.interleave} needs schedule interleaved or zbv, not {layout.schedule}"
        yield Illegal("recipe.layout.schedule", what, "use schedule: interleaved, or interleave: 1")
    if layout.schedule == "zbv" and layout.interleave != 2:
        yield Illegal("recipe.layout.interleave", "schedule zbv holds two chunks a stage", "use interleave: 2")
    if layout.schedule == "interleaved" and recipe.accumulation % layout.pipeline:
        what = f"schedule interleaved needs microbatches in multiples of the {layout.pipeline} stages"
        hint = "change batch.sequences or batch.micro_sequences, or use schedule 1f1b"
        yield Illegal("recipe.layout.schedule", f"{what}, not {recipe.accumulation}", hint)
    if layout.pipeline > 1 and layout.zero == 3 and layout.shard > 1 and recipe.software == "deepspeed":
        hint = "use zero: 1, or pipeline: 1"
        yield Illegal("recipe.layout.zero", "DeepSpeed does not combine pipelines with ZeRO-2 or 3", hint)


def _by_software(shape: ModelShape, recipe: Recipe) -> Iterator[Illegal]:
    if recipe.software != "thrifty":
        return
    for axis, only in _TRAINER_LAYOUT.items():
        value = getattr(recipe.layout, axis)
        if value != only:
            what = f"the trainer runs {axis} {only}, not {value}"
            yield Illegal(f"recipe.layout.{axis}", what, f"use {axis}: {only}; or {WAY_OUT}")
    if shape.kv_heads % recipe.layout.tensor:
        what = f"the trainer splits key/value heads: tensor {recipe.layout.tensor} does not divide {shape.kv_heads}"
        yield Illegal("recipe.layout.tensor", what, _divisors(shape.kv_heads))
    if reason := untrained(shape):
        yield Illegal("job.model", reason, WAY_OUT)
    for key, value, runs in (
        ("precision", recipe.precision, ("fp32", "bf16")),
        ("recompute", recipe.recompute, ("none", "selective", "full")),
        ("layout.tensor_overlap", recipe.layout.tensor_overlap, (False,)),
        ("optimizer.state_bits", recipe.optimizer.state_bits, (32,)),
        ("exchange.bits", recipe.exchange.bits, (None,)),
        ("exchange.local_steps", recipe.exchange.local_steps, (1,)),
    ):
        if value not in runs:
            one_of = " or ".join("none" if run is None else str(run) for run in runs)
            what = f"the trainer runs {key} {one_of}, not {value}"
            yield Illegal(f"recipe.{key}", what, f"use {one_of}; or {WAY_OUT}")


def _divisors(number: int) -> str:
    found = [d for d in range(1, number + 1) if number % d == 0]
    return f"use one of {', '.join(map(str, found[:10]))}{', ...' if len(found) > 10 else ''}"
