"""The recipes that a plan may choose among: every combination of the levers that the user left open."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from thrifty.cost.run import Run
from thrifty.spec.cluster import Cluster
from thrifty.spec.errors import ThriftyError
from thrifty.spec.recipe import Batch, Layout, Recipe

Tree = dict[str, Any]
# On a CPU, every number of ranks is tried up to this many cores; on larger machines those that divide the cores.
TRY_ALL_UP_TO = 16


@dataclass(frozen=True, slots=True)
class Candidate:
    """A priced recipe, and whether its memory fits the device."""

    recipe: Recipe
    run: Run
    fits: bool


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


def divisors(number: int) -> list[int]:
    """All divisors, smallest first."""
    small = [d for d in range(1, int(number**0.5) + 1) if number % d == 0]
    return sorted({*small, *(number // d for d in small)})


def layouts(cluster: Cluster, given: Tree) -> list[Layout]:
    """Every (island, shard) grid that the devices allow, with what is given kept.

    A GPU is a rank, and all are used unless the layout says otherwise; cores of a CPU are shared by 1 .. cores ranks.

    Raises:
        ThriftyError: more ranks than GPUs, or a given axis that does not divide them.
    """
    layout = given.get("layout") or {}
    island, shard = layout.get("island"), layout.get("shard")
    devices, is_cpu = cluster.devices, cluster.accelerator.kind == "cpu"
    if island and shard:
        grids = [(island, shard)]
    else:
        grids = [
            (i, ranks // i)
            for ranks in (_cpu_ranks(devices) if is_cpu else [devices])
            for i in divisors(ranks)
            if (not island or i == island) and (not shard or ranks // i == shard)
        ]
    if not grids:
        axis, value = ("island", island) if island else ("shard", shard)
        hint = f"use one of {', '.join(map(str, divisors(devices)))}, or say both island and shard"
        raise ThriftyError(
            f"{axis} {value} does not divide {devices} devices", where=f"recipe.layout.{axis}", hint=hint
        )
    most = max(i * s for i, s in grids)
    if most > devices and not is_cpu:
        hint = f"use at most {devices}, or plan for a larger cluster with --on"
        raise ThriftyError(
            f"{most} ranks need {most} devices; {cluster.name} has {devices}", where="recipe.layout", hint=hint
        )
    reshard = layout.get("reshard_after_forward")
    return [
        Layout(island=i, shard=s, reshard_after_forward=keep)
        for i, s in grids
        for keep in ([reshard] if reshard is not None else [True] if i * s == 1 else [True, False])
    ]


def _cpu_ranks(cores: int) -> list[int]:
    return list(range(1, cores + 1)) if cores <= TRY_ALL_UP_TO else divisors(cores)


def precisions(cluster: Cluster, given: Tree) -> list[str]:
    """The given precision, or those that the accelerator has a rate for.

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


def recipes(base: Recipe, cluster: Cluster, given: Tree) -> Iterator[Recipe]:
    """Every recipe that keeps what is given and takes the rest from `base`.

    Args:
        base: complete; its batch.sequences is the one of all candidates.
        given: partial tree of a Recipe.
    """
    sequences, micro_given = base.batch.sequences, at(given, "batch.micro_sequences")
    levers = [
        {"precision": precision, "recompute": recompute, "compile": compiled}
        for precision in precisions(cluster, given)
        for recompute in ([given["recompute"]] if given.get("recompute") else ["none", "full"])
        for compiled in ([given["compile"]] if given.get("compile") is not None else [False, True])
    ]
    for layout in layouts(cluster, given):
        if sequences % layout.data_ranks:
            continue
        each = sequences // layout.data_ranks
        for micro in [micro_given] if micro_given else divisors(each):
            if each % micro:
                continue
            batch = Batch(sequences=sequences, micro_sequences=micro)
            for chosen in levers:
                # Checked by construction: building each through validation would be most of the search's time.
                yield base.model_copy(update={"layout": layout, "batch": batch, **chosen})
