"""What one rank sends in one optimizer step: every collective with its group, bytes, count and link.

A ring all-gather or reduce-scatter of a unit whose fullest shard is S makes each of n ranks send (n - 1) S; a ring
all-reduce of V makes it send 2 (n - 1) / n V; an all-to-all of V sends (n - 1) / n V. Time is a fixed latency plus
bytes over the slowest hop's bandwidth.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, NamedTuple

from thrifty.cost import constants, muon
from thrifty.cost.compute import ELEMENT_BYTES
from thrifty.cost.crossing import Unit, exchanged, exchanges
from thrifty.cost.exchange import messages
from thrifty.cost.held import held, sharing_ranks
from thrifty.cost.payload import bits_per_value
from thrifty.cost.profiles import profile
from thrifty.cost.share import Share, of_all, of_one
from thrifty.cost.stages import own_runs
from thrifty.cost.work import chunk_rows
from thrifty.spec.cluster import Cluster, Link
from thrifty.spec.codec import stages_of
from thrifty.spec.job import Job, ModelShape
from thrifty.spec.recipe import Layout, Recipe

Kind = Literal["all_gather", "reduce_scatter", "all_reduce", "all_to_all", "send"]
Axis = Literal["tensor", "context", "expert", "shard", "pipeline", "island"]
AXES: tuple[Axis, ...] = ("tensor", "context", "expert", "shard", "pipeline", "island")
LINKS = ("intra_node", "inter_node", "inter_island")
# Compute a block again by torch's checkpoint, which stops at the last tensor that the backward pass needs: the sum that
# ends the block is not made again. Megatron-LM runs it to its end.
STOPS_EARLY = ("thrifty", "torchtitan", "accelerate")


class Collective(NamedTuple):
    """One kind of collective of a step. A tuple, since a search makes some for every recipe and tuples are made fast.

    Attributes:
        unit: what is moved: `block`, `root` (embedding, last norm, head), `norm` (of the gradients, for clipping),
            `muon` (momenta and what they become),
            `whole` (gradients of what every tensor rank holds whole), `tied` (the gradient of an embedding that two
            stages hold), or the activations of an axis: `stream` (the residual stream), `loss`, `experts`, `keys`
            (with values), `sums` (of gradients of keys and values), `stage`.
        phase: `forward`, `backward`, or `step` for what happens once a step.
        axis: of the layout, whose ranks take part.
        group: how many they are.
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
    axis: Axis
    group: int
    payload_bytes: float
    sent_bytes: float
    count: float  # type: ignore[assignment]  # in the place of tuple.count, which nobody calls
    link: str
    latency: float
    seconds: float


@dataclass(frozen=True, slots=True)
class Hop:
    """The ring of one group: the slowest link it crosses, bytes/s of each rank over it, and the fixed time."""

    link: str
    bandwidth: float
    latency: float


def stride_and_size(layout: Layout, axis: Axis) -> tuple[int, int]:
    """Distance between neighbours of an axis's group in rank numbers, and its ranks; tensor is innermost."""
    if axis == "shard":
        return layout.tensor, layout.context * layout.shard  # ranks of one sequence share states like those of samples
    within = 1
    for name in ("tensor", "context", "shard", "pipeline", "island"):
        size: int = getattr(layout, name)
        if name == axis:
            return within, size
        within *= size
    return layout.tensor, layout.expert  # experts are split over neighbouring context and data ranks


