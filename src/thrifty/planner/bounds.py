"""What a recipe costs at the least, from its layout and precision alone, so that a search need not price what cannot win.

    step >= sequences / data ranks x layers / stages x (forward + backward of a block) + bubble

with the block's time at the microbatch that suits it best, compiled where that is open, nothing computed again, and no
traffic; and the bubble of the smallest microbatch.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from thrifty.cost.compute import Rank, rank_of, unit_seconds
from thrifty.cost.pipeline import bubble_seconds
from thrifty.cost.work import Split, split_of
from thrifty.spec.cluster import Cluster
from thrifty.spec.job import Job
from thrifty.spec.recipe import Layout, Recipe


@dataclass
class Bounds:
    """Lower bounds for the recipes of one search.

    Attributes:
        base: software, batch and all that the search does not vary.
        compiled: whether a recipe may be compiled.
    """

    job: Job
    cluster: Cluster
    base: Recipe
    compiled: bool
    _ranks: dict[tuple[int, str], Rank] = field(default_factory=dict)
    _blocks: dict[tuple[Split, int, int, str], float] = field(default_factory=dict)

    def step_seconds(self, layout: Layout, precision: str) -> float:
        """No recipe with this layout and precision has a faster step."""
        each = self.base.batch.sequences // layout.data_ranks
        split, layers = split_of(layout), self.job.model.layers / layout.pipeline
        busy = layers * self._block(split, each, layout, precision)
        # Schedules without a bubble are bounded by having none.
        if layout.pipeline == 1 or layout.schedule not in ("gpipe", "1f1b", "interleaved"):
            return busy
        one = layers * self._block(split, 1, layout, precision)
        return busy + bubble_seconds(layout.pipeline, layout.schedule, layout.interleave, one, 0.0, 0.0)

    def _block(self, split: Split, sequences: int, layout: Layout, precision: str) -> float:
        """Forward and backward pass of the fastest kind of block over so many sequences at once."""
        # A GPU is a GPU; on a CPU the ranks share the cores.
        ranks = layout.ranks if self.cluster.accelerator.kind == "cpu" else 0
        key = (split, sequences, ranks, precision)
        if key not in self._blocks:
            shape, chunked = self.job.model, self.base.software == "thrifty"
            dense = shape.experts.dense_layers if shape.experts else shape.layers
            kinds = [sparse for sparse, number in ((False, dense), (True, shape.layers - dense)) if number]
            found = [
                unit_seconds(
                    shape, sequences, self.job.sequence_length, self._rank(ranks, layout, precision), precision,
                    self.compiled, "none", split, sparse, chunked,
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
