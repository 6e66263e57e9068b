"""Time of one optimizer step: a roofline over what is computed, alpha-beta rings over what is sent, and their overlap.

product (m, n, k)   max(2mnk / (rate x efficiency), bytes / bandwidth), efficiency = prod d / (d + half)
elementwise         bytes / bandwidth
dispatch            operations x overhead: added on a CPU, a floor on a GPU, whose queue runs ahead
exposed             max(0, communication - the computation that it can hide behind), and the first and last unit
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from thrifty.cost import constants, work
from thrifty.cost.params import Counts, counts
from thrifty.cost.traffic import Collective, collectives
from thrifty.spec.cluster import Cluster
from thrifty.spec.errors import ThriftyError
from thrifty.spec.job import Job, ModelShape
from thrifty.spec.recipe import Recipe

ELEMENT_BYTES = {"fp32": 4, "bf16": 2}


@dataclass(frozen=True, slots=True)
class Rank:
    """What one process computes with: a GPU, or a share of a CPU's cores.

    Attributes:
        peak_flops: of the compute dtype; MFU divides by it.
        flops: sustained by large matrix products.
        attention_flops: what attention's share counts from: of a CPU, its fp32 rate whatever the precision.
        bandwidth: bytes/s of elementwise operations.
        op_seconds: dispatch of one operation.
    """

    kind: str
    peak_flops: float
    flops: float
    attention_flops: float
    bandwidth: float
    op_seconds: float


def rank_of(cluster: Cluster, ranks: int, precision: str) -> Rank:
    """The device of one rank.

    Raises:
        ThriftyError: the accelerator has no rate for this precision.
    """
    chip = cluster.accelerator
    if precision not in chip.peak_flops:
        known = ", ".join(chip.peak_flops)
        raise ThriftyError(
            f"{chip.name} has no {precision} rate",
            where="recipe.precision",
            hint=f"its rates: {known}; choose one of them",
        )
    # More processes than cores share them.
    devices = cluster.devices_per_rank(ranks) if ranks <= cluster.devices else cluster.devices / ranks
    peak = chip.peak_flops[precision].value
    best = chip.achievable_flops[precision].value if precision in chip.achievable_flops else None
    if chip.kind != "cpu":
        share = min(1.0, (constants.SUSTAINED_REFERENCE_FLOPS / peak) ** constants.SUSTAINED_EXPONENT)
        best = (best or peak * constants.ACHIEVABLE_SHARE) * share
    flops = (best or peak) * devices
    fp32 = chip.peak_flops["fp32"].value * devices if chip.kind == "cpu" and "fp32" in chip.peak_flops else flops
    return Rank(
        kind=chip.kind,
        peak_flops=peak * devices,
        flops=flops,
        attention_flops=fp32,
        bandwidth=chip.memory_bandwidth.value * devices * constants.BANDWIDTH_SHARE[chip.kind],
        op_seconds=chip.op_overhead.value,
    )


def product_seconds(m: int, n: int, k: int, rank: Rank, element: int) -> float:
    """One matrix product, without its dispatch."""
    outer, inner = constants.GEMM_HALF_OUTER[rank.kind], constants.GEMM_HALF_INNER[rank.kind]
    efficiency = m / (m + outer) * n / (n + outer) * k / (k + inner)
    return max(2 * m * n * k / (rank.flops * efficiency), element * (m * k + k * n + m * n) / rank.bandwidth)


def work_seconds(done: work.Work, rank: Rank, element: int, compiled: bool, length: int = 1, way: int = 0) -> float:
    """One pass over one unit, dispatch included.

    Args:
        length: tokens that attention sees.
        way: 0 forward, 1 backward.
    """
    half = constants.ATTENTION_HALF[rank.kind][element == 2]
    share = constants.ATTENTION_SHARE[rank.kind] * length / (length + half)
    products = sum(product_seconds(m, n, k, rank, element) for m, n, k in done.products)
    attention = done.attention_flops / (rank.attention_flops * share)
    gelus = done.gelus * constants.GELU_FLOPS[rank.kind][way] / rank.attention_flops
    moved = done.moved_bytes * (constants.COMPILED_BYTES_SHARE if compiled else 1.0) / rank.bandwidth
    dispatch = done.kernels * rank.op_seconds * (constants.COMPILED_KERNEL_SHARE if compiled else 1.0)
    busy = products + attention + gelus + moved
    return busy + dispatch if rank.kind == "cpu" else max(busy, dispatch)


@dataclass(frozen=True, slots=True)
class UnitSeconds:
    """Compute time of one microbatch by unit; the root is last norm, head and loss, both directions together."""

    block_forward: float
    block_backward: float
    root: float
    root_forward_only: float


@lru_cache(maxsize=4096)
def unit_seconds(
    shape: ModelShape, micro_sequences: int, sequence_length: int, rank: Rank, precision: str, compiled: bool
) -> UnitSeconds:
    """Compute time of one microbatch on one rank, by unit, without recomputation."""
    element, tokens, fused = ELEMENT_BYTES[precision], micro_sequences * sequence_length, rank.kind != "cpu"
    forward = work.block_forward(shape, tokens, sequence_length, element, fused)
    backward = work.block_backward(shape, tokens, sequence_length, element, fused)
    length = min(sequence_length, shape.sliding_window or sequence_length)
    return UnitSeconds(
        block_forward=work_seconds(forward, rank, element, compiled, length),
        block_backward=work_seconds(backward, rank, element, compiled, length, way=1),
        root=work_seconds(work.head(shape, tokens, element, fused), rank, element, compiled=False),
        root_forward_only=work_seconds(work.head_forward(shape, tokens, element, fused), rank, element, compiled=False),
    )


@dataclass(frozen=True, slots=True)
class StepSeconds:
    """One optimizer step. `communication` is what computation does not hide."""

    compute: float
    communication: float
    optimizer: float
    data: float
    forward_microbatch: float

    @property
    def total(self) -> float:
        return self.compute + self.communication + self.optimizer + self.data


def step_seconds(job: Job, cluster: Cluster, recipe: Recipe) -> StepSeconds:
    """Time of one optimizer step, from the slowest rank's view."""
    layout, shape = recipe.layout, job.model
    rank = rank_of(cluster, layout.ranks, recipe.precision)
    unit = unit_seconds(
        shape, recipe.batch.micro_sequences, job.sequence_length, rank, recipe.precision, recipe.compile
    )
    held = counts(shape, layout.shard)
    block_backward = unit.block_backward + (unit.block_forward if recipe.recompute == "full" else 0.0)
    around = _parameter_handling(held, recipe, rank)
    forward = shape.layers * unit.block_forward
    backward = shape.layers * block_backward
    sent = collectives(shape, cluster, recipe)
    exposed = _exposed(sent, unit, block_backward, shape.layers, recipe.accumulation, rank.kind)
    updates = 40.0 * held.shard  # AdamW reads 4 and writes 3 words of 4 bytes, clipping reads 2 and writes 1
    return StepSeconds(
        compute=recipe.accumulation * (forward + backward + unit.root + around),
        communication=exposed,
        optimizer=updates / rank.bandwidth + 2 * held.tensors * rank.op_seconds,
        data=constants.STEP_HOST_SECONDS[rank.kind],
        forward_microbatch=forward + unit.root_forward_only + around / 2,
    )