def hop(cluster: Cluster, layout: Layout, axis: Axis) -> Hop:
    """The ring of a layout axis; ranks fill nodes in order.

    Where m ranks of the group sit in one node, m links leave that node for the ring, so that a rank sees m times the
    bandwidth of its own link to the outside, at most that inside the node.
    """
    stride, size = stride_and_size(layout, axis)
    per_node = max(1, layout.ranks // cluster.nodes) if cluster.accelerator.kind == "cpu" else cluster.per_node
    per_island = per_node * (cluster.nodes // cluster.islands)
    span = stride * size
    in_node = max(1, min(size, per_node // stride if stride <= per_node else 1))
    if span <= per_node:
        inside = _hop("intra_node", cluster.intra_node, 1)
        if cluster.accelerator.kind == "cpu":
            return inside
        base, each = constants.LATENCY_OF_RANKS
        return Hop(inside.link, inside.bandwidth, inside.latency * (base + each * min(8, size)))
    name, link = ("inter_node", cluster.inter_node) if span <= per_island else ("inter_island", cluster.inter_island)
    outside = _hop(name, link, in_node)
    within = cluster.intra_node.bandwidth.value if in_node > 1 else outside.bandwidth
    return Hop(name, min(within, outside.bandwidth), outside.latency)


def _hop(name: str, link: Link, links: int) -> Hop:
    return Hop(name, link.bandwidth.value * links, link.latency.value)


def _sent_share(kind: Kind, n: int) -> float:
    """Bytes that each of n ranks sends, over those it hands in."""
    return {
        "all_gather": n - 1,
        "reduce_scatter": (n - 1) / n,
        "all_reduce": 2 * (n - 1) / n,
        "all_to_all": (n - 1) / n,
        "send": 1,
    }[kind]


def collective(
    kind: Kind, unit: str, phase: str, axis: Axis, payload: float, count: float, ring: Hop, group: int,
    shares: tuple[float, float],
) -> Collective:  # fmt: skip
    """One kind of collective over a ring, of whose bandwidth the software gets a share: inside a node, or outside."""
    sent, share = payload * _sent_share(kind, group), shares[ring.link != "intra_node"]
    seconds = ring.latency + sent / (ring.bandwidth * share)
    return Collective(kind, unit, phase, axis, group, payload, sent, count, ring.link, ring.latency, seconds)


def collectives(
    job: Job, cluster: Cluster, recipe: Recipe, place: Mapping[str, int] | None = None
) -> tuple[Collective, ...]:
    """Every collective of one optimizer step. Empty for one rank.

    Args:
        place: of the rank on each axis, for what this project's trainer sends there, exactly. When left out, the list
            is that of a rank that stands for all: of the fullest stage, with an equal part of what embedding and head
            send, and the messages of the busiest sender. Without a pipeline this is exact for the first rank.
    """
    if recipe.layout.ranks == 1:
        return ()
    how = profile(recipe.software, cluster)
    axes = [axis for axis in AXES if stride_and_size(recipe.layout, axis)[1] > 1]
    found = (hop(cluster, recipe.layout, axis) for axis in axes)
    rings = tuple((a, Hop(h.link, h.bandwidth, h.latency * how.latency)) for a, h in zip(axes, found, strict=True))
    shares = (how.node_bandwidth, how.network_bandwidth, how.gather_bandwidth)
    asked = (recipe.layout, recipe.accumulation, recipe.precision, rings, shares)
    way = (recipe.recompute, recipe.software in STOPS_EARLY, recipe.software == "thrifty")
    runs = own_runs(job, cluster, recipe)
    if place is None:
        share = of_all(job.model, recipe.layout, recipe.software, runs)
    else:
        share = of_one(job.model, recipe.layout, recipe.software, runs, dict(place))
    moved = _activations(job.model, share, job.sequence_length, recipe.batch.micro_sequences, *way, *asked)
    apart = recipe.exchange.between_islands
    inside = _data_parallel(share, sharing_ranks(recipe.layout, recipe.software), recipe.exchange.dtype, apart, *asked)
    if recipe.optimizer.name == "muon":
        inside = *inside, *_orthogonal(job.model, recipe, runs, place, dict(rings), shares[:2])
    if recipe.layout.island == 1 or not apart:
        return *inside, *moved
    return *inside, *_between_islands(job.model, recipe, share, runs, place, dict(rings)["island"], shares[:2]), *moved


def _orthogonal(
    shape: ModelShape, recipe: Recipe, runs: tuple[range, ...] | None, place: Mapping[str, int] | None,
    ring: dict[Axis, Hop], shares: tuple[float, float],
) -> tuple[Collective, ...]:  # fmt: skip
    """What Muon sends to make matrices orthogonal: as `cost.muon` says."""
    layout, n = recipe.layout, sharing_ranks(recipe.layout, recipe.software)
    pieces = held(shape, layout, recipe.software, runs)
    piece = max(pieces, key=lambda stage: stage.shard) if place is None else pieces[place["pipeline"]]
    if layout.tensor > 1:
        values = float(muon.ELEMENT * muon.gathered_values(shape, layout, piece))
        groups: list[tuple[Axis, int, float]] = [("shard", n, values / n), ("tensor", layout.tensor, values)]
        return tuple(
            collective("all_gather", "muon", "step", axis, size, 1, ring[axis], group, shares)
            for axis, group, size in groups if group > 1
        )  # fmt: skip
    if n == 1:
        return ()
    hop_, at = ring["shard"], 0 if place is None else place["shard"] * layout.context + place["context"]
    bandwidth = hop_.bandwidth * shares[hop_.link != "intra_node"]
    return tuple(
        Collective("all_to_all", "muon", "step", "shard", n, handed, sent, 1, hop_.link, hop_.latency,
                   hop_.latency + sent / bandwidth)
        for handed, sent in muon.messages(muon.matrices_of(shape, piece), n, at)
    )  # fmt: skip


def _between_islands(
    shape: ModelShape, recipe: Recipe, share: Share, runs: tuple[range, ...] | None, place: Mapping[str, int] | None,
    ring: Hop, shares: tuple[float, float],
) -> tuple[Collective, ...]:  # fmt: skip
    """What islands send each other where that is encoded, or only every so many steps."""
    layout, exchange, islands = recipe.layout, recipe.exchange, recipe.layout.island
    stages = stages_of(exchange.codec) if exchange.codec else ()
    often = 1 / exchange.local_steps
    if recipe.software != "thrifty":
        element = ELEMENT_BYTES[exchange.dtype]
        sent = [(u, u.elements if layout.zero == 0 else u.shard) for u in share.units]
        sizes = [(u, bits_per_value(stages, (int(size),)) / 8 * size if stages else element * size) for u, size in sent]
        return tuple(
            collective("all_reduce", u.name, "step", "island", size, u.number * often, ring, islands, shares)
            for u, size in sizes
        )
    bandwidth, rank = ring.bandwidth * shares[ring.link != "intra_node"], place["island"] if place is not None else 0
    return tuple(
        Collective(
            one.kind, unit.name, "step", "island", islands, one.payload_bytes, one.sent_bytes, unit.number * often,
            ring.link, ring.latency, ring.latency + one.sent_bytes / bandwidth,
        )
        for unit in _units_between(shape, recipe, runs, place)
        for one in messages(stages, unit.shapes, islands, rank=rank)
    )  # fmt: skip


def _units_between(
    shape: ModelShape, recipe: Recipe, runs: tuple[range, ...] | None, place: Mapping[str, int] | None
) -> tuple[Unit, ...]:
    layout, exchange = recipe.layout, recipe.exchange
    if place is None:
        pieces = held(shape, layout, "thrifty", runs)
        at = (max(range(len(pieces)), key=lambda stage: pieces[stage].shard), 0, 0)
    else:
        at = (place["pipeline"], place["tensor"], place["shard"] * layout.context + place["context"])
    return exchanged(shape, layout, exchange.local_steps, exchange.fragments, runs, at)


def bytes_between_islands(job: Job, cluster: Cluster, recipe: Recipe, steps: int) -> tuple[str, float]:
    """The link between islands that exchange in a way of their own, and the bytes that one rank sends over it in a run.

    Not every exchange is like the next: the first ones may be plain, and after local steps the last one takes what is
    left.
    """
    layout, exchange = recipe.layout, recipe.exchange
    stages = stages_of(exchange.codec) if exchange.codec else ()
    total = 0.0
    for unit in _units_between(job.model, recipe, own_runs(job, cluster, recipe), None):
        times = exchanges(unit.fragment, exchange, steps)
        plain = min(times, exchange.warmup_steps)
        for way, number in ((stages, times - plain), ((), plain)):
            total += number * unit.number * sum(m.sent_bytes for m in messages(way, unit.shapes, layout.island))
    return hop(cluster, layout, "island").link, total


Rings = tuple[tuple[Axis, Hop], ...]
Shares = tuple[float, float, float]  # of a link's bandwidth: inside a node, between nodes, of that for zero 3


@lru_cache(maxsize=8192)
def _data_parallel(
    share: Share, n: int, dtype: str, islands_apart: bool, layout: Layout, accumulation: int, precision: str,
    rings: Rings, shares: Shares,
) -> tuple[Collective, ...]:  # fmt: skip
    """Gradients and parameters between the ranks that see different samples, context ranks included."""
    ring = dict(rings)
    compute, reduced = ELEMENT_BYTES[precision], ELEMENT_BYTES[dtype]
    found: list[Collective] = []

    def add(kind: Kind, unit: str, phase: str, axis: Axis, payload: float, count: float) -> None:
        group = layout.island if axis == "island" else n
        inside, outside, gathered = shares
        outside *= gathered if phase != "step" else 1.0
        found.append(collective(kind, unit, phase, axis, payload, count, ring[axis], group, (inside, outside)))

    # A stage of a pipeline keeps its parameters gathered, and its gradients whole, until its last backward pass.
    often = accumulation if layout.pipeline == 1 else 1
    for unit in share.units:
        each, size, shard = unit.number * often, unit.elements, unit.shard
        if n > 1 and layout.zero == 3:
            add("all_gather", unit.name, "forward", "shard", shard * compute, each)
            # The root stays gathered between its forward and backward pass.
            if layout.reshard_after_forward and layout.pipeline == 1 and unit.name == "block":
                add("all_gather", unit.name, "backward", "shard", shard * compute, each)
            add("reduce_scatter", unit.name, "backward", "shard", n * shard * reduced, each)
        elif n > 1 and layout.zero == 0:
            add("all_reduce", unit.name, "step", "shard", size * reduced, unit.number)
        elif n > 1:
            times = unit.number * (accumulation if layout.zero == 2 else 1)
            add("reduce_scatter", unit.name, "step", "shard", size * reduced, times)
            add("all_gather", unit.name, "step", "shard", size / n * compute, unit.number)
        if layout.island > 1 and not islands_apart:
            add("all_reduce", unit.name, "step", "island", (size if layout.zero == 0 else shard) * reduced, unit.number)
    if layout.pipeline > 1:
        path = ring["pipeline"]
        if share.tied:
            payload = 4 * share.tied
            found.append(collective("all_reduce", "tied", "step", "pipeline", payload, 1, path, 2, shares[:2]))
        found.append(collective("all_reduce", "norm", "step", "pipeline", 4, 1, path, layout.pipeline, shares[:2]))
    if n > 1:
        add("all_reduce", "norm", "step", "shard", 4, 1)
    if layout.tensor > 1:
        for unit_name, payload in (("whole", 4.0 * share.partial), ("norm", 4.0)):
            if payload:
                ring_of, pair = ring["tensor"], shares[:2]
                found.append(
                    collective("all_reduce", unit_name, "step", "tensor", payload, 1, ring_of, layout.tensor, pair)
                )
    return tuple(found)


@lru_cache(maxsize=65536)
def _activations(
    shape: ModelShape, share: Share, length: int, micro: int, recompute: str, stops_early: bool, by_messages: bool,
    layout: Layout,
    accumulation: int, precision: str, rings: Rings, shares: Shares,
) -> tuple[Collective, ...]:  # fmt: skip
    """Activations and their gradients between the ranks that share a microbatch.

    Args:
        by_messages: context ranks pass keys, values and fp32 sums of their gradients on one by one, as `parallel/ring`
            does; else this is counted as collectives of the same bytes in the compute dtype.
    """
    if layout.tensor == layout.context == layout.expert == layout.pipeline == 1:
        return ()
    ring, element = dict(rings), ELEMENT_BYTES[precision]
    tokens = micro * length / layout.context
    layers = share.layers
    stream = tokens * shape.hidden * element
    found: list[Collective] = []

    def add(kind: Kind, unit: str, phase: str, axis: Axis, payload: float, count: float) -> None:
        group = getattr(layout, axis)
        found.append(collective(kind, unit, phase, axis, payload, count * accumulation, ring[axis], group, shares[:2]))

    again = 1 if recompute == "full" else 0
    if layout.tensor > 1:
        # Column- then row-split: one sum after attention and one after the MLP, each way. With sequence parallelism
        # the same bytes as a gather before and a reduce-scatter after. The embedding has but the sum after it, forward,
        # and the head but the one before it, backward; the loss tells one maximum and one logit of each token, in fp32.
        first, last = share.first, share.last
        inner = 2 * layers
        entered, left = again * inner, again * (layers if stops_early else inner)
        chunks = math.ceil(tokens / chunk_rows(int(tokens), -(-shape.vocab_size // layout.tensor)))
        if layout.sequence_parallel:
            part = stream / layout.tensor
            add("all_gather", "stream", "forward", "tensor", part, inner + last)
            add("reduce_scatter", "stream", "forward", "tensor", stream, inner + first)
            add("all_gather", "stream", "backward", "tensor", part, inner + first + entered)
            add("reduce_scatter", "stream", "backward", "tensor", stream, inner + last + left)
        else:
            add("all_reduce", "stream", "forward", "tensor", stream, inner + first)
            add("all_reduce", "stream", "backward", "tensor", stream, inner + last + left)
        rows = -(-tokens // chunks)
        for size, number in ((rows, tokens // rows), (tokens % rows, 1)):
            if last and size:
                add("all_gather", "loss", "forward", "tensor", 2 * 4 * size, number * last)
    if layout.context > 1:
        width = shape.latent.kv_rank + shape.latent.rope_dim if shape.latent else 2 * shape.kv_heads * shape.head_dim
        keys = tokens * width / (1 if shape.latent else min(layout.tensor, shape.kv_heads)) * element
        ahead, back = layers, layers * (1 + (recompute != "none"))  # the attention core is computed again in any case
        turns = layout.context - 1
        if by_messages:
            add("send", "keys", "forward", "context", keys, ahead * turns)
            add("send", "keys", "backward", "context", keys, back * turns)
            add("send", "sums", "backward", "context", keys / element * 4, layers * turns)
        else:
            add("all_gather", "keys", "forward", "context", keys, ahead)
            add("all_gather", "keys", "backward", "context", keys, back)
            add("reduce_scatter", "keys", "backward", "context", keys * layout.context, layers)
    if layout.expert > 1 and shape.experts is not None:
        sparse = -(-(shape.layers - shape.experts.dense_layers) // layout.pipeline)
        routed = stream * shape.experts.active / (layout.tensor if layout.sequence_parallel else 1)
        add("all_to_all", "experts", "forward", "expert", routed, 2 * sparse * (1 + again))
        add("all_to_all", "experts", "backward", "expert", routed, 2 * sparse)
    if layout.pipeline > 1:
        handed = stream / (layout.tensor if layout.sequence_parallel else 1)
        for phase, number in zip(("forward", "backward"), share.sends, strict=True):
            if number:
                add("send", "stage", phase, "pipeline", handed, number)
    return tuple(found)


def sent_by_link(sent: tuple[Collective, ...]) -> dict[str, float]:
    """Bytes that one rank sends in one optimizer step, by link."""
    total = dict.fromkeys(LINKS, 0.0)
    for one in sent:
        total[one.link] += one.sent_bytes * one.count
    return total


def evaluation_by_link(sent: tuple[Collective, ...], recipe: Recipe, batches: int) -> dict[str, float]:
    """Bytes that one rank sends in one evaluation of `batches` forward passes, by link.

    Parameters: the root is gathered once; blocks for every pass, or once where they are not freed after it.
    Activations cross as in a training step's forward pass without recomputation.
    """
    total = dict.fromkeys(LINKS, 0.0)
    for one in sent:
        if one.phase != "forward":
            continue
        each = one.count / recipe.accumulation
        if one.axis == "shard" and recipe.layout.pipeline > 1:
            each, often = one.count, 1.0
        elif one.axis == "shard":
            often = batches if one.unit == "block" and recipe.layout.reshard_after_forward else 1.0
        else:
            often = batches / (2 if recipe.recompute == "full" and one.axis == "expert" else 1)
        total[one.link] += one.sent_bytes * each * often
    return total
