"""What a software makes of a device: the constants that a step is priced with, one profile for each software and era.

Constants belong to hardware and software together: a table measured with Megatron-LM says little about FSDP. `profile`
picks the one that a recipe is priced with, and the plan names it. Those of other people's software are fitted to public
measurements by `benchmarks/fit_profiles.py`, which writes `fitted.py`; this trainer's come from its own runs.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache

from thrifty.cost import fitted
from thrifty.spec.cluster import Cluster
from thrifty.spec.profile import CONSTANTS, CalibratedProfile


@dataclass(frozen=True, slots=True)
class Profile:
    """How one software uses a device.

    Attributes:
        name: as a plan prints it.
        source: where the constants come from.
        date: of a calibration on this hardware; empty for constants that ship with the program.
        gemm: of the rate that large products sustain on this device (`compute.rank_of`), what this software reaches.
        gemm_half: times the dimensions at which a product reaches half its rate.
        fp8_tensor, fp8_row, fp8_block, fp4: the same for products in 8 bits by what shares a scale, and in 4 bits.
        cast_bytes: moved for each element of a low-precision product's operands, to scale and round them.
        fused_attention: one kernel that never writes the scores and skips what causality masks.
        attention: share of the sustained rate that fused attention reaches on long sequences.
        traffic: bytes of elementwise operations over those that plain eager operations move.
        selective: what selective recomputation does again, as a share of a block's forward pass; 0 = attention alone.
        dispatch: times the accelerator's `op_overhead` for each operation, in what a layer takes at the least.
        layer_seconds: of host work for each layer, pass and microbatch beside its operations (hooks, Python).
        node_bandwidth: of the links inside a node, what collectives get.
        network_bandwidth: of those between nodes and islands.
        gather_bandwidth: of what they get between nodes, the part that gathers of sharded parameters get.
        latency: times a link's fixed time, what a collective takes at the least: ranks wait for each other.
        reduce_scatter, all_reduce: on a CPU, times what a ring would take.
        data_exposed: share of the data-parallel traffic that is waited for though computation could hide it.
        balanced: pipeline stages are cut so that the head weighs too; else the last has it on top of equal layers.
        pipeline_seconds: that a stage loses each time it hands a microbatch on, beside the bytes.
        update: times the bytes of the optimizer's update and their time.
        step_seconds: fixed part of a step.
        startup_seconds: from the command to the first step; none = `constants.STARTUP_SECONDS`.
        launch_seconds: on top where several ranks are started.
        low, high: ends of the 80% interval of a step's time, as factors.
    """

    name: str
    source: str
    date: str = ""
    gemm: float = 1.0
    gemm_half: float = 1.0
    fp8_tensor: float = 1.0
    fp8_row: float = 0.8
    fp8_block: float = 0.9
    fp4: float = 0.8
    cast_bytes: float = 4.0
    fused_attention: bool = True
    attention: float = 0.35
    traffic: float = 1.0
    selective: float = 0.0
    dispatch: float = 1.0
    layer_seconds: float = 0.0
    node_bandwidth: float = 1.0
    network_bandwidth: float = 1.0
    gather_bandwidth: float = 1.0
    latency: float = 1.0
    reduce_scatter: float = 1.0
    all_reduce: float = 1.0
    data_exposed: float = 0.0
    balanced: bool = False
    pipeline_seconds: float = 0.0
    update: float = 1.0
    step_seconds: float = 0.0
    startup_seconds: float | None = None
    launch_seconds: float = 0.0
    low: float = 0.8
    high: float = 1.25


def profile(software: str, cluster: Cluster) -> Profile:
    """The profile that a recipe for this software is priced with on this cluster: what was calibrated, if anything."""
    chip, own = cluster.accelerator, cluster.profile
    era = "cpu" if chip.kind == "cpu" else fitted.ERAS.get(software, {}).get(chip.name.split("-")[0], "")
    name = f"{software}-{era}" if era else software
    shipped = PROFILES.get(name) or PROFILES[software]
    return calibrated(shipped, own) if own is not None and own.software == software else shipped


@lru_cache(maxsize=64)
def calibrated(shipped: Profile, own: CalibratedProfile) -> Profile:
    """A profile with the constants that were measured in place of its own."""
    measured = {name: value for name in CONSTANTS if (value := getattr(own, name)) is not None}
    return replace(shipped, name=own.name, source=own.source, date=own.date, low=own.low, high=own.high, **measured)


PROFILES = {name: Profile(name=name, **values) for name, values in fitted.PROFILES.items()}
