"""Draws the answer to a budget or a target loss: which model, on how many tokens, and what lies beside it."""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from thrifty.planner.budget import FLAT_NATS, Advice, Option
from thrifty.planner.expected_loss import law_reasons
from thrifty.planner.reasons import show_layout
from thrifty.planner.screen import WIDTH, wrapped
from thrifty.spec import units


def render(advice: Advice, width: int = WIDTH) -> RenderableType:
    """The whole screen, at most `width` columns."""
    return Group(*_sections(advice, width))


def _sections(advice: Advice, width: int) -> Iterator[RenderableType]:
    plan, chosen = advice.found.plan, advice.chosen
    bill, shape, recipe = plan.predicted, plan.job.model, plan.recipe
    size, tokens = _count(chosen.parameters), units.show(chosen.tokens, "token")
    if advice.question == "budget":
        head = f"{units.show(advice.asked, 'usd')} on {plan.cluster.name}: train {size} parameters on {tokens} tokens"
    else:
        head = f"loss {advice.asked:g} on {plan.cluster.name}: {bill.usd} for {size} parameters on {tokens} tokens"
    yield Text(head, style="bold")
    loss = "no loss: outside the law"
    if bill.loss is not None:
        loss = f"loss {bill.loss.value:.3f} ({bill.loss.low:.2f} to {bill.loss.high:.2f}) nats a token"
    yield wrapped(f"{loss}; {chosen.tokens / chosen.parameters:.3g} tokens a parameter; {bill.usd}", width)
    rate = f"{units.show(bill.tokens_per_second.value, 'token')} tok/s, MFU {bill.mfu.value:.1%}"
    yield wrapped(f"{bill.seconds}; {bill.energy}, {bill.co2} CO2; {rate}", width, style="dim")
    yield wrapped(
        f"{shape.layers} layers of {shape.hidden}, {shape.heads} heads ({shape.kv_heads} key/value), ffn {shape.ffn}, "
        f"vocabulary {shape.vocab_size:,}; sequences of {plan.job.sequence_length:,}",
        width,
    )
    yield wrapped(f"{recipe.precision}; {show_layout(recipe.layout)}; recompute {recipe.recompute}", width)
    yield Text()
    same = "for the same money" if advice.question == "budget" else "to the same loss"
    yield Text(f"other sizes {same}", style="bold")
    yield _table(advice)
    low, high = advice.flat
    yield wrapped(
        f"From {_count(low)} to {_count(high)} the loss is within {FLAT_NATS:g} nats for the same money: a smaller one "
        f"costs less to serve.",
        width,
    )
    yield Text()
    yield Text("where the loss comes from", style="bold")
    law = advice.law
    ((name, c),) = law.constants.items()
    yield wrapped(
        f"constants: E {c.E:.4g}, A {c.A:.4g}, B {c.B:.4g}, alpha {law.alpha:.4g}, beta {law.beta:.4g}", width, "- "
    )
    if law.rows:
        yield wrapped(f"fitted on {law.rows} runs, for {name}; an interval holds 80% of runs", width, "- ")
    else:
        published = f"{law.source}; the interval is what other web corpora and tokenizers differ by"
        yield wrapped(published, width, "- ")
    yield from (wrapped(reason, width, "- ") for reason in law_reasons(plan, law))
    priced = f"{advice.planned} sizes planned; money for a token interpolated between them; proportions of Llama 3"
    yield wrapped(priced, width, "- ")


def _table(advice: Advice) -> Table:
    table = Table(box=None, padding=(0, 1), pad_edge=False)
    columns = ["", "parameters", "tokens", "tokens/param", "loss", "served", "cost"]
    if advice.question == "budget":
        columns.append("cost to match")
    for index, column in enumerate(columns):
        table.add_column(column, justify="left" if index == 0 else "right")
    for option in advice.options:
        table.add_row(*_row(option, advice.chosen)[: len(columns)])
    return table


def _row(option: Option, chosen: Option) -> tuple[str, ...]:
    match = "never" if option.usd_to_match is None else units.show(option.usd_to_match, "usd")
    return (
        "chosen" if option is chosen else f"x{option.parameters / chosen.parameters:.2g}",
        _count(option.parameters),
        units.show(option.tokens, "token"),
        f"{option.tokens / option.parameters:.3g}",
        f"{option.loss:.3f}",
        units.show(option.served_bytes, "byte"),
        units.show(option.usd, "usd"),
        "" if option is chosen else match,
    )


def _count(number: float) -> str:
    return units.show(number, "token")
