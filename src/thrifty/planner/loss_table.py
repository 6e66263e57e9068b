"""Reads finished runs for a loss law: from a table of losses, or from run folders of our own."""

from __future__ import annotations

import csv
import json
import math
from dataclasses import dataclass
from pathlib import Path

from thrifty.cost.params import total_parameters
from thrifty.laws.fit import RunRow
from thrifty.laws.law import LossLaw, only
from thrifty.laws.loss import count_parameters
from thrifty.planner.emit import read_plan
from thrifty.spec.errors import ThriftyError, did_you_mean
from thrifty.spec.job import Data
from thrifty.spec.load import Settings, build, from_dict, read_text
from thrifty.spec.plan import tokens_per_step

COLUMNS = ("id", "dataset", "params", "tokens")
LOSS_COLUMN = "c4_val_loss"  # of the published table; `loss` in one's own
# Sequences of the batch column are this long unless a column sequence_length says otherwise.
SEQUENCE_LENGTH = 2048
FINISHED = 0.98  # of the planned tokens


@dataclass(frozen=True)
class Lacking:
    """A row that cannot be used, and why."""

    id: str
    why: str


def read_rows(path: Path) -> tuple[list[RunRow], list[Lacking]]:
    """Runs of a CSV table or of one run folder, and the rows that lack an input.

    The table has comment lines that start with #, then a header: id, dataset, params, tokens and c4_val_loss or loss;
    params_no_embed, global_batch_seq and sequence_length where known.

    Raises:
        ThriftyError: unreadable, or a column is missing.
    """
    if path.is_dir():
        return _read_run(path)
    lines = [line for line in read_text(path, "table of losses").splitlines() if not line.startswith("#")]
    reader = csv.DictReader(lines)
    names = reader.fieldnames or []
    loss = next((name for name in (LOSS_COLUMN, "loss", "val_loss") if name in names), None)
    for column in (*COLUMNS, loss or LOSS_COLUMN):
        if column not in names:
            hint = f"columns here: {', '.join(names)}" if names else "the table is empty"
            raise ThriftyError(f"the column {column!r} is missing", where=str(path), hint=hint)
    assert loss is not None
    rows, lacking = [], []
    for number, row in enumerate(reader, 1):
        try:
            rows.append(_row(row, loss))
        except ValueError as error:
            lacking.append(Lacking(row.get("id") or f"row {number}", str(error)))
    return rows, lacking


def _row(row: dict[str, str], loss: str) -> RunRow:
    batch, length = _optional(row, "global_batch_seq"), _optional(row, "sequence_length") or SEQUENCE_LENGTH
    return RunRow(
        id=row["id"],
        dataset=row["dataset"],
        parameters=_number(row, "params"),
        tokens=_number(row, "tokens"),
        loss=_number(row, loss),
        without_embedding=_optional(row, "params_no_embed"),
        batch_tokens=batch * length if batch else None,
    )


def _optional(row: dict[str, str], column: str) -> float | None:
    return _number(row, column) if (row.get(column) or "").strip() else None


def _number(row: dict[str, str], column: str) -> float:
    text = (row.get(column) or "").strip()
    try:
        value = float(text)
    except ValueError:
        raise ValueError(f"{column} is {text!r}, not a number" if text else f"no {column}") from None
    if not (value > 0 and math.isfinite(value)):
        raise ValueError(f"{column} is {text}, not above zero")
    return value


def _read_run(folder: Path) -> tuple[list[RunRow], list[Lacking]]:
    """A run of our own: its plan, and the loss and tokens of its measured bill."""
    missing = [name for name in ("plan.yaml", "bill.json") if not (folder / name).is_file()]
    if missing:
        return [], [Lacking(str(folder), f"no {' and no '.join(missing)}: not a finished run")]
    plan = read_plan(folder / "plan.yaml")
    measured = json.loads(read_text(folder / "bill.json", "bill"))["measured"]
    loss, tokens = (measured.get("loss") or {}).get("value"), measured["tokens"]["value"]
    planned = plan.total_steps * tokens_per_step(plan.job, plan.recipe)
    if not loss:
        return [], [Lacking(str(folder), "its bill has no validation loss")]
    if tokens < FINISHED * planned:
        short = f"stopped at {tokens / planned:.0%} of its plan: the loss of an unfinished schedule is no law's"
        return [], [Lacking(str(folder), short)]
    shape = plan.job.model
    total = total_parameters(shape)
    row = RunRow(
        id=str(folder),
        dataset=_dataset(plan.job.data),
        parameters=total,
        tokens=tokens,
        loss=loss,
        without_embedding=count_parameters(shape, total, "no_embedding"),
        batch_tokens=tokens_per_step(plan.job, plan.recipe),
    )
    return [row], []


def _dataset(data: Data) -> str:
    """Data and tokenizer: a loss in nats a token compares only within both."""
    tokenizer = data.tokenizer
    size = f"{tokenizer.vocab_size}" if tokenizer.kind == "bpe" else Path(tokenizer.path).stem
    return "-".join(filter(None, [Path(data.path).stem, tokenizer.kind, size]))


def write_law(law: LossLaw) -> str:
    """A law as the text of a file that `read_law` reads."""
    return json.dumps(law.model_dump(mode="json"), indent=1) + "\n"


def read_law(text: str) -> LossLaw:
    """A law of `FILE` or `FILE@DATASET`, for one dataset.

    Raises:
        ThriftyError: unreadable, not a law, or of several datasets with none named.
    """
    name, _, dataset = text.partition("@")
    raw = read_text(Path(name), "law file")
    try:
        tree = json.loads(raw)
    except json.JSONDecodeError as error:
        hint = "write one with: thrifty fit-law runs.csv --out law.json"
        raise ThriftyError(f"not JSON: {error.msg}", where=f"{name}:{error.lineno}", hint=hint) from None
    settings: Settings = from_dict(tree if isinstance(tree, dict) else {}, name)
    law = build(LossLaw, settings, "")
    if not dataset and len(law.constants) > 1:
        known = ", ".join(law.constants)
        raise ThriftyError(
            f"the law has {len(law.constants)} datasets", where=name, hint=f"say which: {name}@NAME with one of {known}"
        )
    if dataset and dataset not in law.constants:
        raise ThriftyError(f"unknown dataset {dataset!r}", where=name, hint=did_you_mean(dataset, law.constants))
    return only(law, dataset or next(iter(law.constants)))
