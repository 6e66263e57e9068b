"""One line for each choice of a plan: what was chosen, against what, and what that saves; and why nothing fits."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

from thrifty.catalog.gains import fewer_tokens
from thrifty.cost.adaptive import steps_factor
from thrifty.cost.memory import Memory, memory, usable_bytes
from thrifty.cost.params import total_parameters
from thrifty.cost.run import estimate
from thrifty.planner import other_software, space
from thrifty.planner.measured import measured_saving, told_measured
from thrifty.planner.pool import TOO_SLOW, Pool, price
from thrifty.planner.space import CODECS, LOCAL_STEPS, OPTIMIZERS, Candidate, Tree, at
from thrifty.spec import legal, units
from thrifty.spec.cluster import Cluster
from thrifty.spec.errors import ThriftyError
from thrifty.spec.job import Job
from thrifty.spec.recipe import Layout, Recipe
from thrifty.spec.software import RUNS

# Levers that must earn their place, each from the plainest value up.
LADDERS: dict[str, tuple[Any, ...]] = {
    "precision": ("fp32", "bf16", "fp8", "nvfp4"),
    "optimizer.name": OPTIMIZERS,
    "optimizer.state_bits": (32, 16, 8, 4),
    "exchange.codec": CODECS,
    "exchange.local_steps": (1, *LOCAL_STEPS),
    "compile": (False, True),
}
_THRESHOLDS = {"compile": {"cpu": 0.10}}
_THRESHOLD = {"compile": 0.03}
NAMED_SAVING = 0.05  # of the step, that a closed lever must promise to be named


def threshold(key: str, cluster: Cluster) -> float:
    """Share of time that a lever must save; more for compiling, most on a CPU, which needs a C++ compiler there."""
    return _THRESHOLDS.get(key, {}).get(cluster.accelerator.kind, _THRESHOLD.get(key, 0.02))


def value_of(recipe: Recipe, key: str) -> Any:
    """The value of a recipe at a dotted key."""
    return functools.reduce(getattr, key.split("."), recipe)


def saved(job: Job, cluster: Cluster, key: str, on: Candidate, off: Candidate) -> float:
    """Share of the time that a lever saves: of the steps, or of the whole run for one that lengthens the start-up.

    What was measured on the job's own shapes goes over the model.
    """
    measured = measured_saving(cluster, job, key, on, off)
    if measured is not None:
        return measured
    if key == "compile":
        return 1 - on.run.seconds / off.run.seconds
    plain = off.run.step.total
    if key == "exchange.codec" and off.recipe.exchange.codec is None:
        # Half the bytes are had without a codec: 16-bit gradients are what it has to beat.
        halved = _put(off.recipe, "exchange.dtype", "bf16")
        plain = min(plain, estimate(job, cluster, halved, off.run.memory).step.total)
    # What a codec loses costs more steps, what an optimizer gains saves some.
    more = steps_factor(on.recipe.exchange.codec) / steps_factor(off.recipe.exchange.codec)
    fewer = tokens_factor(job, on.recipe) / tokens_factor(job, off.recipe)
    return 1 - more / fewer * on.run.step.total / plain


def tokens_factor(job: Job, recipe: Recipe) -> float:
    """Tokens that tuned AdamW would take to the loss that a recipe's optimizer reaches, over its own."""
    return fewer_tokens(recipe.optimizer.name, total_parameters(job.model)).value


def levers(
    job: Job, cluster: Cluster, best: Candidate, found: Pool, given: Tree, opened: Sequence[str] = ()
) -> list[str]:  # fmt: skip
    """Why each lever that was left open stands where it stands."""
    said = []
    ask = _Beside(job, cluster, best, found, given)
    if at(given, "layout.island") is None or at(given, "layout.shard") is None:
        said.append(_layout(ask))
    if given.get("precision") is None:
        said.append(_gated("precision", ask, space.precisions(cluster, given)))
    if given.get("recompute") is None:
        said.append(_recompute(ask) + told_measured(cluster, job, "recompute", "full"))
    if at(given, "batch.micro_sequences") is None:
        micro = best.recipe.batch.micro_sequences
        said.append(_micro(ask) + told_measured(cluster, job, "micro_sequences", micro))
    if given.get("compile") is None and RUNS[best.recipe.software].compile:
        said.append(_gated("compile", ask, [False, True]))
    if at(given, "exchange.dtype") is None and not best.recipe.exchange.between_islands:
        said.append(_exchange(job, cluster, best))
    said += [_between_islands(name, ask) for name in ("compression", "localsteps") if name in opened
             and best.recipe.layout.island > 1 and at(given, space.OPTIONAL[name][0]) is None]  # fmt: skip
    if at(given, "optimizer.name") is None:
        said += _optimizer(ask, opened)
    return said + _closed(ask, opened)


