"""plan(job, cluster, recipe) -> Plan: searches the recipes that the user left open and takes the cheapest that fits.

Cheapest by the objective, then in time; of those within 1% of it, the one that needs least memory, since predictions
are not that fine. A lever that departs from the plain way (bf16, torch.compile) must save more than its threshold.
Nothing is searched for accuracy: what changes the numbers (batch, learning rate) follows published laws and is said to.
"""

from __future__ import annotations

import datetime
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import thrifty
from thrifty.cost.predict import predict
from thrifty.planner import defaults, other_software, pool, ramps, reasons, space
from thrifty.planner.aim import Aim, Objective, Price, cheapest, price_of, resized, unmet
from thrifty.planner.pool import Pool, price
from thrifty.planner.space import Candidate, Tree, at
from thrifty.spec.bill import Bill
from thrifty.spec.cluster import Cluster
from thrifty.spec.errors import ThriftyError, did_you_mean
from thrifty.spec.job import Job
from thrifty.spec.load import Settings, from_dict, leaves
from thrifty.spec.plan import Plan, fingerprint
from thrifty.spec.recipe import Recipe
from thrifty.spec.software import RUNS

NEAR = 0.01  # candidates within this share of the cheapest count as equally cheap
RUNNERS_UP = 3
NAMED = 6  # keys that the user gave, before the rest is only counted
ANY = "any"


@dataclass(frozen=True)
class Search:
    """What a search found.

    Attributes:
        runners_up: the next cheapest ways, one candidate for each layout, precision and recomputation.
        tried: recipes considered: priced, too large, or ruled out by a bound.
        excluded: of them, those that do not fit.
        kept: keys that the user gave.
        excluded_by: of those tried, how many were not priced in full, by reason.
        illegal: ways to divide the devices that cannot run, by reason.
    """

    plan: Plan
    runners_up: tuple[Candidate, ...]
    tried: int
    excluded: int
    kept: tuple[str, ...]
    excluded_by: dict[str, int] = field(default_factory=dict)
    illegal: dict[str, int] = field(default_factory=dict)

    @property
    def price(self) -> Price:
        """What the plan takes of everything that can be an objective."""
        return _price_of(self.plan.predicted)


def plan(job: Job, cluster: Cluster, recipe: Settings | Recipe | None = None) -> Plan:
    """The cheapest plan for a job on a cluster; arguments and errors as `search`."""
    return search(job, cluster, recipe).plan


def search(
    job: Job,
    cluster: Cluster,
    recipe: Settings | Recipe | None = None,
    *,
    software: str | None = None,
    objective: Objective = "usd",
    deadline_seconds: float | None = None,
    budget_usd: float | None = None,
    levers: Sequence[str] = (),
) -> Search:
    """Searches the recipes that the user left open.

    Args:
        recipe: keys to keep, as in `Recipe`; what is not there is chosen. A whole Recipe is only priced.
        software: `any` plans for each and takes the best; none = the recipe's, or this project's trainer.
        objective: `usd`, `time`, `energy` or `co2`.
        deadline_seconds: the whole run may take no longer.
        budget_usd: the whole run may cost no more.
        levers: of `space.OPTIONAL`, which change the numbers: proposed where named.

    Raises:
        ThriftyError: nothing fits, nothing stays within the limits, a given key contradicts the cluster, the software
            or the job, or a target loss is out of reach.
    """
    aim = Aim(objective, deadline_seconds, budget_usd)
    settings = recipe if isinstance(recipe, Settings) else from_dict(recipe.model_dump() if recipe else {}, "recipe")
    if software not in (None, ANY):
        settings = settings.put("software", software, "--software")
    named = at(settings.tree, "software")
    if named is not None and named not in RUNS:
        raise ThriftyError(f"unknown software {named!r}", where="recipe.software", hint=did_you_mean(str(named), RUNS))
    kept = () if isinstance(recipe, Recipe) else tuple(key for key, _ in leaves(settings.tree))
    if software != ANY:
        made, best = _search(job, cluster, settings, aim, levers, kept)
        if named is None:
            line = other_software.cheaper(made.plan.job, cluster, settings.tree, best, levers)
            made = _with_reason(made, line)
        return made
    found, refused = dict[str, Search](), dict[str, ThriftyError]()
    for name in RUNS:
        try:
            found[name], _ = _search(job, cluster, settings.put("software", name, ANY), aim, levers, kept)
        except ThriftyError as error:
            refused[name] = error
    if not found:
        raise next(iter(refused.values()))
    made = min(found.values(), key=lambda one: aim.rank(one.price))
    return _with_reason(made, other_software.compared(made.plan, [one.plan for one in found.values()], refused))


