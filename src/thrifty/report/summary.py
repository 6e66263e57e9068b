"""The sentences above the tables: what a run cost, how that compares with its prediction, and what to mind."""

from __future__ import annotations

from collections.abc import Iterator

from thrifty.report import words
from thrifty.report.compare import Comparison
from thrifty.report.ledger import Ledger


def headline(ledger: Ledger) -> str:
    """Money, time and loss in one sentence."""
    bill, last = ledger.measured, ledger.last
    if bill is not None:
        reached = f" to a validation loss of {words.show(bill.loss, 'loss')}" if bill.loss else ""
        return f"{words.show(bill.usd)} and {words.show(bill.seconds)}{reached}."
    if last is None:
        return "Nothing trained yet."
    spent = [words.value(last.seconds, "s")]
    if last.usd is not None:
        spent.insert(0, words.value(last.usd, "usd"))
    loss = f", validation loss {ledger.final_loss:.4g}" if ledger.final_loss is not None else ""
    return f"{' and '.join(spent)} so far{loss}, at step {last.step:,} of {ledger.plan.total_steps:,}."


def subline(ledger: Ledger) -> str:
    """What was predicted before the first step, and how far off it was."""
    predicted, bill = ledger.predicted, ledger.measured
    loss = f" to a loss of {words.show(predicted.loss, 'loss')}" if predicted.loss else ""
    text = f"Predicted before the first step: {words.show(predicted.usd)} and {words.show(predicted.seconds)}{loss}."
    if bill is None or ledger.stopped_early:
        return text
    money = words.against(_over(predicted.usd.value, bill.usd.value))
    time = words.against(_over(predicted.seconds.value, bill.seconds.value))
    misses = [f"{name} {miss}" for name, miss in (("money", money), ("time", time)) if miss]
    return f"{text} Measured: {', '.join(misses)}." if misses else text


def notes(ledger: Ledger) -> Iterator[str]:
    """What a reader must know before trusting the figures."""
    if ledger.unbilled:
        yield f"There is {ledger.unbilled}. What it spent so far is read from metrics.jsonl."
    if ledger.measured is not None and ledger.stopped_early:
        steps = f"{ledger.measured.steps.value:,.0f} of {ledger.plan.total_steps:,}"
        target = ledger.plan.job.target_loss
        why = (
            f", at its target loss {target:.4g}"
            if target is not None and (ledger.final_loss or target + 1) <= target
            else ""
        )
        yield f"The run stopped after {steps} steps{why}; its totals stand beside the prediction for all of them."
    miss = _far_off(ledger)
    if miss:
        yield miss
    if ledger.dropped:
        yield f"{ledger.dropped} rows of metrics.jsonl have a loss that is not finite and are left out."


FAR = 1.25  # times beyond its interval, from where a step's prediction is called far off


def _far_off(ledger: Ledger) -> str:
    """That a step took far from what was predicted, and what mends the next prediction; empty where it did not."""
    figure, bill = ledger.predicted.step_seconds, ledger.measured
    if bill is None or figure.low is None or figure.high is None or not bill.step_seconds.value:
        return ""
    took = bill.step_seconds.value
    if figure.low / FAR <= took <= figure.high * FAR:
        return ""
    times, interval = took / figure.value, f"{words.value(figure.low, 's')} to {words.value(figure.high, 's')}"
    return f"A step took {times:.2f} times what was predicted ({interval}): thrifty calibrate learns from this run."


def compare_headline(comparison: Comparison) -> str:
    """What B paid for the same loss, by A's measure."""
    a, b, target = comparison.cost_a, comparison.cost_b, f"a validation loss of {comparison.target:.4g}"
    if not a.reached and not b.reached:
        return f"Neither run reached {target}."
    if not a.reached or not b.reached:
        return f"Only {'A' if a.reached else 'B'} reached {target}."
    named = ((comparison.ratios["usd"], "money"), (comparison.ratios["seconds"], "time"))
    known = [(ratio, name) for ratio, name in named if ratio is not None]
    return f"To reach {target}, B needs {words.needs(known)}." if known else f"Both runs reached {target}."


def compare_subline(comparison: Comparison) -> str:
    """Both costs in figures."""
    sides = []
    for name, cost in (("A", comparison.cost_a), ("B", comparison.cost_b)):
        spent = [
            words.cost(getattr(cost, key), key)
            for key in ("usd", "seconds", "joules")
            if getattr(cost, key) is not None
        ]
        text = ", ".join(spent) if cost.reached else cost.reason
        sides.append(f"{name}: {text}" + (f" ({cost.reason})" if cost.reached and cost.reason else ""))
    return f"{'. '.join(sides)}. The target is {comparison.target_from}."


def _over(left: float, right: float) -> float | None:
    return right / left if left else None