def show_layout(layout: Layout) -> str:
    """`8 islands x 8 shards, gathered once`; `16 ranks under ZeRO-1 x 8 stages (interleaved 5) x 8 tensor`."""
    if layout.ranks == 1:
        return "one rank"
    parts = []
    if layout.island > 1:
        parts.append(f"{layout.island} islands" if layout.shard > 1 else f"{layout.island} replicas")
    if layout.shard > 1:
        held = {0: "replicas", 3: "shards"}.get(layout.zero, f"ranks under ZeRO-{layout.zero}")
        parts.append(f"{layout.shard} {held}")
    if layout.pipeline > 1:
        chunks = f" {layout.interleave}" if layout.schedule == "interleaved" else ""
        named = "" if layout.schedule == "1f1b" else f" ({layout.schedule.replace('_', ' ')}{chunks})"
        parts.append(f"{layout.pipeline} stages{named}")
    parts += [f"{size} {axis}" for axis in ("context", "tensor") if (size := getattr(layout, axis)) > 1]
    again = (
        ""
        if layout.shard == 1 or layout.zero < 3 or layout.pipeline > 1
        else f", gathered {'twice' if layout.reshard_after_forward else 'once'}"
    )
    return " x ".join(parts) + (f", experts over {layout.expert}" if layout.expert > 1 else "") + again


