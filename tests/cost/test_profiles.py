"""Profiles: a cluster's own constants go first; fits find constants that made the times; lines of collectives."""

from __future__ import annotations

import math
from typing import Any

import pytest
from cost_examples import cores, gpus, job, recipe, shape
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from thrifty.cost.calibrate import (
    fit_line,
    fit_products,
    fit_runs,
    priced,
    ratio,
    start_of,
    startup_of,
    times_a_gather,
)
from thrifty.cost.fit import Bound, coordinate_search, huber, interval
from thrifty.cost.predict import predict
from thrifty.cost.profiles import PROFILES, profile
from thrifty.cost.run import startup_seconds
from thrifty.cost.step import step_seconds
from thrifty.spec import Cluster
from thrifty.spec.bill import STEP_PARTS
from thrifty.spec.calibration import PastRun
from thrifty.spec.plan import fingerprint
from thrifty.spec.profile import CONSTANTS, CalibratedProfile


def own(cluster: Cluster, **constants: Any) -> CalibratedProfile:
    known: dict[str, Any] = {"software": "thrifty", "hardware": cluster.accelerator.name, "low": 0.9, "high": 1.2}
    return CalibratedProfile(name="mine", source="a test", date="2026-11-24", **(known | constants))


def with_own(cluster: Cluster, **constants: Any) -> Cluster:
    return Cluster.model_validate(cluster.model_dump() | {"profile": own(cluster, **constants).model_dump()})


def past(cluster: Cluster, *, wide: int = 256, **how: Any) -> PastRun:
    """A run that took exactly what the cluster's constants say."""
    asked, chosen = job(shape(hidden=wide)), recipe(**how)
    step = step_seconds(asked, cluster, chosen)
    parts = {part: getattr(step, part) for part in STEP_PARTS}
    return PastRun(
        date="2026-11-24", hardware=cluster.accelerator.name, devices=cluster.devices, software="thrifty", torch="2",
        profile="", model=asked.model, sequence_length=asked.sequence_length, recipe=chosen, steps=10,
        predicted=parts, measured=parts, startup=4.0 + chosen.layout.ranks, seconds=1, predicted_seconds=1,
        peak_bytes=1, predicted_peak_bytes=1, inside=True,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("constant", "value", "slower"),
    [
        ("gemm", 0.5, "compute"), ("gemm_half", 20.0, "compute"), ("attention", 0.1, "compute"),
        ("traffic", 3.0, "compute"), ("dispatch", 3.0, "compute"), ("layer_seconds", 1e-3, "compute"),
        ("node_bandwidth", 0.3, "communication"), ("latency", 4.0, "communication"),
        ("reduce_scatter", 9.0, "communication"), ("update", 3.0, "optimizer"), ("step_seconds", 0.1, "data"),
    ],
)  # fmt: skip
def test_each_constant_of_a_cluster_moves_its_part_of_a_step(constant: str, value: float, slower: str) -> None:
    how = recipe(shard=2, micro=2)
    before = step_seconds(job(), cores(), how)
    after = step_seconds(job(), with_own(cores(), **{constant: value}), how)
    for part in STEP_PARTS:
        assert (getattr(after, part) > getattr(before, part)) == (part == slower), part


def test_constants_left_out_are_those_of_the_software() -> None:
    cluster = with_own(cores(), gemm=0.5)
    found, shipped = profile("thrifty", cluster), PROFILES["thrifty-cpu"]
    assert (found.name, found.date, found.gemm, found.low, found.high) == ("mine", "2026-11-24", 0.5, 0.9, 1.2)
    others = set(CONSTANTS) - {"gemm"}
    assert {name: getattr(found, name) for name in others} == {name: getattr(shipped, name) for name in others}
    assert profile("torchtitan", cluster) == PROFILES["torchtitan"], "constants of another software"


def test_the_interval_and_the_name_are_the_profiles() -> None:
    figure = predict(job(), with_own(cores()), recipe()).step_seconds
    assert (figure.low, figure.high) == pytest.approx((0.9 * figure.value, 1.2 * figure.value))
    assert "mine" in figure.source
    assert predict(job(), gpus(), recipe()).step_seconds.low == pytest.approx(
        PROFILES["thrifty"].low * predict(job(), gpus(), recipe()).step_seconds.value
    )


def test_start_up_of_one_and_of_several_ranks() -> None:
    cluster = with_own(cores(), startup_seconds=3.0, launch_seconds=2.0)
    assert startup_seconds(cluster, recipe()) == 3.0
    assert startup_seconds(cluster, recipe(shard=2)) == 5.0
    runs = [past(cores()), past(cores(), shard=2), past(cores(), shard=2)]
    assert startup_of(runs) == {"startup_seconds": 5.0, "launch_seconds": 1.0}
    assert startup_of(runs[1:]) == {}, "several ranks alone do not tell the two apart"


def test_a_profile_is_part_of_the_plan_and_of_its_hash() -> None:
    plain, changed = cores(), with_own(cores(), gemm=0.9)
    assert fingerprint(job(), plain, recipe()) != fingerprint(job(), changed, recipe())
    assert Cluster.model_validate_json(changed.model_dump_json()) == changed


