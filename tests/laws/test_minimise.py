"""The minimiser: what least squares give exactly, what outliers and priors do."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from thrifty.laws.minimise import Prior, Sparse, huber, minimise


def line(points: list[tuple[float, float]]):
    def residuals(x):
        slopes: list[Sparse] = [[(0, 1.0), (1, px)] for px, _ in points]
        return [x[0] + x[1] * px - py for px, py in points], slopes

    return residuals


def solve(points, delta=1e9, **rest):
    return minimise(
        line(points), [0.0, 0.0], weights=[1.0] * len(points), delta=delta, scale=1.0, tolerance=1e-14, **rest
    ).constants


@given(st.floats(-5, 5), st.floats(-5, 5))
def test_it_finds_the_line_that_made_the_points(a: float, b: float) -> None:
    assert solve([(x, a + b * x) for x in range(6)]) == pytest.approx((a, b), abs=1e-5)


def test_least_squares_have_the_closed_form() -> None:
    """Huber's corner far out: the normal equations' own answer."""
    points = [(0.0, 1.0), (1.0, 0.0), (2.0, 5.0), (3.0, 2.0)]
    n, sx, sy = 4, 6.0, 8.0
    sxx, sxy = 14.0, 16.0
    slope = (n * sxy - sx * sy) / (n * sxx - sx * sx)
    assert solve(points) == pytest.approx(((sy - slope * sx) / n, slope), abs=1e-6)


def test_an_outlier_hardly_moves_a_robust_fit() -> None:
    points = [(float(x), 1.0 + 2.0 * x) for x in range(10)] + [(5.0, 1000.0)]
    assert solve(points, delta=1e-3) == pytest.approx((1.0, 2.0), abs=0.01)
    assert abs(solve(points)[0] - 1.0) > 10


def test_a_prior_settles_what_the_rows_leave_open() -> None:
    """One point, two constants: the rest of the line is the prior's slope."""
    prior = Prior(((1, 1.0),), 3.0, 0.1)
    assert solve([(1.0, 5.0)], priors=[prior]) == pytest.approx((2.0, 3.0), abs=1e-4)


def test_weights_count_rows() -> None:
    points = [(0.0, 0.0), (0.0, 0.0), (0.0, 3.0)]
    twice = minimise(line(points[1:]), [0.5, 0.0], weights=[2.0, 1.0], delta=1e9, scale=1.0, tolerance=1e-14).constants
    assert twice[0] == pytest.approx(solve(points)[0], abs=1e-6)
    assert twice[0] == pytest.approx(1.0, abs=1e-6)


@given(st.floats(-10, 10), st.floats(1e-3, 1))
def test_huber_is_even_smooth_and_linear_outside(r: float, delta: float) -> None:
    assert huber(r, delta) == huber(-r, delta) >= 0
    assert math.isclose(huber(delta * 0.999999, delta), huber(delta * 1.000001, delta), rel_tol=1e-4)
    if abs(r) > delta:
        assert huber(r, delta) == pytest.approx(abs(r) - delta / 2)
