"""A few dozen recipes near a plan's: enough to see whether another wins once a figure changes, and quick to price.

A whole search takes every layout and lever; these are the plan's recipe, its runners-up, and each of them with another
microbatch, recomputation or gathering. Nothing here moves a key that the user gave.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

from thrifty.cost.memory import usable_bytes
from thrifty.cost.run import estimate
from thrifty.planner.reasons import show_layout
from thrifty.planner.search import NEAR
from thrifty.planner.space import Candidate
from thrifty.spec.cluster import Cluster
from thrifty.spec.job import Job
from thrifty.spec.legal import illegal
from thrifty.spec.recipe import Layout, Recipe

RECOMPUTE = ("none", "selective", "full")
WITHIN = 1.3  # of the plan's money: what costs more today will hardly be the cheapest once one figure changes
MOST = 32


def price(job: Job, cluster: Cluster, recipe: Recipe) -> Candidate:
    """A recipe with what it costs, and whether its memory fits."""
    run = estimate(job, cluster, recipe)
    return Candidate(recipe, run, run.memory.peak <= usable_bytes(cluster, recipe.layout.ranks))


def cheapest_fitting(job: Job, cluster: Cluster, recipes: Sequence[Recipe]) -> Candidate | None:
    """The cheapest of the recipes that fit, in money, then in time; None where none fits."""
    fitting = [one for recipe in recipes if (one := price(job, cluster, recipe)).fits]
    return min(fitting, key=lambda one: (one.run.usd, one.run.seconds)) if fitting else None


def runs(job: Job, recipe: Recipe) -> bool:
    """Whether a recipe's batch divides and its model, job and software allow it."""
    together = recipe.batch.micro_sequences * recipe.layout.data_ranks
    return recipe.batch.sequences % together == 0 and illegal(job, recipe) is None


def near(
    job: Job, cluster: Cluster, recipe: Recipe, others: Sequence[Recipe] = (), kept: Collection[str] = ()
) -> tuple[Recipe, ...]:
    """The recipe first, then those near it and near `others` that cost little more, whether they fit today or not.

    Args:
        others: further recipes to start from, such as the runners-up.
        kept: dotted keys that may not move.
    """
    own = price(job, cluster, recipe).run.usd
    found = [recipe, *others, *(one for seed in (recipe, *others) for one in variations(job, seed, kept))]
    priced = [price(job, cluster, one) for one in dict.fromkeys(found) if one != recipe]
    # One that fits and is cheaper already was passed over for another reason than its cost.
    rest = [one for one in priced if one.run.usd <= WITHIN * own and not (one.fits and one.run.usd < own * (1 - NEAR))]
    rest.sort(key=lambda one: one.run.usd)
    return (recipe, *(one.recipe for one in rest[: MOST - 1]))


def variations(job: Job, recipe: Recipe, kept: Collection[str] = ()) -> Iterator[Recipe]:
    """A recipe under every recomputation and gathering and a few microbatches, as far as they run."""
    each = recipe.batch.sequences // recipe.layout.data_ranks
    micros = {1, recipe.batch.micro_sequences, recipe.batch.micro_sequences * 2, recipe.batch.micro_sequences // 2}
    again = [recipe.recompute] if "recompute" in kept else RECOMPUTE
    layouts = [recipe.layout]
    open_ = recipe.layout.shard > 1 and recipe.layout.zero == 3 and recipe.layout.pipeline == 1
    if open_ and "layout.reshard_after_forward" not in kept:
        layouts.append(gathered_otherwise(recipe.layout))
    for micro in [recipe.batch.micro_sequences] if "batch.micro_sequences" in kept else sorted(micros):
        if micro and each % micro == 0:
            batch = recipe.batch.model_copy(update={"micro_sequences": micro})
            for layout in layouts:
                for recompute in again:
                    one = recipe.model_copy(update={"layout": layout, "batch": batch, "recompute": recompute})
                    if runs(job, one):
                        yield one


def gathered_otherwise(layout: Layout) -> Layout:
    """The same layout, gathered once where it was twice, and the other way round."""
    return layout.model_copy(update={"reshard_after_forward": not layout.reshard_after_forward})


def show_recipe(recipe: Recipe) -> str:
    """`64 shards, gathered once, bf16, recompute full, microbatch 1`."""
    again = "" if recipe.recompute == "none" else f", recompute {recipe.recompute}"
    return f"{show_layout(recipe.layout)}, {recipe.precision}{again}, microbatch {recipe.batch.micro_sequences}"
