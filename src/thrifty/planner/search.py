"""plan(job, cluster, recipe) -> Plan: prices every recipe that the user left open and takes the cheapest that fits.

Cheapest in money, then in time; of those within 1% of it, the one that needs least memory, since predictions are not
that fine. A lever that departs from the plain way (bf16, torch.compile) must save more than its threshold. Nothing is
searched for accuracy: what changes the numbers (batch, learning rate) follows published laws and is said to.
"""

from __future__ import annotations

import datetime
import math
from collections.abc import Sequence
from dataclasses import dataclass

import thrifty
from thrifty.cost.memory import usable_bytes
from thrifty.cost.params import total_parameters
from thrifty.cost.predict import predict
from thrifty.cost.run import estimate
from thrifty.laws import loss as loss_law
from thrifty.planner import defaults, reasons, space
from thrifty.planner.space import Candidate, Tree, at, put
from thrifty.spec import units
from thrifty.spec.cluster import Cluster
from thrifty.spec.errors import ThriftyError
from thrifty.spec.job import Job
from thrifty.spec.load import Settings, build, from_dict, leaves
from thrifty.spec.plan import Plan, fingerprint, total_steps
from thrifty.spec.recipe import Recipe

NEAR = 0.01  # candidates within this share of the cheapest count as equally cheap
RUNNERS_UP = 3
NAMED = 6  # keys that the user gave, before the rest is only counted


@dataclass(frozen=True)
class Search:
    """What a search found.

    Attributes:
        runners_up: the next cheapest ways, one candidate for each layout, precision and recomputation.
        tried: recipes priced.
        excluded: of them, those that do not fit.
        kept: keys that the user gave.
    """

    plan: Plan
    runners_up: tuple[Candidate, ...]
    tried: int
    excluded: int
    kept: tuple[str, ...]


def plan(job: Job, cluster: Cluster, recipe: Settings | Recipe | None = None) -> Plan:
    """The cheapest plan for a job on a cluster; arguments and errors as `search`."""
    return search(job, cluster, recipe).plan


def search(job: Job, cluster: Cluster, recipe: Settings | Recipe | None = None) -> Search:
    """Prices the recipes that the user left open.

    Args:
        recipe: keys to keep, as in `Recipe`; what is not there is chosen. A whole Recipe is only priced.

    Raises:
        ThriftyError: nothing fits, a given key contradicts the cluster or the job, or a target loss is out of reach.
    """
    settings = recipe if isinstance(recipe, Settings) else from_dict(recipe.model_dump() if recipe else {}, "recipe")
    given, said = settings.tree, list[str]()
    job = _with_tokens(job, said)
    space.layouts(cluster, given)  # a layout that the devices cannot have is told before the batch it would need
    base = _base(job, cluster, settings, said)
    candidates = [_price(job, cluster, candidate) for candidate in space.recipes(base, cluster, given)]
    if not candidates:
        raise _nothing_divides(base, cluster, given)
    fitting = [candidate for candidate in candidates if candidate.fits]
    if not fitting:
        raise reasons.no_fit(job, cluster, candidates, given)
    best = choose(job, cluster, fitting)
    idle = cluster.devices - best.recipe.layout.ranks * cluster.devices_per_rank(best.recipe.layout.ranks)
    if idle > 0:
        said.append(f"{idle} of {cluster.devices} devices have nothing to do, and are paid for")
    said += reasons.levers(job, cluster, best, candidates, given)
    chosen = _intervals(job, cluster, best, given, said)
    kept = tuple(key for key, _ in leaves(given))
    if kept and not isinstance(recipe, Recipe):
        more = f" and {len(kept) - NAMED} more" if len(kept) > NAMED else ""
        said.append(f"kept as given: {', '.join(kept[:NAMED])}{more}")
    made = Plan(
        job=job,
        cluster=cluster,
        recipe=chosen,
        predicted=predict(job, cluster, chosen),
        reasons=tuple(said),
        made_with=f"thrifty {thrifty.__version__}, {datetime.date.today().isoformat()}",
        hash=fingerprint(job, cluster, chosen),
    )
    return Search(
        made, _runners_up(job, cluster, chosen, best, fitting), len(candidates), len(candidates) - len(fitting), kept
    )


def _with_tokens(job: Job, said: list[str]) -> Job:
    """The job with tokens filled in where only a target loss says how long to train."""
    parameters = total_parameters(job.model)
    if job.tokens is None and job.steps is None and job.target_loss is not None:
        why_not = loss_law.why_not(job, parameters)
        if why_not:
            hint = "say tokens or steps as well; training still stops early at the target"
            raise ThriftyError(f"target_loss alone cannot be planned: {why_not}", where="job.target_loss", hint=hint)
        tokens = math.ceil(loss_law.tokens_for_loss(parameters, job.target_loss))
        said.append(f"tokens {units.show(tokens, 'token')}: the loss law reaches {job.target_loss:g} there")
        return job.model_copy(update={"tokens": tokens})
    if job.tokens is not None and not loss_law.why_not(job, parameters):
        optimal = loss_law.compute_optimal_tokens(parameters)
        said.append(
            f"tokens {units.show(job.tokens, 'token')}: {job.tokens / parameters:.3g} per parameter; "
            f"compute-optimal by the loss law is {optimal / parameters:.3g}"
        )
    return job


