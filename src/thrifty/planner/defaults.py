"""What a plan chooses by rule, not by search: batch, learning rate, warm-up, how often to evaluate and to save."""

from __future__ import annotations

import math
from dataclasses import dataclass

from thrifty.catalog.gains import fewer_tokens
from thrifty.cost.flops import model_flops_per_token
from thrifty.cost.params import counts, total_parameters
from thrifty.cost.run import Run, checkpoint_seconds, evaluation_seconds
from thrifty.laws import batch as batch_law
from thrifty.laws import loss as loss_law
from thrifty.planner.space import Candidate, Tree, at, divisors, put
from thrifty.spec import units
from thrifty.spec.cluster import Cluster
from thrifty.spec.errors import ThriftyError
from thrifty.spec.job import Job
from thrifty.spec.load import Settings, build
from thrifty.spec.plan import total_steps
from thrifty.spec.recipe import Recipe
from thrifty.spec.software import RUNS

# A GPU of a 16,384-GPU run was interrupted once in 50,000 hours: 419 unexpected interruptions in 54 days (Llama 3,
# arXiv:2407.21783, section 3.3.4). Young 1974: the interval that loses least is sqrt(2 x cost x time between failures).
DEVICE_HOURS_BETWEEN_FAILURES = 50_000
LONGEST_CHECKPOINT_INTERVAL_SECONDS = 1800.0
WAITING_SHARE = 0.01  # of the time, for checkpoints that training waits for
EVALUATION_SHARE = 0.02  # of the time in steps, at most
MOST_EVALUATIONS = 20
WARMUP_SHARE, LONGEST_WARMUP = 0.05, 2000  # of the steps; 2000 as DeepSeek LLM and Llama 2 had


@dataclass(frozen=True)
class Chosen:
    """A value and one line that says why."""

    value: float
    reason: str


def block_flops_per_token(job: Job) -> float:
    """FLOPs of the blocks alone for one token, which the batch law counts."""
    return model_flops_per_token(job.model, job.sequence_length) - 6 * counts(job.model).head


def batch_sequences(job: Job, ranks: int | None, micro_sequences: int, devices: int = 1) -> Chosen:
    """Sequences in one optimizer step by the batch law, rounded to a power of two of microbatches for every rank.

    Args:
        ranks: that share a step; None where the search also chooses how many.
        micro_sequences: given by the user, else 1.
        devices: whose divisors may share it, where `ranks` is None.
    """
    per_token = block_flops_per_token(job)
    if job.steps is not None:
        wanted = batch_law.optimal_batch_for_steps(per_token, job.steps)
        bound = ""
    else:
        tokens = _tokens(job)
        wanted, most = batch_law.optimal_batch_tokens(per_token * tokens), tokens / batch_law.LEAST_STEPS
        bound = f", held to {batch_law.LEAST_STEPS:,} steps" if most < wanted else ""
        wanted = min(wanted, most)
    share = (ranks or _shared_by_most(wanted / job.sequence_length / micro_sequences, devices)) * micro_sequences
    sequences = share * 2 ** max(0, round(math.log2(max(1.0, wanted / job.sequence_length / share))))
    here = f"{sequences} sequences = {units.show(sequences * job.sequence_length, 'token')} tokens a step"
    if ranks and sequences == share > 1 and share * job.sequence_length > 1.5 * wanted:
        bound += f", but {ranks} ranks need {micro_sequences} each; fewer devices would waste less"
    return Chosen(
        sequences, f"batch {here}; the law asks for {units.show(wanted, 'token')} ({batch_law.SOURCE}){bound}"
    )


def _shared_by_most(sequences: float, devices: int) -> int:
    """The divisor of the devices that a batch near `sequences` should be a power of two times, so that it divides
    among as many numbers of data ranks as can be."""

    def shared(divisor: int) -> tuple[int, int, float]:
        near = divisor * 2 ** max(0, round(math.log2(max(1.0, sequences / divisor))))
        off = abs(math.log(near / max(1.0, sequences)))
        return (len(divisors(math.gcd(near, devices))) if off < 0.5 else 0, -divisor, -off)

    return max(divisors(devices), key=shared)


