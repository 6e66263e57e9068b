"""Which recipes a model, a job and a software allow. Planner and trainer ask here, so both refuse in the same words.

A search asks in three steps, so that each question is put as seldom as can be: `by_layout` once for a layout,
`by_levers` once for a layout and a setting of the levers, `by_batch` for each microbatch. What a software runs is in
`spec.software`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

from thrifty.spec.errors import ThriftyError
from thrifty.spec.job import Job, ModelShape
from thrifty.spec.recipe import Layout, Recipe
from thrifty.spec.software import RUNS, Runs
from thrifty.spec.trained import WAY_OUT, untrained

SPLIT_BACKWARD = ("zero_bubble", "zbv")  # schedules that make gradients of inputs first, of weights in idle time


@dataclass(frozen=True, slots=True)
class Illegal:
    """Why a recipe cannot run: the key at fault, what is wrong with it, and a way out.

    Attributes:
        kind: the same without the numbers, which a search counts by.
    """

    key: str
    what: str
    hint: str
    kind: str


def illegal(job: Job, recipe: Recipe) -> Illegal | None:
    """The first reason why a recipe cannot run, or None."""
    return (
        by_layout(job, recipe.layout, recipe.software)
        or by_levers(recipe)
        or by_batch(recipe.layout, recipe.accumulation, recipe.software)
    )


def require(job: Job, recipe: Recipe) -> None:
    """Refuses a recipe that cannot run.

    Raises:
        ThriftyError: with the reason that `illegal` gives.
    """
    reason = illegal(job, recipe)
    if reason is not None:
        raise ThriftyError(reason.what, where=reason.key, hint=reason.hint)


def require_own(job: Job, recipe: Recipe) -> None:
    """Refuses a recipe that this project's trainer cannot run, one for other software included.

    Raises:
        ThriftyError: with the reason that `illegal` gives.
    """
    if recipe.software != "thrifty":
        raise ThriftyError(
            f"the plan is for {RUNS[recipe.software].called}, which this trainer does not stand in for",
            where="recipe.software",
            hint="run what `thrifty emit` writes of it, or plan again with --software thrifty",
        )
    if recipe.batch.ramp is not None:
        raise ThriftyError(
            "this trainer runs one batch for the whole run; ramps are priced only",
            where="recipe.batch.ramp",
            hint="leave out batch.ramp; in a loop of your own, `thrifty.laws.ramp` says each step's batch and rate",
        )
    require(job, recipe)


def by_layout(job: Job, layout: Layout, software: str) -> Illegal | None:
    """Why a model or a software does not allow a layout, whatever the batch and the levers; None where they do."""
    if layout.tensor > 1 or layout.context > 1 or layout.expert > 1:
        for reason in _by_model(job, layout):
            return reason
    if software == "thrifty" and job.model.kv_heads % layout.tensor:
        kind = "the trainer splits key/value heads: tensor does not divide them"
        what = f"the trainer splits key/value heads: tensor {layout.tensor} does not divide {job.model.kv_heads}"
        return Illegal("recipe.layout.tensor", what, _divisors(job.model.kv_heads), kind)
    if software == "thrifty" and layout.context > 1:
        for reason in _by_ring(job, layout.context):
            return reason
    for checks in (_by_schedule(job.model, layout), _by_software(layout, software), _by_shape(job.model, software)):
        for reason in checks:
            return reason
    return None


def by_levers(recipe: Recipe) -> Illegal | None:
    """Why a software does not allow the rest of a recipe, whatever its batch; None where it does."""
    for reason in _by_levers(recipe, RUNS[recipe.software]):
        return reason
    return None


def by_batch(layout: Layout, accumulation: int, software: str) -> Illegal | None:
    """Why a pipeline's schedule does not allow a number of microbatches; None where it does."""
    if software == "thrifty":
        for reason in _by_torch_schedules(layout, accumulation):
            return reason
    if layout.schedule != "interleaved" or accumulation % layout.pipeline == 0:
        return None
    what = f"schedule interleaved needs microbatches in multiples of the {layout.pipeline} stages"
    hint = "change batch.sequences or batch.micro_sequences, or use schedule 1f1b"
    kind = "microbatches no multiple of interleaved stages"
    return Illegal("recipe.layout.schedule", f"{what}, not {accumulation}", hint, kind)


