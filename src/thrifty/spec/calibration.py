"""The Calibration: what `calibrate` measured on a machine, the constants it fitted, and how far off they are."""

from __future__ import annotations

from typing import Literal

from thrifty.spec.cluster import Accelerator, Link
from thrifty.spec.figure import Noun
from thrifty.spec.job import ModelShape
from thrifty.spec.profile import CalibratedProfile
from thrifty.spec.recipe import Recipe


class ProductRate(Noun):
    """One matrix product of (m, n, k) as a linear layer does it: `forward`, `input gradient` or `weight gradient`."""

    precision: str
    way: str
    m: int
    n: int
    k: int
    flops_per_s: float


class CollectiveFit(Noun):
    """Seconds of one kind of collective between local ranks: latency + bytes that a rank sends / bandwidth.

    Attributes:
        sizes: how many sizes were timed.
        error: median |fitted / measured - 1| over them.
    """

    kind: str
    ranks: int
    latency_seconds: float
    bytes_per_s: float
    sizes: int
    error: float


class Residual(Noun):
    """Seconds of one part of a run's step: with the constants before, measured, and with the new ones."""

    run: str
    part: str
    before: float
    measured: float
    after: float


class PastRun(Noun):
    """One finished run, as `calibrate` learns from it.

    Attributes:
        hardware, devices: the accelerator's name, and how many the cluster has.
        profile: that it was predicted with.
        predicted, measured: seconds of one step by part: `compute`, `communication`, `optimizer`, `data`; measured are
            medians over steps.
        startup: measured seconds until the first step; 0 = not known.
        seconds, predicted_seconds: of the whole run.
        peak_bytes, predicted_peak_bytes: of the fullest rank.
        inside: whether the measured step lay in the interval that was predicted.
    """

    date: str
    hardware: str
    devices: int
    software: str
    torch: str
    profile: str
    model: ModelShape
    sequence_length: int
    recipe: Recipe
    steps: int
    predicted: dict[str, float]
    measured: dict[str, float]
    startup: float = 0.0
    seconds: float
    predicted_seconds: float
    peak_bytes: float
    predicted_peak_bytes: float
    inside: bool


class Calibration(Noun):
    """What `calibrate` keeps in one file, dated and with its residuals.

    Attributes:
        version: of this format.
        torch: version that it was measured with.
        accelerator: the rates that the constants are relative to; plans for this machine use them.
        link: between ranks of one machine, as measured; none where a single rank was.
    """

    version: Literal[1] = 1
    torch: str
    accelerator: Accelerator
    link: Link | None = None
    profile: CalibratedProfile
    products: tuple[ProductRate, ...] = ()
    collectives: tuple[CollectiveFit, ...] = ()
    residuals: tuple[Residual, ...] = ()