def learning_rate(job: Job, sequences: int) -> Chosen:
    """Peak learning rate by the batch law, two digits."""
    step_tokens = sequences * job.sequence_length
    tokens = job.steps * step_tokens if job.steps is not None else _tokens(job)
    rate = batch_law.learning_rate(block_flops_per_token(job) * tokens, step_tokens)
    return Chosen(float(f"{rate:.1e}"), f"optimizer.lr {rate:.1e} by compute and batch ({batch_law.SOURCE})")


def _tokens(job: Job) -> int:
    """Tokens of a job that is sized by tokens.

    Raises:
        ThriftyError: it is sized by neither tokens nor steps.
    """
    if job.tokens is None:
        raise ThriftyError("the job has neither tokens nor steps", where="job.tokens", hint="say how long to train")
    return job.tokens


def warmup_steps(steps: int) -> Chosen:
    """A twentieth of the run, at most 2,000 steps."""
    warmup = min(LONGEST_WARMUP, max(1, round(WARMUP_SHARE * steps)))
    return Chosen(warmup, f"schedule.warmup_steps {warmup}: 5% of the steps, at most {LONGEST_WARMUP:,}")


def evaluation_interval(recipe: Recipe, run: Run) -> Chosen:
    """Steps between evaluations: twenty of them, fewer where they would take over 2% of the time in steps."""
    each = evaluation_seconds(recipe, run.step)
    every = max(run.steps / MOST_EVALUATIONS, each / (EVALUATION_SHARE * run.step.total))
    rounded = _round_up(every)
    if rounded >= run.steps:
        return Chosen(0, "evaluation only at the end: one more would take over 2% of the time")
    return Chosen(rounded, f"evaluation every {rounded} steps: at most {MOST_EVALUATIONS}, and 2% of the time")


def checkpoint_interval(job: Job, cluster: Cluster, recipe: Recipe, run: Run) -> Chosen:
    """Steps between checkpoints, by Young's rule, at most half an hour."""
    failures = DEVICE_HOURS_BETWEEN_FAILURES * 3600 / cluster.devices
    young = math.sqrt(2 * checkpoint_seconds(job, cluster, recipe) * failures)
    seconds = min(young, LONGEST_CHECKPOINT_INTERVAL_SECONDS)
    every = max(1, math.floor(seconds / run.step.total))
    if every >= run.steps:
        return Chosen(0, "checkpoint only at the end: the run is shorter than half an hour")
    rule = "Young's rule" if young < LONGEST_CHECKPOINT_INTERVAL_SECONDS else "at most"
    return Chosen(every, f"checkpoint every {every} steps: {rule} {seconds / 60:.0f} min between them")


def checkpoint_asynchronous(job: Job, cluster: Cluster, recipe: Recipe, run: Run) -> Chosen:
    """Whether to write checkpoints while training goes on: where waiting for them would take over 1% of the time.

    It copies the states once more in host memory, so where waiting is cheap, waiting is better.
    """
    every = recipe.checkpoint.every_steps
    waiting = recipe.model_copy(update={"checkpoint": recipe.checkpoint.model_copy(update={"asynchronous": False})})
    share = checkpoint_seconds(job, cluster, waiting) / (every * run.step.total) if every else 0.0
    if share > WAITING_SHARE:
        return Chosen(1, f"checkpoint.asynchronous: waiting for each would take {share:.1%} of the time")
    return Chosen(0, "")


def _round_up(value: float) -> int:
    """The next of 1, 2, 5, 10, 20, 50, ..."""
    scale = 10 ** math.floor(math.log10(max(1.0, value)))
    return int(next(scale * step for step in (1, 2, 5, 10) if scale * step >= value))


# ---- the rules in order


