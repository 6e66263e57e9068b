"""Schemes for training on islands side by side: time, tokens, dollars, bytes and waiting, as plain data and as text."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from thrifty.catalog import lookup
from thrifty.cost.exchange import Route, route_of
from thrifty.cost.island_links import Island
from thrifty.cost.islands import Outcome, Scheme, simulate
from thrifty.cost.params import active_parameters, total_parameters
from thrifty.spec import units
from thrifty.spec.codec import stages_of
from thrifty.spec.figure import Figure, modelled
from thrifty.spec.islands import Islands
from thrifty.spec.job import ModelShape
from thrifty.spec.load import build

SOURCE = "simulated exchange by exchange: docs/islands.md"
FLOPS_A_PARAMETER = 6  # and token: forward 2, backward 4 (Kaplan et al. 2020, arXiv:2001.08361)
_DAY = 86400.0
_ROUTES: dict[Route, str] = {
    "all_reduce": "a ring",
    "all_to_all": "pieces to who sums them, sums to all",
    "all_gather": "everything to all",
}


@dataclass(frozen=True)
class Row:
    """One scheme on some islands.

    Attributes:
        tokens_per_s: of all islands whose work is kept.
        usd_per_hour: of all islands.
    """

    scheme: Scheme
    islands: tuple[Island, ...]
    outcome: Outcome
    tokens_per_s: float
    usd_per_hour: float

    @property
    def usd_per_token(self) -> float:
        return self.usd_per_hour / 3600 / self.tokens_per_s

    def most(self, way: str) -> float:
        """Bytes that one island sends, or receives, at most, while all together train on a billion tokens."""
        found: tuple[float, ...] = getattr(self.outcome, way)
        return max(found) / self.outcome.seconds / self.tokens_per_s * 1e9


@dataclass(frozen=True)
class IslandsTold:
    """All that the screen sroutes: every scheme, the best one, and that one again without each group of islands."""

    given: Islands
    parameters: int
    rows: dict[str, Row]
    best: str
    without: dict[str, Row]

    def as_json(self) -> dict[str, Any]:
        """Everything, in types that JSON has; figures with unit, provenance and source."""
        return {
            "name": self.given.name,
            "parameters": self.parameters,
            "schemes": {name: self._row_json(row) for name, row in self.rows.items()},
            "best": self.best,
            "without": {name: self._row_json(row) for name, row in self.without.items()},
        }

    def _row_json(self, row: Row) -> dict[str, Any]:
        groups = {
            group.name: {
                name: figure.model_dump(mode="json") for name, figure in _group_figures(row, group.name).items()
            }
            for group in self.given.islands
            if any(one.name == group.name for one in row.islands)
        }
        totals = {name: figure.model_dump(mode="json") for name, figure in self.figures(row).items()}
        return {"figures": totals, "limit": row.outcome.limit, "islands": groups}

    def figures(self, row: Row) -> dict[str, Figure]:
        """What a scheme comes to on the whole."""
        found = {
            "round_seconds": modelled(row.outcome.seconds, "s", SOURCE),
            "tokens_per_second": modelled(row.tokens_per_s, "token/s", SOURCE),
        }
        if row.usd_per_hour:
            found["usd_per_billion_tokens"] = modelled(row.usd_per_token * 1e9, "usd", SOURCE)
        if self.given.tokens is not None:
            seconds = self.given.tokens / row.tokens_per_s
            found["seconds"] = modelled(seconds, "s", SOURCE)
            found["usd"] = modelled(seconds / 3600 * row.usd_per_hour, "usd", SOURCE)
        return found


def _as_json(figures: Mapping[str, Figure]) -> dict[str, Any]:
    return {name: figure.model_dump(mode="json") for name, figure in figures.items()}


def _group_figures(row: Row, name: str) -> dict[str, Figure]:
    """Means over the islands of a group."""
    places = [place for place, one in enumerate(row.islands) if one.name == name]
    outcome = row.outcome

    def mean(of: tuple[float, ...]) -> float:
        return sum(of[place] for place in places) / len(places)

    return {
        "steps_per_round": modelled(mean(outcome.steps), "1", SOURCE),
        "utilisation": modelled(mean(outcome.utilisation), "1", SOURCE),
        "kept": modelled(mean(outcome.kept), "1", SOURCE),
        "sent_bytes_per_round": modelled(mean(outcome.sent), "byte", SOURCE),
        "received_bytes_per_round": modelled(mean(outcome.received), "byte", SOURCE),
    }


def told(given: Islands) -> IslandsTold:
    """Simulates every scheme that the file has the means for.

    Raises:
        ThriftyError: no such model, or fragments, delay and quorum that do not go together.
    """
    parameters, met = _parameters(given)
    islands = tuple(one for group in given.islands for one in [_island(given, group.name, met)] * group.count)
    rows = {name: _row(given, islands, parameters, scheme) for name, scheme in _schemes(given, islands).items()}
    best = min(rows, key=lambda name: (rows[name].usd_per_token, -rows[name].tokens_per_s))
    without = {}
    for group in given.islands if len(given.islands) > 1 else ():
        rest = tuple(one for one in islands if one.name != group.name)
        without[group.name] = _row(given, rest, parameters, rows[best].scheme)
    return IslandsTold(given, parameters, rows, best, without)


def _parameters(given: Islands) -> tuple[int, int]:
    """All parameters, and those that a token meets."""
    if given.model is None:
        return given.parameters or 0, given.parameters or 0
    shape = build(ModelShape, lookup.model(given.model, "model"), "")
    return total_parameters(shape), active_parameters(shape)


def _island(given: Islands, name: str, met: int) -> Island:
    group = next(one for one in given.islands if one.name == name)
    if group.compute is not None:
        seconds = group.compute.value
    else:
        assert group.flops is not None
        seconds = FLOPS_A_PARAMETER * met * given.step_tokens / group.flops.value
    return Island(
        name, seconds, group.up.value, group.down.value, group.latency.value, group.jitter, group.coding.value,
        group.price.value,
    )  # fmt: skip


def _schemes(given: Islands, islands: tuple[Island, ...]) -> dict[str, Scheme]:
    """By name: plain 16-bit values and the codec, every step and every few; then what lets fast islands go on."""
    steps = given.local_steps
    route = route_of(stages_of(given.codec), len(islands)) if given.route == "auto" else given.route
    coded = Scheme(route, given.codec, gather=given.gather)
    rare = replace(coded, local_steps=steps)
    found = {
        "every step, 16-bit ring": Scheme(),
        "every step, codec": coded,
        f"{steps} steps, 16-bit ring": Scheme(local_steps=steps),
        f"{steps} steps, codec": rare,
    }
    streams = given.fragments > 1 or given.delay > 0
    if streams:
        found["  streaming"] = replace(rare, fragments=given.fragments, delay=given.delay)
    if given.quorum < 1:
        apart: Route = "all_gather" if route == "all_reduce" else route  # a sum on the way waits for all
        found[f"  quorum {given.quorum:.0%}"] = replace(rare, quorum=given.quorum, gather="direct", route=apart)
    if len({one.compute_s for one in islands}) > 1:
        by_speed = replace(rare, by_speed=True)
        found["  own steps by speed"] = by_speed
        if streams:
            found["  streaming, own steps"] = replace(by_speed, fragments=given.fragments, delay=given.delay)
    return found


def _row(given: Islands, islands: tuple[Island, ...], values: int, scheme: Scheme) -> Row:
    outcome = simulate(islands, values, scheme)
    return Row(
        scheme, islands, outcome, outcome.steps_per_s * given.step_tokens, sum(one.usd_per_hour for one in islands)
    )


def render(one: IslandsTold, width: int) -> RenderableType:
    """The whole screen."""
    return Group(*_sections(one, width))


def _sections(one: IslandsTold, width: int) -> Iterator[RenderableType]:
    given, best, figures = one.given, one.rows[one.best], one.figures(one.rows[one.best])
    count = sum(group.count for group in given.islands)
    price = f", {figures['usd_per_billion_tokens']} a billion" if "usd_per_billion_tokens" in figures else ""
    yield Text(
        f"{given.name}: {count:,} islands, {units.show(one.parameters, 'token')} parameters: "
        f"{units.show(best.tokens_per_s, 'token')} tokens/s{price}",
        style="bold",
    )
    yield Text(f"codec {given.codec}, crossing as {_ROUTES[best.scheme.route]}", style="dim")
    if given.fragments > 1 or given.delay:
        yield Text(f"streaming: {given.fragments} fragments, each with {given.delay} steps to cross", style="dim")
    yield Text(f"best: {_full_name(one)}")
    if given.tokens is not None:
        dollars = f", {figures['usd']}" if best.usd_per_hour else ""
        yield Text(f"{units.show(given.tokens, 'token')} tokens take {figures['seconds']}{dollars}")
    yield Text()
    yield _schemes_table(one)
    yield Text()
    yield _groups_table(one)
    yield Text()
    yield Text(
        "busy: computing, of the time; sent: by one island at most, while all train on a billion tokens.\n"
        "Rates alone: what local steps and codecs do to the loss is not in these figures.",
        style="dim",
    )


def _full_name(one: IslandsTold) -> str:
    return f"{one.given.local_steps} steps, {one.best.strip()}" if one.best[0] == " " else one.best


def _schemes_table(one: IslandsTold) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("scheme", no_wrap=True)
    for column in ("round", "tokens/s", "$/Btoken", "busy", "sent", "received"):
        table.add_column(column, justify="right")
    table.add_column("limited by", no_wrap=True)
    for name, row in one.rows.items():
        used = row.outcome.utilisation
        table.add_row(
            name,
            units.show(row.outcome.seconds, "s"),
            units.show(row.tokens_per_s, "token"),
            units.show(row.usd_per_token * 1e9, "usd") if row.usd_per_hour else "",
            f"{min(used) * 100:.0f}-{max(used):.0%}"
            if f"{min(used):.0%}" != f"{max(used):.0%}"
            else f"{max(used):.0%}",
            units.show(row.most("sent"), "byte"),
            units.show(row.most("received"), "byte"),
            row.outcome.limit,
        )
    return table


def _groups_table(one: IslandsTold) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("best scheme")
    for column in ("count", "steps a round", "busy", "sent a day", "received", "without it: tokens/s", "$/Btoken"):
        table.add_column(column, justify="right")
    best = one.rows[one.best]
    for group in one.given.islands:
        found, rest = _group_figures(best, group.name), one.without.get(group.name)
        a_day = _DAY / best.outcome.seconds
        table.add_row(
            group.name,
            f"{group.count:,}",
            str(found["steps_per_round"]),
            f"{found['utilisation'].value:.0%}",
            units.show(found["sent_bytes_per_round"].value * a_day, "byte"),
            units.show(found["received_bytes_per_round"].value * a_day, "byte"),
            units.show(rest.tokens_per_s, "token") if rest else "",
            units.show(rest.usd_per_token * 1e9, "usd") if rest and rest.usd_per_hour else "",
        )
    return table
