"""predict(job, cluster, recipe) -> Bill: every term of a run's cost, by formula."""

from __future__ import annotations

from collections.abc import Callable

from thrifty.catalog.gains import fewer_tokens
from thrifty.cost import constants, energy, flops
from thrifty.cost.compute import rank_of
from thrifty.cost.memory import Memory, interval
from thrifty.cost.params import total_parameters
from thrifty.cost.profiles import Profile, profile
from thrifty.cost.ramped import at_batch, phases, run_tokens
from thrifty.cost.run import Run, estimate, evaluation_batches, evaluations
from thrifty.cost.traffic import LINKS, bytes_between_islands, collectives, evaluation_by_link, sent_by_link
from thrifty.laws import loss as loss_law
from thrifty.spec.bill import Bill
from thrifty.spec.cluster import Cluster
from thrifty.spec.figure import Figure, modelled
from thrifty.spec.job import Job
from thrifty.spec.plan import tokens_per_step
from thrifty.spec.recipe import Recipe

_PART_SOURCES = {
    "startup": "imports, process groups, compilation",
    "compute": "roofline of forward and backward passes",
    "communication": "rings, less what computation hides",
    "optimizer": "bytes of parameters, gradients and states",
    "data": "host work of a step",
    "evaluation": "forward passes of the validation sequences",
    "checkpoint": "12 bytes a parameter over the disk's rate",
    "other": "1 / goodput - 1 of the rest",
}
_MEMORY_SOURCES = {
    "parameters": "what the fullest rank holds of its stage",
    "gradients": "what the fullest rank holds of its stage",
    "optimizer": "moments of the optimizer, fp32 masters of 16-bit parameters, 4 bytes a tensor",
    "activations": "tensors kept for the backward pass, x microbatches in flight",
    "logits": "all copies at the loss; this trainer: of one chunk",
    "communication": "gathered parameters, gradients on their way, buffers",
    "runtime": "accelerator.runtime_memory, and libraries' workspaces",
}


def predict(job: Job, cluster: Cluster, recipe: Recipe) -> Bill:
    """What a run would cost.

    Every figure is modelled, its source naming the formula; time and activations carry an interval. The loss is there
    only where `laws.loss` applies.

    Raises:
        ThriftyError: the accelerator has no rate for the recipe's precision.
        ValueError: the job says neither tokens nor steps.
    """
    run = estimate(job, cluster, recipe)
    is_ramp = recipe.batch.ramp is not None
    tokens = run_tokens(job, recipe) if is_ramp else run.steps * tokens_per_step(job, recipe)
    model_flops = flops.model_flops_per_token(job.model, job.sequence_length) * tokens
    in_steps = run.steps * run.step.total
    peak = rank_of(cluster, recipe).peak_flops * recipe.layout.ranks
    how = profile(recipe.software, cluster)
    time, rate = _proportional(how), _inverse(how)
    joules = energy.energy_joules(cluster, run.seconds)
    return Bill(
        maker="predicted",
        seconds=time(run.seconds, "s", "sum of the parts"),
        step_seconds=time(run.step.total, "s", f"roofline and alpha-beta, profile {how.name}"),
        seconds_by_part={name: _part(name, seconds, time) for name, seconds in run.parts.items()},
        steps=modelled(run.steps, "1", _steps_source(job, recipe)),
        tokens=modelled(tokens, "token", "of all phases" if is_ramp else "steps x sequences x sequence length"),
        tokens_per_second=rate(tokens / in_steps, "token/s", "tokens over time in steps"),
        model_flops=modelled(model_flops, "FLOP", "6 x matrix parameters + 6 x layers x width x sequence, a token"),
        hardware_flops=_hardware_flops(job, recipe, run, tokens),
        mfu=rate(model_flops / (in_steps * peak), "1", f"model FLOPs over {recipe.precision} peak of the ranks"),
        memory=_memory(run.memory, recipe.software),
        peak_memory=_total(run.memory, run.memory.peak, "largest of the moments of a step", recipe.software),
        reserved_memory=_total(run.memory, run.memory.reserved, "peak x what the allocator keeps", recipe.software),
        link_bytes=_link_bytes(job, cluster, recipe, run),
        energy=time(joules, "J", "idle + (TDP - idle) x utilisation + host, x PUE, every device"),
        usd=time(run.usd, "usd", "devices x hours x price"),
        co2=time(energy.co2_grams(cluster, joules), "g", "energy x grid intensity"),
        loss=loss_law.predicted_loss(job, total_parameters(job.model), worth_tokens(job, recipe, tokens)),
    )


