"""How many fewer tokens an optimizer needs than tuned AdamW to the same loss, by the size of the model."""

from __future__ import annotations

import math
from itertools import pairwise

from thrifty.catalog import facts
from thrifty.spec.figure import Figure

FILE = "optimizers.yaml"


def fewer_tokens(optimizer: str, parameters: float) -> Figure:
    """Tokens of tuned AdamW over those of another optimizer, to the same loss: 1 and more.

    Between published sizes linear in log N; beyond the largest e(N) = e1 (N / N1)^(ln(e1 / e0) / ln(N1 / N0)), e being
    the excess over 1.

    Args:
        parameters: of the whole model.
    """
    table = facts.read(FILE)
    entry = table["factors"][optimizer]
    points = sorted((float(size), float(factor)) for size, factor in entry["points"].items())
    note, known = table["notes"][entry["note"]], points[0][0] <= parameters <= points[-1][0]
    value, extrapolated = _value(points, parameters), len(points) > 1 and not known
    if extrapolated:
        source = f"{note['source']}; {parameters:.2g} parameters lie outside, extrapolated"
        return Figure(value=value, unit="1", provenance="assumed", source=source, date=note.get("date", ""))
    return Figure(value=value, unit="1", **note)


def _value(points: list[tuple[float, float]], parameters: float) -> float:
    if parameters <= points[0][0] or len(points) == 1:
        return points[0][1]
    for (low, before), (high, after) in pairwise(points):
        if parameters <= high:
            return before + (after - before) * math.log(parameters / low) / math.log(high / low)
    (low, before), (high, after) = points[-2:]
    power = math.log((after - 1) / (before - 1)) / math.log(high / low)
    return float(1 + (after - 1) * (parameters / high) ** power)
