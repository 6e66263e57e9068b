"""Quantities with units: "80GiB", "400Gbit/s", "2.5usd", "30min", "160B tokens" become floats in one base unit each.

A quantity is a number and a unit. Each *kind* of quantity (bytes, seconds, ...) has one base unit, in which every
figure of the project is held; `parse` converts into it and `show` prints a readable form of it. Decimal prefixes are
powers of 1000 and binary ones (Ki, Mi, Gi, Ti) powers of 1024. "B" after a space in front of "tokens" or "params"
means 1e9, as the field writes it; "B" alone is a byte.
"""

from __future__ import annotations

import math
import re

from thrifty.spec.errors import did_you_mean

_DECIMAL = {"": 1.0, "k": 1e3, "K": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "P": 1e15, "E": 1e18}
_BINARY = {"Ki": 2.0**10, "Mi": 2.0**20, "Gi": 2.0**30, "Ti": 2.0**40, "Pi": 2.0**50}
_COUNT = {"": 1.0, "k": 1e3, "K": 1e3, "M": 1e6, "B": 1e9, "G": 1e9, "T": 1e12}

_BYTES = {p + u: f for p, f in (_DECIMAL | _BINARY).items() for u in ("B", "byte", "bytes")}
_BITS = {p + u: f / 8 for p, f in (_DECIMAL | _BINARY).items() for u in ("bit", "bits")}
_SECONDS = {
    "s": 1.0, "sec": 1.0, "second": 1.0, "seconds": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6, "ns": 1e-9,
    "min": 60.0, "mins": 60.0, "minute": 60.0, "minutes": 60.0, "m": 60.0, "h": 3600.0, "hour": 3600.0,
    "hours": 3600.0, "d": 86400.0, "day": 86400.0, "days": 86400.0, "week": 604800.0, "weeks": 604800.0,
}  # fmt: skip
_PER_SECOND = {f"{unit}/s": factor for unit, factor in (_BYTES | _BITS).items()} | {
    p + "bps": f / 8 for p, f in _DECIMAL.items() if p
}
_USD = {"usd": 1.0, "USD": 1.0, "$": 1.0, "kusd": 1e3, "Musd": 1e6, "cent": 0.01, "cents": 0.01}
_FLOPS = {p + u: f for p, f in _DECIMAL.items() for u in ("FLOP/s", "FLOPS", "FLOPs", "flop/s", "flops")}


def _counted(noun: str, *short: str) -> dict[str, float]:
    names = (noun, noun.rstrip("s"), *short)
    return {p + sep + n: f for p, f in _COUNT.items() for sep in ("", " ") for n in names} | {
        p: f for p, f in _COUNT.items() if p
    }


# kind -> (base unit, accepted spellings -> factor to the base unit)
KINDS: dict[str, tuple[str, dict[str, float]]] = {
    "bytes": ("byte", _BYTES),
    "bytes_per_second": ("byte/s", _PER_SECOND),
    "seconds": ("s", _SECONDS),
    "usd": ("usd", _USD),
    "usd_per_hour": ("usd/h", {f"{u}/{h}": f for u, f in _USD.items() for h in ("h", "hour", "hr")} | _USD),
    "tokens": ("token", _counted("tokens", "tok")),
    "flops_per_second": ("FLOP/s", _FLOPS),
    "watts": ("W", {"W": 1.0, "kW": 1e3, "MW": 1e6, "watt": 1.0, "watts": 1.0, "mW": 1e-3}),
    "grams_per_kwh": ("g/kWh", {"g/kWh": 1.0, "kg/kWh": 1e3, "gCO2/kWh": 1.0, "kg/MWh": 1.0}),
    "ratio": ("1", {"%": 0.01, "x": 1.0, "1": 1.0}),
    "count": ("1", _counted("1") | {"1": 1.0}),
}

_NUMBER = re.compile(
    r"^\s*(?P<usd>\$?)\s*(?P<number>[-+]?(?:\d[\d_,]*\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)\s*(?P<unit>.*?)\s*$"
)


def base_unit(kind: str) -> str:
    """The unit in which every figure of this kind is held."""
    return KINDS[kind][0]


