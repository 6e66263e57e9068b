"""What a step takes at the least, so that a search need not price what cannot win.

rough   sequences / data ranks x layers / stages x (forward + backward of a block): from the layout alone
close   the step at the largest microbatch that fits, with the least recomputation that fits at any, and the
        bubble of the smallest: all that a step does gets cheaper with the microbatch, but for the bubble
"""

from __future__ import annotations

from dataclasses import dataclass, field

from thrifty.cost.compute import Rank, rank_of, unit_seconds
from thrifty.cost.pipeline import bubble_seconds
from thrifty.cost.step import step_seconds
from thrifty.cost.work import Split, split_of
from thrifty.spec.cluster import Cluster
from thrifty.spec.job import Job
from thrifty.spec.legal import SPLIT_BACKWARD
from thrifty.spec.recipe import Layout, Recipe


@dataclass
class Bounds:
    """Lower bounds for the recipes of one search.

    Attributes:
        base: software, batch and all that the search does not vary.
    """

    job: Job
    cluster: Cluster
    base: Recipe
    _ranks: dict[tuple[int, str], Rank] = field(default_factory=dict)
    _blocks: dict[tuple[Split, int, int, str, bool], float] = field(default_factory=dict)

    def rough(self, layout: Layout, precision: str, compiled: bool) -> float:
        """Seconds, before anything is known about memory."""
        each = self.base.batch.sequences // layout.data_ranks
        return self._block(split_of(layout), each, layout, precision, compiled) * self._layers(layout)

    def close(self, recipe: Recipe, smallest: int) -> float:
        """Seconds, given the recipe at the largest of its microbatches.

        Args:
            smallest: of its microbatches.
        """
        step, layout = step_seconds(self.job, self.cluster, recipe, at_least=True), recipe.layout
        # Schedules without a bubble are bounded by having none.
        if layout.pipeline == 1 or layout.schedule in SPLIT_BACKWARD or recipe.software == "thrifty":
            return step.total - step.bubble
        one = self._block(split_of(layout), smallest, layout, recipe.precision, recipe.compile) * self._layers(layout)
        least = bubble_seconds(layout.pipeline, layout.schedule, layout.interleave, one, 0.0, 0.0)
        return step.total - step.bubble + least

    def pipeline(self, recipe: Recipe) -> float:
        """Seconds of one recipe of this trainer's, without the clock that says what its pipeline takes; else 0."""
        if recipe.layout.pipeline == 1 or recipe.software != "thrifty":
            return 0.0
        return step_seconds(self.job, self.cluster, recipe, at_least=True).total

    def _layers(self, layout: Layout) -> float:
        return self.job.model.layers / layout.pipeline

    def _block(self, split: Split, sequences: int, layout: Layout, precision: str, compiled: bool) -> float:
        """Forward and backward pass of the fastest kind of block over so many sequences at once."""
        # A GPU is a GPU; on a CPU the ranks share the cores.
        ranks = layout.ranks if self.cluster.accelerator.kind == "cpu" else 0
        key = (split, sequences, ranks, precision, compiled)
        if key not in self._blocks:
            shape, chunked = self.job.model, self.base.software == "thrifty"
            dense = shape.experts.dense_layers if shape.experts else shape.layers
            kinds = [sparse for sparse, number in ((False, dense), (True, shape.layers - dense)) if number]
            found = [
                unit_seconds(
                    shape, sequences, self.job.sequence_length, self._rank(ranks, layout, precision), precision,
                    compiled, "none", split, sparse, chunked,
                )
                for sparse in kinds
            ]  # fmt: skip
            self._blocks[key] = min(sum(unit.block_forward) + sum(unit.block_backward) for unit in found)
        return self._blocks[key]

    def _rank(self, ranks: int, layout: Layout, precision: str) -> Rank:
        if (ranks, precision) not in self._ranks:
            recipe = self.base.model_copy(update={"layout": layout, "precision": precision})
            self._ranks[ranks, precision] = rank_of(self.cluster, recipe)
        return self._ranks[ranks, precision]
