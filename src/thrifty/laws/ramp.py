"""A batch that grows: how large it is after so many sequences, what rate goes with it, and how many steps that makes.

A run with a ramp is counted in sequences. Batches are multiples of micro_sequences x data ranks, so that they differ by
accumulation alone; with s(d) the schedule's share of the peak rate after d sequences (`laws.schedule`, by steps of the
first batch B0), e = 1/2 for Adam and its kin (Malladi et al. 2022, arXiv:2205.10287) and 1 for SGD (Goyal et al. 2017,
arXiv:1706.02677):

    rate     peak s(d) (B / B0)^e
    linear   B = B0 + (most - B0) (tokens - from) / (to - from)        as `--rampup-batch-size` of NVIDIA Megatron-LM
    seesaw   B = B0 / s(d) after warm-up, so with e = 1/2 the rate falls with sqrt(s)              arXiv:2510.14717
    noise_scale   B = B0 2^k, the largest up to share x noise scale

The last depends on what a run measures; a plan expects of it what `laws.critical_batch` says of its tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from thrifty.laws.critical_batch import EXCESS_AT_CRITICAL, critical_batch_tokens
from thrifty.laws.schedule import rate_share
from thrifty.spec.job import Job
from thrifty.spec.recipe import Recipe
from thrifty.spec.schedule import Ramp

LINEAR_RATE = ("sgd", "lars")  # optimizers whose step is proportional to the gradient, or is scaled as if it were
EXPONENTS = {"sqrt": 0.5, "linear": 1.0, "none": 0.0}
MEASURED = ("noise_scale",)  # depend on what a run measures

CriticalTokens = Callable[[float], float]  # tokens so far to the critical batch, in tokens


@dataclass(frozen=True, slots=True)
class Stage:
    """Steps of one batch.

    Attributes:
        first: sequences taken before it.
        sequences: in each of its steps; the last step of a run takes what is left.
    """

    first: int
    sequences: int
    steps: int


def total_sequences(job: Job, recipe: Recipe) -> int:
    """Sequences of a run with a ramp, in whole microbatches of all ranks; `job.steps` are steps of the first batch.

    Raises:
        ValueError: the job says neither tokens nor steps.
    """
    if job.steps is not None:
        return job.steps * recipe.batch.sequences
    if job.tokens is None:
        raise ValueError("the job has neither tokens nor steps")
    unit = together(recipe)
    return -(-job.tokens // (job.sequence_length * unit)) * unit


def together(recipe: Recipe) -> int:
    """Sequences of one microbatch on every data rank: what batches grow by."""
    return recipe.batch.micro_sequences * recipe.layout.data_ranks


def largest(recipe: Recipe) -> int:
    """Where the batch ends: `most_sequences` in whole microbatches."""
    ramp = recipe.batch.ramp
    return recipe.batch.sequences if ramp is None else ramp.most_sequences // together(recipe) * together(recipe)


def next_batch(recipe: Recipe, batch: int, done: int, total: int, sequence_length: int) -> int:
    """Sequences of the step that begins after `done` of `total`: what a run can know without measuring.

    Args:
        batch: that measurements have come to so far, for the ways that measure.
    """
    ramp = recipe.batch.ramp
    if ramp is not None and ramp.name not in MEASURED:
        batch = _planned(recipe, ramp, done, total, sequence_length)
    left = -(-(total - done) // together(recipe)) * together(recipe)
    return min(batch, left)


def doubled(recipe: Recipe, batch: int, noise_sequences: float) -> int:
    """The batch after a measurement: twice as large where `share` of the noise scale is, and never smaller.

    Args:
        noise_sequences: the lower end of what was measured, so that chance alone does not grow a batch.
    """
    ramp = recipe.batch.ramp
    if ramp is None or 2 * batch > min(largest(recipe), ramp.share * noise_sequences):
        return batch
    return 2 * batch


def rate_exponent(recipe: Recipe) -> float:
    """e in rate ~ B^e."""
    ramp = recipe.batch.ramp
    if ramp is not None and ramp.follows is not None:
        return EXPONENTS[ramp.follows]
    return EXPONENTS["linear" if str(recipe.optimizer.name) in LINEAR_RATE else "sqrt"]


def learning_rate(recipe: Recipe, batch: int, done: int, total: int) -> float:
    """Rate of the step of `batch` sequences that begins after `done` of `total`."""
    first = recipe.batch.sequences
    share = rate_share(recipe.schedule, done / first, total / first)
    return float(recipe.optimizer.lr * share * (batch / first) ** rate_exponent(recipe))


def stages(job: Job, recipe: Recipe, critical: CriticalTokens = critical_batch_tokens) -> tuple[Stage, ...]:
    """The run as stretches of equal batches, step for step as the trainer takes them where nothing is measured.

    Args:
        critical: critical batch in tokens after so many tokens, for the ways that measure it; it must not fall.
    """
    total = total_sequences(job, recipe)
    ramp = recipe.batch.ramp
    if ramp is None:
        return (Stage(0, recipe.batch.sequences, -(-total // recipe.batch.sequences)),)
    found: list[Stage] = []
    done = 0
    while done < total:
        batch = _expected(recipe, ramp, done, total, job.sequence_length, critical)
        # The first place where the batch is larger; it never falls, so bisection finds it.
        low, high = done, total
        while high - low > 1:
            middle = (low + high) // 2
            larger = _expected(recipe, ramp, middle, total, job.sequence_length, critical) > batch
            low, high = (low, middle) if larger else (middle, high)
        steps = -(-(high - done) // batch)
        found.append(Stage(done, batch, steps))
        done += steps * batch
    return tuple(found)


def steps(job: Job, recipe: Recipe, critical: CriticalTokens = critical_batch_tokens) -> int:
    """Optimizer steps of a run, `stages` added up."""
    return sum(stage.steps for stage in stages(job, recipe, critical))


def _planned(recipe: Recipe, ramp: Ramp, done: int, total: int, sequence_length: int) -> int:
    first, unit = recipe.batch.sequences, together(recipe)
    if ramp.name == "linear" and ramp.to_tokens is not None:
        through = (done * sequence_length - ramp.from_tokens) / (ramp.to_tokens - ramp.from_tokens)
        asked = first + (ramp.most_sequences - first) * min(1.0, max(0.0, through))
    else:
        step = done / first
        share = rate_share(recipe.schedule, step, total / first) if step >= recipe.schedule.warmup_steps else 1.0
        asked = first / share if share * ramp.most_sequences > first else ramp.most_sequences
    # A rounding error must not cost a whole microbatch.
    return max(first, min(largest(recipe), int(asked / unit + 1e-9) * unit))


def _expected(recipe: Recipe, ramp: Ramp, done: int, total: int, sequence_length: int, critical: CriticalTokens) -> int:
    if ramp.name not in MEASURED:
        return _planned(recipe, ramp, done, total, sequence_length)
    batch = recipe.batch.sequences
    noise = critical(done * sequence_length) / EXCESS_AT_CRITICAL / sequence_length
    while (grown := doubled(recipe, batch, noise)) > batch:
        batch = grown
    return batch
