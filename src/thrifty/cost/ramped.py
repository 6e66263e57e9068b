"""A run whose batch grows: its phases, its mean step, and what of its tokens is not wasted on too large a batch.

    seconds = sum over phases of steps x seconds of a step at that batch
    useful  = sum over phases of the integral of dt / (1 + 0.2 B / B*(t))

B* the critical batch after t tokens (`laws.critical_batch`), above whose fifth of a noise scale tokens are wasted.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import fields
from typing import NamedTuple

from thrifty.cost.step import StepSeconds, step_seconds
from thrifty.laws import ramp
from thrifty.laws.critical_batch import critical_batch_tokens, overhead
from thrifty.spec.cluster import Cluster
from thrifty.spec.job import Job
from thrifty.spec.recipe import Recipe

PRICED = 9  # batches of a run that are priced; steps of those between them lie on straight lines
SLICES = 64  # of a phase, in which the critical batch counts as constant


class Phase(NamedTuple):
    """Steps of one batch."""

    steps: int
    sequences: int


def at_batch(recipe: Recipe, sequences: int) -> Recipe:
    """The recipe at one batch of its ramp."""
    batch = recipe.batch.model_copy(update={"sequences": sequences, "ramp": None})
    return recipe.model_copy(update={"batch": batch})


def at_largest(recipe: Recipe) -> Recipe:
    """The recipe at the largest batch of its ramp, or as it is."""
    return recipe if recipe.batch.ramp is None else at_batch(recipe, ramp.largest(recipe))


def phases(job: Job, recipe: Recipe) -> tuple[Phase, ...]:
    """Phases of a run, by what is expected of a ramp that follows measurements."""
    return tuple(Phase(stage.steps, stage.sequences) for stage in ramp.stages(job, recipe))


def run_tokens(job: Job, recipe: Recipe) -> int:
    """Tokens of a run with a ramp."""
    return ramp.total_sequences(job, recipe) * job.sequence_length


def mean_step(job: Job, cluster: Cluster, recipe: Recipe) -> tuple[int, StepSeconds]:
    """Steps of a run with a ramp, and the mean of their times by part.

    Raises:
        ThriftyError: the accelerator has no rate for the recipe's precision.
    """
    found = phases(job, recipe)
    steps = sum(phase.steps for phase in found)
    sizes = sorted({phase.sequences for phase in found})
    some = sizes if len(sizes) <= PRICED else [sizes[round(k * (len(sizes) - 1) / (PRICED - 1))] for k in range(PRICED)]
    priced = [(size, step_seconds(job, cluster, at_batch(recipe, size))) for size in some]
    weights = dict.fromkeys(some, 0.0)
    for phase in found:
        for size, share in _between(some, phase.sequences):
            weights[size] += share * phase.steps / steps
    return steps, _weighted([(weights[size], step) for size, step in priced])


def _between(sizes: Sequence[int], size: int) -> tuple[tuple[int, float], ...]:
    """The priced batches on either side, and how much of each."""
    low = max(one for one in sizes if one <= size)
    high = min(one for one in sizes if one >= size)
    share = (size - low) / (high - low) if high > low else 0.0
    return (low, 1 - share), (high, share)


def _weighted(steps: Sequence[tuple[float, StepSeconds]]) -> StepSeconds:
    total = sum(weight for weight, _ in steps)
    plain = {
        one.name: sum(weight * getattr(step, one.name) for weight, step in steps)
        for one in fields(StepSeconds)
        if one.name not in ("limits", "forward_microbatch")
    }
    limits = {name: sum(weight * step.limits[name] for weight, step in steps) for name in steps[0][1].limits}
    one_pass = sum(weight * step.forward_microbatch for weight, step in steps) / total
    return StepSeconds(**plain, forward_microbatch=one_pass, limits=limits)


def useful_tokens(
    job: Job, recipe: Recipe, critical: Callable[[float], float] = critical_batch_tokens
) -> float:  # fmt: skip
    """Tokens in small steps that would come as far as the run does.

    Args:
        critical: batch in tokens, after so many tokens.
    """
    found, done = 0.0, 0.0
    for phase in phases(job, recipe):
        batch = phase.sequences * job.sequence_length
        each = phase.steps * batch / SLICES
        found += sum(each / overhead(batch, critical(done + (k + 0.5) * each)) for k in range(SLICES))
        done += phase.steps * batch
    return found
