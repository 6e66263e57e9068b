"""A figure: a number with its unit and where it came from."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from thrifty.spec import units

Provenance = Literal["measured", "modelled", "assumed", "published"]


class Noun(BaseModel):
    """Base of every noun: frozen, and an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Figure(Noun):
    """A number, its unit and its provenance.

    Attributes:
        value: in the base unit of its kind (see `spec.units`).
        unit: the base unit, e.g. ``byte``, ``s``, ``usd``, ``J``.
        provenance: measured here, modelled by a formula, assumed, or published by somebody.
        source: the paper, page, table or method that a reader can check.
        date: when the source said so, ISO format; empty where it does not age.
        low: lower end of the interval, where one is known.
        high: upper end of the interval, where one is known.
    """

    value: float
    unit: str
    provenance: Provenance
    source: str = ""
    date: str = ""
    low: float | None = None
    high: float | None = None

    def __str__(self) -> str:
        return units.show(self.value, self.unit)


def measured(value: float, unit: str, source: str = "") -> Figure:
    """A figure read from a clock, a counter or a tensor."""
    return Figure(value=float(value), unit=unit, provenance="measured", source=source)


def modelled(value: float, unit: str, source: str = "", low: float | None = None, high: float | None = None) -> Figure:
    """A figure that a formula gave; `source` names the formula."""
    return Figure(value=float(value), unit=unit, provenance="modelled", source=source, low=low, high=high)


def _figure_of(kind: str) -> Callable[[Any], Any]:
    def read(raw: Any) -> Any:
        if isinstance(raw, Figure):
            return raw
        if isinstance(raw, dict):
            if "value" not in raw:
                raise ValueError("a figure written as a mapping needs the key 'value'")
            raw = dict(raw)
            raw["value"] = units.parse(raw["value"], kind)
            given = raw.setdefault("unit", units.base_unit(kind))
            if given != units.base_unit(kind):
                raise ValueError(
                    f"unit must be {units.base_unit(kind)!r}, got {given!r}; write the unit into the value instead"
                )
            raw.setdefault("provenance", "assumed")
            return raw
        return {
            "value": units.parse(raw, kind),
            "unit": units.base_unit(kind),
            "provenance": "assumed",
            "source": "given by the user",
        }

    return read


def _number_of(kind: str) -> Callable[[Any], Any]:
    def read(raw: Any) -> Any:
        return raw if raw is None else units.parse(raw, kind)

    return read


# Figures: facts with provenance. Plain quantities: what the user asks for.
BytesFigure = Annotated[Figure, BeforeValidator(_figure_of("bytes"))]
BytesPerSecondFigure = Annotated[Figure, BeforeValidator(_figure_of("bytes_per_second"))]
SecondsFigure = Annotated[Figure, BeforeValidator(_figure_of("seconds"))]
UsdPerHourFigure = Annotated[Figure, BeforeValidator(_figure_of("usd_per_hour"))]
FlopsFigure = Annotated[Figure, BeforeValidator(_figure_of("flops_per_second"))]
WattsFigure = Annotated[Figure, BeforeValidator(_figure_of("watts"))]
GramsPerKwhFigure = Annotated[Figure, BeforeValidator(_figure_of("grams_per_kwh"))]
RatioFigure = Annotated[Figure, BeforeValidator(_figure_of("ratio"))]
Tokens = Annotated[int, BeforeValidator(_number_of("tokens"))]
Count = Annotated[int, BeforeValidator(_number_of("count"))]
Ratio = Annotated[float, BeforeValidator(_number_of("ratio"))]
Number = Annotated[float, BeforeValidator(_number_of("ratio"))]
PositiveCount = Annotated[Count, Field(gt=0)]
