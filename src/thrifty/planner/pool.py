"""Prices the recipes of a search, the most promising first, and counts why the others were left out.

A row is one layout under one setting of the levers; its recipes differ in microbatch and recomputation.

    memory      it grows with the microbatch, so what does not fit ends a row, but for the one microbatch that needs no
                gradients of earlier ones
    recompute   more of it takes longer, so each microbatch gets the least that fits
    time        rows are taken by their lower bounds (`bounds.py`), until those are over `SLACK` times the best step:
                the rough one, then the close one over all microbatches, then over those that fit

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
SLACK = 1.1
TOO_LARGE = "too large"
TOO_SLOW = "too slow"
RECOMPUTES_MORE = "recompute needlessly"
NOT_SHARED = "batch does not divide among data ranks"


@dataclass
class Pool:
    """What a search has to choose from.

    Attributes:
        fitting: priced, and their memory fits.
        least: the least demanding recipe of those that do not fit, with its memory.
        excluded: recipes that were not priced in full, by reason.
        illegal: ways to divide the devices that nothing was priced for, by reason.
        reasons: why recipes with a legal layout were illegal, one for each kind.
    """

    fitting: list[Candidate] = field(default_factory=list)
    least: tuple[Recipe, Memory] | None = None
    excluded: Counter[str] = field(default_factory=Counter)
    illegal: Counter[str] = field(default_factory=Counter)
    reasons: dict[str, Illegal] = field(default_factory=dict)

    @property
    def tried(self) -> int:
        """Recipes considered: priced, too large, or ruled out by a bound."""
        return len(self.fitting) + sum(self.excluded.values())

    def refuse(self, reason: Illegal, recipes: int) -> None:
        """Leaves out recipes that are illegal."""
        self.reasons.setdefault(reason.kind, reason)
        self.excluded[reason.kind] += recipes


def price(job: Job, cluster: Cluster, recipe: Recipe) -> Candidate:
    """A recipe with its cost, whether it fits or not."""
    run = estimate(job, cluster, recipe)
    return Candidate(recipe, run, run.memory.peak <= usable_bytes(cluster, recipe.layout.ranks))


@dataclass(slots=True)
class _Row:
    """One layout and setting.

    Attributes:
        micros: microbatches that the schedule allows, smallest first.
        again: recomputations that it allows, least first.
        close: whether its bound is the close one over them all.
        fitting: there once memory was looked at; by recomputation, then by microbatch.
    """

    layout: Layout
    setting: Levers
    micros: Sequence[int]
    again: Sequence[str]
    close: bool = False
    fitting: list[tuple[Recipe, Memory]] | None = None

    def left(self) -> int:
        """Recipes that nothing was said about yet."""
        return len(self.micros) * len(self.again) if self.fitting is None else len(self.fitting)


def _apart(cluster: Cluster, setting: Levers) -> tuple[object, ...]:
    """Ways that are not cut for being slower than one another: what was measured here may turn their order round."""
    measured = cluster.profile is not None and cluster.profile.levers
    # An optimizer that takes longer for a step may need fewer of them.
    apart = (setting.compile, setting.optimizer.name)
    return (*apart, setting.precision) if measured else apart


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
        most_rows: to look at closely; none = all.

    Raises:
        ThriftyError: no layout is legal, or a lever that the software does not run.
    """
    pool, bounds = Pool(), Bounds(job, cluster, base)
    again = space.recomputations(base, given)
    rows = _rows(pool, job, cluster, base, given, opened, again)
    heap = [
        (bounds.rough(row.layout, row.setting.precision, row.setting.compile), number, row)
        for number, row in enumerate(rows)
    ]
    heapq.heapify(heap)
    # Compiling shortens steps and lengthens the start-up, so each way has a best of its own.
    best, seen = {_apart(cluster, row.setting): math.inf for row in rows}, 0
    while heap:
        bound, number, row = heap[0]
        if bound > min(under_seconds, slack * max(best.values())) or (seen == most_rows and row.fitting is None):
            break
        heapq.heappop(heap)
        if bound > slack * best[_apart(cluster, row.setting)]:
            pool.excluded[TOO_SLOW] += row.left()
        elif not row.close:
            seen += 1
            row.close = True
            close = bounds.close(_recipe(base, row, row.micros[-1], row.again[0]), row.micros[0])
            heapq.heappush(heap, (max(bound, close), number, row))
        elif row.fitting is None:
            row.fitting = _fitting(pool, job, cluster, base, row)
            if row.fitting:
                heapq.heappush(heap, (max(bound, _close(bounds, row)), number, row))
        else:
            way = _apart(cluster, row.setting)
            for recipe, used in row.fitting:
                if bounds.pipeline(recipe) > slack * best[way]:
                    pool.excluded[TOO_SLOW] += 1
                    continue
                run = estimate(job, cluster, recipe, used)
                pool.fitting.append(Candidate(recipe, run, True))
                best[way] = min(best[way], run.step.total)
    pool.excluded[TOO_SLOW] += sum(row.left() for _, _, row in heap)
    return pool


