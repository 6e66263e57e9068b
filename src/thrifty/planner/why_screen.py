"""Draws what `--why` and `--explain` say, in at most 100 columns; plain where there is no terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from thrifty.planner.bandwidth import sentences as bandwidth_sentences
from thrifty.planner.explain import Explanation
from thrifty.planner.growth import Size
from thrifty.planner.rivals import sentences as rival_sentences
from thrifty.planner.screen import wrapped
from thrifty.planner.search import Search
from thrifty.planner.sensitivity import End, Sensitivity, Swing
from thrifty.planner.terms import LIST, Explained, explain_term
from thrifty.planner.waterfall import Waterfall
from thrifty.planner.why import Why, explain_plan
from thrifty.spec import units
from thrifty.spec.plan import Plan

_LEAST = 0.01  # share of a cost that a figure must move to have a bar
_MOST_BARS = 8  # of money; half as many of energy and CO2
_MOST_SIZES = 8


@dataclass(frozen=True)
class Section:
    """Something that was asked for beside the plan: what it adds to the JSON, and how it is drawn at a width."""

    content: dict[str, Any]
    draw: Callable[[int], RenderableType]


def sections(
    found: Search, told: Explanation, *, why: bool, rivals: Sequence[str], terms: Sequence[str]
) -> list[Section]:
    """What `--explain TERM`, `--why` and `--rival NAME` ask for, in this order.

    Raises:
        ThriftyError: a term that the bill does not have, or an accelerator that the catalog does not have.
    """
    made = []
    if terms:
        names = [name for term in terms for name in ([*_all(found.plan)] if term == LIST else [term])]
        explained = [explain_term(found.plan, name) for name in dict.fromkeys(names)]
        content = {"explained": [one.as_json() for one in explained]}
        listed = LIST in terms
        made.append(
            Section(content, lambda width: render_list(explained) if listed else render_terms(explained, width))
        )
    if why:
        asked = explain_plan(found, rivals)
        made.append(Section(asked.as_json(), lambda width: render_why(asked, told, width)))
    return made


def _all(plan: Plan) -> Iterator[str]:
    return (name for name, _ in plan.predicted.terms())


# ---- why


def render_why(why: Why, told: Explanation, width: int) -> RenderableType:
    """How the plan was reached, what it hangs on, and how it grows."""
    return Group(*_why(why, told, width))


def _why(why: Why, told: Explanation, width: int) -> Iterator[RenderableType]:
    yield from _waterfall(why.waterfall, width)
    if told.runners_up:
        yield from _heading("why the next best lost")
        for way in told.runners_up:
            again = "" if way.recompute == "none" else f", recompute {way.recompute}"
            yield wrapped(f"{way.layout}, {way.precision}{again}: {way.why}", width, "- ")
    yield from _tornado(why.sensitivity, width)
    yield from _heading("what would change the answer")
    yield from (wrapped(line, width, "- ") for line in why.sensitivity.sentences)
    yield from (wrapped(line, width, "- ") for line in rival_sentences(told.plan, why.rivals))
    yield from _heading("what bandwidth it needs")
    yield from (wrapped(line, width, "- ") for line in bandwidth_sentences(why.bandwidth))
    yield from _sizes(why.bandwidth.growth.sizes)


def _heading(text: str) -> Iterator[Text]:
    yield Text()
    yield Text(text, style="bold")


def _table(*justify: str) -> Table:
    table = Table(box=None, padding=(0, 1), show_header=False, pad_edge=False)
    for side in justify:
        table.add_column(justify="right" if side == "right" else "left", no_wrap=side != "wrap")
    return table


def _waterfall(fall: Waterfall, width: int) -> Iterator[RenderableType]:
    yield from _heading("from the plain way to this plan")
    start = f"{units.show(fall.plain_usd, 'usd')}, {units.show(fall.plain_seconds, 's')}"
    yield wrapped(f"{fall.plain}: {start}" + (f"; {fall.note}" if fall.note else ""), width)
    table = _table("left", "wrap", "right", "right")
    risks: dict[str, list[str]] = {}
    for row in fall.rows:
        saved = f"{'-' if row.gain_usd >= 0 else '+'}{units.show(abs(row.gain_usd), 'usd')}"
        room = "" if row.fits else " (does not fit without the rows below)"
        table.add_row(f"- {row.lever}", row.change + room, f"{-row.gain:+.1%}", saved)
        risks.setdefault(row.risk, []).append(row.lever)
    table.add_row("= this plan", units.show(fall.seconds, "s"), f"{-fall.gain:+.1%}", units.show(fall.usd, "usd"))
    yield table
    yield from (wrapped(f"risk of {' and '.join(levers)}: {risk}", width, "  ") for risk, levers in risks.items())


def _tornado(found: Sensitivity, width: int) -> Iterator[RenderableType]:
    base = {"usd": found.usd, "joules": found.joules, "grams": found.grams}
    shown = [(swing, _moved(swing, base)) for swing in found.swings]
    money = [(swing, "usd") for swing, cost in shown if cost == "usd"][:_MOST_BARS]
    others = [(swing, cost) for swing, cost in shown if cost in ("joules", "grams")]
    others.sort(key=lambda bar: -_reach(bar[0], bar[1], base))
    titles = ("what the money and the time hang on", "what energy (and of the grid, CO2) hangs on")
    for title, bars in zip(titles, (money, others[: _MOST_BARS // 2]), strict=True):
        if bars:
            yield from _heading(f"{title}, one figure at a time")
            yield _bars(bars, base, max(10, width - 68))


def _moved(swing: Swing, base: dict[str, float]) -> str:
    """The first of money, energy and CO2 that a figure moves by enough to be drawn; empty where none."""
    return next((cost for cost in base if base[cost] and _reach(swing, cost, base) >= _LEAST), "")


def _reach(swing: Swing, cost: str, base: dict[str, float]) -> float:
    """The larger share by which either end moves a cost."""
    return max(abs(_share(end, cost, base[cost])) for end in (swing.low, swing.high))


def _bars(rows: Sequence[tuple[Swing, str]], base: dict[str, float], long: int) -> Table:
    def shares(swing: Swing, cost: str) -> list[float]:
        return sorted(_share(end, cost, base[cost]) for end in (swing.low, swing.high))

    ends = [shares(swing, cost) for swing, cost in rows]
    least, most = min(min(low, 0.0) for low, _ in ends), max(max(high, 0.0) for _, high in ends)
    scale = long / ((most - least) or 1.0)
    middle = round(-least * scale)
    table = _table("left", "left", "left", "right", "right")
    for (swing, _), (low, high) in zip(rows, ends, strict=True):
        less, more = round(-min(low, 0.0) * scale), round(max(high, 0.0) * scale)
        bar = Text(" " * (middle - less))
        bar.append("=" * less, style="green").append("|").append("=" * more, style="red")
        between = f"{units.show(swing.low.value, swing.unit)} to {units.show(swing.high.value, swing.unit)}"
        table.add_row(f"- {swing.name}", between, bar, f"{low:+.0%}", f"{high:+.0%}")
    return table


def _share(end: End, cost: str, base: float) -> float:
    value: float = getattr(end, cost)
    return value / base - 1


def _sizes(sizes: Sequence[Size]) -> Iterator[RenderableType]:
    if len(sizes) < 2:
        return
    table = _table("right", "right", "right", "right")
    for size in sizes[-_MOST_SIZES:]:
        faster = "" if size.faster is None else f"step {-size.faster:+.0%}"
        rate = f"{units.show(size.tokens_per_second, 'token')} tok/s"
        table.add_row(f"  {size.devices:,} devices", rate, faster, f"{size.usd_per_token:.3g} x the money a token")
    yield table


# ---- terms


def render_terms(explained: Sequence[Explained], width: int) -> RenderableType:
    """Each term's formula, the same with numbers, the result, and where each number comes from."""
    return Group(*(line for one in explained for line in _term(one, width)))


