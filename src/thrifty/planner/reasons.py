"""One line for each choice of a plan: what was chosen, against what, and what that saves; and why nothing fits."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from thrifty.cost.memory import Memory, memory, usable_bytes
from thrifty.cost.run import estimate
from thrifty.planner.measured import measured_saving, told_measured
from thrifty.planner.space import Candidate, Tree, at
from thrifty.spec import units
from thrifty.spec.cluster import Cluster
from thrifty.spec.errors import ThriftyError
from thrifty.spec.job import Job
from thrifty.spec.recipe import Layout, Recipe

# Levers that must earn their place, and the plain way without them.
PLAIN: dict[str, str | bool] = {"precision": "fp32", "compile": False}
_THRESHOLDS = {"precision": {"cpu": 0.02}, "compile": {"cpu": 0.10}}
_THRESHOLD = {"precision": 0.02, "compile": 0.03}


def threshold(lever: str, cluster: Cluster) -> float:
    """Share of time that a lever must save; more for compiling on a CPU, which needs a C++ compiler there."""
    return _THRESHOLDS[lever].get(cluster.accelerator.kind, _THRESHOLD[lever])


def saved(job: Job, cluster: Cluster, lever: str, on: Candidate, off: Candidate) -> float:
    """Share of the time that a lever saves: of the steps, or of the whole run for one that lengthens the start-up.

    What was measured on the job's own shapes goes over the model.
    """
    measured = measured_saving(cluster, job, lever, on, off)
    if measured is not None:
        return measured
    if lever == "compile":
        return 1 - on.run.seconds / off.run.seconds
    return 1 - on.run.step.total / off.run.step.total


def levers(job: Job, cluster: Cluster, best: Candidate, candidates: Sequence[Candidate], given: Tree) -> list[str]:
    """Why each lever that was left open stands where it stands."""
    said = []
    if at(given, "layout.island") is None or at(given, "layout.shard") is None:
        said.append(_layout(cluster, best, candidates))
    if given.get("precision") is None:
        said.append(_gated("precision", job, cluster, best, candidates))
    if given.get("recompute") is None:
        said.append(_recompute(cluster, best, candidates) + told_measured(cluster, job, "recompute", "full"))
    if at(given, "batch.micro_sequences") is None:
        micro = best.recipe.batch.micro_sequences
        said.append(_micro(cluster, best, candidates) + told_measured(cluster, job, "micro_sequences", micro))
    if given.get("compile") is None:
        said.append(_gated("compile", job, cluster, best, candidates))
    if at(given, "exchange.dtype") is None:
        said.append(_exchange(job, cluster, best))
    return said


def show_layout(layout: Layout) -> str:
    """`8 islands x 8 shards, gathered once`."""
    if layout.ranks == 1:
        return "one rank"
    parts = [f"{layout.shard} shards"] if layout.shard > 1 else []
    if layout.island > 1:
        parts.insert(0, f"{layout.island} islands" if layout.shard > 1 else f"{layout.island} replicas")
    again = "" if layout.shard == 1 else ", gathered twice" if layout.reshard_after_forward else ", gathered once"
    return " x ".join(parts) + again


def _cheapest(candidates: Sequence[Candidate], like: Callable[[Recipe], bool]) -> Candidate | None:
    found = [c for c in candidates if c.fits and like(c.recipe)]
    return min(found, key=lambda c: (c.run.usd, c.run.seconds)) if found else None


def _compared(other: Candidate, best: Candidate) -> str:
    """What another candidate's steps cost beside the chosen one's; compiled or not, what the whole run costs."""
    whole = other.recipe.compile != best.recipe.compile
    ratio = other.run.seconds / best.run.seconds if whole else other.run.step.total / best.run.step.total
    if abs(ratio - 1) < 0.01:
        return "costs the same within 1%"
    return f"costs {ratio - 1:+.0%}" if ratio < 2 else f"costs {ratio:.1f} times as much"


def _too_large(cluster: Cluster, candidates: Sequence[Candidate], like: Callable[[Recipe], bool]) -> str:
    """What the smallest candidate of a kind would need, where none of that kind fits."""
    found = [c for c in candidates if like(c.recipe)]
    least = min(found, key=lambda c: c.run.memory.peak)
    usable = usable_bytes(cluster, least.recipe.layout.ranks)
    return f"needs {units.show(least.run.memory.peak, 'byte')} of {units.show(usable, 'byte')}"


def _layout(cluster: Cluster, best: Candidate, candidates: Sequence[Candidate]) -> str:
    recipe = best.recipe
    head = f"layout {show_layout(recipe.layout)}"
    rest = {c.recipe.layout for c in candidates} - {recipe.layout}
    if not rest:
        return f"{head}: the only one"

    def comparable(other: Recipe) -> bool:
        return (other.precision, other.compile) == (recipe.precision, recipe.compile)

    other = _cheapest(candidates, lambda r: r.layout != recipe.layout and comparable(r))
    if other is None:
        least = _too_large(cluster, candidates, lambda r: r.layout != recipe.layout)
        return f"{head}: no other fits (the next {least})"
    return f"{head}: next best is {show_layout(other.recipe.layout)}, which {_compared(other, best)}"


def _gated(lever: str, job: Job, cluster: Cluster, best: Candidate, candidates: Sequence[Candidate]) -> str:
    """A lever that must save more than its threshold."""
    chosen, plain = getattr(best.recipe, lever), PLAIN[lever]

    def name(value: object) -> str:
        return {True: "on", False: "off"}.get(value, str(value)) if isinstance(value, bool) else str(value)

    others = {getattr(c.recipe, lever) for c in candidates} - {chosen}
    head = f"{lever} {name(chosen)}"
    if not others:
        return f"{head}: the only one that {cluster.accelerator.name} has a rate for"
    value = others.pop()
    other = _cheapest(candidates, lambda r: getattr(r, lever) == value)
    if other is None:
        return f"{head}: {name(value)} {_too_large(cluster, candidates, lambda r: getattr(r, lever) == value)}"
    here = told_measured(cluster, job, lever, value if chosen == plain else chosen)
    if chosen != plain:
        return f"{head}: {name(value)} {_compared(other, best)}{here}"
    gain = saved(job, cluster, lever, other, best)
    if gain <= 0:
        return f"{head}: {name(value)} {'is no faster' if here else _compared(other, best)}{here}"
    return f"{head}: {name(value)} would save {gain:.1%}, under the {threshold(lever, cluster):.0%} that it must{here}"


def _recompute(cluster: Cluster, best: Candidate, candidates: Sequence[Candidate]) -> str:
    chosen = best.recipe.recompute
    value = "full" if chosen == "none" else "none"
    other = _cheapest(candidates, lambda r: r.recompute == value and r.compile == best.recipe.compile)
    if other is not None:
        return f"recompute {chosen}: {value} {_compared(other, best)}"
    return f"recompute {chosen}: {value} {_too_large(cluster, candidates, lambda r: r.recompute == value)}"


def _micro(cluster: Cluster, best: Candidate, candidates: Sequence[Candidate]) -> str:
    """The microbatch against the next smaller and the next larger one, all else equal."""
    recipe, chosen = best.recipe, best.recipe.batch.micro_sequences
    alike = {
        c.recipe.batch.micro_sequences: c
        for c in candidates
        if (c.recipe.layout, c.recipe.precision, c.recipe.compile, c.recipe.recompute)
        == (recipe.layout, recipe.precision, recipe.compile, recipe.recompute)
    }
    beside = [max((m for m in alike if m < chosen), default=None), min((m for m in alike if m > chosen), default=None)]
    told = []
    for micro in beside:
        if micro is not None:
            other = alike[micro]
            peak = units.show(other.run.memory.peak, "byte")
            told.append(f"{micro} {_compared(other, best)}" if other.fits else f"{micro} needs {peak}, too much")
    accumulated = f" x {recipe.accumulation} accumulated" if recipe.accumulation > 1 else ""
    return f"micro_sequences {chosen}{accumulated}: {', '.join(told) or 'the only one that divides the batch'}"


def _exchange(job: Job, cluster: Cluster, best: Candidate) -> str:
    if best.recipe.layout.ranks == 1:
        return "exchange none: one rank"
    halved = best.recipe.model_copy(update={"exchange": best.recipe.exchange.model_copy(update={"dtype": "bf16"})})
    gain = 1 - estimate(job, cluster, halved).seconds / best.run.seconds
    return f"exchange fp32: bf16 would save {max(0.0, gain):.1%} and round gradients; --set recipe.exchange.dtype=bf16"


def no_fit(job: Job, cluster: Cluster, candidates: Sequence[Candidate], given: Tree) -> ThriftyError:
    """What the least demanding recipe needs, by term, and what would mend it."""
    least = min(candidates, key=lambda c: c.run.memory.peak)
    used, ranks = least.run.memory, least.recipe.layout.ranks
    usable = units.show(usable_bytes(cluster, ranks), "byte")
    terms = sorted(used.terms().items(), key=lambda item: -item[1])
    largest = ", ".join(f"{name} {units.show(value, 'byte')}" for name, value in terms if value > 0.01 * used.peak)
    return ThriftyError(
        f"{job.name} does not fit {cluster.name}: the least demanding of {len(candidates):,} recipes needs "
        f"{units.show(used.peak, 'byte')} of {usable} a rank ({largest})",
        where="memory",
        hint="; ".join(_ways_out(job, cluster, least, given)),
    )


def _ways_out(job: Job, cluster: Cluster, least: Candidate, given: Tree) -> list[str]:
    ways = []
    recipe = least.recipe
    for key, value in (("recompute", "full"), ("precision", "bf16")):
        if given.get(key) not in (None, value):
            ways.append(f"leave recipe.{key} to the plan ({value} needs less)")
    if (at(given, "batch.micro_sequences") or 1) > 1:
        ways.append("leave recipe.batch.micro_sequences to the plan")
    if at(given, "layout.shard") is not None and recipe.layout.shard < cluster.devices:
        ways.append(f"shard over more ranks (recipe.layout.shard={cluster.devices})")
    enough, rest = _enough_devices(job, cluster, recipe)
    if enough:
        ways.append(f"use more devices ({enough} would do), or devices with more memory")
    else:
        ways.append(
            f"more devices do not help: {units.show(rest.activations, 'byte')} of activations and "
            f"{units.show(rest.communication, 'byte')} of gathered parameters stay; shorten job.sequence_length, or "
            f"use devices with more memory"
        )
    return ways


def _enough_devices(job: Job, cluster: Cluster, recipe: Recipe) -> tuple[int | None, Memory]:
    """The smallest power-of-two multiple of the cluster that holds the recipe, fully sharded; none up to 1024 times.

    Also what is needed on that many devices, or on 1024 times as many.
    """
    factor = 1
    while True:
        factor *= 2
        larger = cluster.model_copy(update={"nodes": cluster.nodes * factor})
        layout = Layout(shard=recipe.layout.ranks * factor)
        batch = recipe.batch.model_copy(update={"sequences": layout.ranks, "micro_sequences": 1})
        used = memory(job, larger, recipe.model_copy(update={"layout": layout, "batch": batch}))
        fits = used.peak <= usable_bytes(larger, layout.ranks)
        if fits or factor == 1024:
            return larger.devices if fits else None, used