class _Beside:
    """What other recipes cost beside the chosen one: those that the search priced, and those near it that it left."""

    def __init__(self, job: Job, cluster: Cluster, best: Candidate, found: Pool, given: Tree) -> None:
        self.job, self.cluster, self.best, self.found, self.given = job, cluster, best, found, given

    def with_value(self, key: str, value: Any) -> list[Candidate]:
        """The chosen layout with another value of a lever, under every microbatch and recomputation that is open."""
        recipe = _put(self.best.recipe, key, value)
        micro = at(self.given, "batch.micro_sequences")
        again = (value,) if key == "recompute" else space.recomputations(recipe, self.given)
        micros = [micro] if micro else space.divisors(recipe.batch.sequences // recipe.layout.data_ranks)
        batches = [recipe.batch.model_copy(update={"micro_sequences": size}) for size in micros]
        near = [recipe.model_copy(update={"batch": b, "recompute": how}) for b in batches for how in again]
        legal_ones = [
            one
            for one in near
            if not (legal.by_batch(one.layout, one.accumulation, one.software) or legal.by_levers(one))
        ]
        return [price(self.job, self.cluster, one) for one in legal_ones]

    def cheapest(self, key: str, value: Any, like: Callable[[Recipe], bool] = lambda _: True) -> Candidate | None:
        """The cheapest with another value of a lever that fits."""
        known = [c for c in self.found.fitting if value_of(c.recipe, key) == value]
        fitting = [c for c in (*known, *self.with_value(key, value)) if c.fits and like(c.recipe)]
        return min(fitting, key=lambda c: (c.run.usd, c.run.seconds)) if fitting else None

    def too_large(self, key: str, value: Any) -> str:
        """What the least demanding with another value would need, where none fits."""
        least = min(self.with_value(key, value), key=lambda c: c.run.memory.peak, default=None)
        if least is None:
            return "does not go with this layout"
        return _needs(self.cluster, least.recipe, least.run.memory)

    def compared(self, other: Candidate) -> str:
        """What another candidate's steps cost beside the chosen one's; compiled or not, what the whole run costs."""
        whole = other.recipe.compile != self.best.recipe.compile
        one, two = other.run, self.best.run
        ratio = one.seconds / two.seconds if whole else one.step.total / two.step.total
        if abs(ratio - 1) < 0.01:
            return "costs the same within 1%"
        return f"costs {ratio - 1:+.0%}" if ratio < 2 else f"costs {ratio:.1f} times as much"


def _put(recipe: Recipe, key: str, value: Any) -> Recipe:
    head, _, rest = key.partition(".")
    return recipe.model_copy(update={head: getattr(recipe, head).model_copy(update={rest: value}) if rest else value})


def _needs(cluster: Cluster, recipe: Recipe, used: Memory) -> str:
    usable = usable_bytes(cluster, recipe.layout.ranks)
    return f"needs {units.show(used.peak, 'byte')} of {units.show(usable, 'byte')}"


def _layout(ask: _Beside) -> str:
    recipe, found = ask.best.recipe, ask.found
    head = f"layout {show_layout(recipe.layout)}"

    def way(layout: Layout) -> Layout:
        return layout.model_copy(update={"tensor_overlap": False})

    rest = [c for c in found.fitting if way(c.recipe.layout) != way(recipe.layout)]
    alike = [c for c in rest if (c.recipe.precision, c.recipe.compile) == (recipe.precision, recipe.compile)]
    if alike:
        other = min(alike, key=lambda c: (c.run.usd, c.run.seconds))
        return f"{head}: next best is {show_layout(other.recipe.layout)}, which {ask.compared(other)}"
    if rest or found.excluded[TOO_SLOW]:
        return f"{head}: no other that fits comes near"
    if found.least is None or way(found.least[0].layout) == way(recipe.layout):
        return f"{head}: the only one"
    return f"{head}: no other fits (the next {_needs(ask.cluster, *found.least)})"


def _gated(key: str, ask: _Beside, values: Sequence[Any]) -> str:
    """A lever that must save more than its threshold."""
    chosen = value_of(ask.best.recipe, key)

    def name(value: object) -> str:
        return {True: "on", False: "off"}.get(value, str(value)) if isinstance(value, bool) else str(value)

    head, others = f"{key} {name(chosen)}", [value for value in values if value != chosen]
    if not others:
        return f"{head}: the only one that {ask.cluster.accelerator.name} has a rate for"
    value = others[-1]
    other = ask.cheapest(key, value)
    if other is None:
        return f"{head}: {name(value)} {ask.too_large(key, value)}"
    # Beside the cheapest with the chosen value: the chosen one may cost a little more, to need less memory.
    gain = saved(ask.job, ask.cluster, key, other, ask.cheapest(key, chosen) or ask.best)
    climbs = LADDERS[key].index(value) > LADDERS[key].index(chosen)
    here = told_measured(ask.cluster, ask.job, key, value if climbs else chosen)
    if gain <= 0 or not climbs:
        worse = "is no faster" if here and climbs else ask.compared(other)
        return f"{head}: {name(value)} {worse}{here}"
    least = threshold(key, ask.cluster)
    return f"{head}: {name(value)} would save {gain:.1%}, under the {least:.0%} that it must{here}"


def _recompute(ask: _Beside) -> str:
    chosen = ask.best.recipe.recompute
    value = "full" if chosen == "none" else "none"
    other = ask.cheapest("recompute", value, lambda r: r.compile == ask.best.recipe.compile)
    if other is not None:
        return f"recompute {chosen}: {value} {ask.compared(other)}"
    return f"recompute {chosen}: {value} {ask.too_large('recompute', value)}"


def _micro(ask: _Beside) -> str:
    """The microbatch against the next smaller and the next larger one, all else equal."""
    recipe, chosen = ask.best.recipe, ask.best.recipe.batch.micro_sequences
    alike = {c.recipe.batch.micro_sequences: c for c in ask.with_value("recompute", recipe.recompute)}
    beside = [max((m for m in alike if m < chosen), default=None), min((m for m in alike if m > chosen), default=None)]
    told = []
    for micro in beside:
        if micro is not None:
            other = alike[micro]
            peak = units.show(other.run.memory.peak, "byte")
            told.append(f"{micro} {ask.compared(other)}" if other.fits else f"{micro} needs {peak}, too much")
    accumulated = f" x {recipe.accumulation} accumulated" if recipe.accumulation > 1 else ""
    return f"micro_sequences {chosen}{accumulated}: {', '.join(told) or 'the only one that divides the batch'}"


def _exchange(job: Job, cluster: Cluster, best: Candidate) -> str:
    if best.recipe.layout.data_ranks == 1:
        return f"exchange none: one {'' if best.recipe.layout.ranks == 1 else 'data '}rank"
    halved = _put(best.recipe, "exchange.dtype", "bf16")
    gain = 1 - estimate(job, cluster, halved).seconds / best.run.seconds
    return f"exchange fp32: bf16 would save {max(0.0, gain):.1%} and round gradients; --set recipe.exchange.dtype=bf16"


def _optimizer(ask: _Beside, opened: Sequence[str]) -> list[str]:
    """What another optimizer saves or would save on the way to the same loss, and why: tokens, time of a step, memory.

    Closed, it is told only where it would save much, as other closed levers are.
    """
    recipe, key = ask.best.recipe, space.OPTIONAL["optimizer"][0]
    chosen, names = recipe.optimizer.name, space.beyond_plain("optimizer", ask.cluster, recipe.software)

    def alike(one: Recipe) -> bool:
        return (one.compile, one.precision) == (recipe.compile, recipe.precision)

    beside = [ask.cheapest(key, name, alike) for name in (OPTIMIZERS[0], *names) if name != chosen]
    others = [one for one in beside if one is not None]
    is_open = "optimizer" in opened
    if not others:
        return [f"optimizer {chosen}: {OPTIMIZERS[0]} {ask.too_large(key, OPTIMIZERS[0])}"] if is_open and names else []
    other = max(others, key=lambda c: saved(ask.job, ask.cluster, key, c, ask.best))
    plain, new = (other, ask.best) if chosen in names else (ask.best, other)
    gain, least = saved(ask.job, ask.cluster, key, new, plain), threshold(key, ask.cluster)
    factor = fewer_tokens(new.recipe.optimizer.name, total_parameters(ask.job.model))
    longer = new.run.step.total / plain.run.step.total - 1
    held = new.run.memory.optimizer - plain.run.memory.optimizer
    size = f"{units.show(abs(held), 'byte')} {'less' if held < 0 else 'more'} state"
    name = new.recipe.optimizer.name
    because = f"{factor.value:.3g} times fewer tokens ({factor.provenance}), steps {longer:+.1%}, {size}"
    if new is ask.best:
        return [f"optimizer {name}: the same loss for {gain:.1%} less than {plain.recipe.optimizer.name}: {because}"]
    if is_open:
        return [f"optimizer {chosen}: {name} would save {gain:.1%}, under the {least:.0%} that it must: {because}"]
    told = f"optimizer {chosen}: {name} (--levers optimizer) would reach the same loss for {gain:.1%} less"
    return [f"{told}: {because}"] if gain > NAMED_SAVING else []


def _between_islands(name: str, ask: _Beside) -> str:
    """What the chosen exchange between islands saves, or why it stays plain."""
    key, recipe = space.OPTIONAL[name][0], ask.best.recipe
    plain, chosen = LADDERS[key][0], value_of(recipe, key)
    offers = [c for value in space.beyond_plain(name, ask.cluster, recipe.software) if (c := ask.cheapest(key, value))]
    without = ask.cheapest(key, plain)
    if without is None or not offers:
        return f"{name}: {key} {chosen}, the only one that fits"
    if chosen != plain:
        gain = saved(ask.job, ask.cluster, key, ask.best, without)
        more = steps_factor(recipe.exchange.codec) - 1
        steps = f", {more:.1%} more steps counted in" if more >= 0.0005 else ""
        if name == "localsteps":
            steps = "; what it does to the loss is not priced"
        over = " with 16-bit gradients" if name == "compression" else ""
        return f"{name} on: {key} {chosen} saves {gain:.0%} of the time of a step{over}{steps}"
    other = max(offers, key=lambda c: saved(ask.job, ask.cluster, key, c, without))
    gain, least = saved(ask.job, ask.cluster, key, other, without), threshold(key, ask.cluster)
    would = f"would save {gain:.1%} of a step, under the {least:.0%} that it must" if gain > 0 else "would cost time"
    return f"{name} off: {key} {value_of(other.recipe, key)} {would}"


def _closed(ask: _Beside, opened: Sequence[str]) -> list[str]:
    """What the levers that change the numbers would save, where that is much."""
    recipe, told = ask.best.recipe, list[str]()
    for name, (key, _) in space.OPTIONAL.items():
        offers = space.beyond_plain(name, ask.cluster, recipe.software)
        alone = name in ("compression", "localsteps") and recipe.layout.island == 1
        if name in opened or name == "optimizer" or alone or not offers or at(ask.given, key) is not None:
            continue
        others = [c for value in offers if (c := ask.cheapest(key, value)) is not None]
        if others:
            least = min(others, key=lambda c: c.run.step.total)
            gain = saved(ask.job, ask.cluster, key, least, ask.best)
            if gain > NAMED_SAVING:
                told.append(f"{name} ({key} {value_of(least.recipe, key)}) would save {gain:.0%}")
    if not told:
        return []
    return [f"levers that change the numbers stay closed (--levers): of a step, {', '.join(told)}"]


def nothing(job: Job, cluster: Cluster, base: Recipe, found: Pool, given: Tree) -> ThriftyError:
    """Why a search has nothing to choose from."""
    if found.least is not None:
        return _no_fit(job, cluster, base, found, given)
    if found.reasons:
        # Of what the user asked for, if that is at fault, else of most recipes.
        asked = [one for one in found.reasons.values() if at(given, one.key.removeprefix("recipe.")) is not None]
        reason = max(asked or found.reasons.values(), key=lambda one: found.excluded[one.kind])
        return ThriftyError(reason.what, where=reason.key, hint=reason.hint)
    return _nothing_divides(job, cluster, base, given)


def _nothing_divides(job: Job, cluster: Cluster, base: Recipe, given: Tree) -> ThriftyError:
    sequences, micro = base.batch.sequences, at(given, "batch.micro_sequences") or 1
    ranks = sorted({layout.data_ranks for layout in space.layouts(job, cluster, given)})
    together = ranks[0] * micro
    lower = sequences // together * together
    return ThriftyError(
        f"batch.sequences {sequences} cannot be shared equally by {' or '.join(map(str, ranks[:4]))} ranks"
        + (f" in microbatches of {micro}" if micro > 1 else ""),
        where="recipe.batch.sequences",
        hint=f"use {lower} or {lower + together}" if lower else f"use {together} or a multiple of it",
    )


def _no_fit(job: Job, cluster: Cluster, base: Recipe, found: Pool, given: Tree) -> ThriftyError:
    """What the least demanding recipe needs, by term, and what would mend it."""
    assert found.least is not None
    recipe, used = found.least
    ranks = recipe.layout.ranks
    usable = units.show(usable_bytes(cluster, ranks), "byte")
    terms = sorted(used.terms().items(), key=lambda item: -item[1])
    largest = ", ".join(f"{name} {units.show(value, 'byte')}" for name, value in terms if value > 0.01 * used.peak)
    return ThriftyError(
        f"{job.name} does not fit {cluster.name}: the least demanding of {found.tried:,} recipes needs "
        f"{units.show(used.peak, 'byte')} of {usable} a rank ({largest})",
        where="memory",
        hint="; ".join(_ways_out(job, cluster, base, recipe, given)),
    )


def _ways_out(job: Job, cluster: Cluster, base: Recipe, recipe: Recipe, given: Tree) -> list[str]:
    ways = []
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
    return ways + other_software.that_fits(job, cluster, base, given)


def _enough_devices(job: Job, cluster: Cluster, recipe: Recipe) -> tuple[int | None, Memory]:
    """The smallest power-of-two multiple of the cluster that holds the recipe, fully sharded; none up to 1024 times.

    Also what is needed on that many devices, or on 1024 times as many.
    """
    factor = 1
    while True:
        factor *= 2
        larger = cluster.model_copy(update={"nodes": cluster.nodes * factor})
        layout = recipe.layout.model_copy(update={"island": 1, "shard": recipe.layout.data_ranks * factor})
        batch = recipe.batch.model_copy(update={"sequences": layout.data_ranks, "micro_sequences": 1})
        used = memory(job, larger, recipe.model_copy(update={"layout": layout, "batch": batch}))
        fits = used.peak <= usable_bytes(larger, layout.ranks)
        if fits or factor == 1024:
            return larger.devices if fits else None, used
