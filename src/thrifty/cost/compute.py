"""Compute time of one microbatch: a roofline over matrix products, attention and bytes moved, and the dispatch.

product (m, n, k)   max(2mnk / (rate x efficiency), bytes / bandwidth), efficiency = prod d / (d + half)
attention           causal FLOPs / (rate x share x s / (s + half))
elementwise         bytes / bandwidth
dispatch            operations x overhead: added on a CPU, a floor on a GPU, whose queue runs ahead
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

from thrifty.cost import constants, work
from thrifty.spec.cluster import Cluster
from thrifty.spec.errors import ThriftyError
from thrifty.spec.job import ModelShape

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


class Parts(NamedTuple):
    """Seconds of one pass over one unit by what it waits for; they add up."""

    products: float
    attention: float
    elementwise: float
    dispatch: float


def work_seconds(done: work.Work, rank: Rank, element: int, compiled: bool, length: int = 1, way: int = 0) -> Parts:
    """One pass over one unit. On a GPU the dispatch counts as far as it takes longer than the kernels.

    Args:
        length: tokens that attention sees.
        way: 0 forward, 1 backward.
    """
    half = constants.ATTENTION_HALF[rank.kind][element == 2]
    share = constants.ATTENTION_SHARE[rank.kind] * length / (length + half)
    products = done.repeats * sum(product_seconds(m, n, k, rank, element) for m, n, k in done.products)
    attention = done.attention_flops / (rank.attention_flops * share)
    gelus = done.gelus * constants.GELU_FLOPS[rank.kind][element == 2][way] / rank.attention_flops
    moved = done.moved_bytes * (constants.COMPILED_BYTES_SHARE if compiled else 1.0) / rank.bandwidth
    dispatch = done.kernels * rank.op_seconds * (constants.COMPILED_KERNEL_SHARE if compiled else 1.0)
    busy = products + attention + gelus + moved
    return Parts(products, attention, gelus + moved, dispatch if rank.kind == "cpu" else max(0.0, dispatch - busy))


@dataclass(frozen=True, slots=True)
class UnitSeconds:
    """Compute time of one microbatch by unit; the root is last norm, head and loss, both directions together."""

    block_forward: Parts
    block_backward: Parts
    root: Parts
    root_forward_only: Parts


@lru_cache(maxsize=4096)
def unit_seconds(
    shape: ModelShape, micro_sequences: int, sequence_length: int, rank: Rank, precision: str, compiled: bool
) -> UnitSeconds:
    """Compute time of one microbatch on one rank, by unit, without recomputation."""
    element, tokens, fused = ELEMENT_BYTES[precision], micro_sequences * sequence_length, rank.kind != "cpu"
    forward = work.block_forward(shape, tokens, sequence_length, element, fused)
    backward = work.block_backward(shape, tokens, sequence_length, element, fused)
    return UnitSeconds(
        block_forward=work_seconds(forward, rank, element, compiled, sequence_length),
        block_backward=work_seconds(backward, rank, element, compiled, sequence_length, way=1),
        root=work_seconds(work.head(shape, tokens, element, fused), rank, element, compiled=False),
        root_forward_only=work_seconds(work.head_forward(shape, tokens, element, fused), rank, element, compiled=False),
    )