def _base(job: Job, cluster: Cluster, settings: Settings, said: list[str]) -> Recipe:
    """A complete recipe with the choices that rules make; the search varies the others."""
    tree = settings.tree
    if at(tree, "batch.sequences") is None:
        chosen = defaults.batch_sequences(job, _ranks(cluster, tree), at(tree, "batch.micro_sequences") or 1)
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
        chosen = defaults.learning_rate(job, recipe.batch.sequences)
        recipe = recipe.model_copy(update={"optimizer": recipe.optimizer.model_copy(update={"lr": chosen.value})})
        said.append(chosen.reason)
    if at(tree, "schedule.warmup_steps") is None:
        chosen = defaults.warmup_steps(total_steps(job, recipe))
        schedule = recipe.schedule.model_copy(update={"warmup_steps": int(chosen.value)})
        recipe = recipe.model_copy(update={"schedule": schedule})
        said.append(chosen.reason)
    return recipe


def _ranks(cluster: Cluster, given: Tree) -> int | None:
    """Ranks that share a batch, where that is settled before the search."""
    island, shard = at(given, "layout.island"), at(given, "layout.shard")
    if island and shard:
        return int(island * shard)
    return None if cluster.accelerator.kind == "cpu" else cluster.devices


def _price(job: Job, cluster: Cluster, recipe: Recipe) -> Candidate:
    run = estimate(job, cluster, recipe)
    return Candidate(recipe, run, run.memory.peak <= usable_bytes(cluster, recipe.layout.ranks))


def choose(job: Job, cluster: Cluster, fitting: Sequence[Candidate]) -> Candidate:
    """The cheapest candidate, with levers that must earn their place left off unless they do."""
    pool = list(fitting)
    for lever, plain in reasons.PLAIN.items():
        off = [c for c in pool if getattr(c.recipe, lever) == plain]
        on = [c for c in pool if getattr(c.recipe, lever) != plain]
        if on and off:
            saved = reasons.saved(job, cluster, lever, cheapest(on), cheapest(off))
            pool = on if saved > reasons.threshold(lever, cluster) else off
    least = cheapest(pool)
    near = [
        c
        for c in pool
        if c.run.usd <= least.run.usd * (1 + NEAR) and _steps_seconds(c) <= _steps_seconds(least) * (1 + NEAR)
    ]
    return min(near, key=lambda c: (c.run.memory.peak, c.run.seconds))


def _steps_seconds(candidate: Candidate) -> float:
    """Time in steps: in a short run, start-up would make everything look alike."""
    return candidate.run.steps * candidate.run.step.total


def cheapest(candidates: Sequence[Candidate]) -> Candidate:
    """Least money, then least time."""
    return min(candidates, key=lambda c: (c.run.usd, c.run.seconds))


def _intervals(job: Job, cluster: Cluster, best: Candidate, given: Tree, said: list[str]) -> Recipe:
    """How often to evaluate and to save, from the time of the chosen recipe's step."""
    recipe = best.recipe
    if at(given, "evaluation.every_steps") is None:
        chosen = defaults.evaluation_interval(recipe, best.run)
        evaluation = recipe.evaluation.model_copy(update={"every_steps": int(chosen.value)})
        recipe = recipe.model_copy(update={"evaluation": evaluation})
        said.append(chosen.reason)
    if at(given, "checkpoint.every_steps") is None:
        chosen = defaults.checkpoint_interval(job, cluster, recipe, best.run)
        checkpoint = recipe.checkpoint.model_copy(update={"every_steps": int(chosen.value)})
        recipe = recipe.model_copy(update={"checkpoint": checkpoint})
        said.append(chosen.reason)
    if at(given, "checkpoint.asynchronous") is None:
        chosen = defaults.checkpoint_asynchronous(job, cluster, recipe, best.run)
        checkpoint = recipe.checkpoint.model_copy(update={"asynchronous": bool(chosen.value)})
        recipe = recipe.model_copy(update={"checkpoint": checkpoint})
        said.extend([chosen.reason] if chosen.value else [])
    return Recipe.model_validate(recipe.model_dump())


def _runners_up(
    job: Job, cluster: Cluster, chosen: Recipe, best: Candidate, fitting: Sequence[Candidate]
) -> tuple[Candidate, ...]:
    """The cheapest candidate of each other way to run, cheapest first, evaluated and saved as often as the chosen."""
    found = {_way(best): best}
    for candidate in sorted(fitting, key=lambda c: (c.run.usd, c.run.seconds)):
        found.setdefault(_way(candidate), candidate)
        if len(found) > RUNNERS_UP:
            break
    alike = {"evaluation": chosen.evaluation, "checkpoint": chosen.checkpoint}
    others = [c.recipe.model_copy(update=alike) for c in found.values() if c is not best]
    return tuple(sorted((_price(job, cluster, recipe) for recipe in others), key=lambda c: (c.run.usd, c.run.seconds)))


def _way(candidate: Candidate) -> tuple[object, ...]:
    recipe = candidate.recipe
    return recipe.layout, recipe.precision, recipe.recompute


def _nothing_divides(base: Recipe, cluster: Cluster, given: Tree) -> ThriftyError:
    sequences, micro = base.batch.sequences, at(given, "batch.micro_sequences") or 1
    ranks = sorted({layout.data_ranks for layout in space.layouts(cluster, given)})
    together = ranks[0] * micro
    lower = sequences // together * together
    return ThriftyError(
        f"batch.sequences {sequences} cannot be shared equally by {' or '.join(map(str, ranks[:4]))} ranks"
        + (f" in microbatches of {micro}" if micro > 1 else ""),
        where="recipe.batch.sequences",
        hint=f"use {lower} or {lower + together}" if lower else f"use {together} or a multiple of it",
    )
