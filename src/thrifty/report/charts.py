"""The figures of the page as Altair charts: each a view on named data, coloured by the page's CSS variables.

Colours are written as `var(--name)`, which SVG attributes accept, so that one drawing follows light, dark and print.
Every chart is as wide as its container.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import altair as alt

from thrifty.report import words

Records = list[dict[str, Any]]

FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"
AXIS = {
    "labelColor": "var(--muted)", "titleColor": "var(--muted)", "gridColor": "var(--rule)",
    "domain": False, "ticks": False, "labelFontSize": 11,
    "titleFontSize": 11, "titleFontWeight": "normal", "labelPadding": 6, "titlePadding": 10,
}  # fmt: skip
HALO = {"color": "var(--paper)", "stroke": "var(--paper)", "strokeWidth": 4, "strokeJoin": "round", "opacity": 0.75}


@dataclass(frozen=True)
class Scale:
    """How an axis and its tips write a quantity: data in base units are divided by `factor`."""

    factor: float
    title: str
    format: str
    tip: str = ",.4~r"


@dataclass(frozen=True)
class Level:
    """A horizontal line in a loss chart: a target, or what was predicted with its interval."""

    loss: float
    text: str
    low: float | None = None
    high: float | None = None


def scale_of(cost: str, most: float) -> Scale:
    """The unit in which an axis up to `most` is easiest to read."""
    name = words.COST_LABELS[cost]
    unit = words.COST_UNITS[cost]
    if unit == "s":
        factor, short = next(
            (f, s)
            for f, s in ((86400.0, "days"), (3600.0, "h"), (60.0, "min"), (1.0, "s"))
            if most >= 2 * f or f == 1.0
        )
        return Scale(factor, f"{name} ({short})", ",~f")
    if unit == "J":
        steps = ((3.6e9, "MWh"), (3.6e6, "kWh"), (3.6e3, "Wh"), (1.0, "J"))
        factor, short = next((f, s) for f, s in steps if most >= f or f == 1.0)
        return Scale(factor, f"{name} ({short})", ",~f")
    if unit == "usd":
        return Scale(1.0, f"{name} (USD)", "$~s" if most >= 1e4 else "$,~f")
    return Scale(1.0, name, "~s", ".4~s")


def loss_chart(
    cost: str, rows: Records, colours: dict[str, str], levels: Sequence[Level] = (), marks: Records | None = None
) -> alt.TopLevelMixin:
    """Loss against one cost: training thin, validation strong, targets and predictions as lines.

    Args:
        cost: one of `ledger.COSTS`.
        rows: `{"run", "split", "step", "loss", <cost>...}`; the page feeds them as the data set `rows`.
        colours: run to colour.
        levels: horizontal lines.
        marks: `{"run", "loss", <cost>}`, drawn as rings: where each run reached the target.
    """
    scale = scale_of(cost, max((row[cost] for row in rows if row.get(cost) is not None), default=1.0))
    # A billion is B here, not the G of SI; and zero has no prefix.
    ticks = alt.Axis(
        format=scale.format,
        grid=False,
        tickCount=6,
        labelExpr="datum.value == 0 ? '0' : replace(datum.label, 'G', 'B')",
    )
    x = alt.X("x:Q", title=scale.title, axis=ticks, scale=alt.Scale(zero=True, nice=False))
    y = alt.Y(
        "loss:Q", title="loss (nats per token)", scale=alt.Scale(zero=False, nice=True), axis=alt.Axis(tickCount=6)
    )
    colour = alt.Color("run:N", scale=alt.Scale(domain=list(colours), range=list(colours.values())), legend=None)
    base = (
        alt.Chart(alt.NamedData(name="rows"))
        .transform_filter(f"isValid(datum['{cost}'])")
        .transform_calculate(x=f"datum['{cost}'] / {scale.factor}")
        .encode(x=x, y=y, color=colour)
    )
    train = base.transform_filter("datum.split == 'train'").mark_line(strokeWidth=1.2, opacity=0.4, clip=True)
    val = base.transform_filter("datum.split == 'val'")
    tip = [
        alt.Tooltip("run:N"),
        alt.Tooltip("step:Q", format=","),
        alt.Tooltip("loss:Q", title="validation loss", format=".4~g"),
    ]
    tip.append(alt.Tooltip("x:Q", title=scale.title, format=scale.tip))
    layers: list[Any] = [*_bands(levels), train, val.mark_line(strokeWidth=2.4, interpolate="linear")]
    layers.append(val.mark_point(size=42, filled=True, opacity=1).encode(tooltip=tip))
    layers += _lines(levels)
    if marks:
        ring = [{**mark, "x": mark[cost] / scale.factor} for mark in marks if mark.get(cost) is not None]
        tip = [
            alt.Tooltip("run:N"),
            alt.Tooltip("loss:Q", format=".4~g"),
            alt.Tooltip("x:Q", title=scale.title, format=scale.tip),
        ]
        rings = alt.Chart(alt.InlineData(values=ring)).mark_point(size=190, filled=False, strokeWidth=2.4, opacity=1)
        layers.append(rings.encode(x=x, y=y, color=colour, tooltip=tip))
    title = f"Training and validation loss against {words.COST_LABELS[cost]}"
    return alt.layer(*layers).properties(width="container", height=300, description=title)


def _bands(levels: Sequence[Level]) -> list[alt.Chart]:
    known = [
        {"low": level.low, "high": level.high} for level in levels if level.low is not None and level.high is not None
    ]
    band = alt.Chart(alt.InlineData(values=known)).mark_rect(color="var(--predicted)", opacity=0.16)
    return [band.encode(y=alt.Y("low:Q"), y2="high:Q")] if known else []


def _lines(levels: Sequence[Level]) -> list[alt.Chart]:
    if not levels:
        return []
    base = alt.Chart(alt.InlineData(values=[{"loss": level.loss, "text": level.text} for level in levels])).encode(
        y="loss:Q"
    )
    rule = base.mark_rule(strokeDash=[5, 4], strokeWidth=1.3, color="var(--ink)", opacity=0.7)
    text = base.mark_text(align="right", baseline="bottom", dy=-4, fontSize=11, color="var(--ink)").encode(
        x=alt.value("width"), text="text:N"
    )
    return [rule, text]


def parts_chart(
    sides: Sequence[str], colours: Sequence[str], parts: Sequence[str], most_seconds: float
) -> alt.TopLevelMixin:
    """Seconds by part as paired bars; data set `rows`: `{"side", "part", "seconds", "share"}`."""
    scale = scale_of("seconds", most_seconds)
    base = (
        alt.Chart(alt.NamedData(name="rows"))
        .transform_calculate(x=f"datum.seconds / {scale.factor}")
        .encode(
            y=alt.Y(
                "part:N",
                sort=list(parts),
                title=None,
                axis=alt.Axis(labelColor="var(--ink)", labelFontSize=12),
                scale=alt.Scale(paddingInner=0.32),
            ),
            yOffset=alt.YOffset("side:N", sort=list(sides)),
        )
    )
    tip = ["side:N", "part:N", alt.Tooltip("text:N", title="time"), alt.Tooltip("share:Q", format=".1%")]
    bars = base.mark_bar(cornerRadiusEnd=2).encode(
        x=alt.X("x:Q", title=scale.title, axis=alt.Axis(format=scale.format, tickCount=5)),
        color=alt.Color("side:N", scale=alt.Scale(domain=list(sides), range=list(colours)), legend=None),
        tooltip=tip,
    )
    height = 18 * len(parts) * len(sides)
    return alt.layer(bars).properties(width="container", height=height, description="Where the time went, by part")


def memory_chart(
    terms: dict[str, str], sides: Sequence[str], peaks: Records, capacity: float | None, most_bytes: float
) -> alt.TopLevelMixin:
    """Memory by term as stacked bars with a tick at each peak; data set `rows`: `{"side", "term", "bytes"}`.

    Args:
        terms: term to colour, in stacking order.
        peaks: `{"side", "bytes"}`.
        capacity: what the device holds, in bytes; drawn when it is near enough not to flatten the bars.
    """
    factor, unit = next(
        (f, u) for f, u in ((2**40, "TiB"), (2**30, "GiB"), (2**20, "MiB"), (1, "B")) if most_bytes >= f or f == 1.0
    )
    x = alt.X(
        "x:Q", title=f"bytes of the fullest rank ({unit})", stack="zero", axis=alt.Axis(format=",~f", tickCount=5)
    )
    y = alt.Y(
        "side:N",
        sort=list(sides),
        title=None,
        axis=alt.Axis(labelColor="var(--ink)", labelFontSize=12),
        scale=alt.Scale(paddingInner=0.38),
    )
    bars = (
        alt.Chart(alt.NamedData(name="rows"))
        .transform_calculate(x=f"datum.bytes / {factor}")
        .mark_bar(stroke="var(--paper)", strokeWidth=1)
        .encode(
            x=x,
            y=y,
            color=alt.Color("term:N", scale=alt.Scale(domain=list(terms), range=list(terms.values())), legend=None),
            order="order:Q",
            tooltip=["side:N", "term:N", alt.Tooltip("text:N", title="memory")],
        )
    )
    at = [{**peak, "x": peak["bytes"] / factor} for peak in peaks]
    tick = alt.Chart(alt.InlineData(values=at)).mark_tick(color="var(--ink)", thickness=2.5, bandSize=40)
    layers: list[Any] = [bars, tick.encode(x="x:Q", y=y, tooltip=["side:N", alt.Tooltip("text:N", title="peak")])]
    if capacity is not None and capacity <= 2.5 * most_bytes:
        limit = alt.Chart(alt.InlineData(values=[{"x": capacity / factor, "text": "capacity"}]))
        layers.append(limit.mark_rule(color="var(--bad)", strokeWidth=2, strokeDash=[5, 3]).encode(x="x:Q"))
        words_ = limit.mark_text(color="var(--bad)", align="right", dx=-5, baseline="top", fontSize=11)
        layers.append(words_.encode(x="x:Q", y=alt.value(1), text="text:N"))
    return alt.layer(*layers).properties(
        width="container", height=58 * len(sides), description="Memory of the fullest rank by term"
    )


def ratio_chart(rows_: Records, title: str, reference: str) -> alt.TopLevelMixin:
    """Ratios on a log axis around 1; data set `rows`: `{"term", "ratio", "low", "high", "verdict", "text", ...}`.

    `low` and `high` are the interval of the left side over its value, null where none is known.
    """
    terms = [row["term"] for row in rows_]
    ends = [row[end] for row in rows_ for end in ("low", "high") if row[end] and 0.25 <= row[end] <= 4]
    reach = max([1.4, *(max(r, 1 / r) for r in [*ends, *(row["ratio"] for row in rows_)])]) * 1.2
    near, far = [0.33, 0.5, 0.67, 0.8, 1, 1.25, 1.5, 2, 3], [0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50]
    ticks = near if reach < 5 else far if reach < 100 else [10.0**n for n in range(-9, 10)]
    scale = alt.Scale(type="log", domain=[1 / reach, reach], nice=False)
    shown = [tick for tick in sorted(ticks) if 1 / reach <= tick <= reach]
    x = alt.X(
        "ratio:Q", title=title, scale=scale, axis=alt.Axis(values=shown, format="~g", labelExpr="datum.label + 'x'")
    )
    y = alt.Y("term:N", sort=list(terms), title=None, axis=alt.Axis(labelColor="var(--ink)", labelFontSize=12))
    rows = alt.Chart(alt.NamedData(name="rows"))
    verdicts = {"inside": "var(--good)", "outside": "var(--warn)", "": "var(--measured)"}
    colour = alt.Color("verdict:N", scale=alt.Scale(domain=list(verdicts), range=list(verdicts.values())), legend=None)
    tip = [
        "term:N",
        alt.Tooltip("text:N", title="ratio"),
        alt.Tooltip("left:N", title=reference),
        alt.Tooltip("right:N", title="measured" if reference == "predicted" else "B"),
    ]
    interval = rows.transform_filter("isValid(datum.low)").mark_bar(
        color="var(--predicted)", opacity=0.3, height=12, cornerRadius=3, clip=True
    )
    layers = [
        interval.encode(x=alt.X("low:Q", scale=scale), x2="high:Q", y=y),
        alt.Chart(alt.InlineData(values=[{"x": 1}]))
        .mark_rule(color="var(--ink)", strokeWidth=1, opacity=0.6)
        .encode(x=alt.X("x:Q", scale=scale)),
        rows.mark_point(filled=True, size=95, opacity=1).encode(x=x, y=y, color=colour, tooltip=tip),
        *(
            rows.mark_text(align="left", dx=10, fontSize=11.5, **ink).encode(x=x, y=y, text="text:N")
            for ink in (HALO, {"color": "var(--ink)"})
        ),
    ]
    return alt.layer(*layers).properties(width="container", height=34 * len(terms), description=title)


def specification(chart: alt.TopLevelMixin) -> dict[str, Any]:
    """The Vega-Lite specification of a chart in the page's style."""
    config = {"font": FONT, "background": None, "view": {"stroke": None}, "axis": AXIS, "aria": False}
    layout = {"padding": {"left": 0, "right": 8, "top": 12, "bottom": 0}}
    return chart.to_dict() | {"config": config} | layout


def finite(number: float | None) -> float | None:
    """Six significant digits, and null for what a chart cannot draw."""
    return None if number is None or not math.isfinite(number) else float(f"{number:.6g}")