def _parameter_handling(held: Counts, recipe: Recipe, rank: Rank) -> float:
    """Casting, gathering and accumulating parameters and gradients around one microbatch, by bytes moved."""
    element = ELEMENT_BYTES[recipe.precision]
    if recipe.layout.ranks == 1:
        cast = 2 * 6 * held.in_matmuls if element == 2 else 0  # weights to bf16, their gradients back
        added = 12 * held.total if recipe.accumulation > 1 else 0
        return (cast + added) / rank.bandwidth
    gathers = 2 if recipe.layout.reshard_after_forward else 1
    copied = gathers * 2 * element * held.total + (element + 2 * ELEMENT_BYTES[recipe.exchange.dtype]) * held.total
    host = constants.SHARDING_HOST_SECONDS * (gathers + 1) * (held.layers + 1) if rank.kind == "cpu" else 0.0
    return (copied + 12 * held.shard) / rank.bandwidth + host


def _exposed(
    sent: tuple[Collective, ...], unit: UnitSeconds, block_backward: float, layers: int, accumulation: int, kind: str
) -> float:
    """Communication that the step waits for.

    Forward: each block's gather hides behind the block before it. Backward: a block's gather and the reduction of the
    one before it share the link and hide behind its computation. What the first gather and the last reduction take is
    always waited for. On a CPU nothing hides.
    """
    seconds = {(c.kind, c.unit, c.phase): c.seconds for c in sent}
    if not sent:
        return 0.0
    steering = constants.STEERING_MESSAGES * max(c.latency for c in sent)
    if kind == "cpu":
        return sum(c.seconds * c.count for c in sent) + steering
    gather, again = (seconds.get(("all_gather", "block", phase), 0.0) for phase in ("forward", "backward"))
    reduce = seconds.get(("reduce_scatter", "block", "backward"), 0.0)
    root = seconds.get(("all_gather", "root", "forward"), 0.0)
    root_reduce = seconds.get(("reduce_scatter", "root", "backward"), 0.0)
    slow = constants.OVERLAP_SLOWDOWN

    def waited(traffic: float, behind: float) -> float:
        # Hidden traffic still slows the computation it hides behind.
        hidden = min(traffic, behind)
        return traffic - hidden + (slow - 1) * hidden

    forward = root + gather + (layers - 1) * waited(gather, unit.block_forward)
    backward = (layers - 1) * waited(again + reduce, block_backward) + again + reduce + root_reduce
    crossing = sum(c.seconds * c.count for c in sent if c.kind == "all_reduce" and c.unit != "norm")
    norm = sum(c.seconds for c in sent if c.unit == "norm")
    # All-reduces across islands start as gradients appear in the last microbatch's backward pass.
    last = min(crossing, max(0.0, layers * block_backward - layers * (again + reduce)))
    return accumulation * (forward + backward) + crossing - last + (slow - 1) * last + norm + steering
