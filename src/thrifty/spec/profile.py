"""What was measured on some hardware about a software: its constants, and what each lever does to the user's shapes."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import Field, model_validator

from thrifty.spec.figure import Noun, Number
from thrifty.spec.job import ModelShape

Positive = Annotated[Number, Field(gt=0)]
NonNegative = Annotated[Number, Field(ge=0)]


class LeverRatio(Noun):
    """Time of one block, forward and backward, with a lever over without it.

    Attributes:
        shape: of the block (`block_signature`).
        lever: `precision`, `compile`, `recompute` or `micro_sequences`.
        value: that was tried, against the plain one: fp32, off, none, and 1 (by sequence).
        ratio: below 1 the lever is faster.
    """

    shape: str
    lever: str
    value: str
    ratio: Positive


class CalibratedProfile(Noun):
    """Constants that a software's own runs on some hardware were priced best with; it travels with the cluster.

    A constant that is none keeps the value of the software's profile. What each means stands in
    `cost.profiles.Profile`, which has fields of the same names.

    Attributes:
        name: as a plan prints it.
        software: `Recipe.software` of the recipes that it prices.
        hardware: name of the accelerator that it was measured on; no other is priced with it.
        source: what was measured, with versions.
        date: of the measurement, ISO format.
        runs: how many it was fitted to.
        error_before: median |predicted / measured - 1| of their steps with the constants that it replaces.
        error: the same with its own; a run counts against constants fitted without it where there are enough.
        low, high: ends of the 80% interval of a step's time, as factors.
    """

    name: str
    software: str
    hardware: str
    source: str
    date: str
    runs: Annotated[int, Field(ge=0)] = 0
    error_before: NonNegative = 0.0
    error: NonNegative = 0.0
    low: Positive
    high: Positive
    gemm: Positive | None = None
    gemm_half: Positive | None = None
    attention: Positive | None = None
    traffic: Positive | None = None
    dispatch: Positive | None = None
    layer_seconds: NonNegative | None = None
    node_bandwidth: Positive | None = None
    latency: Positive | None = None
    reduce_scatter: Positive | None = None
    all_reduce: Positive | None = None
    data_exposed: Positive | None = None
    update: Positive | None = None
    step_seconds: NonNegative | None = None
    startup_seconds: NonNegative | None = None
    launch_seconds: NonNegative | None = None
    levers: tuple[LeverRatio, ...] = ()

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not self.low <= 1 <= self.high:
            raise ValueError(f"an interval holds its figure: low {self.low} <= 1 <= high {self.high} does not hold")
        return self


CONSTANTS = tuple(name for name, field in CalibratedProfile.model_fields.items() if field.default is None)
"""Names of the fields that are constants of the cost model."""


def block_signature(shape: ModelShape, sequence_length: int) -> str:
    """What two blocks have in common that take the same time on the same tokens."""
    width = f"{shape.hidden}h-{shape.heads}x{shape.head_dim}-{shape.kv_heads}kv-{shape.ffn}f"
    return f"{width}-{shape.mlp}-{shape.norm}-{shape.positions}-{sequence_length}t"
