"""The ledger of a run: its plan, both bills, every loss with what it had cost by then, and the manifest."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from thrifty.planner.emit import read_plan
from thrifty.spec.bill import Bill
from thrifty.spec.errors import ThriftyError, did_you_mean
from thrifty.spec.figure import Figure
from thrifty.spec.plan import Plan
from thrifty.trainer.run_folder import RunFolder

# What a run has spent at some point; FLOPs follow from tokens.
COSTS = ("tokens", "seconds", "usd", "joules", "flops")


@dataclass(frozen=True)
class Row:
    """One line of metrics.jsonl. Costs are totals since the start of the run, over all resumes.

    Attributes:
        loss: nats per token.
        usd: none where the writer of the row did not know it; likewise joules.
    """

    step: int
    loss: float
    tokens: float
    seconds: float
    usd: float | None = None
    joules: float | None = None


@dataclass(frozen=True)
class CostToTarget:
    """What a run had spent when its validation loss first reached a target.

    Attributes:
        reason: why there is no cost, or what to know about it; empty when there is nothing to say.
    """

    target: float
    reached: bool
    tokens: float | None = None
    seconds: float | None = None
    usd: float | None = None
    joules: float | None = None
    flops: float | None = None
    reason: str = ""


@dataclass(frozen=True)
class Ledger:
    """All that a run folder says.

    Attributes:
        measured: none while the run is going, or when it was killed before it billed; `unbilled` says so.
        dropped: rows of metrics.jsonl left out because their loss is not finite.
    """

    root: Path
    name: str
    plan: Plan
    predicted: Bill
    measured: Bill | None
    unbilled: str
    train: tuple[Row, ...]
    val: tuple[Row, ...]
    dropped: int
    manifest: dict[str, Any]

    @property
    def bill(self) -> Bill:
        """The measured bill, or the predicted one while there is no other."""
        return self.measured or self.predicted

    @property
    def final_loss(self) -> float | None:
        """The last validation loss."""
        return self.val[-1].loss if self.val else None

    @property
    def last(self) -> Row | None:
        """The latest row of either split: how far the run came."""
        return max((*self.train[-1:], *self.val[-1:]), key=lambda row: row.step, default=None)

    @property
    def flops_per_token(self) -> float:
        """Model FLOPs for one token, forward and backward, from the bill."""
        bill = self.bill
        return bill.model_flops.value / bill.tokens.value if bill.tokens.value else 0.0

    @property
    def stopped_early(self) -> bool:
        """True when a billed run made fewer steps than planned: its totals are then not those that were predicted."""
        return self.measured is not None and self.measured.steps.value < self.plan.total_steps

    def cost_to(self, target: float) -> CostToTarget:
        """`cost_to_target` of this run's evaluations."""
        return cost_to_target(self.val, target, self.flops_per_token)


def read_ledger(root: Path) -> Ledger:
    """Reads a run folder.

    Raises:
        ThriftyError: no such folder, no plan.yaml in it, or a file that is damaged.
    """
    if not root.is_dir():
        around = [p.name for p in root.parent.iterdir() if p.is_dir()] if root.parent.is_dir() else []
        raise ThriftyError(
            "no such run folder", where=str(root), hint=did_you_mean(root.name, around) if around else ""
        )
    folder = RunFolder(root)
    if not folder.plan.exists():
        hint = "give the folder that `thrifty train --run-dir` wrote"
        raise ThriftyError("not a run folder: it has no plan.yaml", where=str(root), hint=hint)
    plan = read_plan(folder.plan)
    bills = _bills(folder)
    splits: dict[str, list[Row]] = {"train": [], "val": []}
    dropped = 0
    for number, raw in enumerate(folder.read_metrics(), 1):
        split, row = _row(raw, f"{folder.metrics}:{number}")
        if math.isfinite(row.loss):
            splits[split].append(row)
        else:
            dropped += 1
    return Ledger(
        root=root,
        name=root.resolve().name,
        plan=plan,
        predicted=bills.get("predicted", plan.predicted),
        measured=bills.get("measured"),
        unbilled=""
        if "measured" in bills
        else "no measured bill: the run is still going, or was killed before it billed",
        train=tuple(splits["train"]),
        val=tuple(splits["val"]),
        dropped=dropped,
        manifest=_manifest(folder),
    )


