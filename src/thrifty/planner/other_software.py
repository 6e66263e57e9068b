"""Whether a job would be cheaper, or would fit at all, under another software than the one it is planned for."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from thrifty.planner import pool
from thrifty.planner.space import Candidate, Tree, put
from thrifty.spec.cluster import Cluster
from thrifty.spec.errors import ThriftyError
from thrifty.spec.job import Job
from thrifty.spec.plan import Plan
from thrifty.spec.recipe import Recipe
from thrifty.spec.software import RUNS

LEAST_GAIN = 0.03  # of the step, that another software must save to be named
MOST_ROWS = 300  # the most promising layouts of each: a hint, not a plan


def cheaper(job: Job, cluster: Cluster, given: Tree, best: Candidate, levers: Sequence[str]) -> str:
    """One line that names the software with the fastest step, where it gains; empty where none does.

    The batch is that of the plan, so that a step is a step. Not on a CPU, where only this project's trainer was
    measured.
    """
    found = None
    limit = best.run.step.total * (1 - LEAST_GAIN)
    for software in RUNS if cluster.accelerator.kind != "cpu" else ():
        if software == best.recipe.software:
            continue
        other = _fastest(job, cluster, best.recipe, put(given, "software", software), limit, levers)
        if other is not None and other.run.step.total < limit:
            found, limit = other, other.run.step.total
    if found is None:
        return ""
    gain = 1 - found.run.step.total / best.run.step.total
    name = found.recipe.software
    return f"software {best.recipe.software}: {name} would take {gain:.0%} less for a step; --software {name}"


def _fastest(
    job: Job, cluster: Cluster, recipe: Recipe, given: Tree, limit: float, levers: Sequence[str]
) -> Candidate | None:  # fmt: skip
    """The fastest step under another software, if it is below the limit."""
    given = put(given, "batch.sequences", recipe.batch.sequences)
    base = recipe.model_copy(update={"software": given["software"]})
    try:
        found = pool.fill(job, cluster, base, given, levers, under_seconds=limit, slack=1.0, most_rows=MOST_ROWS)
    except ThriftyError:  # it runs no layout that keeps what is given
        return None
    return min(found.fitting, key=lambda c: c.run.step.total) if found.fitting else None


def that_fits(job: Job, cluster: Cluster, base: Recipe, given: Tree) -> list[str]:
    """The first other software under which the job fits, as a way out."""
    if "software" in given or cluster.accelerator.kind == "cpu":
        return []
    for software in RUNS:
        tree = put(given, "software", software)
        if software != base.software and _fastest(job, cluster, base, tree, math.inf, ()) is not None:
            return [f"plan it for {software}, under which it fits (--software {software})"]
    return []


def compared(best: Plan, plans: Sequence[Plan], refused: Mapping[str, ThriftyError]) -> str:
    """What the job costs under each software, beside the best."""
    ours = best.predicted.seconds.value
    others = sorted((one for one in plans if one is not best), key=lambda one: one.predicted.seconds.value)
    told = [f"{one.recipe.software} costs {one.predicted.seconds.value / ours - 1:+.0%}" for one in others]
    told += [f"{name} cannot: {error.what.split(':')[0]}" for name, error in refused.items()]
    return f"software {best.recipe.software}: {', '.join(told)}"
