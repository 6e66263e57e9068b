"""What one rank sends in one optimizer step: every collective with its group, bytes, count and link.

A ring all-gather or reduce-scatter of a unit whose fullest shard is S makes each of n ranks send (n - 1) S; a ring
all-reduce of V makes it send 2 (n - 1) / n V. Time is a fixed latency plus bytes over the slowest hop's bandwidth.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

from thrifty.cost.compute import ELEMENT_BYTES
from thrifty.cost.params import counts
from thrifty.spec.cluster import Cluster, Link
from thrifty.spec.job import ModelShape
from thrifty.spec.recipe import Layout, Recipe

Kind = Literal["all_gather", "reduce_scatter", "all_reduce"]
LINKS = ("intra_node", "inter_node", "inter_island")


@dataclass(frozen=True, slots=True)
class Collective:
    """One kind of collective of a step.

    Attributes:
        unit: what is moved: `block`, `root` (embedding, last norm, head) or `norm` (of the gradients, for clipping).
        phase: `forward`, `backward`, or `step` for what happens once a step.
        group: ranks that take part.
        payload_bytes: of the tensor that a rank hands in: its shard to gather, the whole unit to reduce.
        sent_bytes: by one rank in one collective.
        count: in one optimizer step.
        link: the slowest link that the group crosses; all bytes are booked on it.
        latency: the fixed part of `seconds`.
        seconds: of one collective.
    """

    kind: Kind
    unit: str
    phase: str
    group: int
    payload_bytes: float
    sent_bytes: float
    count: int
    link: str
    latency: float
    seconds: float


@dataclass(frozen=True, slots=True)
class Hop:
    """The ring of one group: the slowest link it crosses, bytes/s of each rank over it, and the fixed time."""

    link: str
    bandwidth: float
    latency: float


def hop(cluster: Cluster, layout: Layout, axis: Literal["shard", "island"]) -> Hop:
    """The ring of a layout axis; ranks are numbered island x shard, shard innermost, and fill nodes in order.

    Where m ranks of the group sit in one node, m links leave that node for the ring, so that a rank sees m times the
    bandwidth of its own link to the outside, at most that inside the node.
    """
    per_node = max(1, layout.ranks // cluster.nodes) if cluster.accelerator.kind == "cpu" else cluster.per_node
    per_island = per_node * (cluster.nodes // cluster.islands)
    stride, size = (1, layout.shard) if axis == "shard" else (layout.shard, layout.island)
    span = stride * size
    in_node = max(1, min(size, per_node // stride if stride <= per_node else 1))
    if span <= per_node:
        return _hop("intra_node", cluster.intra_node, 1)
    name, link = ("inter_node", cluster.inter_node) if span <= per_island else ("inter_island", cluster.inter_island)
    outside = _hop(name, link, in_node)
    inside = _hop("intra_node", cluster.intra_node, 1).bandwidth if in_node > 1 else outside.bandwidth
    return Hop(name, min(inside, outside.bandwidth), outside.latency)


def _hop(name: str, link: Link, links: int) -> Hop:
    return Hop(name, link.bandwidth.value * links, link.latency.value)


def collectives(shape: ModelShape, cluster: Cluster, recipe: Recipe) -> tuple[Collective, ...]:
    """Every collective of one optimizer step, for one rank. Empty for one rank."""
    layout = recipe.layout
    if layout.ranks == 1:
        return ()
    shard_hop = hop(cluster, layout, "shard")
    island_hop = hop(cluster, layout, "island")
    return _collectives(
        shape, layout, recipe.accumulation, recipe.precision, recipe.exchange.dtype, shard_hop, island_hop
    )


@lru_cache(maxsize=4096)
def _collectives(
    shape: ModelShape, layout: Layout, accumulation: int, precision: str, exchange: str, shard_hop: Hop, island_hop: Hop
) -> tuple[Collective, ...]:
    held, n = counts(shape, layout.shard), layout.shard
    compute, reduced = ELEMENT_BYTES[precision], ELEMENT_BYTES[exchange]
    found: list[Collective] = []

    def add(kind: Kind, unit: str, phase: str, payload: float, count: int, ring: Hop, group: int) -> None:
        sent = payload * (group - 1) * {"all_gather": 1, "reduce_scatter": 1 / group, "all_reduce": 2 / group}[kind]
        seconds = ring.latency + sent / ring.bandwidth
        found.append(Collective(kind, unit, phase, group, payload, sent, count, ring.link, ring.latency, seconds))

    units = (("block", held.block_shard, shape.layers), ("root", held.root_shard, 1))
    for unit, elements, number in units if n > 1 else ():
        each = number * accumulation
        add("all_gather", unit, "forward", elements * compute, each, shard_hop, n)
        # The root stays gathered between its forward and backward pass.
        if layout.reshard_after_forward and unit == "block":
            add("all_gather", unit, "backward", elements * compute, each, shard_hop, n)
        add("reduce_scatter", unit, "backward", n * elements * reduced, each, shard_hop, n)
    for unit, elements, number in units if layout.island > 1 else ():
        add("all_reduce", unit, "step", elements * reduced, number, island_hop, layout.island)
    if n > 1:
        add("all_reduce", "norm", "step", 4, 1, shard_hop, n)
    return tuple(found)


def sent_by_link(sent: tuple[Collective, ...]) -> dict[str, float]:
    """Bytes that one rank sends in one optimizer step, by link."""
    total = dict.fromkeys(LINKS, 0.0)
    for one in sent:
        total[one.link] += one.sent_bytes * one.count
    return total


def evaluation_by_link(sent: tuple[Collective, ...], recipe: Recipe, batches: int) -> dict[str, float]:
    """Bytes that one rank sends in one evaluation of `batches` forward passes, by link.

    The root is gathered once; blocks for every pass, or once where they are not freed after it.
    """
    total = dict.fromkeys(LINKS, 0.0)
    for one in sent:
        if one.kind == "all_gather" and one.phase == "forward":
            often = batches if one.unit == "block" and recipe.layout.reshard_after_forward else 1
            total[one.link] += one.sent_bytes * (one.count // recipe.accumulation) * often
    return total
