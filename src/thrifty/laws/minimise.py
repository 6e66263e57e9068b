"""Robust least squares with Gaussian priors, after Levenberg and Marquardt: a dozen constants, hundreds of rows.

Minimised is  sum_i w_i h(r_i) / scale + sum_k ((c_k . x - m_k) / s_k)^2 / 2  with Huber's h in units of its corner:
r^2 / 2 delta up to |r| = delta, |r| - delta / 2 beyond. Each step solves the weighted normal equations
(iteratively reweighted: weight 1 / max(|r|, delta)), damped until the cost falls.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

Sparse = list[tuple[int, float]]  # (index of a constant, derivative)
Residuals = Callable[[Sequence[float]], tuple[list[float], list[Sparse]]]

MOST_STEPS = 150
MOST_DAMPINGS = 12
FURTHEST = 80.0  # no constant may leave this range: exp() of it still is a float


@dataclass(frozen=True)
class Prior:
    """What is believed of one combination of constants before any row is seen.

    Attributes:
        of: constants and their factors, e.g. ((3, 1.0), (4, -1.0)) for a difference.
        mean: of the combination.
        spread: its standard deviation.
    """

    of: tuple[tuple[int, float], ...]
    mean: float
    spread: float

    def miss(self, x: Sequence[float]) -> float:
        """Standard deviations off the mean."""
        return (sum(factor * x[i] for i, factor in self.of) - self.mean) / self.spread


@dataclass(frozen=True)
class Minimum:
    """Where the search ended, and the cost there."""

    constants: tuple[float, ...]
    cost: float


def huber(residual: float, delta: float) -> float:
    """Huber's loss over delta: r^2 / 2 delta inside, |r| - delta / 2 outside."""
    size = abs(residual)
    return size * size / (2 * delta) if size <= delta else size - delta / 2


def minimise(
    residuals: Residuals,
    start: Sequence[float],
    *,
    weights: Sequence[float],
    delta: float,
    scale: float,
    priors: Sequence[Prior] = (),
    tolerance: float = 1e-7,
) -> Minimum:
    """The nearest minimum from a start.

    Args:
        residuals: of a vector of constants, with the derivatives of each.
        weights: of the residuals, e.g. how often a bootstrap drew each row.
        delta: Huber's corner.
        scale: typical size of a residual, which sets rows against priors.
        tolerance: relative fall of the cost at which the search ends.
    """

    def cost_of(found: Sequence[float], x: Sequence[float]) -> float:
        rows = sum(w * huber(r, delta) for w, r in zip(weights, found, strict=True)) / scale
        return rows + sum(prior.miss(x) ** 2 for prior in priors) / 2

    x = list(start)
    found, slopes = residuals(x)
    cost, damping = cost_of(found, x), 1e-2
    for _ in range(MOST_STEPS):
        curvature, gradient = _normal_equations(found, slopes, weights, delta, scale, priors, x)
        for _ in range(MOST_DAMPINGS):
            step = _solve(curvature, gradient, damping)
            if step is not None:
                tried = [value - change for value, change in zip(x, step, strict=True)]
                if max(map(abs, tried)) < FURTHEST:
                    new_found, new_slopes = residuals(tried)
                    new_cost = cost_of(new_found, tried)
                    if new_cost < cost:
                        break
            damping *= 4
        else:
            break  # no damping lowers the cost: this is the minimum to machine precision
        fell = cost - new_cost
        x, found, slopes, cost, damping = tried, new_found, new_slopes, new_cost, max(damping / 5, 1e-9)
        if fell < tolerance * abs(cost):
            break
    return Minimum(tuple(x), cost)


def _normal_equations(
    found: list[float],
    slopes: list[Sparse],
    weights: Sequence[float],
    delta: float,
    scale: float,
    priors: Sequence[Prior],
    x: Sequence[float],
) -> tuple[list[list[float]], list[float]]:
    """J^T W J (lower triangle) and J^T W r, priors included."""
    size = len(x)
    curvature, gradient = [[0.0] * size for _ in range(size)], [0.0] * size
    for r, slope, given in zip(found, slopes, weights, strict=True):
        weight = given / (max(abs(r), delta) * scale)
        for at, (i, slope_i) in enumerate(slope):
            scaled, row = weight * slope_i, curvature[i]
            gradient[i] += scaled * r
            for j, slope_j in slope[: at + 1]:
                row[j] += scaled * slope_j
    for prior in priors:
        for i, factor_i in prior.of:
            gradient[i] += factor_i * prior.miss(x) / prior.spread
            for j, factor_j in prior.of:
                if j <= i:
                    curvature[i][j] += factor_i * factor_j / prior.spread**2
    return curvature, gradient


def _solve(curvature: list[list[float]], gradient: list[float], damping: float) -> list[float] | None:
    """Solves (H + damping diag H) x = g by Cholesky's factors; none where H is not positive definite."""
    size = len(gradient)
    factor = [[0.0] * size for _ in range(size)]
    for i in range(size):
        row = factor[i]
        for j in range(i + 1):
            other = factor[j]
            rest = curvature[i][j] - sum(row[k] * other[k] for k in range(j))
            if i != j:
                row[j] = rest / other[j]
                continue
            rest += damping * curvature[i][i] + 1e-12
            if rest <= 0:
                return None
            row[i] = rest**0.5
    half = [0.0] * size
    for i in range(size):
        half[i] = (gradient[i] - sum(factor[i][k] * half[k] for k in range(i))) / factor[i][i]
    solved = [0.0] * size
    for i in reversed(range(size)):
        solved[i] = (half[i] - sum(factor[k][i] * solved[k] for k in range(i + 1, size))) / factor[i][i]
    return solved
