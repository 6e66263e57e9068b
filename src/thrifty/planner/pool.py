"""Prices the recipes of a search, the most promising first, and counts why the others were left out.

A row is one layout under one setting of the levers; its recipes differ in microbatch and recomputation.

    memory      it grows with the microbatch and shrinks with recomputation, so what does not fit ends a row
    recompute   more of it takes longer, so each microbatch gets the least that fits
    time        rows are taken by their lower bounds (`bounds.py`), until those are over `SLACK` times the best step

`tests/planner/test_search_brute.py` holds it against pricing everything.
"""

from __future__ import annotations

import heapq
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
from thrifty.spec.software import RUNS

# Far enough above the best for runners-up and comparisons.
SLACK = 1.25
TOO_LARGE = "too large"
TOO_SLOW = "too slow at any microbatch"
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

    @property
    def tried(self) -> int:
        """Recipes considered: priced, too large, or ruled out by a bound."""
        return len(self.fitting) + sum(self.excluded.values())

    def refuse(self, reason: Illegal, recipes: int) -> None:
        """Leaves out recipes that are illegal, and keeps the first reason."""
        self.refused = self.refused or reason
        self.excluded[reason.kind] += recipes


def price(job: Job, cluster: Cluster, recipe: Recipe) -> Candidate:
    """A recipe with its cost, whether it fits or not."""
    run = estimate(job, cluster, recipe)
    return Candidate(recipe, run, run.memory.peak <= usable_bytes(cluster, recipe.layout.ranks))


@dataclass
class _Row:
    """One layout and setting; `fitting` is there once memory was looked at, smallest microbatch first."""

    recipe: Recipe
    batches: list[Batch]
    fitting: list[tuple[Recipe, Memory]] | None = None


def fill(
    job: Job,
    cluster: Cluster,
    base: Recipe,
    given: Tree,
    opened: Sequence[str] = (),
    under_seconds: float = math.inf,
    slack: float = SLACK,
    most_rows: int | None = None,
) -> Pool:
    """Prices every recipe that the user left open and that can come near the best.

    Args:
        base: complete; its batch.sequences is the one of all recipes.
        given: keys to keep, a partial tree of a Recipe.
        opened: levers of `space.OPTIONAL` to propose.
        under_seconds: steps that cannot be faster than this are of no interest.
        slack: nor those that cannot be faster than so many times the best.
        most_rows: to look at; none = all.

    Raises:
        ThriftyError: no layout is legal, or a lever that the software does not run.
    """
    pool, bounds = Pool(), Bounds(job, cluster, base)
    again = space.recomputations(base, given)
    rows = _rows(pool, job, cluster, base, given, opened, len(again))
    heap = [
        (bounds.rough(row.recipe.layout, row.recipe.precision, row.recipe.compile), number, row)
        for number, row in enumerate(rows)
    ]
    heapq.heapify(heap)
    best, seen = math.inf, 0
    while heap:
        bound, number, row = heapq.heappop(heap)
        if bound > min(under_seconds, slack * best) or seen == most_rows:
            heap.append((bound, number, row))
            break
        if row.fitting is None:
            seen += 1
            row.fitting = _fitting(pool, job, cluster, row, again)
            if row.fitting:
                largest = row.fitting[-1][0].model_copy(update={"recompute": row.fitting[0][0].recompute})
                close = bounds.close(largest, row.batches[0].micro_sequences)
                heapq.heappush(heap, (max(bound, close), number, row))
            continue
        for recipe, used in row.fitting:
            run = estimate(job, cluster, recipe, used)
            pool.fitting.append(Candidate(recipe, run, True))
            best = min(best, run.step.total)
    pool.excluded[TOO_SLOW] += sum(
        len(row.batches) * len(again) if row.fitting is None else len(row.fitting) for _, _, row in heap
    )
    return pool


def _rows(
    pool: Pool, job: Job, cluster: Cluster, base: Recipe, given: Tree, opened: Sequence[str], recomputations: int
) -> list[_Row]:
    settings, micro = space.levers(base, cluster, given, opened), at(given, "batch.micro_sequences") or 1
    runs, found = RUNS[base.software], list[_Row]()
    for layout in space.layouts(job, cluster, given, pool.illegal):
        if base.batch.sequences % (layout.data_ranks * micro):
            pool.illegal[NOT_SHARED] += 1
            continue
        ours = [one for one in settings if layout.island > 1 or one.exchange == settings[0].exchange]  # between islands
        batches = _batches(pool, base, layout, given, recomputations * len(ours))
        for setting in ours if batches else ():
            if space.is_pointless(layout, setting, runs, given):
                continue
            recipe = _with(base, layout, setting)
            reason = legal.by_levers(recipe)
            if reason is None:
                found.append(_Row(recipe, batches))
            else:
                pool.refuse(reason, len(batches) * recomputations)
    return found


def _batches(pool: Pool, base: Recipe, layout: Layout, given: Tree, each: int) -> list[Batch]:
    """Microbatches that the layout allows, smallest first; the others count for `each` recipes."""
    sequences, micro = base.batch.sequences, at(given, "batch.micro_sequences")
    found = []
    for size in [micro] if micro else space.divisors(sequences // layout.data_ranks):
        batch = Batch.model_construct(sequences=sequences, micro_sequences=size)
        reason = legal.by_batch(layout, sequences // (size * layout.data_ranks))
        if reason is None:
            found.append(batch)
        else:
            pool.refuse(reason, each)
    return found


def _with(base: Recipe, layout: Layout, setting: Levers) -> Recipe:
    # Copied, not built: checking each recipe again would be most of the search's time.
    return base.model_copy(
        update={
            "layout": layout, "precision": setting.precision, "compile": setting.compile,
            "optimizer": setting.optimizer, "exchange": setting.exchange,
        }
    )  # fmt: skip


def _fitting(
    pool: Pool, job: Job, cluster: Cluster, row: _Row, again: Sequence[str]
) -> list[tuple[Recipe, Memory]]:  # fmt: skip
    """Each microbatch that fits, with the least recomputation that it fits with."""
    usable, less = usable_bytes(cluster, row.recipe.layout.ranks), 0
    found: list[tuple[Recipe, Memory]] = []
    for number, batch in enumerate(row.batches):
        one = row.recipe.model_copy(update={"batch": batch, "recompute": again[less]})
        used = memory(job, cluster, one)
        while used.peak > usable:
            if pool.least is None or used.peak < pool.least[1].peak:
                pool.least = (one, used)
            pool.excluded[TOO_LARGE] += len(row.batches) - number
            less += 1
            if less == len(again):
                return found
            one = one.model_copy(update={"recompute": again[less]})
            used = memory(job, cluster, one)
        pool.excluded[RECOMPUTES_MORE] += len(again) - 1 - less
        found.append((one, used))
    return found
