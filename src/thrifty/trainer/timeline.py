"""The measured timeline of a pipeline: what its ranks computed, and when, in the median one of the last steps."""

from __future__ import annotations

import json
from collections.abc import Sequence

from thrifty.cost.timeline import Span
from thrifty.parallel.mesh import group
from thrifty.spec.recipe import Layout
from thrifty.trainer.run_folder import RunFolder, write_atomically
from thrifty.trainer.world import World

LATEST = 20  # steps that are remembered


Step = tuple[int, float, list[Span]]  # its number, seconds, and what this rank computed


def write_timeline(folder: RunFolder, world: World, layout: Layout, steps: Sequence[Step]) -> None:
    """Writes timeline.json: the ranks of the first pipeline, in its order, in seconds since the first of their spans.

    Clocks are those of the ranks' machines, and are as equal as these are. Every rank must call this.

    Args:
        steps: the latest ones, the same on every rank.
    """
    if not steps:
        return
    ordered = sorted(range(len(steps)), key=lambda i: steps[i][1])
    chosen = world.share(ordered[len(ordered) // 2])
    number, _, mine = steps[chosen]
    gathered = world.gather(mine)
    if world.rank != 0:
        return
    ranks = [gathered[rank] for rank in group(layout, 0, "pipeline")]
    start = min(span.begin for spans in ranks for span in spans)
    spans = [[[*span[:3], span.begin - start, span.end - start] for span in mine] for mine in ranks]
    write_atomically(folder.timeline, json.dumps({"step": number, "spans": spans}) + "\n")