def _by_torch_schedules(layout: Layout, number: int) -> Iterator[Illegal]:
    """Numbers of microbatches that the schedules of torch.distributed.pipelining, which the trainer runs, do not do."""
    key, stages = "recipe.layout.schedule", layout.pipeline
    if layout.schedule == "1f1b" and number < stages:
        what = f"schedule 1f1b needs a microbatch for each of the {stages} stages, not {number}"
        hint = "use schedule: gpipe, or more batch.sequences, or fewer micro_sequences"
        yield Illegal(key, what, hint, "fewer microbatches than 1f1b stages")
    if layout.schedule == "zero_bubble" and number % stages:
        what = f"schedule zero_bubble needs microbatches in multiples of the {stages} stages, not {number}"
        hint = "change batch.sequences or batch.micro_sequences, or use schedule 1f1b"
        yield Illegal(key, what, hint, "microbatches no multiple of zero_bubble stages")


def _by_model(job: Job, layout: Layout) -> Iterator[Illegal]:
    """The axes that split the model or the sequence must divide what they split."""
    shape, tensor = job.model, layout.tensor
    for name, size in (("heads", shape.heads), ("ffn", shape.ffn), ("hidden", shape.hidden)):
        if size % tensor:
            kind = f"tensor does not divide {name}"
            what = f"tensor {tensor} does not divide {name} {size}"
            yield Illegal("recipe.layout.tensor", what, _divisors(size), kind)
    if shape.latent is None and max(shape.kv_heads, tensor) % min(shape.kv_heads, tensor):
        what = f"tensor {tensor} and kv_heads {shape.kv_heads} do not divide one another"
        kind = "tensor and kv_heads do not divide one another"
        yield Illegal("recipe.layout.tensor", what, _divisors(shape.kv_heads), kind)
    split = layout.context * (tensor if layout.sequence_parallel else 1)
    if job.sequence_length % split:
        what = f"context {layout.context} x tensor {tensor} does not divide sequence_length {job.sequence_length}"
        kind = "context x tensor does not divide sequence_length"
        yield Illegal("recipe.layout.context", what, _divisors(job.sequence_length), kind)
    if layout.expert > 1:
        yield from _by_experts(shape, layout)