def _with_reason(made: Search, line: str) -> Search:
    if not line:
        return made
    return replace(made, plan=made.plan.model_copy(update={"reasons": (*made.plan.reasons, line)}))


def _search(
    job: Job, cluster: Cluster, settings: Settings, aim: Aim, levers: Sequence[str], kept: tuple[str, ...]
) -> tuple[Search, Candidate]:
    """The plan for one software, and the candidate that it was made of."""
    given, said, wanted = settings.tree, list[str](), job
    job = defaults.with_tokens(job, said, at(given, "optimizer.name") or "adamw")
    space.layouts(job, cluster, given)  # a layout that the devices cannot have is told before the batch it would need
    base = defaults.complete(job, cluster, settings, said)
    found = pool.fill(job, cluster, base, given, levers)
    if not found.fitting:
        raise reasons.nothing(job, cluster, base, found, given)

    def elsewhere(devices: int) -> Price | None:
        other = resized(cluster, devices)
        try:
            return _search(job, other, settings, Aim(aim.objective), levers, kept)[0].price if other else None
        except ThriftyError:
            return None

    best, chosen, bill, intervals = _within(job, cluster, found, given, aim, elsewhere)
    if wanted.tokens is None and wanted.steps is None and chosen.optimizer.name != base.optimizer.name:
        # The target is reached in other tokens, for which everything is chosen once more.
        settings = settings.put("optimizer.name", chosen.optimizer.name, "--levers optimizer")
        return _search(wanted, cluster, settings, aim, [name for name in levers if name != "optimizer"], kept)
    idle = cluster.devices - best.recipe.layout.ranks * cluster.devices_per_rank(best.recipe.layout.ranks)
    if idle > 0:
        said.append(f"{idle} of {cluster.devices} devices have nothing to do, and are paid for")
    said += [*reasons.levers(job, cluster, best, found, given, levers), *intervals]
    if at(given, "batch.ramp") is None and at(given, "batch.sequences") is None:
        said += ramps.told(job, cluster, best)
    if kept:
        more = f" and {len(kept) - NAMED} more" if len(kept) > NAMED else ""
        said.append(f"kept as given: {', '.join(kept[:NAMED])}{more}")
    made = Plan(
        job=job,
        cluster=cluster,
        recipe=chosen,
        predicted=bill,
        reasons=tuple(said),
        made_with=f"thrifty {thrifty.__version__}, {datetime.date.today().isoformat()}",
        hash=fingerprint(job, cluster, chosen),
    )
    others = _runners_up(job, cluster, chosen, best, found.fitting)
    counts = dict(found.excluded.most_common()), dict(found.illegal.most_common())
    return Search(made, others, found.tried, found.excluded[pool.TOO_LARGE], kept, *counts), best


