"""From the plain way of running a job to the plan, lever by lever: what each saves, and what it risks.

The plain way is what one would run without a planner: the chosen software, job, cluster and batch; bf16 (fp32 on a
CPU); plain data parallel, else full sharding, else tensor parallel inside a node, the first that fits; the largest
microbatch that fits; no recomputation unless it must; not compiled; gradients exchanged in fp32.

Levers are pulled in a fixed order. What a row gains depends on that order, as levers share what there is to save; the
product of all rows does not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

from thrifty.planner.reasons import show_layout
from thrifty.planner.shortlist import price, runs, show_recipe
from thrifty.planner.space import OPTIMIZERS, Candidate, divisors
from thrifty.spec import units
from thrifty.spec.cluster import Cluster
from thrifty.spec.job import Job
from thrifty.spec.plan import Plan
from thrifty.spec.recipe import Batch, Exchange, Layout, Optimizer, Recipe

Change = Callable[[Recipe, Recipe], dict[str, Any]]  # (recipe so far, the plan's) -> fields to replace


@dataclass(frozen=True)
class Row:
    """The plan's levers so far, this one the last.

    Attributes:
        lever: what is pulled; several names where one cannot be pulled without the other.
        change: `from -> to`.
        usd: of the run, up to this lever; `seconds` likewise.
        factor: money after over money before; the factors of all rows multiply to the plan over the plain way.
        gain: 1 - factor; below zero where the lever costs, as one does that only makes room for another.
        gain_usd: money before less money after.
        fits: whether the run up to here fits the memory; a row in between may not.
        risk: what it does to the numbers or to operations.
    """

    lever: str
    change: str
    usd: float
    seconds: float
    factor: float
    gain: float
    gain_usd: float
    peak_bytes: float
    fits: bool
    risk: str


@dataclass(frozen=True)
class Waterfall:
    """The plain way and the rows that lead from it to the plan.

    Attributes:
        plain: the recipe of the plain way in words.
        note: why the start is not the plainest of all; empty where it is.
        gain: share of the plain way's money that the plan saves.
    """

    plain: str
    plain_usd: float
    plain_seconds: float
    note: str
    rows: tuple[Row, ...]
    usd: float
    seconds: float
    gain: float

    def as_json(self) -> dict[str, Any]:
        """Everything, in types that JSON has."""
        return asdict(self)


def waterfall(plan: Plan) -> Waterfall:
    """Every lever of a plan, one after the other, from the plain way on."""
    job, cluster, pick = plan.job, plan.cluster, plan.recipe
    start, note = baseline(job, cluster, pick)
    rows, before, state = list[Row](), start, start.recipe
    pending: list[_Lever] = []
    for lever in _ordered(start.recipe, pick):
        pulled = state.model_copy(update=lever.change(state, pick))
        if pulled == state:
            continue
        pending, state = [*pending, lever], pulled
        if state == pick or runs(job, state):  # else it is pulled together with the next
            after = price(job, cluster, state)
            rows.append(_row(pending, before, after))
            before, pending = after, []
    return Waterfall(
        plain=f"{show_recipe(start.recipe)}, compile {'on' if start.recipe.compile else 'off'}",
        plain_usd=start.run.usd,
        plain_seconds=start.run.seconds,
        note=note,
        rows=tuple(rows),
        usd=before.run.usd,
        seconds=before.run.seconds,
        gain=1 - before.run.usd / start.run.usd,
    )


def _ordered(start: Recipe, pick: Recipe) -> tuple[_Lever, ...]:
    """The levers in their order; a smaller microbatch comes first, as the layout may divide the batch further."""
    if pick.batch.micro_sequences < start.batch.micro_sequences:
        return (_MICROBATCH, *(lever for lever in _LEVERS if lever is not _MICROBATCH))
    return _LEVERS


def _row(levers: list[_Lever], before: Candidate, after: Candidate) -> Row:
    factor = after.run.usd / before.run.usd
    shown = [f"{lever.show(before.recipe)} -> {lever.show(after.recipe)}" for lever in levers]
    risks = dict.fromkeys(lever.risk(after.recipe) for lever in levers)
    return Row(
        lever=" and ".join(lever.name for lever in levers),
        change="; ".join(shown),
        usd=after.run.usd,
        seconds=after.run.seconds,
        factor=factor,
        gain=1 - factor,
        gain_usd=before.run.usd - after.run.usd,
        peak_bytes=after.run.memory.peak,
        fits=after.fits,
        risk="; ".join(risks),
    )


# ---- where it starts


def baseline(job: Job, cluster: Cluster, pick: Recipe) -> tuple[Candidate, str]:
    """The plain way, and why it is not plainer still; evaluated and saved as often as the pick.

    Where nothing plain fits it is the one that needs least memory.
    """
    plain = pick.model_copy(
        update={
            "precision": _precision(cluster, pick),
            "scaling": Recipe.model_fields["scaling"].default,
            "compile": False,
            "optimizer": pick.optimizer.model_copy(update=_plain_optimizer(pick)),
            "exchange": Exchange(),
            "checkpoint": pick.checkpoint.model_copy(update={"asynchronous": False}),
        }
    )
    least: Candidate | None = None
    too_large = list[str]()
    for layout in _plain_layouts(cluster):
        for recompute in ("none", "full"):
            alike = plain.model_copy(update={"layout": layout, "recompute": recompute})
            ways = [way for batch in _batches(pick, layout) if runs(job, way := alike.model_copy(update=batch))]
            for one in (price(job, cluster, way) for way in ways):
                if one.fits:
                    larger = "; ".join(dict.fromkeys(too_large))
                    return one, f"plainer ways are too large: {larger}" if larger else ""
                if least is None or one.run.memory.peak < least.run.memory.peak:
                    least = one
            if ways:
                too_large.append(show_layout(layout) + (", recompute full" if recompute == "full" else ""))
    if least is None:  # no plain layout shares this batch
        return price(job, cluster, pick), "no plain layout divides the batch: the plan is compared with itself"
    needs = units.show(least.run.memory.peak, "byte")
    return least, f"nothing plain fits: it starts at the one that needs least, {needs}, which nobody could run"


def _plain_optimizer(pick: Recipe) -> dict[str, Any]:
    """AdamW in 32 bits in the place of another that the search may choose; one that it does not is the user's wish."""
    bits = {"state_bits": Optimizer().state_bits}
    return bits | ({"name": OPTIMIZERS[0]} if pick.optimizer.name in OPTIMIZERS else {})


