"""The Cluster: what a job runs on. Every figure carries its provenance, so that a plan can list what it assumes."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from thrifty.spec.figure import (
    BytesFigure,
    BytesPerSecondFigure,
    FlopsFigure,
    GramsPerKwhFigure,
    Noun,
    PositiveCount,
    RatioFigure,
    SecondsFigure,
    UsdPerHourFigure,
    WattsFigure,
)
from thrifty.spec.profile import CalibratedProfile


class Accelerator(Noun):
    """One device: a GPU, a TPU chip, or one CPU core.

    Attributes:
        peak_flops: dense peak by dtype (`fp32`, `tf32`, `bf16`, `fp16`, `fp8`, ...), without sparsity. On a CPU it
            is measured, and is then what a large matrix product reaches.
        achievable_flops: the best that any matrix product was measured to reach, by dtype, where known. The roofline
            uses it; MFU divides by `peak_flops`.
        memory: capacity of one device; on a CPU the machine's memory divided by its cores.
        op_overhead: fixed time of one small operation (kernel launch on a GPU, dispatch on a CPU).
        runtime_memory: what a process holds before any tensor: CUDA context and communicators, or the Python runtime.
    """

    name: str
    kind: Literal["gpu", "tpu", "cpu"]
    peak_flops: dict[str, FlopsFigure]
    achievable_flops: dict[str, FlopsFigure] = Field(default={})
    memory: BytesFigure
    memory_bandwidth: BytesPerSecondFigure
    idle_watts: WattsFigure
    tdp_watts: WattsFigure
    op_overhead: SecondsFigure
    runtime_memory: BytesFigure


class Link(Noun):
    """A link as seen by one device: one-way bandwidth, and the fixed time of one collective (alpha-beta model)."""

    bandwidth: BytesPerSecondFigure
    latency: SecondsFigure


class Cluster(Noun):
    """Devices in nodes, nodes in islands, with what an hour and a kilowatt-hour cost.

    An island is a set of devices with fast links between them. `islands` divides `nodes`.

    Attributes:
        price: of one device-hour; every device of the cluster is paid for while a run lasts.
        utilisation: the share of (TDP - idle) that a busy device draws.
        host_watts: drawn per device by the host around it (processors, fans, network).
        pue: facility energy divided by IT energy.
        goodput: share of wall time that is useful steps: the rest is restarts, stragglers, hand-overs.
        profile: constants that were measured on this hardware, for the software that they are of.
    """

    name: str
    accelerator: Accelerator
    per_node: PositiveCount
    nodes: PositiveCount = 1
    islands: PositiveCount = 1
    intra_node: Link
    inter_node: Link
    inter_island: Link
    price: UsdPerHourFigure
    grid: GramsPerKwhFigure
    pue: RatioFigure
    goodput: RatioFigure
    utilisation: RatioFigure
    host_watts: WattsFigure
    profile: CalibratedProfile | None = None

    @property
    def devices(self) -> int:
        """All devices, busy or not."""
        return self.per_node * self.nodes

    def devices_per_rank(self, ranks: int) -> int:
        """CPU cores are joined: a rank gets an equal share of them. A GPU rank is one GPU."""
        return max(1, self.devices // ranks) if self.accelerator.kind == "cpu" else 1

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.nodes % self.islands:
            raise ValueError(f"islands {self.islands} must divide nodes {self.nodes}")
        if not 0 < self.goodput.value <= 1:
            raise ValueError(f"goodput is a share of wall time above 0 and up to 1, got {self.goodput.value}")
        if self.pue.value < 1:
            raise ValueError(f"pue is facility energy over IT energy, at least 1, got {self.pue.value}")
        if self.price.value < 0:
            raise ValueError("price must not be negative")
        if self.profile is not None and self.profile.hardware != self.accelerator.name:
            raise ValueError(
                f"the profile {self.profile.name!r} was measured on {self.profile.hardware}, "
                f"and this cluster has {self.accelerator.name}"
            )
        return self
