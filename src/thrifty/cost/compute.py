"""Compute time of one microbatch on one rank: a roofline over products, attention and bytes moved, and the dispatch.

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
from thrifty.cost.profiles import Profile, profile
from thrifty.cost.work import Split
from thrifty.spec.cluster import Accelerator, Cluster
from thrifty.spec.errors import ThriftyError
from thrifty.spec.job import ModelShape
from thrifty.spec.recipe import Recipe

# Of activations: low precision is for products alone, whose inputs are cast for it.
ELEMENT_BYTES = {"fp32": 4, "bf16": 2, "fp8": 2, "nvfp4": 2}
# The rate that a precision's products run at, by the names of data sheets.
PEAK_NAME = {"fp32": "fp32", "bf16": "bf16", "fp8": "fp8", "nvfp4": "fp4"}


@dataclass(frozen=True, slots=True)
class Rank:
    """What one process computes with: a GPU or a share of a CPU's cores, under one software.

    Attributes:
        peak_flops: of the compute dtype; MFU divides by it.
        flops: sustained by large matrix products in the dtype of activations.
        low_flops: the same in the dtype of the linear layers' products; equal unless they are in low precision.
        attention_flops: what attention's share counts from: of a CPU, its fp32 rate whatever the precision.
        bandwidth: bytes/s of elementwise operations.
        op_seconds: dispatch of one operation.
        profile: of the software.
    """

    kind: str
    peak_flops: float
    flops: float
    low_flops: float
    attention_flops: float
    bandwidth: float
    op_seconds: float
    profile: Profile


def rank_of(cluster: Cluster, recipe: Recipe) -> Rank:
    """The device of one rank.

    Raises:
        ThriftyError: the accelerator has no rate for this precision.
    """
    chip, ranks = cluster.accelerator, recipe.layout.ranks
    # More processes than cores share them.
    devices = cluster.devices_per_rank(ranks) if ranks <= cluster.devices else cluster.devices / ranks
    return _rank(chip, devices, recipe.precision, recipe.scaling, profile(recipe.software, cluster))


def _rank(chip: Accelerator, devices: float, precision: str, scaling: str, how: Profile) -> Rank:
    low = precision in ("fp8", "nvfp4")
    plain = _sustained(chip, "bf16" if low else precision) * devices * how.gemm
    share: float = how.fp4 if precision == "nvfp4" else getattr(how, f"fp8_{scaling}")
    fp32 = chip.peak_flops["fp32"].value * devices if chip.kind == "cpu" and "fp32" in chip.peak_flops else plain
    return Rank(
        kind=chip.kind,
        peak_flops=_peak(chip, precision) * devices,
        flops=plain,
        low_flops=_sustained(chip, precision) * devices * share if low else plain,
        attention_flops=fp32,
        bandwidth=chip.memory_bandwidth.value * devices * constants.BANDWIDTH_SHARE[chip.kind],
        op_seconds=chip.op_overhead.value,
        profile=how,
    )


def _peak(chip: Accelerator, precision: str) -> float:
    name = PEAK_NAME[precision]
    if name not in chip.peak_flops:
        known = ", ".join(chip.peak_flops)
        raise ThriftyError(
            f"{chip.name} has no {precision} rate",
            where="recipe.precision",
            hint=f"its rates: {known}; choose one of them",
        )
    return chip.peak_flops[name].value


def _sustained(chip: Accelerator, precision: str) -> float:
    """FLOP/s that large products keep up in training, below the best that any reaches in a burst."""
    peak, name = _peak(chip, precision), PEAK_NAME[precision]
    best = chip.achievable_flops[name].value if name in chip.achievable_flops else None
    if chip.kind == "cpu":
        return best or peak
    best = best or peak * constants.ACHIEVABLE_SHARE
    reference = constants.SUSTAINED_FLOPS_PER_JOULE[precision]
    share: float = min(1.0, (reference * chip.tdp_watts.value / best) ** constants.SUSTAINED_EXPONENT)
    return best * share


def product_seconds(m: float, n: float, k: float, rank: Rank, element: int, flops: float | None = None) -> float:
    """One matrix product, without its dispatch; at `rank.flops` unless told otherwise."""
    half = rank.profile.gemm_half
    outer, inner = half * constants.GEMM_HALF_OUTER[rank.kind], half * constants.GEMM_HALF_INNER[rank.kind]
    efficiency = m / (m + outer) * n / (n + outer) * k / (k + inner)
    return max(2 * m * n * k / ((flops or rank.flops) * efficiency), element * (m * k + k * n + m * n) / rank.bandwidth)


class Parts(NamedTuple):
    """Seconds of one pass over one unit by what it waits for; they add up."""

    products: float
    attention: float
    elementwise: float
    dispatch: float


NOTHING = Parts(0.0, 0.0, 0.0, 0.0)


def work_seconds(done: work.Work, rank: Rank, element: int, compiled: bool, length: int = 1, way: int = 0) -> Parts:
    """One pass over one unit. On a GPU the dispatch counts as far as it takes longer than the kernels.

    Args:
        length: tokens that attention sees.
        way: 0 forward, 1 backward.
    """
    how, low = rank.profile, rank.low_flops != rank.flops
    half = constants.ATTENTION_HALF[rank.kind][element == 2]
    share = how.attention * length / (length + half)
    products = sum(product_seconds(m, n, k, rank, element, rank.low_flops) * times for m, n, k, times in done.products)
    products += sum(product_seconds(m, n, k, rank, element) * times for m, n, k, times in done.plain)
    attention = done.attention_flops / (rank.attention_flops * share)
    gelus = done.gelus * constants.GELU_FLOPS[rank.kind][element == 2][way] / rank.attention_flops
    moved = done.moved_bytes * how.traffic * (constants.COMPILED_BYTES_SHARE if compiled else 1.0)
    casts = how.cast_bytes * sum((m * k + k * n) * times for m, n, k, times in done.products) if low else 0.0
    moving = (moved + casts) / rank.bandwidth
    kernels = done.kernels * rank.op_seconds * how.dispatch * (constants.COMPILED_KERNEL_SHARE if compiled else 1.0)
    dispatch = kernels + how.layer_seconds
    busy = products + attention + gelus + moving
    if rank.kind != "cpu":
        # The slower of queue and kernels, rounded off where they are level: kernels of one pass are not all alike.
        sharp = constants.QUEUE_SHARPNESS
        dispatch = (busy**sharp + dispatch**sharp) ** (1 / sharp) - busy
    return Parts(products, attention, gelus + moving, dispatch)


@dataclass(frozen=True, slots=True)
class UnitSeconds:
    """Compute time of one microbatch by unit; the root is last norm, head and loss, both directions together.

    Attributes:
        block_again: what recomputation adds to a block's backward pass.
    """

    block_forward: Parts
    block_backward: Parts
    block_again: Parts
    root: Parts
    root_forward_only: Parts


@lru_cache(maxsize=65536)
def unit_seconds(
    shape: ModelShape, micro_sequences: int, sequence_length: int, rank: Rank, precision: str, compiled: bool,
    recompute: str = "none", split: Split = work.WHOLE, sparse: bool = False, chunked: bool = True,
) -> UnitSeconds:  # fmt: skip
    """Compute time of one microbatch on one rank, by unit.

    Args:
        sparse: of a block with experts.
        chunked: whether the loss forms logits chunk by chunk.
    """
    element, fused = ELEMENT_BYTES[precision], rank.kind != "cpu"
    tokens = micro_sequences * sequence_length / split.context
    flash = rank.profile.fused_attention
    asked = (shape, tokens, sequence_length, element, fused, split, sparse, flash)

    def timed(done: work.Work, way: int = 0) -> Parts:
        return work_seconds(done, rank, element, compiled, sequence_length, way)

    ahead = timed(work.block_forward(*asked))
    again = {"none": NOTHING, "full": ahead}.get(recompute)
    if again is None:
        share = rank.profile.selective
        core = timed(work.attention_again(shape, tokens, sequence_length, element, split, flash))
        again = Parts(*(share * seconds for seconds in ahead)) if share else core
    t = split.tensor
    root = work.head(shape, tokens, element, fused, t, chunked)
    return UnitSeconds(
        block_forward=ahead,
        block_backward=timed(work.block_backward(*asked), way=1),
        block_again=again,
        root=work_seconds(root, rank, element, compiled=False),
        root_forward_only=work_seconds(
            work.head_forward(shape, tokens, element, fused, t), rank, element, compiled=False
        ),
    )