def test_a_profile_of_other_hardware_is_refused_by_name() -> None:
    other = own(cores()).model_copy(update={"hardware": "another core"})
    with pytest.raises(ValidationError, match="'mine' was measured on another core, and this cluster has core"):
        Cluster.model_validate(cores().model_dump() | {"profile": other.model_dump()})
    with pytest.raises(ValidationError, match="an interval holds its figure"):
        own(cores(), low=1.1)


TRUTHS = [
    {"gemm": 0.5},
    {"traffic": 2.0, "latency": 3.0},
    {"gemm": 0.7, "node_bandwidth": 0.5, "update": 2.0, "dispatch": 2.0},
]


@pytest.mark.parametrize("truth", TRUTHS, ids=str)
def test_a_fit_finds_constants_that_price_the_runs(truth: dict[str, float]) -> None:
    cluster = cores()
    real = cluster.model_copy(update={"profile": own(cluster, **truth)})
    runs = [past(real, wide=w, shard=s, micro=m) for w in (128, 256, 512) for s in (1, 2) for m in (1, 4)]
    found = fit_runs(runs, cluster, own(cluster), PROFILES["thrifty-cpu"])
    fitted = own(cluster, **found.constants)
    before = [abs(math.log(ratio(run, cluster, None))) for run in runs]
    after = [abs(math.log(ratio(run, cluster, fitted))) for run in runs]
    assert max(after) < max(before)
    assert sum(after) < 0.25 * sum(before)
    assert found.low <= 1 <= found.high
    unseen = past(real, wide=384, shard=2, micro=2)
    assert abs(math.log(ratio(unseen, cluster, fitted))) < abs(math.log(ratio(unseen, cluster, None)))


def test_runs_that_took_what_was_predicted_change_little() -> None:
    cluster = cores()
    runs = [past(cluster, shard=s) for s in (1, 2)]
    found = fit_runs(runs, cluster, own(cluster), PROFILES["thrifty-cpu"])
    bounds = start_of(own(cluster), PROFILES["thrifty-cpu"], "cpu", together=True)
    assert {k: v for k, v in found.constants.items() if k != "step_seconds"} == {
        k: pytest.approx(b.start, rel=0.05) for k, b in bounds.items() if k != "step_seconds"
    }
    assert priced(runs[0], cluster, None).total == sum(runs[0].measured.values())


def test_what_one_rank_cannot_tell_is_not_fitted() -> None:
    assert "latency" not in start_of(own(cores()), PROFILES["thrifty-cpu"], "cpu", together=False)
    assert "data_exposed" in start_of(own(gpus()), PROFILES["thrifty"], "gpu", together=True)


@given(st.floats(1e-5, 1e-2), st.floats(1e7, 1e11))
def test_a_line_through_exact_times_is_found(latency: float, rate: float) -> None:
    sizes = [float(latency * rate * times) for times in (0.01, 0.5, 1, 4, 50)]
    fit = fit_line("all_gather", 2, {size: latency + size / rate for size in sizes})
    assert fit.latency_seconds == pytest.approx(latency, rel=1e-3)
    assert fit.bytes_per_s == pytest.approx(rate, rel=1e-3)
    assert fit.error < 1e-3
    slower = fit_line("reduce_scatter", 2, {size: 3 * (latency + size / rate) for size in sizes})
    assert times_a_gather(fit, slower, sizes) == pytest.approx(3, rel=1e-3)


def test_a_line_wants_two_sizes() -> None:
    with pytest.raises(ValueError, match="two sizes"):
        fit_line("all_gather", 2, {1.0: 1.0})


def test_products_tell_rate_and_half_size() -> None:
    rate, half = 80e9, 8.0
    sizes = [(64, 64, 64), (1024, 128, 384), (1024, 1024, 1024), (128, 512, 512)]
    rows = []
    for m, n, k in sizes:
        share = math.prod(d / (d + half * 4) for d in (m, n, k))
        rows.append((m, n, k, 2 * m * n * k / (rate * share)))
    found, error = fit_products(rows, 100e9, "cpu")
    assert found["gemm"] == pytest.approx(0.8, rel=0.1)
    assert found["gemm_half"] == pytest.approx(half, rel=0.4)
    assert error < 0.05


def test_the_search_itself() -> None:
    bounds = {"a": Bound(None, 1.0, 0.1, 10.0), "b": Bound(1.0, 1.0, 0.5, 2.0)}
    found = coordinate_search(lambda v: abs(math.log(v["a"] / 4)) + abs(math.log(v["b"] / 9)), bounds)
    assert found["a"] == pytest.approx(4, rel=0.02)
    assert found["b"] == 2.0, "it stays within its bounds"
    assert huber(0.1, 0.1) == pytest.approx(0.05)
    assert huber(-1.0, 0.1) == pytest.approx(0.95)
    low, high = interval([1 / r for r in (0.5, 0.9, 1.0, 1.0, 1.1, 1.1, 1.2, 1.2, 1.3, 1.5, 3.0)])
    assert (low, high) == pytest.approx((0.9, 1.5))
    assert interval([1.0]) == (0.97, 1.03)
