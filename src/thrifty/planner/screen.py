"""Draws an explanation: at most 45 lines of 100 columns, plain where there is no terminal."""

from __future__ import annotations

import io
import sys
import textwrap
from collections.abc import Iterator, Sequence
from html import escape

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from thrifty.planner.explain import Assumption, Explanation
from thrifty.planner.pool import RECOMPUTES_MORE, TOO_LARGE, TOO_SLOW
from thrifty.planner.reasons import show_layout
from thrifty.planner.sizes import Size
from thrifty.spec import units
from thrifty.spec.bill import MEMORY_TERMS
from thrifty.spec.figure import Figure
from thrifty.spec.recipe import Recipe

WIDTH = 100
_COLOURS = dict(zip(MEMORY_TERMS, ("cyan", "blue", "magenta", "green", "yellow", "red", "white"), strict=True))
_LEAST_SHARE = 0.01  # of a step, to be named among what it waits for


def console() -> Console:
    """Standard output, at most 100 columns; plain where it is no terminal."""
    if sys.stdout.isatty():
        found = Console(highlight=False)
        return found if found.width <= WIDTH else Console(highlight=False, width=WIDTH)
    return Console(highlight=False, width=WIDTH, no_color=True, force_terminal=False)


def render(told: Explanation, width: int = WIDTH) -> RenderableType:
    """The whole screen, at most `width` columns."""
    return Group(*_sections(told, width))


def html_page(told: Explanation, title: str) -> str:
    """The same screen as one HTML file that needs nothing else."""
    return page_of(render(told), title)


def page_of(drawn: RenderableType, title: str) -> str:
    """Anything drawn for a screen as one HTML file that needs nothing else."""
    recorder = Console(record=True, width=WIDTH, file=io.StringIO(), force_terminal=True, color_system="truecolor")
    recorder.print(drawn)
    page = recorder.export_html(inline_styles=True)
    head = f'<head>\n<meta name="viewport" content="width=device-width">\n<title>{escape(title)}</title>'
    return page.replace("<head>", head, 1)


def _sections(told: Explanation, width: int) -> Iterator[RenderableType]:
    yield from _headline(told, width)
    yield Text()
    yield from _memory(told, width)
    named = [f"{what} {share:.0%}" for what, share in told.limits.items() if share >= _LEAST_SHARE]
    yield wrapped("a step waits for: " + (", ".join(named) or "nothing that counts"), width)
    yield wrapped(f"priced with {_profile(told)}", width)
    yield Text()
    yield Text("why", style="bold")
    yield from (wrapped(reason, width, "- ") for reason in told.plan.reasons)
    if told.runners_up:
        yield Text()
        yield from _runners_up(told, width)
    yield Text()
    yield from _assumptions(told, width)


def wrapped(text: str, width: int, bullet: str = "", style: str = "") -> Text:
    """Text in lines of `width`, those after the first indented."""
    lines = textwrap.fill(text, width, initial_indent=bullet, subsequent_indent="  ", break_on_hyphens=False)
    return Text(lines, style=style)


def _headline(told: Explanation, width: int) -> Iterator[Text]:
    plan, bill, recipe = told.plan, told.plan.predicted, told.plan.recipe
    yield Text(f"{plan.job.name} on {plan.cluster.name}: {bill.usd} and {bill.seconds}", style="bold")
    yield Text(f"{_interval(bill.usd)}, {_interval(bill.seconds)}; {bill.energy}, {bill.co2} CO2", style="dim")
    if both := told.programme:
        factor = 1 + plan.job.experiments
        yield Text(f"with development x{factor:g}: {both['usd']}; {both['energy']}, {both['co2']} CO2", style="dim")
    loss = f"loss {bill.loss.value:.2f} ({bill.loss.low:.2f} to {bill.loss.high:.2f})" if bill.loss else told.no_loss
    rate = f"{units.show(bill.tokens_per_second.value, 'token')} tok/s, MFU {bill.mfu.value:.1%}"
    tokens = recipe.batch.sequences * plan.job.sequence_length
    growing = "" if recipe.batch.ramp is None else f" and more ({recipe.batch.ramp.name})"
    batch = f"{bill.steps.value:,.0f} steps of {units.show(tokens, 'token')}{growing}, {bill.step_seconds} each"
    yield wrapped(f"{bill.tokens} tokens in {batch}; {rate}; {loss}", width)
    accumulated = f" x {recipe.accumulation} accumulated" if recipe.accumulation > 1 else ""
    yield wrapped(
        f"{recipe.precision}; {show_layout(recipe.layout)}; microbatch {recipe.batch.micro_sequences}{accumulated}; "
        f"recompute {recipe.recompute}; compile {'on' if recipe.compile else 'off'}; "
        f"{recipe.optimizer.name} {recipe.optimizer.lr:g}, {recipe.schedule.name}{_between_islands(recipe)}",
        width,
    )


def _between_islands(recipe: Recipe) -> str:
    exchange = recipe.exchange
    if not exchange.between_islands or recipe.layout.island == 1:
        return ""
    codec = f"{exchange.codec}{' to begin with' if exchange.adaptive else ''}" if exchange.codec else "plain"
    often = f" every {exchange.local_steps} steps" if exchange.local_steps > 1 else ""
    return f"; between islands {codec}{often}"


def _interval(figure: Figure) -> str:
    if figure.low is None or figure.high is None:
        return str(figure)
    return f"{units.show(figure.low, figure.unit)} to {units.show(figure.high, figure.unit)}"