def _within(
    job: Job, cluster: Cluster, found: Pool, given: Tree, aim: Aim, elsewhere: Callable[[int], Price | None]
) -> tuple[Candidate, Recipe, Bill, list[str]]:
    """The candidate to plan: the best whose whole run, evaluations and checkpoints included, stays within the limits.

    Also its recipe with how often it evaluates and saves, its bill, and the reasons for those.
    """
    fitting, nearest = found.fitting, None
    while fitting:
        best, said = choose(job, cluster, fitting, given, aim), list[str]()
        chosen = defaults.intervals(job, cluster, best, given, said)
        bill = predict(job, cluster, chosen)
        taken = _price_of(bill)
        if aim.allows(taken):
            return best, chosen, bill, said
        nearest = taken if nearest is None or taken.seconds < nearest.seconds else nearest
        fitting = [c for c in fitting if c.run.seconds < min(best.run.seconds, nearest.seconds)]
    assert nearest is not None  # there was at least one
    raise unmet(aim, cluster, nearest, found.tried, elsewhere)


def _price_of(bill: Bill) -> Price:
    return Price(bill.usd.value, bill.seconds.value, bill.energy.value, bill.co2.value)


def choose(job: Job, cluster: Cluster, fitting: Sequence[Candidate], given: Tree, aim: Aim | None = None) -> Candidate:
    """The best candidate, with levers that must earn their place left off unless they do."""
    left, aim = list(fitting), aim or Aim()
    for key in reasons.LADDERS:
        left = _climb(key, job, cluster, left, aim)
    least = cheapest(aim, cluster, left)
    value, slowest = aim.rank(price_of(cluster, least.run.usd, least.run.seconds))[0], _steps_seconds(least)
    near = [
        c
        for c in left
        if aim.rank(price_of(cluster, c.run.usd, c.run.seconds))[0] <= value * (1 + NEAR)
        and _steps_seconds(c) <= slowest * (1 + NEAR)
    ]
    best = min(near, key=lambda c: (c.run.memory.peak, c.run.seconds))
    if best.recipe.layout.tensor_overlap and at(given, "layout.tensor_overlap") is None:
        layout = best.recipe.layout.model_copy(update={"tensor_overlap": False})
        plain = price(job, cluster, best.recipe.model_copy(update={"layout": layout}))
        if plain.fits and _steps_seconds(plain) <= slowest * (1 + NEAR):
            return plain
    return best


def _climb(key: str, job: Job, cluster: Cluster, left: list[Candidate], aim: Aim) -> list[Candidate]:
    """Those with the plainest value of a lever, or with the next that saves more than the lever's threshold."""
    rungs = {value: [c for c in left if reasons.value_of(c.recipe, key) == value] for value in reasons.LADDERS[key]}
    here, *higher = [found for found in rungs.values() if found] or [left]
    for more in higher:
        gain = reasons.saved(job, cluster, key, cheapest(aim, cluster, more), cheapest(aim, cluster, here))
        if gain > reasons.threshold(key, cluster):
            here = more
    return here


def _steps_seconds(candidate: Candidate) -> float:
    """Time in steps: in a short run, start-up would make everything look alike."""
    return candidate.run.steps * candidate.run.step.total


def _runners_up(
    job: Job, cluster: Cluster, chosen: Recipe, best: Candidate, fitting: Sequence[Candidate]
) -> tuple[Candidate, ...]:
    """The cheapest candidate of each other way to run, cheapest first, evaluated and saved as often as the chosen."""
    found = {_way(best.recipe): best}
    for candidate in sorted(fitting, key=lambda c: (c.run.usd, c.run.seconds)):
        found.setdefault(_way(candidate.recipe), candidate)
        if len(found) > RUNNERS_UP:
            break
    alike = {"evaluation": chosen.evaluation, "checkpoint": chosen.checkpoint}
    others = [c.recipe.model_copy(update=alike) for c in found.values() if c is not best]
    return tuple(sorted((price(job, cluster, recipe) for recipe in others), key=lambda c: (c.run.usd, c.run.seconds)))


def _way(recipe: Recipe) -> tuple[object, ...]:
    plain = recipe.layout.model_copy(update={"tensor_overlap": False})
    return plain, recipe.precision, recipe.recompute