def parse(text: object, kind: str) -> float:
    """Reads a quantity into the base unit of its kind.

    A bare number is taken to be in the base unit already.

    Raises:
        ValueError: not a number, not a unit of this kind, or not finite; the message names valid units.
    """
    base, spellings = KINDS[kind]
    example = {"bytes": "80GiB", "bytes_per_second": "400Gbit/s", "seconds": "30min", "usd": "2.5usd"}.get(
        kind, {"usd_per_hour": "2.5usd/h", "tokens": "160B tokens", "watts": "700W"}.get(kind, f"1{base}")
    )
    if isinstance(text, bool):
        raise ValueError(f"wants a quantity such as {example!r}, got {text}")
    if isinstance(text, int | float):
        value = float(text)
    else:
        match = _NUMBER.match(text) if isinstance(text, str) else None
        if match is None:
            raise ValueError(f"wants a quantity such as {example!r}, got {text!r}")
        unit = match["unit"] or ("usd" if match["usd"] else "")
        if match["usd"] and match["unit"]:
            unit = "usd" + match["unit"]
        factor = 1.0 if unit == "" else _factor(unit, kind, spellings, example)
        value = float(match["number"].replace("_", "").replace(",", "")) * factor
    if not math.isfinite(value):
        raise ValueError(f"wants a finite quantity such as {example!r}, got {text!r}")
    return value


def _factor(unit: str, kind: str, spellings: dict[str, float], example: str) -> float:
    if unit in spellings:
        return spellings[unit]
    other = [name for name, (_, known) in KINDS.items() if unit in known]
    if other and kind not in other:
        measures, wanted = other[0].replace("_", " "), kind.replace("_", " ")
        raise ValueError(f"unit {unit!r} measures {measures}, not {wanted}; write for example {example!r}")
    raise ValueError(
        f"unknown unit {unit!r} for {kind.replace('_', ' ')}; {did_you_mean(unit, spellings)} For example {example!r}"
    )


def _scaled(value: float, steps: list[tuple[float, str]], digits: int = 3) -> str:
    for factor, suffix in steps:
        if abs(value) >= factor:
            return (
                f"{value / factor:.{digits}g}{suffix}"
                if abs(value / factor) < 999.5  # which three digits would make 1e+03
                else f"{value / factor:,.0f}{suffix}"
            )
    factor, suffix = steps[-1]
    return f"{value / factor:.{digits}g}{suffix}"


_SI = [(1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"), (1.0, "")]


def show(value: float, unit: str) -> str:
    """A figure for people: three significant digits and a fitting prefix.

    `unit` is a base unit of `KINDS`, or `J`, `g`.
    """
    if unit == "byte":
        return _scaled(value, [(2.0**40, " TiB"), (2.0**30, " GiB"), (2.0**20, " MiB"), (2.0**10, " KiB"), (1.0, " B")])
    if unit == "byte/s":
        return _scaled(value, _SI) + "B/s"
    if unit == "s":
        return _show_seconds(value)
    if unit in ("usd", "usd/h"):
        tail = "/h" if unit == "usd/h" else ""
        text = (
            f"${value:,.0f}"
            if abs(value) >= 1000
            else f"${value:,.2f}"
            if abs(value) >= 0.1 or value == 0
            else f"${value:.2g}"
        )
        return text + tail
    if unit == "J":
        return _scaled(value / 3.6e6, [(1e6, " GWh"), (1e3, " MWh"), (1.0, " kWh"), (1e-3, " Wh")])
    if unit == "g":
        return _scaled(value, [(1e6, " t"), (1e3, " kg"), (1.0, " g"), (1e-3, " mg")])
    if unit == "token":
        return _scaled(value, [(1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k"), (1.0, "")])
    if unit == "1":
        return f"{value:,.4g}"
    return _scaled(value, [(factor, f" {prefix}") for factor, prefix in _SI]) + unit


def _show_seconds(value: float) -> str:
    if value < 1e-3:
        return f"{value * 1e6:.3g} us"
    if value < 1:
        return f"{value * 1e3:.3g} ms"
    if value < 120:
        return f"{value:.3g} s"
    if value < 2 * 3600:
        return f"{value / 60:.3g} min"
    if value < 2 * 86400:
        return f"{value / 3600:.3g} h"
    return f"{value / 86400:,.3g} days" if value < 1000 * 86400 else f"{value / 86400:,.0f} days"