def worth_tokens(job: Job, recipe: Recipe, tokens: float) -> float:
    """Tokens with which tuned AdamW, for which loss laws hold, reaches the loss of the recipe's optimizer."""
    return tokens * fewer_tokens(recipe.optimizer.name, total_parameters(job.model)).value


def _proportional(how: Profile) -> Callable[[float, str, str], Figure]:
    """Makes figures that are proportional to time, with the profile's 80% interval."""
    below, above = how.low, how.high
    return lambda value, unit, source: modelled(value, unit, source, low=value * below, high=value * above)


def _part(name: str, seconds: float, time: Callable[[float, str, str], Figure]) -> Figure:
    """One part of the wall time; some are known less well than the whole."""
    figure = time(seconds, "s", _PART_SOURCES[name])
    if name not in constants.LOOSE_PARTS:
        return figure
    below, above = constants.LOOSE_INTERVAL
    return figure.model_copy(update={"low": seconds * below, "high": seconds * above})


def _inverse(how: Profile) -> Callable[[float, str, str], Figure]:
    """Makes figures that are inverse to time."""
    below, above = how.low, how.high
    return lambda value, unit, source: modelled(value, unit, source, low=value / above, high=value / below)


def _steps_source(job: Job, recipe: Recipe) -> str:
    if recipe.batch.ramp is not None:
        return f"phases of batch.ramp {recipe.batch.ramp.name}, laws.ramp"
    return "tokens over tokens a step" if job.steps is None else "given"


def mean_sent_by_link(job: Job, cluster: Cluster, recipe: Recipe) -> dict[str, float]:
    """Bytes that one rank sends in one optimizer step, by link; with a ramp the mean of all."""
    if recipe.batch.ramp is None:
        return sent_by_link(collectives(job, cluster, recipe))
    found = phases(job, recipe)
    steps, sent = sum(phase.steps for phase in found), dict.fromkeys(LINKS, 0.0)
    for phase in found:
        each = sent_by_link(collectives(job, cluster, at_batch(recipe, phase.sequences)))
        for link in LINKS:
            sent[link] += each[link] * phase.steps / steps
    return sent


def _hardware_flops(job: Job, recipe: Recipe, run: Run, tokens: int) -> Figure:
    shape, length = job.model, job.sequence_length
    evaluated = evaluations(recipe, run.steps) * recipe.evaluation.sequences * length
    executed = flops.hardware_flops_per_token(shape, length, recipe.recompute) * tokens
    executed += flops.forward_flops_per_token(shape, length) * evaluated
    return modelled(executed, "FLOP", "model FLOPs, recomputed forward passes and evaluations")


def _memory(used: Memory, software: str) -> dict[str, Figure]:
    figures = {name: modelled(value, "byte", _MEMORY_SOURCES[name]) for name, value in used.terms().items()}
    below, above = constants.ACTIVATION_INTERVAL if software == "thrifty" else interval(software)
    for name in ("activations", "logits"):
        value = figures[name].value
        figures[name] = figures[name].model_copy(update={"low": value * below, "high": value * above})
    return figures


def _total(used: Memory, value: float, source: str, software: str) -> Figure:
    """A total with its interval: of this trainer what is counted is sure, but for activations and logits."""
    if software != "thrifty":
        below, above = interval(software)
        return modelled(value, "byte", source, low=value * below, high=value * above)
    below, above = constants.ACTIVATION_INTERVAL
    uncertain = used.activations + used.logits
    return modelled(value, "byte", source, low=value - (1 - below) * uncertain, high=value + (above - 1) * uncertain)


def _link_bytes(job: Job, cluster: Cluster, recipe: Recipe, run: Run) -> dict[str, Figure]:
    sent = collectives(job, cluster, recipe)
    training, evaluating = (
        mean_sent_by_link(job, cluster, recipe),
        evaluation_by_link(sent, recipe, evaluation_batches(recipe)),
    )
    looks = evaluations(recipe, run.steps)
    total = {link: training[link] * run.steps + evaluating[link] * looks for link in LINKS}
    if recipe.software == "thrifty" and recipe.layout.island > 1 and recipe.exchange.between_islands:
        link, crossed = bytes_between_islands(job, cluster, recipe, run.steps)
        on_average = sum(one.sent_bytes * one.count for one in sent if one.axis == "island")
        total[link] += crossed - on_average * run.steps
    return {link: modelled(size, "byte", "ring collectives of one rank") for link, size in total.items()}