def cost_to_target(rows: Sequence[Row], target: float, flops_per_token: float) -> CostToTarget:
    """What was spent when the loss first reached `target`, interpolated linearly between evaluations.

    Args:
        rows: evaluations in order, finite losses.
        target: nats per token.
        flops_per_token: model FLOPs, to turn tokens into compute.
    """
    if not rows:
        return CostToTarget(target, False, reason="the run has no evaluation yet")
    at = next((i for i, row in enumerate(rows) if row.loss <= target), None)
    if at is None:
        best = min(rows, key=lambda row: row.loss)
        return CostToTarget(
            target, False, reason=f"never reached: the lowest validation loss is {best.loss:.4g} at step {best.step:,}"
        )
    after, before = rows[at], rows[max(at - 1, 0)]
    share = 1.0 if at == 0 else (before.loss - target) / (before.loss - after.loss)

    def between(low: float | None, high: float | None) -> float | None:
        return None if low is None or high is None else low + share * (high - low)

    tokens = between(before.tokens, after.tokens) or 0.0
    return CostToTarget(
        target,
        True,
        tokens=tokens,
        seconds=between(before.seconds, after.seconds),
        usd=between(before.usd, after.usd),
        joules=between(before.joules, after.joules),
        flops=tokens * flops_per_token,
        reason="reached by the first evaluation already: an upper bound" if at == 0 else "",
    )


def figures(noun: BaseModel, prefix: str = "") -> Iterator[tuple[str, Figure]]:
    """Dotted name and figure of everything in a noun that carries a provenance."""
    for name in type(noun).model_fields:
        yield from _figures_in(getattr(noun, name), f"{prefix}{name}")


def _figures_in(value: Any, path: str) -> Iterator[tuple[str, Figure]]:
    if isinstance(value, Figure):
        yield path, value
    elif isinstance(value, BaseModel):
        yield from figures(value, path + ".")
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _figures_in(inner, f"{path}.{key}")


def thinned(rows: Sequence[Row], most: int) -> tuple[Row, ...]:
    """At most `most` rows: the mean loss of each run of neighbours, at the costs of the last of them."""
    if len(rows) <= most:
        return tuple(rows)
    edges = [round(i * len(rows) / most) for i in range(most + 1)]
    return tuple(_mean(rows[low:high]) for low, high in pairwise(edges))


def _mean(rows: Sequence[Row]) -> Row:
    last = rows[-1]
    loss = math.fsum(row.loss for row in rows) / len(rows)
    return Row(last.step, loss, last.tokens, last.seconds, last.usd, last.joules)


def _row(raw: Any, where: str) -> tuple[str, Row]:
    needed = ("step", "split", "loss", "tokens", "seconds")
    missing = [key for key in needed if not isinstance(raw, dict) or key not in raw]
    if missing:
        raise ThriftyError(
            f"a row of metrics without {', '.join(missing)}",
            where=where,
            hint="the file was edited or damaged; remove that line",
        )
    if raw["split"] not in ("train", "val"):
        raise ThriftyError(f"split {raw['split']!r} is neither train nor val", where=where)
    try:
        # A loss that was not finite is null or NaN in the file, by who wrote it.
        loss = math.nan if raw["loss"] is None else float(raw["loss"])
        tokens, seconds = float(raw["tokens"]), float(raw["seconds"])
        usd, joules = _finite(raw.get("usd")), _finite(raw.get("energy_joules"))
        return raw["split"], Row(int(raw["step"]), loss, tokens, seconds, usd, joules)
    except (TypeError, ValueError) as error:
        raise ThriftyError(f"a row of metrics that cannot be read: {error}", where=where) from None


def _finite(raw: Any) -> float | None:
    return None if raw is None or not math.isfinite(float(raw)) else float(raw)


def _bills(folder: RunFolder) -> dict[str, Bill]:
    if not folder.bill.exists():
        return {}
    try:
        return folder.read_bill()
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError, AttributeError):
        problem = "not JSON with predicted and measured"
    except ValidationError as error:
        problem = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()[:3])
    raise ThriftyError(
        f"the bill cannot be read: {problem}",
        where=str(folder.bill),
        hint="it was edited or damaged; remove it and the report uses metrics.jsonl alone",
    )


def _manifest(folder: RunFolder) -> dict[str, Any]:
    if not folder.manifest.exists():
        return {}
    try:
        content = json.loads(folder.manifest.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ThriftyError(
            f"the manifest cannot be read: {error}", where=str(folder.manifest), hint="remove it to report without it"
        ) from None
    return content if isinstance(content, dict) else {}
