"""The recipes that a plan may choose among: every legal layout of the devices, and every setting of the open levers.

Layouts are told apart from levers, and both are made once: a search combines them with microbatches. What is hardly
ever best is not proposed, only kept where the user gives it: GPipe (1F1B takes as long and holds less), tensor
parallelism without sequence parallelism (the same bytes, more memory) where that divides, tensor groups that cross
nodes, interleaved chunks that hold unequal numbers of layers, and groups of data ranks, beside model parallelism or
under ZeRO-1, that end neither with a node nor with an island.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

from thrifty.cost.compute import PEAK_NAME
from thrifty.cost.run import Run
from thrifty.spec import legal
from thrifty.spec.cluster import Cluster
from thrifty.spec.errors import ThriftyError, did_you_mean
from thrifty.spec.job import Job
from thrifty.spec.recipe import STATE_BITS, Exchange, Layout, Optimizer, Recipe
from thrifty.spec.software import RUNS, Runs

Tree = dict[str, Any]
# On a CPU, every number of ranks is tried up to this many cores; on larger machines those that divide the cores.
TRY_ALL_UP_TO = 16
MOST_CHUNKS = 8  # of layers a stage; more only hand over more often
AXES = ("island", "shard", "pipeline", "context", "tensor")
CROSSES = "tensor would cross nodes"

# Levers that change the numbers, with their key: proposed only where the user opens them, because what they cost in
# loss is not priced.
OPTIONAL = {
    "lowbit": ("precision", "matrix products in fp8 or nvfp4"),
    "optimizer": ("optimizer.name", "another optimizer than AdamW"),
    "optimizer8bit": ("optimizer.state_bits", "optimizer states in 16 or 8 bits"),
    "compression": ("exchange.codec", "gradients compressed between islands"),
    "localsteps": ("exchange.local_steps", "islands that exchange only every so many steps"),
}
LOCAL_STEPS = (10, 100)
# Those that run at AdamW's learning rate and that a fair comparison gives an advantage (catalog/optimizers.yaml).
OPTIMIZERS = ("adamw", "muon")
CODECS = tuple(dict.fromkeys(codec for runs in RUNS.values() for codec in runs.codecs))  # plainest first


class Grid(NamedTuple):
    """Sizes of a layout's axes; of the data axes only the product."""

    data: int
    pipeline: int
    context: int
    tensor: int

    @property
    def ranks(self) -> int:
        return self.data * self.pipeline * self.context * self.tensor


@dataclass(frozen=True, slots=True)
class Candidate:
    """A priced recipe, and whether its memory fits the device."""

    recipe: Recipe
    run: Run
    fits: bool


@dataclass(frozen=True, slots=True)
class Levers:
    """One setting of the levers beside layout, microbatch and recomputation."""

    precision: str
    compile: bool
    optimizer: Optimizer
    exchange: Exchange


def at(tree: Tree, path: str) -> Any:
    """The value at a dotted path of a nested dict, or None."""
    node: Any = tree
    for part in path.split("."):
        node = node.get(part) if isinstance(node, dict) else None
    return node


def put(tree: Tree, path: str, value: Any) -> Tree:
    """A copy of a nested dict with a value at a dotted path."""
    head, _, rest = path.partition(".")
    return tree | {head: put(tree.get(head) or {}, rest, value) if rest else value}


