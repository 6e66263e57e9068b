"""Fits a software's constants on one machine to its own runs there, part by part, with a pull towards what it has.

A dozen runs do not tell ten constants apart, so each is pulled towards the value that it has, and a part of a step
weighs as much as its share of it. A run's error counts with constants fitted to the runs of other kinds.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from thrifty.cost import constants
from thrifty.cost.fit import Bound, Constants, coordinate_search, huber, interval, pull
from thrifty.cost.profiles import Profile
from thrifty.cost.step import StepSeconds, step_seconds
from thrifty.spec.bill import STEP_PARTS
from thrifty.spec.calibration import CollectiveFit, PastRun
from thrifty.spec.cluster import Cluster
from thrifty.spec.job import Job
from thrifty.spec.profile import CalibratedProfile

HUBER = 0.1  # log units; own short runs swing more than published medians
PULL = 0.01
# Runs that the shipped interval counts as: a handful of runs does not settle what happens one time in five.
INTERVAL_RUNS = 4.0
LEAST_INTERVAL = 0.05
FOLDS = 8  # kinds of runs that are left out in turn; more would only take longer
COARSE = (0.25, 0.12, 0.06, 0.03)

# What can be told from short runs, and how far from where it starts. Those of several ranks stay where there was one.
_ALONE = {"gemm": 2.5, "attention": 3.0, "traffic": 4.0, "dispatch": 5.0, "update": 5.0, "step_seconds": 100.0}
_TOGETHER = {"node_bandwidth": 4.0, "latency": 8.0}
_ONLY_GPU = {"data_exposed": 5.0, "layer_seconds": 100.0}
_LEAST_SECONDS = {"step_seconds": 1e-4, "layer_seconds": 1e-5}  # where a search may start that multiplies


@dataclass(frozen=True, slots=True)
class Fitted:
    """What a fit found.

    Attributes:
        error: median |predicted / measured - 1| of a step, held out where there are several kinds of runs.
        low, high: ends of the 80% interval of measured over predicted.
    """

    constants: Constants
    error: float
    low: float
    high: float


def fit_runs(runs: Sequence[PastRun], cluster: Cluster, now: CalibratedProfile, shipped: Profile) -> Fitted:
    """Constants of the runs' software, from all runs on this hardware.

    Args:
        cluster: with the rates that the constants shall be relative to.
        now: with constants that were measured directly, which the search starts from and is pulled to.
        shipped: that `now` replaces constants of; its interval counts as that of a few runs.
    """
    start = start_of(now, shipped, cluster.accelerator.kind, any(r.recipe.layout.ranks > 1 for r in runs))
    values = _searched(runs, cluster, now, start)
    kinds = sorted({_kind(run) for run in runs})
    ratios = [ratio(run, cluster, now.model_copy(update=values)) for run in runs]
    if 1 < len(kinds) <= FOLDS:
        ratios = []
        for kind in kinds:
            seen = _searched([r for r in runs if _kind(r) != kind], cluster, now, start, COARSE)
            held = now.model_copy(update=seen)
            ratios += [ratio(run, cluster, held) for run in runs if _kind(run) == kind]
    ends = interval(ratios, LEAST_INTERVAL)
    low, high = (_blended(one, known, len(runs)) for one, known in zip(ends, (shipped.low, shipped.high), strict=True))
    return Fitted(values, median_error(ratios), min(low, 1.0), max(high, 1.0))


def start_of(now: CalibratedProfile, shipped: Profile, kind: str, together: bool) -> dict[str, Bound]:
    """Where the search may look for each constant."""
    wide = _ALONE | (_TOGETHER if together else {}) | (_ONLY_GPU if kind == "gpu" else {})
    found = {}
    for name, times in wide.items():
        known = getattr(now, name) if getattr(now, name) is not None else getattr(shipped, name)
        start = max(known, _LEAST_SECONDS.get(name, 0.0))
        found[name] = Bound(None if start > known else start, start, start / times, start * times)
    return found


def priced(run: PastRun, cluster: Cluster, own: CalibratedProfile | None) -> StepSeconds:
    """What a step of a past run costs with these constants."""
    job = Job(model=run.model, sequence_length=run.sequence_length, steps=run.steps)
    return step_seconds(job, cluster.model_copy(update={"profile": own}), run.recipe)


def ratio(run: PastRun, cluster: Cluster, own: CalibratedProfile | None) -> float:
    """Predicted over measured time of a past run's step."""
    return priced(run, cluster, own).total / sum(run.measured.values())


