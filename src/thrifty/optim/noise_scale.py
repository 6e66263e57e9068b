"""The gradient noise scale, with its uncertainty: from squared norms of a small and of a large batch's gradient.

McCandlish et al. 2018 (arXiv:1812.06162, appendix A.1). With g_b the mean gradient of b sequences, G its expectation
and S its covariance for one sequence, E |g_b|^2 = |G|^2 + tr S / b. So of one step that knows |g_b|^2 and |g_B|^2

    square = (B |g_B|^2 - b |g_b|^2) / (B - b)             estimates |G|^2
    spread = (|g_b|^2 - |g_B|^2) / (1 / b - 1 / B)         estimates tr S
    noise scale = mean spread / mean square                in sequences; the two are averaged apart, for a mean of
                                                           ratios would be biased and need not exist

The interval is Fieller's (1954) for a ratio of two means: all R for which mean(spread - R square) is within z standard
errors of zero, over the effective number of measurements. It is open above where |G|^2 is not told from zero.
The scale is of plain gradients; Adam, which divides them, sees another, so that it is a guide and not a law.
"""

from __future__ import annotations

import math
from typing import NamedTuple


class Estimate(NamedTuple):
    """A noise scale in sequences, with its interval; `high` is infinite where measurements do not bound it."""

    value: float
    low: float
    high: float


class NoiseScale:
    """Averages measurements of a run.

    Args:
        window: measurements that the averages effectively reach back over: an exponential moving average with decay
            (window - 1) / (window + 1), whose variance is that of a mean of `window`.
    """

    def __init__(self, window: int = 100) -> None:
        self.beta = (window - 1) / (window + 1)
        self.count = 0
        # Moments of (spread, square): first ones, then products; as sums of weights x values.
        self._sums = [0.0] * 5

    def update(self, small_square: float, big_square: float, *, small: float, big: float) -> None:
        """Takes a step's squared norms.

        Args:
            small_square: |g_b|^2, the mean over all small batches that the large one consists of.
            big_square: |g_B|^2 of their mean gradient, before clipping.
            small: sequences b of a small batch.
            big: sequences B of the large one.

        Raises:
            ValueError: the large batch is no larger, or a norm is not finite.
        """
        if big <= small:
            raise ValueError(f"a large batch of {big:g} and a small one of {small:g} sequences tell no noise apart")
        if not (math.isfinite(small_square) and math.isfinite(big_square)):
            raise ValueError(f"squared norms {small_square} and {big_square} must be finite")
        square = (big * big_square - small * small_square) / (big - small)
        spread = (small_square - big_square) / (1 / small - 1 / big)
        new = (spread, square, spread * spread, spread * square, square * square)
        self._sums = [self.beta * old + (1 - self.beta) * value for old, value in zip(self._sums, new, strict=True)]
        self.count += 1

    def estimate(self, z: float = 1.0) -> Estimate | None:
        """The noise scale in sequences; None before the third measurement, and while it has no positive value.

        Args:
            z: half the width of the interval in standard errors: 1 is 68%, 1.96 is 95%.
        """
        if self.count < 3:
            return None
        weight = 1 - self.beta**self.count
        spread, square, spread2, cross, square2 = (value / weight for value in self._sums)
        if spread <= 0 or square <= 0:
            return None
        # Variances of the two means and their covariance, each with Bessel's correction for the effective number.
        effective = (1 + self.beta) / (1 - self.beta) * (1 - self.beta**self.count) / (1 + self.beta**self.count)
        left = max(effective - 1, 1e-9)
        ss, sq, qq = ((m - a * b) / left for m, a, b in (
            (spread2, spread, spread), (cross, spread, square), (square2, square, square)
        ))  # fmt: skip
        # (spread - R square)^2 = z^2 (ss - 2 R sq + R^2 qq), a quadratic a R^2 - 2 h R + c = 0.
        a, h, c = square * square - z * z * qq, spread * square - z * z * sq, spread * spread - z * z * ss
        root = math.sqrt(max(0.0, h * h - a * c))
        if a <= 0:
            # No bound above; below, the root that is smaller than the value, where there is one.
            low = (h + root) / a if a < 0 else c / (2 * h) if h > 0 else 0.0
            return Estimate(spread / square, min(max(0.0, low), spread / square), math.inf)
        return Estimate(spread / square, max(0.0, (h - root) / a), (h + root) / a)

    def state_dict(self) -> dict[str, float | list[float]]:
        """Numbers for JSON, to go on from."""
        return {"beta": self.beta, "count": self.count, "sums": list(self._sums)}

    def load_state_dict(self, state: dict[str, float | list[float]]) -> None:
        """Goes on from a `state_dict`; the window stays this one's."""
        count, sums = state["count"], state["sums"]
        if not isinstance(count, int) or not isinstance(sums, list) or len(sums) != len(self._sums):
            raise ValueError("not the state of a noise scale")
        self.count, self._sums = count, list(sums)
