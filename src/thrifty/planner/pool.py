"""Prices the recipes of a search: those that fit and can come near the best, and counts why the others were left out.

Nothing is priced that arithmetic rules out beforehand:

    memory      it grows with the microbatch and shrinks with recomputation, so what does not fit ends a row
    recompute   more of it takes longer, so each microbatch gets the least that fits
    time        layouts are taken by their lower bound, until that is over `SLACK` times the best step found

`tests/planner/test_search_brute.py` holds it against pricing everything.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from thrifty.cost.memory import Memory, memory, usable_bytes
from thrifty.cost.run import estimate
from thrifty.planner import space
from thrifty.planner.bounds import Bounds
from thrifty.planner.space import Candidate, Levers, Tree, at
from thrifty.spec import legal
from thrifty.spec.cluster import Cluster
from thrifty.spec.job import Job
from thrifty.spec.legal import Illegal
from thrifty.spec.recipe import Batch, Layout, Recipe

# A step whose lower bound is over so many times the best is not priced: far enough for runners-up and comparisons.
SLACK = 1.5
TOO_LARGE = "too large"
TOO_SLOW = f"slower than {SLACK:g} times the best, whatever the microbatch"
RECOMPUTES_MORE = "recompute more than they need"
NOT_SHARED = "batch.sequences does not divide among the data ranks"


@dataclass
class Pool:
    """What a search has to choose from.

    Attributes:
        fitting: priced, and their memory fits.
        least: the least demanding recipe of those that do not fit, with its memory.
        excluded: recipes that were not priced in full, by reason.
        illegal: ways to divide the devices that nothing was priced for, by reason.
        refused: the first reason why a recipe with a legal layout was illegal.
    """

    fitting: list[Candidate] = field(default_factory=list)
    least: tuple[Recipe, Memory] | None = None
    excluded: Counter[str] = field(default_factory=Counter)
    illegal: Counter[str] = field(default_factory=Counter)

    refused: Illegal | None = None

    def refuse(self, reason: Illegal, recipes: int) -> None:
        """Leaves out recipes that are illegal, and keeps the first reason."""
        self.refused = self.refused or reason
        self.excluded[reason.kind] += recipes

    @property
    def tried(self) -> int:
        """Recipes considered: priced, too large, or ruled out by a bound."""
        return len(self.fitting) + sum(self.excluded.values())


def price(job: Job, cluster: Cluster, recipe: Recipe, used: Memory | None = None) -> Candidate:
    """A recipe with its cost."""
    run = estimate(job, cluster, recipe, used)
    return Candidate(recipe, run, run.memory.peak <= usable_bytes(cluster, recipe.layout.ranks))


def fill(
    job: Job,
    cluster: Cluster,
    base: Recipe,
    given: Tree,
    opened: Sequence[str] = (),
    under_seconds: float = math.inf,
    slack: float = SLACK,
) -> Pool:
    """Prices every recipe that the user left open.

    Args:
        base: complete; its batch.sequences is the one of all recipes.
        given: keys to keep, a partial tree of a Recipe.
        opened: levers of `space.OPTIONAL` to propose.
        under_seconds: steps that cannot be faster than this are of no interest.
        slack: nor those that cannot be faster than so many times the best.

    Raises:
        ThriftyError: no layout is legal, or a lever that the software does not run.
    """
    pool = Pool()
    settings, again = space.levers(base, cluster, given, opened), space.recomputations(base, given)
    bounds = Bounds(job, cluster, base, any(one.compile for one in settings))
    precisions = list(dict.fromkeys(one.precision for one in settings))
    sequences, micro = base.batch.sequences, at(given, "batch.micro_sequences") or 1
    found = []
    for layout in space.layouts(job, cluster, given, pool.illegal):
        if sequences % (layout.data_ranks * micro):
            pool.illegal[NOT_SHARED] += 1
            continue
        least = {precision: bounds.step_seconds(layout, precision) for precision in precisions}
        found.append((min(least.values()), len(found), layout, least))
    best = math.inf
    for _, _, layout, least in sorted(found):
        batches = _batches(pool, base.model_copy(update={"layout": layout}), given, len(again) * len(settings))
        for setting in settings:
            if layout.island == 1 and setting.exchange != settings[0].exchange:
                continue  # which is between islands
            recipe = _with(base, layout, setting, again[0])
            reason = legal.by_levers(recipe)
            if reason is not None:
                pool.refuse(reason, len(batches) * len(again))
            elif least[setting.precision] > min(under_seconds, slack * best):
                pool.excluded[TOO_SLOW] += len(batches) * len(again)
            else:
                best = min(best, _row(pool, job, cluster, recipe, batches, again))
    return pool


def _batches(pool: Pool, recipe: Recipe, given: Tree, each: int) -> list[Batch]:
    """Microbatches that the layout allows, smallest first; the others count for `each` recipes."""
    sequences, micro = recipe.batch.sequences, at(given, "batch.micro_sequences")
    found = []
    for size in [micro] if micro else space.divisors(sequences // recipe.layout.data_ranks):
        batch = Batch.model_construct(sequences=sequences, micro_sequences=size)
        reason = legal.by_batch(recipe.model_copy(update={"batch": batch}))
        if reason is None:
            found.append(batch)
        else:
            pool.refuse(reason, each)
    return found


def _with(base: Recipe, layout: Layout, setting: Levers, recompute: str) -> Recipe:
    # Copied, not built: checking each recipe again would be most of the search's time.
    return base.model_copy(
        update={
            "layout": layout, "precision": setting.precision, "compile": setting.compile,
            "optimizer": setting.optimizer, "exchange": setting.exchange, "recompute": recompute,
        }
    )  # fmt: skip


def _row(
    pool: Pool, job: Job, cluster: Cluster, recipe: Recipe, batches: Sequence[Batch], again: Sequence[str]
) -> float:  # fmt: skip
    """Prices one layout and setting under every microbatch with the least recomputation that fits.

    Returns the fastest step in seconds.
    """
    usable, best, less = usable_bytes(cluster, recipe.layout.ranks), math.inf, 0
    for number, batch in enumerate(batches):
        one = recipe.model_copy(update={"batch": batch, "recompute": again[less]})
        used = memory(job, cluster, one)
        while used.peak > usable:
            if pool.least is None or used.peak < pool.least[1].peak:
                pool.least = (one, used)
            pool.excluded[TOO_LARGE] += len(batches) - number
            less += 1
            if less == len(again):
                return best
            one = one.model_copy(update={"recompute": again[less]})
            used = memory(job, cluster, one)
        pool.excluded[RECOMPUTES_MORE] += len(again) - 1 - less
        run = estimate(job, cluster, one, used)
        pool.fitting.append(Candidate(one, run, True))
        best = min(best, run.step.total)
    return best
