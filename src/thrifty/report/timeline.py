"""A run's pipeline as a drawing: what was predicted beside what was measured, and how much of each is idle."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

from thrifty.cost.pipeline import planned_spans
from thrifty.cost.stages import stage_layers
from thrifty.cost.timeline import PartSeconds, Span, draw, order, run, use
from thrifty.spec.plan import Plan
from thrifty.trainer.run_folder import RunFolder

Spans = Sequence[Sequence[Span]]


def timeline_text(plan: Plan, root: Path) -> str | None:
    """Both timelines with their bubbles; None where the run has no pipeline, or left none of this plan's."""
    job, cluster, recipe = plan.job, plan.cluster, plan.recipe
    measured = read_timeline(root)
    if measured is None or recipe.layout.pipeline == 1:
        return None
    step, spans = measured
    actions = order(recipe.layout, recipe.accumulation)
    if [[span[:3] for span in mine] for mine in spans] != [[tuple(action) for action in mine] for mine in actions]:
        return None  # the run was continued on another layout since
    planned = planned_spans(job, cluster, recipe)
    clocked = run(actions, part_means(spans))
    layers = "  ".join(f"{part.start}-{part.stop - 1}" for part in stage_layers(job, cluster, recipe))
    return "\n".join((
        f"pipeline {recipe.layout.schedule}, {recipe.accumulation} microbatches, layers {layers}",
        f"predicted: {use(planned).seconds:.3g} s a step, bubble {use(planned).bubble:.1%}",
        draw(planned),
        f"measured: {use(spans).seconds:.3g} s, bubble {use(spans).bubble:.1%} (step {step}); "
        f"its computations without any waiting for messages: bubble {use(clocked).bubble:.1%}",
        draw(spans),
    ))  # fmt: skip


def read_timeline(root: Path) -> tuple[int, Spans] | None:
    """Step and spans that a run left behind, by rank of the pipeline."""
    path = RunFolder(root).timeline
    if not path.exists():
        return None
    content = json.loads(path.read_text(encoding="utf-8"))
    return content["step"], [[Span(*span) for span in mine] for mine in content["spans"]]


def part_means(spans: Spans) -> list[PartSeconds]:
    """Mean time of each part's computations in a timeline."""
    found: dict[int, dict[str, list[float]]] = {}
    for mine in spans:
        for span in mine:
            found.setdefault(span.part, {}).setdefault(span.kind, []).append(span.end - span.begin)
    means = {part: {kind: fmean(times) for kind, times in kinds.items()} for part, kinds in found.items()}
    return [
        PartSeconds(of["F"], of.get("B", 0.0) + of.get("I", 0.0), of.get("W", 0.0)) for _, of in sorted(means.items())
    ]