def _by_ring(job: Job, context: int) -> Iterator[Illegal]:
    """Sequences that the trainer does not split: each rank takes two chunks, of attention to all that came before."""
    key, shape, length = "recipe.layout.context", job.model, job.sequence_length
    if length % (2 * context):
        what = f"context {context} x 2 chunks a rank does not divide sequence_length {length}"
        hint = _divisors(length // 2) if length % 2 == 0 else "use context: 1"
        yield Illegal(key, what, hint, "context x 2 chunks a rank does not divide sequence_length")
    if shape.sliding_window is not None and shape.sliding_window < length:
        kind = "context splits no sequences that are longer than a sliding window"
        what = (
            f"context {context} splits no sequences of {length} tokens with a sliding window of {shape.sliding_window}"
        )
        yield Illegal(key, what, f"use context: 1; or {WAY_OUT}", kind)


def _by_experts(shape: ModelShape, layout: Layout) -> Iterator[Illegal]:
    key, ranks = "recipe.layout.expert", layout.data_ranks * layout.context
    if shape.experts is None:
        yield Illegal(key, f"{shape.name} has no experts to split", "use expert: 1", "no experts to split")
        return
    count = shape.experts.count
    if count % layout.expert:
        kind = "expert does not divide experts.count"
        yield Illegal(key, f"expert {layout.expert} does not divide experts.count {count}", _divisors(count), kind)
    if ranks % layout.expert:
        what = f"expert {layout.expert} does not divide the {ranks} data and context ranks it is taken from"
        yield Illegal(key, what, _divisors(ranks), "expert does not divide the data and context ranks")


def _by_schedule(shape: ModelShape, layout: Layout) -> Iterator[Illegal]:
    stages, chunks, schedule = layout.pipeline, layout.interleave, layout.schedule
    if stages * chunks > shape.layers:
        what = f"pipeline {stages} x interleave {chunks} exceeds layers {shape.layers}"
        hint = f"use at most {shape.layers} stages in all"
        yield Illegal("recipe.layout.pipeline", what, hint, "pipeline x interleave exceeds layers")
    if schedule == "interleaved" and chunks < 2:
        what = "schedule interleaved needs two chunks a stage or more"
        hint = "say recipe.layout.interleave=2 or more, or use schedule 1f1b"
        yield Illegal("recipe.layout.interleave", what, hint, what)
    if chunks > 1 and schedule not in ("interleaved", "zbv"):
        what = f"interleave {chunks} needs schedule interleaved or zbv, not {schedule}"
        hint = "use schedule: interleaved, or interleave: 1"
        yield Illegal("recipe.layout.schedule", what, hint, "interleave needs schedule interleaved or zbv")
    if schedule == "zbv" and chunks != 2:
        what = "schedule zbv holds two chunks a stage"
        yield Illegal("recipe.layout.interleave", what, "use interleave: 2", what)


def _by_software(layout: Layout, software: str) -> Iterator[Illegal]:
    """Axes, sharding and schedule that a software does not have."""
    runs = RUNS[software]
    for axis in ("pipeline", "context", "tensor", "expert", "island", "shard"):
        value = getattr(layout, axis)
        if value > 1 and axis not in runs.axes:
            yield _not_run(runs, f"layout.{axis}", axis, value, (1,))
    if layout.shard > 1 and layout.zero not in runs.zero:
        yield _not_run(runs, "layout.zero", "zero", layout.zero, runs.zero)
    if layout.pipeline > 1 and layout.schedule not in runs.schedules:
        yield _not_run(runs, "layout.schedule", "schedule", layout.schedule, runs.schedules)
    if layout.pipeline > 1 and layout.shard > 1 and layout.zero not in runs.zero_in_pipelines:
        what = f"{runs.called} does not combine pipelines with ZeRO-{layout.zero}"
        hint = f"use zero: {' or '.join(map(str, runs.zero_in_pipelines))}, or pipeline: 1"
        yield Illegal("recipe.layout.zero", what, hint, what)
    if software == "thrifty" and layout.pipeline == 1 and (layout.schedule != "1f1b" or layout.interleave > 1):
        what = f"schedule {layout.schedule} and interleave {layout.interleave} order a pipeline, and there is none"
        hint = "say recipe.layout.pipeline=2 or more, or leave them out"
        yield Illegal("recipe.layout.schedule", what, hint, "a schedule without a pipeline")
    if layout.tensor > 1 and layout.tensor_overlap and not runs.tensor_overlap:
        yield _not_run(runs, "layout.tensor_overlap", "tensor_overlap", True, (False,))


def _by_shape(shape: ModelShape, software: str) -> Iterator[Illegal]:
    """Models that a software does not train."""
    runs = RUNS[software]
    lacking = [] if shape.kind in runs.kinds else [f"kind {shape.kind}"]
    lacking += ["experts"] if shape.experts is not None and not runs.experts else []
    lacking += ["latent attention"] if shape.latent is not None and not runs.latent else []
    what = f"{runs.called} runs {' and '.join(f'{kind}s' for kind in runs.kinds)}, not {lacking[0]}" if lacking else ""
    what = untrained(shape) if software == "thrifty" else what
    if what:
        yield Illegal("job.model", what, WAY_OUT, what)


def _by_levers(recipe: Recipe, runs: Runs) -> Iterator[Illegal]:
    optimizer, exchange = recipe.optimizer, recipe.exchange
    if recipe.precision not in runs.precisions:
        yield _not_run(runs, "precision", "precision", recipe.precision, runs.precisions)
    if recipe.recompute not in runs.recompute:
        yield _not_run(runs, "recompute", "recompute", recipe.recompute, runs.recompute)
    if recipe.compile and not runs.compile:
        yield _not_run(runs, "compile", "compile", True, (False,))
    if recipe.software == "thrifty" and recipe.layout.pipeline > 1 and recipe.layout.schedule in SPLIT_BACKWARD:
        for name, value, off in (("compile", recipe.compile, False), ("recompute", recipe.recompute, "none")):
            if value != off:
                schedule = recipe.layout.schedule
                what = f"schedule {schedule} runs the backward pass in two, which {name} {str(value).lower()} does not"
                hint = f"use {name}: {str(off).lower()}, or schedule: 1f1b"
                kind = f"{name} in a schedule with a backward pass in two"
                yield Illegal(f"recipe.{name}", f"{what} allow", hint, kind)
    if optimizer.name not in runs.optimizers:
        yield _not_run(runs, "optimizer.name", "optimizer", optimizer.name, runs.optimizers)
    if optimizer.name == "adafactor" and recipe.software == "thrifty" and recipe.ranks_together > 1:
        # torch.optim.Adafactor squares row sums in place, which DTensors do not (torch 2.13).
        what = "the trainer runs optimizer adafactor on one rank alone"
        yield Illegal("recipe.optimizer.name", what, "use adamw with state_bits: 4, or one rank", what)
    if optimizer.stable and recipe.software != "thrifty":
        yield _not_run(runs, "optimizer.stable", "optimizer.stable", True, (False,))
    if recipe.software != "thrifty" and recipe.batch.ramp is not None:
        what = f"{runs.called} is given one batch for the whole run"
        yield Illegal("recipe.batch.ramp", what, "leave out batch.ramp, or plan for thrifty", what)
    if optimizer.state_bits not in runs.state_bits:
        yield _not_run(runs, "optimizer.state_bits", "optimizer.state_bits", optimizer.state_bits, runs.state_bits)
    if exchange.codec not in runs.codecs and not runs.any_codec:
        yield _not_run(runs, "exchange.codec", "exchange.codec", exchange.codec, runs.codecs)
    if exchange.local_steps > 1 and not runs.local_steps:
        yield _not_run(runs, "exchange.local_steps", "exchange.local_steps", exchange.local_steps, (1,))
    if exchange.between_islands and recipe.layout.island == 1 and recipe.software == "thrifty":
        key, off = ("codec", "none") if exchange.codec else ("local_steps", "1")
        what = f"exchange.{key} is for what islands send each other, and the layout has one island"
        yield Illegal(f"recipe.exchange.{key}", what, f"use layout.island above 1, or {key}: {off}", what)
    if recipe.layout.tensor > 1 and recipe.layout.tensor_overlap and runs.overlap_needs_compile and not recipe.compile:
        what = f"{runs.called} overlaps tensor-parallel traffic in compiled blocks only"
        yield Illegal("recipe.compile", what, "use compile: true, or tensor_overlap: false", what)


def _not_run(runs: Runs, key: str, name: str, value: object, choices: tuple[object, ...]) -> Illegal:
    one_of = " or ".join("none" if choice is None else str(choice) for choice in choices)
    what = f"{runs.called} runs {name} {one_of}, not {value}"
    return Illegal(f"recipe.{key}", what, f"use {one_of}; or {WAY_OUT}", f"{runs.called} runs {name} {one_of}")


@lru_cache(maxsize=256)
def _divisors(number: int) -> str:
    small = [d for d in range(1, int(number**0.5) + 1) if number % d == 0]
    found = sorted({*small, *(number // d for d in small)})
    return f"use one of {', '.join(map(str, found[:10]))}{', ...' if len(found) > 10 else ''}"