def _memory(told: Explanation, width: int) -> Iterator[RenderableType]:
    """A bar of the device, filled up to the peak in proportion to the terms; a plan may fill it up to the mark."""
    plan, peak, capacity = told.plan, told.plan.predicted.peak_memory, told.capacity_bytes
    rank = "a rank" if plan.cluster.accelerator.kind == "cpu" else f"one {plan.cluster.accelerator.name}"
    usable = units.show(told.usable_bytes, "byte")
    yield Text(f"memory of {rank}: {peak} of {units.show(capacity, 'byte')}, {usable} of it usable", style="bold")
    terms = {name: plan.predicted.memory[name].value for name in MEMORY_TERMS}
    long = width - 34
    filled = min(1.0, peak.value / capacity) * long / (sum(terms.values()) or 1.0)
    bar, reached = Text("["), 0.0
    for name, value in terms.items():
        reached += value * filled
        bar.append(name[0].upper() * (round(reached) - len(bar) + 1), style=_COLOURS[name])
    mark, drawn = round(told.usable_bytes / capacity * long), len(bar) - 1
    free = "".join("|" if column == mark else "." for column in range(drawn, long))
    yield bar.append(free + "]", style="dim")
    legend = [f"{name[0].upper()} {name} {units.show(value, 'byte')}" for name, value in terms.items()]
    yield wrapped("  ".join(legend), width, "  ")


def _runners_up(told: Explanation, width: int) -> Iterator[RenderableType]:
    yield wrapped(f"next best of {_counts(told)}", width, style="bold")
    table = Table(box=None, padding=(0, 1), show_header=False, pad_edge=False)
    recipe = told.plan.recipe
    own = (recipe.precision, f"recompute {recipe.recompute}", f"microbatch {recipe.batch.micro_sequences}")
    for way in told.runners_up:
        more = f"{way.seconds / told.plan.predicted.seconds.value - 1:+.1%}"
        values = (way.precision, f"recompute {way.recompute}", f"microbatch {way.micro_sequences}")
        others = [value for value, chosen in zip(values, own, strict=True) if value != chosen]
        what = f"- {', '.join([way.layout, *others])}"
        money, memory = units.show(way.usd, "usd"), units.show(way.peak_bytes, "byte")
        table.add_row(what, money, units.show(way.seconds, "s"), more, memory)
    yield table


def _counts(told: Explanation) -> str:
    """How many recipes there were, and why most of them were left out."""
    priced = told.tried - sum(told.excluded_by.values())
    parts = [f"{told.tried:,} recipes: {priced:,} priced"]
    searched = {reason: told.excluded_by.get(reason, 0) for reason in (TOO_SLOW, TOO_LARGE, RECOMPUTES_MORE)}
    parts += [f"{number:,} {reason}" for reason, number in searched.items() if number]
    refused = told.tried - priced - sum(searched.values())
    parts += [f"{refused:,} that {told.plan.recipe.software} does not run (--json)"] if refused else []
    illegal = sum(told.illegal.values())
    return ", ".join(parts) + (f"; {illegal:,} layouts left out" if illegal else "")


def sizes_table(sizes: Sequence[Size], width: int = WIDTH) -> RenderableType:
    """Money and time of every number of devices that nothing beats, and of the one chosen."""
    table = Table(box=None, padding=(0, 1), show_header=True, pad_edge=False, header_style="", width=width)
    for column in ("devices", "time", "money", "energy", "CO2", "layout"):
        table.add_column(column, justify="left" if column == "layout" else "right", no_wrap=True)
    for one in sizes:
        if one.found is not None and (one.on_front or one.chosen):
            bill, layout = one.found.plan.predicted, show_layout(one.found.plan.recipe.layout)
            cells = (f"{one.devices:,}", str(bill.seconds), str(bill.usd), str(bill.energy), str(bill.co2), layout)
            table.add_row(*cells, style="bold" if one.chosen else "")
    beaten = sum(one.found is not None and not one.on_front for one in sizes)
    lacking = [f"{one.devices:,}" for one in sizes if one.found is None]
    notes = [f"{beaten} sizes that cost more and take longer than another"] if beaten else []
    notes += [f"nothing fits {', '.join(lacking)}"] if lacking else []
    chosen = next(one.devices for one in sizes if one.chosen)
    more = f"; not shown: {', '.join(notes)}" if notes else ""
    head = Text("devices that nothing beats in both money and time", style="bold")
    return Group(head, table, wrapped(f"the plan is for {chosen:,} devices{more}", width))


def _assumptions(told: Explanation, width: int) -> Iterator[RenderableType]:
    """Every figure that was not measured here, published ones with their dates."""
    yield Text("not measured here (sources: --json)" if told.assumptions else "all figures measured here", style="bold")
    for provenance in ("published", "assumed"):
        named = [_named(one) for one in told.assumptions if one.provenance == provenance]
        if named:
            yield wrapped(f"{provenance}: {', '.join(named)}", width, "- ")


def _profile(told: Explanation) -> str:
    """Name, origin, date and residual of the constants."""
    how, own = told.profile, told.plan.cluster.profile
    fit = f"; {own.runs} runs, median error {own.error:.0%}" if own is not None and how.date else ""
    dated = f", {how.date}" if how.date else ""
    return f"profile {how.name}: {how.source}{dated}{fit}; 80% interval {how.low:.2f} to {how.high:.2f}"


def _named(one: Assumption) -> str:
    return f"{one.key} {one.shown}" + (f" ({one.date[:7]})" if one.date else "")
