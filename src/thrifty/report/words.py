"""How the report writes figures: labels of bill terms, numbers with their units, ratios in words."""

from __future__ import annotations

from thrifty.spec import units
from thrifty.spec.figure import Figure

_LABELS = {
    "seconds": "wall time",
    "step_seconds": "one step",
    "steps": "steps",
    "tokens": "tokens",
    "tokens_per_second": "tokens per second",
    "model_flops": "model FLOPs",
    "hardware_flops": "executed FLOPs",
    "mfu": "MFU",
    "peak_memory": "peak memory",
    "reserved_memory": "reserved memory",
    "energy": "energy",
    "usd": "money",
    "co2": "CO2",
    "loss": "validation loss",
}
_GROUPS = {"seconds_by_part": "time", "memory": "memory", "link_bytes": "sent"}
# What a run spends on its way to a loss, and the base unit of each.
COST_UNITS = {"tokens": "token", "seconds": "s", "usd": "usd", "joules": "J", "flops": "FLOP"}
COST_LABELS = {"usd": "money", "seconds": "time", "joules": "energy", "tokens": "tokens", "flops": "FLOPs"}


def label(term: str) -> str:
    """A bill term for people: `seconds_by_part.compute` -> `time: compute`."""
    group, _, key = term.partition(".")
    if key:
        return f"{_GROUPS.get(group, group)}: {key.replace('_', ' ')}"
    return _LABELS.get(term, term.replace("_", " "))


def value(number: float, unit: str, term: str = "") -> str:
    """A number in a base unit, as people read that term."""
    if term == "loss":
        return f"{number:.4g}"
    if term == "mfu":
        return f"{100 * number:.3g}%"
    if unit == "1" and float(number).is_integer():
        return f"{number:,.0f}"
    if unit == "s" and number == 0:
        return "0 s"
    if unit == "token/s":
        return f"{units.show(number, 'token')} tok/s"
    return units.show(number, unit)


def show(figure: Figure | None, term: str = "") -> str:
    """A figure as text; a dash where there is none."""
    return "–" if figure is None else value(figure.value, figure.unit, term)


def cost(number: float | None, name: str) -> str:
    """A cost of `COST_UNITS` as text; a dash where it is not known."""
    return "–" if number is None else value(number, COST_UNITS[name])


def difference(number: float | None, unit: str, term: str = "") -> str:
    """A signed difference: `+$0.02`."""
    if number is None:
        return "–"
    return ("+" if number > 0 else "-" if number < 0 else "") + value(abs(number), unit, term)


def times(ratio: float | None) -> str:
    """A ratio: `1.07x`; a dash where there is none."""
    return "–" if ratio is None else f"{ratio:,.3g}x"


def against(ratio: float | None) -> str:
    """Measured over predicted in words: `7% over`, `12% under`, `as predicted`."""
    if ratio is None:
        return ""
    if abs(ratio - 1) < 0.005:
        return "as predicted"
    if ratio >= 2 or ratio <= 0.5:
        return f"{times(ratio)} of predicted"
    return f"{100 * abs(ratio - 1):.0f}% {'over' if ratio > 1 else 'under'}"


def needs(ratios: list[tuple[float, str]]) -> str:
    """B over A in words: `13% less money and no more time than A`; from a factor of two on, `2.4x the money of A`."""
    if any(ratio >= 2 for ratio, _ in ratios):
        return " and ".join(f"{times(ratio)} the {name}" for ratio, name in ratios) + " of A"
    return " and ".join(_more_or_less(ratio, name) for ratio, name in ratios) + " than A"


def _more_or_less(ratio: float, name: str) -> str:
    if abs(ratio - 1) < 0.005:
        return f"no more {name}"
    return f"{100 * abs(ratio - 1):.{0 if ratio > 0.01 else 2}f}% {'more' if ratio > 1 else 'less'} {name}"


def interval(figure: Figure | None, term: str = "") -> str:
    """`19.1 to 40.9 s`: both ends, the unit once where it is the same; empty where there is none."""
    if figure is None or figure.low is None or figure.high is None:
        return ""
    low, high = (value(end, figure.unit, term) for end in (figure.low, figure.high))
    (number, _, unit), (_, _, other) = low.partition(" "), high.partition(" ")
    return f"{number if unit == other else low} to {high}"
