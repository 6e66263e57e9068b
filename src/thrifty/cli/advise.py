"""`thrifty plan` without a job: which model to train for a sum of money, or to a loss."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from thrifty.laws.law import LossLaw


def law_of(text: str | None) -> LossLaw:
    """The law that loss is expected by: the published one, or a file of `thrifty fit-law`."""
    from thrifty.laws.loss import PUBLISHED
    from thrifty.planner.loss_table import read_law

    return PUBLISHED if text is None else read_law(text)


def advise(
    usd: float | None, target: float | None, by: LossLaw, on: str | None, recipe: Path | None,
    sets: Sequence[str] | None, out: Path, html: Path | None, json: bool,
) -> None:  # fmt: skip
    """Answers, writes the chosen model's plan, and prints one screen.

    Raises:
        ThriftyError: neither or both of budget and target loss, or no size answers the question.
    """
    from thrifty.cli.common import local_cluster, print_json
    from thrifty.planner import budget_screen, screen
    from thrifty.planner.budget import for_budget, for_target
    from thrifty.planner.emit import write_plan, write_text
    from thrifty.planner.request import read_question
    from thrifty.spec.errors import ThriftyError

    if (usd is None) == (target is None):
        hint = "for example  thrifty plan llama-3-8b --on 8xh100,  or  thrifty plan --budget 100000usd --on 64xh100"
        what = "one question at a time" if usd is not None else "say what to train: JOB, --budget or --target-loss"
        raise ThriftyError(what, where="--budget and --target-loss" if usd is not None else "JOB", hint=hint)
    cluster, given = read_question(on or "local", recipe, sets or (), local=local_cluster)
    advice = for_budget(usd, cluster, given, by) if usd is not None else for_target(target or 0.0, cluster, given, by)
    write_plan(advice.found.plan, out)
    if html is not None:
        drawn = budget_screen.render(advice)
        write_text(html, screen.page_of(drawn, f"which model on {cluster.name}"), "--html")
    if json:
        print_json(advice.as_json() | {"out": str(out), "html": str(html) if html else None})
        return
    console = screen.console()
    console.print(budget_screen.render(advice, console.width))
    console.print(f"\nwritten: {out}   next: thrifty train {out}", markup=False, soft_wrap=True)
