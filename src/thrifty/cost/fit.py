"""Finds a handful of constants of the cost model from measured times: a coordinate search on a robust loss.

loss      mean Huber of log(predicted / measured) + a weak pull of each constant towards its prior, in logarithms
search    one constant up or down by a factor while that helps, with ever smaller factors
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

Constants = dict[str, float]
STEPS = (0.5, 0.25, 0.12, 0.06, 0.03, 0.015)


@dataclass(frozen=True, slots=True)
class Bound:
    """Where a constant may lie.

    Attributes:
        prior: that it is pulled to; none leaves it free within its bounds.
    """

    prior: float | None
    start: float
    least: float
    most: float


def huber(error: float, edge: float) -> float:
    """A square up to `edge`, then a straight line, so that outliers do not rule (Huber 1964)."""
    size = abs(error)
    return size * size / (2 * edge) if size < edge else size - edge / 2


def pull(values: Mapping[str, float], bounds: Mapping[str, Bound]) -> float:
    """Sum of squared logarithms of constants over their priors."""
    return sum(math.log(v / prior) ** 2 for k, v in values.items() if (prior := bounds[k].prior) is not None)


def coordinate_search(
    loss: Callable[[Constants], float], bounds: Mapping[str, Bound], steps: Sequence[float] = STEPS
) -> Constants:
    """The constants with the least loss that the search finds; it starts where the bounds say.

    Args:
        loss: of a whole set of constants.
        steps: factors less one, largest first.
    """
    values = {name: bound.start for name, bound in bounds.items()}
    best = loss(values)
    for size in steps:
        for name, bound in bounds.items():
            moved = True
            while moved:
                moved = False
                for factor in (1 + size, 1 / (1 + size)):
                    tried = values | {name: min(bound.most, max(bound.least, values[name] * factor))}
                    found = loss(tried)
                    if found < best - 1e-6:
                        best, values, moved = found, tried, True
                        break
    return values


def interval(ratios: Sequence[float], least: float = 0.03) -> tuple[float, float]:
    """Ends of the 80% interval of measured over predicted, from predicted over measured; `least` either way."""
    inverse = sorted(1 / r for r in ratios)
    low, high = (inverse[min(len(inverse) - 1, round(q * (len(inverse) - 1)))] for q in (0.1, 0.9))
    return min(1 - least, low), max(1 + least, high)