def startup_of(runs: Sequence[PastRun]) -> Constants:
    """Median start-up of one rank, and what several take on top; compiling is counted apart."""
    found: dict[bool, list[float]] = {False: [], True: []}
    for run in runs:
        if run.startup and not run.recipe.compile:
            found[run.recipe.layout.ranks > 1].append(run.startup)
    if not found[False]:
        return {}
    alone = statistics.median(found[False])
    launch = max(0.0, statistics.median(found[True]) - alone) if found[True] else 0.0
    return {"startup_seconds": alone, "launch_seconds": launch}


def fit_line(kind: str, ranks: int, seconds: dict[float, float]) -> CollectiveFit:
    """Latency and bandwidth of one kind of collective by least squares of relative errors.

    Args:
        seconds: bytes that a rank sends -> time.

    Raises:
        ValueError: fewer than two sizes.
    """
    if len(seconds) < 2:
        raise ValueError(f"two sizes make a line, got {len(seconds)}")
    # Weights 1 / t^2: an error of 10% counts alike for a small and for a large message.
    w = {size: 1 / t**2 for size, t in seconds.items()}
    total = sum(w.values())
    mean_size = sum(w[s] * s for s in seconds) / total
    mean_time = sum(w[s] * t for s, t in seconds.items()) / total
    spread = sum(w[s] * (s - mean_size) ** 2 for s in seconds)
    slope = sum(w[s] * (s - mean_size) * (t - mean_time) for s, t in seconds.items()) / spread
    slope = max(slope, 1e-15)  # noise may make larger messages look faster
    latency = max(1e-7, mean_time - slope * mean_size)
    errors = [abs((latency + slope * s) / t - 1) for s, t in seconds.items()]
    return CollectiveFit(
        kind=kind, ranks=ranks, latency_seconds=latency, bytes_per_s=1 / slope, sizes=len(seconds),
        error=statistics.median(errors),
    )  # fmt: skip


def times_a_gather(gather: CollectiveFit, other: CollectiveFit, sizes: Sequence[float]) -> float:
    """Median of how much longer another collective takes than an all-gather that sends as much."""

    def seconds(fit: CollectiveFit, size: float) -> float:
        return fit.latency_seconds + size / fit.bytes_per_s

    return statistics.median(seconds(other, size) / seconds(gather, size) for size in sizes)


def fit_products(rows: Sequence[tuple[float, float, float, float]], rate: float, kind: str) -> tuple[Constants, float]:
    """`gemm` and `gemm_half` of measured products, and the median error that is left.

    Args:
        rows: m, n, k and seconds of each.
        rate: FLOP/s of large products, which `gemm` is a share of.
    """
    outer, inner = constants.GEMM_HALF_OUTER[kind], constants.GEMM_HALF_INNER[kind]

    def ratios(values: Constants) -> list[float]:
        half = values["gemm_half"]
        found = []
        for m, n, k, seconds in rows:
            share = m / (m + half * outer) * n / (n + half * outer) * k / (k + half * inner)
            found.append(2 * m * n * k / (rate * values["gemm"] * share) / seconds)
        return found

    bounds = {"gemm": Bound(1.0, 1.0, 0.3, 1.5), "gemm_half": Bound(1.0, 1.0, 0.1, 30.0)}
    best = coordinate_search(
        lambda v: statistics.mean(huber(math.log(r), HUBER) for r in ratios(v)) + PULL * pull(v, bounds), bounds
    )
    return best, median_error(ratios(best))


def _searched(
    runs: Sequence[PastRun], cluster: Cluster, now: CalibratedProfile, start: dict[str, Bound],
    steps: Sequence[float] | None = None,
) -> Constants:  # fmt: skip
    def loss(values: Constants) -> float:
        own = now.model_copy(update=values)
        return statistics.mean(_loss(run, priced(run, cluster, own)) for run in runs) + PULL * pull(values, start)

    return coordinate_search(loss, start, steps) if steps else coordinate_search(loss, start)


def _loss(run: PastRun, step: StepSeconds) -> float:
    """Of the step, and of each part by its share of it."""
    total = sum(run.measured.values())
    found = huber(math.log(step.total / total), HUBER)
    for part in STEP_PARTS:
        measured, predicted = run.measured[part], getattr(step, part)
        if measured > 0 and predicted > 0:
            found += measured / total * huber(math.log(predicted / measured), HUBER)
    return found


def _kind(run: PastRun) -> tuple[object, ...]:
    recipe, model = run.recipe, run.model
    return model.hidden, model.layers, recipe.precision, recipe.compile, recipe.recompute, recipe.layout.ranks


def _blended(end: float, known: float, runs: int) -> float:
    """The geometric mean of a measured end of an interval and a known one, the latter as that of a few runs."""
    return math.exp((runs * math.log(end) + INTERVAL_RUNS * math.log(known)) / (runs + INTERVAL_RUNS))


def median_error(ratios: Sequence[float]) -> float:
    """Median |predicted / measured - 1|."""
    return statistics.median(abs(r - 1) for r in ratios)
