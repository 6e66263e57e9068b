"""A whole run from one step: start-up, evaluations, checkpoints, what is lost, and what it all costs.

Numbers only, so that a search can ask for thousands of them; `predict` makes a Bill of the one that is chosen.
"""

from __future__ import annotations

from dataclasses import dataclass

from thrifty.cost import constants, energy
from thrifty.cost.memory import Memory, memory
from thrifty.cost.params import counts
from thrifty.cost.profiles import profile
from thrifty.cost.ramped import mean_step
from thrifty.cost.step import StepSeconds, step_seconds
from thrifty.spec.cluster import Cluster
from thrifty.spec.figure import Figure
from thrifty.spec.job import Job
from thrifty.spec.plan import total_steps
from thrifty.spec.recipe import Recipe


@dataclass(frozen=True, slots=True)
class Run:
    """Time, money and memory of a run.

    Attributes:
        parts: `spec.bill.TIME_PARTS` to seconds; their sum is `seconds`.
        step: time of one optimizer step by part; with a ramp the mean.
        memory: of the fullest rank.
    """

    steps: int
    step: StepSeconds
    parts: dict[str, float]
    seconds: float
    usd: float
    memory: Memory


def estimate(job: Job, cluster: Cluster, recipe: Recipe, used: Memory | None = None) -> Run:
    """Prices a recipe.

    Args:
        used: its memory, where the caller has asked for that already.

    Raises:
        ThriftyError: the accelerator has no rate for the recipe's precision.
        ValueError: the job says neither tokens nor steps.
    """
    if recipe.batch.ramp is None:
        steps, step = total_steps(job, recipe), step_seconds(job, cluster, recipe)
    else:
        steps, step = mean_step(job, cluster, recipe)
    parts = {
        "startup": startup_seconds(cluster, recipe),
        "compute": steps * step.compute,
        "communication": steps * step.communication,
        "optimizer": steps * step.optimizer,
        "data": steps * step.data,
        "evaluation": evaluations(recipe, steps) * evaluation_seconds(recipe, step),
        "checkpoint": checkpoints(recipe, steps) * checkpoint_seconds(job, cluster, recipe),
    }
    # Goodput is the share of wall time that is useful; the rest of it is lost to restarts, stragglers and hand-overs.
    parts["other"] = sum(parts.values()) * (1 / cluster.goodput.value - 1)
    seconds = sum(parts.values())
    return Run(steps, step, parts, seconds, energy.price_usd(cluster, seconds), used or memory(job, cluster, recipe))


def with_experiments(job: Job, figure: Figure) -> Figure:
    """A cost of the run with that of the development runs that come on top: x (1 + job.experiments)."""
    factor = 1 + job.experiments
    low, high = (None if end is None else end * factor for end in (figure.low, figure.high))
    source = f"{figure.source}; x {factor:g}: development runs on top"
    return figure.model_copy(update={"value": figure.value * factor, "low": low, "high": high, "source": source})


def startup_seconds(cluster: Cluster, recipe: Recipe) -> float:
    """From the command to the first step: imports, process groups, compilation."""
    how, kind = profile(recipe.software, cluster), cluster.accelerator.kind
    starting = constants.STARTUP_SECONDS[kind] if how.startup_seconds is None else how.startup_seconds
    launching = how.launch_seconds if recipe.layout.ranks > 1 else 0.0
    return starting + launching + (constants.COMPILE_SECONDS[kind] if recipe.compile else 0.0)


def evaluations(recipe: Recipe, steps: int) -> int:
    """Evaluations of a run: every so many steps, and one at the end."""
    return _times(recipe.evaluation.every_steps, steps)


def checkpoints(recipe: Recipe, steps: int) -> int:
    """Checkpoints of a run: every so many steps, and one at the end."""
    return _times(recipe.checkpoint.every_steps, steps)


def _times(every: int, steps: int) -> int:
    return 1 + ((steps - 1) // every if every else 0)


def evaluation_seconds(recipe: Recipe, step: StepSeconds) -> float:
    """One evaluation: forward passes of the validation sequences, shared by the ranks."""
    waited = step.communication / recipe.accumulation / 3  # of two gathers and a reduction, one gather
    return evaluation_batches(recipe) * (step.forward_microbatch + waited)


def evaluation_batches(recipe: Recipe) -> int:
    """Forward passes of one rank in one evaluation; the last one may be partly empty."""
    return -(-recipe.evaluation.sequences // (recipe.batch.micro_sequences * recipe.layout.data_ranks))


def checkpoint_seconds(job: Job, cluster: Cluster, recipe: Recipe) -> float:
    """One checkpoint: parameters and optimizer states written by all nodes, or copied and written aside."""
    kind = cluster.accelerator.kind
    total = constants.CHECKPOINT_BYTES_PER_PARAMETER * counts(job.model).total
    if recipe.checkpoint.asynchronous:
        return total / recipe.layout.shard / cluster.accelerator.memory_bandwidth.value
    written = total / (constants.CHECKPOINT_BYTES_PER_S[kind] * cluster.nodes)
    return constants.CHECKPOINT_FIXED_SECONDS[kind] + written
