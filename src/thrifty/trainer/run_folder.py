"""The run folder: what a run leaves behind, by name. Written here, read by `report` and by a resumed run.

plan.yaml        the plan that was executed
manifest.json    versions, hardware, git commit, data hash
metrics.jsonl    one JSON object a line: step, split (train or val), loss, tokens, seconds, and more
bill.json        {"predicted": Bill, "measured": Bill}
timeline.json    of a pipeline: what each stage computed, and when, in one step
spent.json       seconds, $ and joules of all attempts so far, killed ones too
tokenizer/       what `generate` needs to read and write text
checkpoints/     step-00001200/ ...
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from thrifty.spec.bill import Bill
from thrifty.spec.errors import ThriftyError


class RunFolder:
    """Paths of one run, and the few ways in which its files are written and read."""

    def __init__(self, root: Path | str) -> None:
        self.root = Path(root)
        self.plan = self.root / "plan.yaml"
        self.manifest = self.root / "manifest.json"
        self.metrics = self.root / "metrics.jsonl"
        self.bill = self.root / "bill.json"
        self.timeline = self.root / "timeline.json"
        self.spent = self.root / "spent.json"
        self.tokenizer = self.root / "tokenizer"
        self.checkpoints = self.root / "checkpoints"

    def read_metrics(self) -> Iterator[dict[str, Any]]:
        """Rows of metrics.jsonl in order. A last line that a kill cut short is passed over."""
        if not self.metrics.exists():
            return
        lines = self.metrics.read_text(encoding="utf-8").splitlines()
        for number, line in enumerate(lines, 1):
            try:
                yield json.loads(line)
            except json.JSONDecodeError:
                if number == len(lines):
                    return
                raise ThriftyError(
                    "not a JSON object",
                    where=f"{self.metrics}:{number}",
                    hint="the file was edited or damaged; remove that line",
                ) from None

    def truncate_metrics(self, after_step: int) -> None:
        """Drops rows of steps after the checkpoint that a run resumes from: they will be written again."""
        kept = [json.dumps(row) + "\n" for row in self.read_metrics() if row["step"] <= after_step]
        write_atomically(self.metrics, "".join(kept))

    def read_bill(self) -> dict[str, Bill]:
        """`predicted` and, once the run has billed, `measured`."""
        if not self.bill.exists():
            raise ThriftyError(
                "no bill.json in this run folder",
                where=str(self.root),
                hint="give the folder that `thrifty train --run-dir` wrote; a run bills when it stops",
            )
        content = json.loads(self.bill.read_text(encoding="utf-8"))
        return {maker: Bill.model_validate(content[maker]) for maker in ("predicted", "measured") if content.get(maker)}

    def write_bill(self, predicted: Bill, measured: Bill) -> None:
        content = {"predicted": predicted.model_dump(mode="json"), "measured": measured.model_dump(mode="json")}
        write_atomically(self.bill, json.dumps(content, indent=1) + "\n")


_STEP = re.compile(r"step-(\d{8,})$")


def finished_steps(checkpoints: Path) -> list[int]:
    """Steps of the finished checkpoints in a folder, oldest first; one without files.json was never finished."""
    if not checkpoints.is_dir():
        return []
    found = ((_STEP.match(path.name), path) for path in checkpoints.iterdir())
    return sorted(int(match[1]) for match, path in found if match and (path / "files.json").exists())


def write_atomically(path: Path, text: str, *, durable: bool = True) -> None:
    """Writes beside and renames, so that a reader or a kill never sees half a file; durable: nor does a power cut."""
    beside = path.with_name(path.name + ".part")
    with beside.open("w", encoding="utf-8") as file:
        file.write(text)
        if durable:
            file.flush()
            os.fsync(file.fileno())
    os.replace(beside, path)