@lru_cache(maxsize=4096)
def divisors(number: int) -> tuple[int, ...]:
    """All divisors, smallest first."""
    small = [d for d in range(1, int(number**0.5) + 1) if number % d == 0]
    return tuple(sorted({*small, *(number // d for d in small)}))


# ---- layouts


def layouts(job: Job, cluster: Cluster, given: Tree, excluded: Counter[str] | None = None) -> list[Layout]:
    """Every legal layout of the devices for the software that the recipe is for, with what is given kept.

    A GPU is a rank, and all are used unless the layout says otherwise; cores of a CPU are shared by 1 .. cores ranks.

    Args:
        excluded: counts ways to divide the devices that are illegal, by reason.

    Raises:
        ThriftyError: more ranks than GPUs, a given axis that does not divide them, or no layout is legal.
    """
    software = given.get("software") or "thrifty"
    runs, asked = RUNS[software], given.get("layout") or {}
    counted: Counter[str] = Counter() if excluded is None else excluded
    found, first = dict[Layout, None](), None
    if asked.get("zero") not in (None, *runs.zero):  # which a layout without shards would hide
        first = legal.by_layout(job, Layout(shard=2, zero=asked["zero"]), software)
        if first is not None:
            raise ThriftyError(first.what, where=first.key, hint=first.hint)
    for grid in _grids(job, cluster, runs, asked):
        base = _model_axes(job, grid, asked, runs)
        if asked.get("tensor") is None and _ranks_of_node(cluster, grid.ranks) % base.tensor:
            counted[CROSSES] += 1
            continue
        variants = _variants(job, cluster, runs, asked, base, grid.data)
        for number, layout in enumerate(variants):
            reason = legal.by_layout(job, layout, software)
            if reason is None:
                found[layout] = None
                continue
            first = first or reason
            counted[reason.kind] += 1
            if number == 0 and reason.kind.startswith(("tensor", "context")):
                break  # which no variant mends
    if not found and first is not None:
        raise ThriftyError(first.what, where=first.key, hint=first.hint)
    return list(found)


def _grids(job: Job, cluster: Cluster, runs: Runs, asked: Tree) -> Iterator[Grid]:
    """Every way to divide the ranks among the axes."""
    devices, is_cpu = cluster.devices, cluster.accelerator.kind == "cpu"
    fixed = {axis: int(asked[axis]) for axis in AXES if asked.get(axis)}
    given = math.prod(fixed.values())
    if given > devices and not is_cpu:
        hint = f"use at most {devices}, or plan for a larger cluster with --on"
        what = f"{given} ranks need {given} devices; {cluster.name} has {devices}"
        raise ThriftyError(what, where="recipe.layout", hint=hint)
    free = [axis for axis in AXES if axis not in fixed and axis in runs.axes]
    if not free:
        numbers = [given]
    else:
        numbers = [ranks for ranks in (_cpu_ranks(devices) if is_cpu else [devices]) if ranks % given == 0]
    if not numbers:
        axis, value = next(iter(fixed.items()))
        hint = f"use one of {', '.join(map(str, divisors(devices)))}, or say both island and shard"
        raise ThriftyError(
            f"{axis} {value} does not divide {devices} devices", where=f"recipe.layout.{axis}", hint=hint
        )
    for ranks in numbers:
        yield from _split(job, ranks // given, fixed, free)


def _split(job: Job, left: int, fixed: dict[str, int], free: list[str]) -> Iterator[Grid]:
    """What is left of the ranks over the free axes; data axes that are both given leave all of it to the others."""
    data_given = math.prod(fixed.get(axis, 1) for axis in ("island", "shard"))
    data_free = "island" in free or "shard" in free

    def sizes(axis: str, most: int, upto: int) -> list[int]:
        return [d for d in divisors(most) if d <= upto] if axis in free else [1]

    for tensor in sizes("tensor", left, job.model.heads):
        for pipeline in sizes("pipeline", left // tensor, job.model.layers):
            rest = left // tensor // pipeline
            for context in sizes("context", rest, job.sequence_length):
                data = rest // context
                if data > 1 and not data_free:
                    continue
                held = (fixed.get(axis, 1) for axis in ("pipeline", "context", "tensor"))
                yield Grid(data_given * data, *(a * b for a, b in zip(held, (pipeline, context, tensor), strict=True)))


def _cpu_ranks(cores: int) -> Sequence[int]:
    return range(1, cores + 1) if cores <= TRY_ALL_UP_TO else divisors(cores)


def _ranks_of_node(cluster: Cluster, ranks: int) -> int:
    """Ranks that one node holds."""
    return max(1, ranks // cluster.nodes) if cluster.accelerator.kind == "cpu" else cluster.per_node


def _model_axes(job: Job, grid: Grid, asked: Tree, runs: Runs) -> Layout:
    """A layout with the axes that split the model, and what goes with tensor parallelism."""
    pipeline, context, tensor = grid[1:]
    sequence, overlap = asked.get("sequence_parallel"), asked.get("tensor_overlap")
    if sequence is None:
        sequence = tensor == 1 or job.sequence_length % (context * tensor) == 0
    if overlap is None:
        overlap = tensor > 1 and runs.tensor_overlap
    return Layout(pipeline=pipeline, context=context, tensor=tensor, sequence_parallel=sequence, tensor_overlap=overlap)


def _variants(
    job: Job, cluster: Cluster, runs: Runs, asked: Tree, base: Layout, data_ranks: int
) -> Iterator[Layout]:  # fmt: skip
    """Every way to shard, to schedule stages and to split experts under the same model axes."""
    overlaps = [base.tensor_overlap]
    if base.tensor_overlap and runs.overlap_needs_compile and asked.get("tensor_overlap") is None:
        overlaps.append(False)  # for blocks that are not compiled
    for sharding in _shardings(cluster, runs, asked, base, data_ranks):
        for expert in _expert_sizes(job, runs, asked, data_ranks * base.context):
            for schedule, chunks in _schedules(job, runs, asked, base.pipeline):
                for overlap in overlaps:
                    yield base.model_copy(
                        update={
                            **sharding, "expert": expert, "schedule": schedule, "interleave": chunks,
                            "tensor_overlap": overlap,
                        }
                    )  # fmt: skip


def _shardings(cluster: Cluster, runs: Runs, asked: Tree, base: Layout, ranks: int) -> Iterator[Tree]:
    """(island, shard, zero, reshard_after_forward) of the data ranks. With nothing to shard, `zero` says nothing."""
    island, shard, zero, again = (
        asked.get(key) for key in ("island", "shard", "zero", "reshard_after_forward")
    )  # fmt: skip
    beside = runs.zero_in_pipelines if base.pipeline > 1 else runs.zero
    for stage in [zero] if zero is not None else sorted(beside or runs.zero, reverse=True):
        shards: Sequence[int]
        if shard is not None:
            shards = [shard]
        elif island is not None:
            shards = [ranks // island]
        else:
            shards = _shard_sizes(cluster, runs, base, ranks, stage)
        for size in shards:
            if size < 1 or ranks % size:
                continue
            open_ = stage == 3 and size > 1 and base.pipeline == 1  # stages keep what they gathered in either case
            gathered = [again] if again is not None else [True, False] if open_ else [True]
            for reshard in gathered:
                yield {"island": ranks // size, "shard": size, "zero": stage, "reshard_after_forward": reshard}
        if zero is None and list(shards) == [1]:
            return


def _shard_sizes(cluster: Cluster, runs: Runs, base: Layout, ranks: int, zero: int) -> Sequence[int]:
    """Every size where all ranks see different samples; else all data ranks, or those of a node or of an island."""
    if zero == 0 or "island" not in runs.axes:
        return [ranks]
    if zero == 3 and base.ranks == 1:
        return divisors(ranks)
    per_node = cluster.per_node // (base.tensor * base.context)
    edges = {math.gcd(ranks, per_node) if per_node else 1, math.gcd(ranks, ranks // math.gcd(ranks, cluster.islands))}
    if zero == 3:
        edges.add(1)  # replicas, which under ZeRO-1 are those that share nothing
    return [ranks, *sorted(size for size in edges if (zero == 3 or size > 1) and size < ranks)]


def _expert_sizes(job: Job, runs: Runs, asked: Tree, ranks: int) -> Sequence[int]:
    if asked.get("expert") is not None:
        return [asked["expert"]]
    if job.model.experts is None or "expert" not in runs.axes:
        return [1]
    return divisors(math.gcd(job.model.experts.count, ranks))


def _schedules(job: Job, runs: Runs, asked: Tree, stages: int) -> list[tuple[str, int]]:
    """(schedule, chunks a stage). 1F1B in the place of GPipe, which takes as long and holds more."""
    schedule, chunks = asked.get("schedule"), asked.get("interleave")
    if stages == 1:
        return [(schedule or "1f1b", chunks or 1)]
    layers = -(-job.model.layers // stages)
    several = [v for v in divisors(layers) if 1 < v <= MOST_CHUNKS and v * stages <= job.model.layers]
    found = list[tuple[str, int]]()
    for name in [schedule] if schedule else [name for name in runs.schedules if name != "gpipe"] or ["1f1b"]:
        usual = {"interleaved": several, "zbv": [2]}.get(name, [1])
        if schedule or chunks:  # told why they are illegal, if they are
            found += [(name, v) for v in ([chunks] if chunks else usual or [2])]
        else:
            found += [(name, v) for v in usual if v == 1 or v * stages <= job.model.layers]
    return found


# ---- levers


def precisions(cluster: Cluster, given: Tree) -> list[str]:
    """The given precision, or fp32 and bf16 as far as the accelerator has a rate for them.

    Raises:
        ThriftyError: the accelerator has a rate for neither.
    """
    if given.get("precision"):
        return [given["precision"]]
    found: list[str] = [name for name in ("fp32", "bf16") if name in cluster.accelerator.peak_flops]
    if not found:
        known = ", ".join(cluster.accelerator.peak_flops)
        raise ThriftyError(
            f"{cluster.accelerator.name} has rates for {known}, not for fp32 or bf16",
            where="cluster.accelerator.peak_flops",
            hint="add the rate of fp32 or bf16",
        )
    return found


def levers(base: Recipe, cluster: Cluster, given: Tree, opened: Collection[str] = ()) -> list[Levers]:
    """Every setting of the open levers that the software runs, plainest first.

    Args:
        opened: names of `OPTIONAL`.

    Raises:
        ThriftyError: an unknown lever, or one that the software does not run on this accelerator.
    """
    runs, more = RUNS[base.software], dict[str, list[Any]]()
    for name in opened:
        if name not in OPTIONAL:
            raise ThriftyError(f"unknown lever {name!r}", where="--levers", hint=did_you_mean(name, OPTIONAL))
        key, words = OPTIONAL[name]
        if at(given, key) is not None:
            continue
        more[key] = beyond_plain(name, cluster, base.software)
        if not more[key]:
            what = f"{runs.called} does not run {name} ({words}) on {cluster.accelerator.name}"
            raise ThriftyError(what, where="--levers", hint="leave it out, or try --software any")
    compiled = [given["compile"]] if given.get("compile") is not None else [False, True] if runs.compile else [False]
    return [
        Levers(
            precision,
            on,
            base.optimizer.model_copy(update={"name": name, "state_bits": bits}),
            base.exchange.model_copy(update={"codec": sent or base.exchange.codec, "local_steps": steps}),
        )
        for precision in precisions(cluster, given) + more.get("precision", [])
        for on in compiled
        for name in [base.optimizer.name, *more.get("optimizer.name", [])]
        for bits in [base.optimizer.state_bits, *more.get("optimizer.state_bits", [])]
        if bits in STATE_BITS.get(name, (32,))
        for sent in [None, *more.get("exchange.codec", [])]
        for steps in [base.exchange.local_steps, *more.get("exchange.local_steps", [])]
    ]


def beyond_plain(lever: str, cluster: Cluster, software: str) -> list[Any]:
    """What a lever that changes the numbers offers beyond the plain way, where software and accelerator have it."""
    runs, rates = RUNS[software], cluster.accelerator.peak_flops
    if lever == "lowbit":
        return [name for name in ("fp8", "nvfp4") if name in runs.precisions and PEAK_NAME[name] in rates]
    if lever == "optimizer":
        return [name for name in OPTIMIZERS if name in runs.optimizers and name != "adamw"]
    if lever == "optimizer8bit":
        return [bits for bits in runs.state_bits if bits < 32]
    if lever == "compression":
        return [codec for codec in runs.codecs if codec is not None]
    return list(LOCAL_STEPS) if runs.local_steps else []


def is_pointless(layout: Layout, setting: Levers, plain: Levers, runs: Runs, given: Tree) -> bool:
    """Whether a layout and a setting are each proposed to be paired otherwise.

    What is exchanged between islands needs islands; overlap that needs compiled blocks goes with them alone.
    """
    if layout.island == 1 and setting.exchange != plain.exchange:
        return True
    if layout.tensor == 1 or not runs.overlap_needs_compile or at(given, "layout.tensor_overlap") is not None:
        return False
    return layout.tensor_overlap != setting.compile


def recomputations(base: Recipe, given: Tree) -> tuple[Any, ...]:
    """The given way to recompute, or those that the software runs, least first: each holds less and takes longer."""
    return (given["recompute"],) if given.get("recompute") else RUNS[base.software].recompute