def with_tokens(job: Job, said: list[str], optimizer: str = "adamw") -> Job:
    """The job with tokens filled in where only a target loss says how long to train; fewer where the optimizer needs
    fewer."""
    parameters = total_parameters(job.model)
    if job.tokens is None and job.steps is None and job.target_loss is not None:
        why_not = loss_law.why_not(job, parameters)
        if why_not:
            hint = "say tokens or steps as well; training still stops early at the target"
            raise ThriftyError(f"target_loss alone cannot be planned: {why_not}", where="job.target_loss", hint=hint)
        factor = fewer_tokens(optimizer, parameters).value
        tokens = math.ceil(loss_law.tokens_for_loss(parameters, job.target_loss) / factor)
        fewer = f", {factor:.3g} times sooner with {optimizer}" if factor != 1 else ""
        said.append(f"tokens {units.show(tokens, 'token')}: the loss law reaches {job.target_loss:g} there{fewer}")
        return job.model_copy(update={"tokens": tokens})
    if job.tokens is not None and not loss_law.why_not(job, parameters):
        optimal = loss_law.compute_optimal_tokens(parameters)
        said.append(
            f"tokens {units.show(job.tokens, 'token')}: {job.tokens / parameters:.3g} per parameter; "
            f"compute-optimal by the loss law is {optimal / parameters:.3g}"
        )
    return job


def complete(job: Job, cluster: Cluster, settings: Settings, said: list[str]) -> Recipe:
    """A complete recipe with the choices that rules make; the search varies the others."""
    tree = settings.tree
    if at(tree, "batch.sequences") is None:
        micro = at(tree, "batch.micro_sequences") or 1
        devices = 1 if cluster.accelerator.kind == "cpu" else cluster.devices
        chosen = batch_sequences(job, _ranks(cluster, tree), micro, devices)
        tree = put(tree, "batch.sequences", int(chosen.value))
        said.append(chosen.reason)
    for key in ("evaluation.every_steps", "checkpoint.every_steps"):
        if at(tree, key) is None:
            tree = put(tree, key, 0)
    if at(tree, "batch.micro_sequences") is None:
        # The given layout is checked against the batch here; the search tries all that divide it.
        tree = put(tree, "batch.micro_sequences", 1)
    recipe = build(Recipe, Settings(tree, settings.origins), "")
    if at(tree, "optimizer.lr") is None:
        chosen = learning_rate(job, recipe.batch.sequences)
        recipe = recipe.model_copy(update={"optimizer": recipe.optimizer.model_copy(update={"lr": chosen.value})})
        said.append(chosen.reason)
    if at(tree, "schedule.warmup_steps") is None:
        chosen = warmup_steps(total_steps(job, recipe))
        schedule = recipe.schedule.model_copy(update={"warmup_steps": int(chosen.value)})
        recipe = recipe.model_copy(update={"schedule": schedule})
        said.append(chosen.reason)
    return recipe


def _ranks(cluster: Cluster, given: Tree) -> int | None:
    """Ranks that share a batch, where that is settled before the search."""
    island, shard = at(given, "layout.island"), at(given, "layout.shard")
    if island and shard:
        return int(island * shard)
    runs = RUNS[given.get("software") or "thrifty"]
    sizes = {axis: at(given, f"layout.{axis}") for axis in ("pipeline", "context", "tensor")}
    if cluster.accelerator.kind == "cpu" or any(axis in runs.axes and not size for axis, size in sizes.items()):
        return None
    return max(1, cluster.devices // math.prod(int(size or 1) for size in sizes.values()))


def intervals(job: Job, cluster: Cluster, best: Candidate, given: Tree, said: list[str]) -> Recipe:
    """How often to evaluate and to save, from the time of the chosen recipe's step."""
    recipe = best.recipe
    if at(given, "evaluation.every_steps") is None:
        chosen = evaluation_interval(recipe, best.run)
        evaluation = recipe.evaluation.model_copy(update={"every_steps": int(chosen.value)})
        recipe = recipe.model_copy(update={"evaluation": evaluation})
        said.append(chosen.reason)
    if at(given, "checkpoint.every_steps") is None:
        chosen = checkpoint_interval(job, cluster, recipe, best.run)
        checkpoint = recipe.checkpoint.model_copy(update={"every_steps": int(chosen.value)})
        recipe = recipe.model_copy(update={"checkpoint": checkpoint})
        said.append(chosen.reason)
    if at(given, "checkpoint.asynchronous") is None:
        chosen = checkpoint_asynchronous(job, cluster, recipe, best.run)
        checkpoint = recipe.checkpoint.model_copy(update={"asynchronous": bool(chosen.value)})
        recipe = recipe.model_copy(update={"checkpoint": checkpoint})
        said.extend([chosen.reason] if chosen.value else [])
    return Recipe.model_validate(recipe.model_dump())
