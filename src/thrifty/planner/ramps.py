"""Whether a batch that grows would be cheaper than the plan's: fewer steps, fewer tokens wasted early, dearer steps.

A run that comes as far has as many useful tokens (`cost.ramped`), so what counts is money over useful tokens:

    saving = 1 - (money with the ramp / money) x (useful tokens / useful tokens with the ramp)

Two ramps are looked at: doubling as the critical batch grows, from where it is after a hundredth of the tokens
(`noise_scale`, which measures it), and growing as the rate falls (`seesaw`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from thrifty.cost.params import total_parameters
from thrifty.cost.ramped import at_batch, phases, useful_tokens
from thrifty.cost.run import Run, estimate
from thrifty.laws import loss as loss_law
from thrifty.laws.critical_batch import critical_batch_tokens
from thrifty.planner.space import Candidate
from thrifty.spec.cluster import Cluster
from thrifty.spec.job import Job
from thrifty.spec.recipe import Recipe
from thrifty.spec.schedule import Ramp

EARLY = 0.01  # of the tokens, after which a ramp may begin to grow
LARGEST = 4  # times the plan's batch, that a ramp may reach
LEAST_SAVING = 0.03  # of money for the same progress, to be told
SOURCES = {"noise_scale": "arXiv:2410.21676", "seesaw": "arXiv:2510.14717"}


@dataclass(frozen=True, slots=True)
class Advice:
    """A ramp beside the plan's one batch.

    Attributes:
        saving: of money, for the same progress.
        fewer_steps: share of the serial steps that it saves, for the same tokens.
        useful: tokens that are not wasted on too large a batch, over those of the plan.
    """

    recipe: Recipe
    run: Run
    saving: float
    fewer_steps: float
    useful: float


def advise(job: Job, cluster: Cluster, best: Candidate) -> Advice | None:
    """The ramp that saves most; None where none saves enough to be told, or one is there."""
    if best.recipe.batch.ramp is not None or best.recipe.software != "thrifty" or job.tokens is None:
        return None
    if not best.run.usd:
        return None  # nothing to save on a free cluster
    if loss_law.why_not(job, total_parameters(job.model), job.tokens):
        return None  # nor does the law of the critical batch hold there
    plain = useful_tokens(job, best.recipe)
    growing = [one for one in _ramps(job, best.recipe) if len(phases(job, one)) > 1]
    found = [_compared(job, cluster, best, plain, one) for one in growing]
    most = max(found, key=lambda one: one.saving, default=None)
    return most if most is not None and most.saving > LEAST_SAVING else None


def _compared(job: Job, cluster: Cluster, best: Candidate, plain: float, ramped: Recipe) -> Advice:
    run = estimate(job, cluster, ramped, best.run.memory)
    useful = useful_tokens(job, ramped) / plain
    saving = 1 - run.usd / best.run.usd / useful
    return Advice(ramped, run, saving, 1 - run.steps / best.run.steps, useful)


def _ramps(job: Job, recipe: Recipe) -> Iterator[Recipe]:
    batch, together = recipe.batch.sequences, recipe.batch.micro_sequences * recipe.layout.data_ranks
    assert job.tokens is not None
    early = critical_batch_tokens(EARLY * job.tokens) / job.sequence_length
    first = batch
    while first > early and first % 2 == 0 and first // 2 % together == 0:
        first //= 2
    names = ("noise_scale", "seesaw") if recipe.schedule.name != "constant" else ("noise_scale",)
    for name in names:
        begin = first if name == "noise_scale" else batch
        ramp = Ramp(name=name, most_sequences=LARGEST * batch)
        plain = at_batch(recipe, begin)
        yield plain.model_copy(update={"batch": plain.batch.model_copy(update={"ramp": ramp})})


def told(job: Job, cluster: Cluster, best: Candidate) -> list[str]:
    """One line of advice, or none."""
    found = advise(job, cluster, best)
    if found is None or found.recipe.batch.ramp is None:
        return []
    name, ran = found.recipe.batch.ramp.name, phases(job, found.recipe)
    return [
        f"ramp none (not run yet): {name} {ran[0].sequences} to {ran[-1].sequences}, {found.saving:.0%} cheaper in "
        f"{1 - found.fewer_steps:.2g}x the steps ({SOURCES[name]})"
    ]