def _term(one: Explained, width: int) -> Iterator[RenderableType]:
    result = _shown(one.value, one.unit)
    between = ""
    if one.low is not None and one.high is not None:
        between = f" ({_shown(one.low, one.unit)} to {_shown(one.high, one.unit)})"
    yield Text(f"{one.term}: {result}{between}", style="bold")
    yield wrapped(f"= {one.formula}", width)
    yield wrapped(f"= {one.substituted}", width)
    yield wrapped(f"= {one.value:,.6g} {one.unit}", width) if one.unit != "1" else Text(f"= {one.value:,.6g}")
    for number in one.numbers:
        dated = f", {number.date}" if number.date else ""
        name = number.name.replace("_", " ")
        said = f"{name} {_shown(number.value, number.unit)}: {number.provenance}, {number.source}{dated}"
        yield wrapped(said, width, "- ")
    yield from (wrapped(line, width, "  ") for line in one.details)
    yield wrapped(f"the bill says: {one.source}", width, "  ")


def render_list(explained: Sequence[Explained]) -> RenderableType:
    """Every term with its value and its formula."""
    table = _table("left", "right", "wrap")
    for one in explained:
        table.add_row(one.term, _shown(one.value, one.unit), one.formula)
    return table


def _shown(value: float, unit: str) -> str:
    if unit == "1" and float(value).is_integer():
        return f"{value:,.0f}"
    return "0 s" if unit == "s" and value == 0 else units.show(value, unit)