def _precision(cluster: Cluster, pick: Recipe) -> str:
    usual = "fp32" if cluster.accelerator.kind == "cpu" else "bf16"
    return usual if usual in cluster.accelerator.peak_flops else pick.precision


def _plain_layouts(cluster: Cluster) -> Iterator[Layout]:
    """Replicas, then sharding of ever more, then tensor parallel inside a node, then stages over nodes.

    Each is there for every way to shard that some software has; those that the chosen one has not are passed over.
    """
    ranks = cluster.nodes if cluster.accelerator.kind == "cpu" else cluster.devices
    yield Layout(island=ranks)
    yield from (Layout(shard=ranks, zero=zero) for zero in (0, 1, 2, 3) if ranks > 1)
    inside = min(cluster.per_node, ranks)
    for tensor in (split for split in divisors(inside) if split > 1 and ranks % split == 0):
        yield from (Layout(shard=ranks // tensor, tensor=tensor, zero=zero) for zero in (1, 3))
    for pipeline in (split for split in divisors(ranks // inside) if split > 1):
        shard = ranks // inside // pipeline
        yield from (Layout(shard=shard, tensor=inside, pipeline=pipeline, zero=zero) for zero in (1, 3))


def _batches(pick: Recipe, layout: Layout) -> list[dict[str, Batch]]:
    """Microbatches, the largest first: powers of two that divide a rank's share; none where it is no whole number."""
    each, rest = divmod(pick.batch.sequences, layout.data_ranks)
    sizes = [2**power for power in reversed(range(each.bit_length())) if each % 2**power == 0]
    return [] if rest else [{"batch": pick.batch.model_copy(update={"micro_sequences": size})} for size in sizes]


# ---- the levers, in the order in which they are pulled


@dataclass(frozen=True)
class _Lever:
    """A choice of the recipe that a row pulls, how it reads, and what it risks."""

    name: str
    change: Change
    show: Callable[[Recipe], str]
    risk: Callable[[Recipe], str]


def _field(name: str, risk: Callable[[Recipe], str], label: str = "") -> _Lever:
    """A lever that is one field of the recipe."""

    def show(recipe: Recipe) -> str:
        value = getattr(recipe, name)
        return {True: "on", False: "off"}[value] if isinstance(value, bool) else str(value)

    return _Lever(label or name, lambda _, pick: {name: getattr(pick, name)}, show, risk)


def _inner(noun: str, name: str, label: str, risk: Callable[[Recipe], str]) -> _Lever:
    """A lever that is one field of a part of the recipe."""

    def change(state: Recipe, pick: Recipe) -> dict[str, Any]:
        return {noun: getattr(state, noun).model_copy(update={name: getattr(getattr(pick, noun), name)})}

    def show(recipe: Recipe) -> str:
        value = getattr(getattr(recipe, noun), name)
        return {True: "on", False: "off"}[value] if isinstance(value, bool) else "none" if value is None else str(value)

    return _Lever(label, change, show, risk)


def _exchange(names: tuple[str, ...], label: str, risk: str) -> _Lever:
    """A lever of what islands send each other: it is named by its first field, and takes the others along."""

    def change(state: Recipe, pick: Recipe) -> dict[str, Any]:
        return {"exchange": state.exchange.model_copy(update={name: getattr(pick.exchange, name) for name in names})}

    return _Lever(label, change, lambda recipe: str(getattr(recipe.exchange, names[0]) or "none"), lambda _: risk)


def _layout_change(state: Recipe, pick: Recipe) -> dict[str, Any]:
    """The pick's axes; whether gathered parameters are kept is a lever of its own."""
    kept = state.layout.reshard_after_forward if pick.layout.shard > 1 else pick.layout.reshard_after_forward
    return {"layout": pick.layout.model_copy(update={"reshard_after_forward": kept})}


def _layout_risk(recipe: Recipe) -> str:
    layout = recipe.layout
    if layout.pipeline > 1:
        return "none to the numbers; stages must stay in step, and one slow stage slows all"
    if layout.tensor > 1 or layout.context > 1 or layout.expert > 1:
        return "none to the numbers; needs the fast links inside a node"
    return "none to the numbers"


# Published results that a risk rests on: DeepSeek-V3 (arXiv:2412.19437, section 3.3); NVFP4 pretraining
# (arXiv:2509.25149); nanochat dev/LOG.md (fp8: 1.17x tokens/s, about 5% less cost at the same capability).
_PRECISION_RISK = {
    "fp32": "none: the most exact of all",
    "bf16": "rounds products and activations to 8 bits of mantissa; master weights stay fp32",
    "fp8": "rounds matrix products to 8 bits: 0.25% of loss at most with block scales (DeepSeek-V3), but nanochat "
    "kept 5% of 17% at equal quality; compare the loss with bf16 before you pay for all of it",
    "nvfp4": "rounds matrix products to 4 bits: loss up to 1.5% above fp8 over 10T tokens (arXiv:2509.25149), with "
    "some layers left in bf16; compare the loss first",
}

_SCALED = ("fp8", "nvfp4")


def _none(_: Recipe) -> str:
    return "none to the numbers"


_MICROBATCH = _inner("batch", "micro_sequences", "microbatch", _none)
_LEVERS: tuple[_Lever, ...] = (
    _Lever("layout", _layout_change, lambda recipe: show_layout(recipe.layout), _layout_risk),
    _Lever(
        "gathering",
        lambda _, pick: {"layout": pick.layout},
        lambda recipe: "twice" if recipe.layout.reshard_after_forward else "once",
        _none,
    ),
    _field("recompute", _none),
    _MICROBATCH,
    _field("compile", lambda _: "fused kernels round differently; a longer start-up"),
    _Lever(
        "precision",
        lambda _, pick: {"precision": pick.precision, "scaling": pick.scaling},
        lambda recipe: recipe.precision + (f" scaled by {recipe.scaling}" if recipe.precision in _SCALED else ""),
        lambda recipe: _PRECISION_RISK[recipe.precision],
    ),
    _inner("optimizer", "name", "optimizer", lambda _: "fewer tokens to the same loss, which this row does not count"),
    _inner(
        "optimizer", "state_bits", "optimizer bits", lambda _: "rounds AdamW's moments by blocks (arXiv:2110.02861)"
    ),
    _inner("exchange", "dtype", "exchange", lambda _: "rounds gradients before they are summed"),
    _exchange(
        ("codec", "adaptive", "feedback", "decay", "residual", "warmup_steps"),
        "compression",
        "loses part of each gradient, which error feedback sends later; measure the loss",
    ),
    _exchange(
        ("local_steps", "outer_lr", "outer_momentum", "fragments", "delay_steps", "alpha"),
        "local steps",
        "changes the optimisation: islands drift apart between exchanges (arXiv:2311.08105); measure the loss",
    ),
    _inner(
        "checkpoint",
        "asynchronous",
        "asynchronous checkpoints",
        lambda _: "a crash while one is written falls back to the one before; host memory for a copy",
    ),
)