def _close(bounds: Bounds, row: _Row) -> float:
    """The close bound of those that fit: the least over the kinds of recomputation that they need."""
    groups: dict[str, list[Recipe]] = {}
    for recipe, _ in row.fitting or ():
        groups.setdefault(recipe.recompute, []).append(recipe)
    return min(bounds.close(group[-1], group[0].batch.micro_sequences) for group in groups.values())


def _rows(
    pool: Pool, job: Job, cluster: Cluster, base: Recipe, given: Tree, opened: Sequence[str], again: Sequence[str]
) -> list[_Row]:
    """Every legal row, in the order of layouts and settings."""
    settings, micro = space.levers(base, cluster, given, opened), at(given, "batch.micro_sequences")
    runs, sequences, found = RUNS[base.software], base.batch.sequences, list[_Row]()
    refused: dict[tuple[bool, str, Levers], list[Illegal | None]] = {}  # of each recomputation
    for layout in space.layouts(job, cluster, given, pool.illegal):
        each = sequences // layout.data_ranks
        if sequences % (layout.data_ranks * (micro or 1)):
            pool.illegal[NOT_SHARED] += 1
            continue
        ours = [one for one in settings if not space.is_pointless(layout, one, settings[0], runs, given)]
        sizes = [micro] if micro else space.divisors(each)
        micros = _micros(pool, layout, base.software, sizes, each, len(again) * len(ours))
        for setting in ours if micros else ():
            asked = layout.tensor > 1 and layout.tensor_overlap, layout.schedule if layout.pipeline > 1 else "", setting
            if asked not in refused:
                row = _Row(layout, setting, micros, again)
                refused[asked] = [legal.by_levers(_recipe(base, row, 1, how)) for how in again]
            allowed = []
            for how, reason in zip(again, refused[asked], strict=True):
                if reason is None:
                    allowed.append(how)
                else:
                    pool.refuse(reason, len(micros))
            if allowed:
                found.append(_Row(layout, setting, micros, allowed))
    return found


def _micros(
    pool: Pool, layout: Layout, software: str, sizes: Sequence[int], each: int, recipes: int
) -> Sequence[int]:  # fmt: skip
    """Microbatches that the schedule allows, smallest first; each of the others counts for so many recipes."""
    if layout.pipeline == 1:
        return sizes
    found = []
    for size in sizes:
        reason = legal.by_batch(layout, each // size, software)
        if reason is None:
            found.append(size)
        else:
            pool.refuse(reason, recipes)
    return found


def _recipe(base: Recipe, row: _Row, micro: int, recompute: str) -> Recipe:
    # Copied, not built: checking each recipe again would be most of the search's time.
    setting = row.setting
    return base.model_copy(
        update={
            "layout": row.layout, "precision": setting.precision, "compile": setting.compile,
            "optimizer": setting.optimizer, "exchange": setting.exchange, "recompute": recompute,
            "batch": Batch.model_construct(
                sequences=base.batch.sequences, micro_sequences=micro, ramp=base.batch.ramp,
            ),
        }
    )  # fmt: skip


def _fitting(pool: Pool, job: Job, cluster: Cluster, base: Recipe, row: _Row) -> list[tuple[Recipe, Memory]]:
    """Each microbatch that fits, with the least recomputation that it fits with."""
    usable, less, found = usable_bytes(cluster, row.layout.ranks), 0, list[tuple[Recipe, Memory]]()
    each, again = base.batch.sequences // row.layout.data_ranks, row.again
    # Stages of equal time shift with the microbatch, and memory may then shrink where it grows.
    shifting = base.software == "thrifty" and row.layout.pipeline > 1
    number = 0
    while number < len(row.micros):
        micro = row.micros[number]
        if micro == each or shifting:
            less = 0  # the only microbatch, which has no gradients of earlier ones to hold
        while less < len(again):
            one = _recipe(base, row, micro, again[less])
            used = memory(job, cluster, one)
            if used.peak <= usable:
                pool.excluded[RECOMPUTES_MORE] += len(again) - 1 - less
                found.append((one, used))
                break
            if pool.least is None or used.peak < pool.least[1].peak:
                pool.least = (one, used)
            less += 1
        pool.excluded[TOO_LARGE] += less
        if less == len(again) and number < len(row.micros) - 1 and not shifting:
            # Nothing larger fits, but perhaps the last.
            pool.excluded[TOO_LARGE] += (len(row.micros) - 2 - number) * len(again)
            number = len(row.micros) - 2
        number += 1
    return found
