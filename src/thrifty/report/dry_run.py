"""A dry run in a terminal and as JSON: what each rank holds and sends, beside what was planned."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.text import Text

from thrifty.report.terminal import plain_table
from thrifty.spec import units
from thrifty.spec.bill import MEMORY_TERMS

if TYPE_CHECKING:
    from thrifty.trainer.dry_run import DryRun, RankRun, Sent


def print_dry_run(out: Console, dry: DryRun) -> None:
    """The mesh, then for each rank its part of the model, its memory and what it sends."""
    layout, cluster = dry.plan.recipe.layout, dry.plan.cluster
    axes = [f"{axis} {getattr(layout, axis)}" for axis in ("island", "pipeline", "shard", "context", "tensor")]
    split = " x ".join(axis for axis in axes if not axis.endswith(" 1")) or "no split"
    ranks = f"{layout.ranks} rank{'s' * (layout.ranks > 1)}"
    headline = f"{dry.plan.job.name}: dry run of {ranks} of {cluster.name}, {split}; nothing is trained"
    out.print(Text(headline, style="bold"))
    out.print(Text(dry.picture), soft_wrap=True)
    for run in dry.runs:
        out.print()
        _print_rank(out, dry, run)
    out.print()
    out.print(_verdict(dry))


def _print_rank(out: Console, dry: DryRun, run: RankRun) -> None:
    stages, like = dry.plan.recipe.layout.pipeline, dry.stands_for[run.rank]
    also = f", like {like - 1} other stage{'s' * (like > 2)}" if like > 1 else ""
    stage = f"stage {run.place['pipeline']} of {stages}{also}, " if stages > 1 else ""
    out.print(Text(f"rank {run.rank}: {stage}layers {', '.join(map(_span, run.layers))}", style="bold"))
    for axis, ranks in run.groups.items():
        out.print(Text(f"  {axis} group: {_few(ranks)}"))
    out.print()
    held = plain_table(out, "memory", "built", "planned", "by")
    for term in MEMORY_TERMS:
        if term in run.found:
            held.add_row(term, f"{run.found[term]:,} B", f"{run.planned[term]:,} B", "measured / modelled")
        else:
            held.add_row(term, "–", units.show(getattr(run.modelled, term), "byte"), "modelled")
    held.add_row("peak", "–", units.show(run.peak_bytes, "byte"), "modelled")
    out.print(held)
    out.print()
    if not run.sent and not run.planned_sent:
        out.print(Text("sends nothing"))
        return
    sent = plain_table(out, "sent in a step", "over", "ranks", "bytes each", "started", "planned", left=2)
    for one in _sorted(run):
        counts = (f"{found.get(one, 0):,}" for found in (run.sent, run.planned_sent))
        sent.add_row(one.kind.replace("_", "-"), one.axis, str(one.ranks), f"{one.payload_bytes:,}", *counts)
    out.print(sent)
    out.print(Text(_counted(dry, run), style="dim"))


def _sorted(run: RankRun) -> list[Sent]:
    return sorted(run.sent.keys() | run.planned_sent.keys(), key=lambda one: (one.axis, one.kind, -one.payload_bytes))


def _counted(dry: DryRun, run: RankRun) -> str:
    wanted = dry.plan.recipe.accumulation
    if len(run.microbatches) == 1:
        return f"counted as they were started, in a step of {wanted} microbatch{'es' * (wanted > 1)}"
    few, more = run.microbatches
    return (
        f"counted as they were started by {few} and by {more} microbatches; of {wanted} each further one adds the same"
    )


def _verdict(dry: DryRun) -> Text:
    fullest = max(dry.runs, key=lambda run: run.peak_bytes)
    peak, capacity, usable = (
        units.show(value, "byte") for value in (fullest.peak_bytes, dry.capacity_bytes, dry.usable_bytes)
    )
    fits = "fits" if dry.fits else "does not fit"
    name = dry.plan.cluster.accelerator.name
    found = [f"{fits}: rank {fullest.rank} peaks at {peak}; {name} has {capacity}, of which a plan may use {usable}"]
    found += [
        f"rank {run.rank}: {one.what}: {one.found:,}, but {one.planned:,} planned"
        for run in dry.runs
        for one in run.differences
    ]
    if dry.agrees:
        found.append("all bytes and collectives that were built and started are those planned")
    return Text("\n".join(found), style="green" if dry.fits and dry.agrees else "yellow")


def _span(layers: range) -> str:
    return f"{layers.start}-{layers.stop - 1}" if len(layers) > 1 else str(layers.start)


def _few(ranks: Sequence[int], most: int = 12) -> str:
    told = [str(rank) for rank in ranks]
    return " ".join(told if len(told) <= most else [*told[: most - 2], "...", told[-1]]) + f"  ({len(ranks)} ranks)"


def dry_run_json(dry: DryRun) -> dict[str, Any]:
    """The same for programs; every count and every byte in full."""
    return {
        "plan": dry.plan.hash,
        "layout": dry.plan.recipe.layout.model_dump(),
        "ranks_built": [_rank_json(dry, run) for run in dry.runs],
        "capacity_bytes": dry.capacity_bytes,
        "usable_bytes": dry.usable_bytes,
        "fits": dry.fits,
        "as_planned": dry.agrees,
    }


def _rank_json(dry: DryRun, run: RankRun) -> dict[str, Any]:
    return {
        "rank": run.rank,
        "place": run.place,
        "stages_like_this": dry.stands_for[run.rank],
        "layers": [layer for part in run.layers for layer in part],
        "groups": run.groups,
        "memory_built_bytes": run.found,
        "memory_planned_bytes": {**run.modelled.terms(), **run.planned},
        "peak_bytes": run.peak_bytes,
        "collectives": [
            {**one._asdict(), "started": run.sent.get(one, 0), "planned": run.planned_sent.get(one, 0)}
            for one in _sorted(run)
        ],
        "microbatches_run": list(run.microbatches),
        "differences": [{"what": d.what, "found": d.found, "planned": d.planned} for d in run.differences],
    }
