"""Fits the few constants of the memory model and writes `src/thrifty/cost/memory_constants.py`.

    python benchmarks/fit_memory.py FOLDER [--check]

Of each software one number or two: bytes allocated beside all that is counted, where what is allocated was measured
(Megatron-LM); else what the allocator reserves over what is allocated, eager and compiled. Each is a median over the
runs, so no run decides. The interval holds the middle 80% of measured over predicted where each model size is
predicted with constants fitted to the other sizes. `--check` writes nothing and fails where the file would change.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from score_memory import Measured, measured_rows, predicted_bytes
from thrifty.cost.habits import HABITS, Habits

TARGET = Path(__file__).resolve().parents[1] / "src/thrifty/cost/memory_constants.py"
SOURCES = {
    "torchtitan": "pytorch/torchtitan benchmarks/ and nvfp4.md, 2024-12 to 2026-08",
    "megatron": "MooreThreads/SimuMax docs/b200, 2026-05: Megatron-LM 0.14, Transformer Engine 2.11",
    "nanotron": "huggingface/nanotron docs/benchmark_summary.svg, v0.5",
}


@dataclass(frozen=True)
class Fit:
    """The constants of one software: bytes beside what is counted; reserved over allocated, eager and compiled."""

    fixed_bytes: float
    eager: float
    compiled: float

    def of(self, row: Measured) -> Habits:
        return replace(HABITS[row.habits], fixed_bytes=self.fixed_bytes, allocator=(self.eager, self.compiled))


PLAIN = Fit(0.0, 1.0, 1.0)
ASSUMED = 1.05  # where no reservation was measured


def fit(rows: Sequence[Measured]) -> Fit:
    """Medians over the rows of one software."""
    if not rows[0].reserved:
        beside = statistics.median(row.measured_bytes - predicted_bytes(row, PLAIN.of(row)) for row in rows)
        return Fit(float(round(max(0.0, beside), -6)), ASSUMED, ASSUMED)
    ratios = {
        compiled: [
            row.measured_bytes / predicted_bytes(row, PLAIN.of(row)) for row in rows if row.recipe.compile is compiled
        ]
        for compiled in (False, True)
    }
    middle = {compiled: round(max(1.0, statistics.median(some)), 3) for compiled, some in ratios.items() if some}
    return Fit(0.0, middle.get(False, middle.get(True, ASSUMED)), middle.get(True, middle.get(False, ASSUMED)))


def left_out(rows: Sequence[Measured]) -> list[float]:
    """Measured over predicted, each model size predicted with constants fitted to the other sizes."""
    found = []
    for group in dict.fromkeys(row.group for row in rows):
        rest = fit([row for row in rows if row.group != group])
        found += [row.measured_bytes / predicted_bytes(row, rest.of(row)) for row in rows if row.group == group]
    return found


def quantile(values: Sequence[float], share: float) -> float:
    """Linear between the ordered values."""
    ordered = sorted(values)
    place = share * (len(ordered) - 1)
    below = int(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (place - below) * (ordered[above] - ordered[below])


def main(arguments: list[str]) -> int:
    check = "--check" in arguments
    folders = [argument for argument in arguments if argument != "--check"]
    if len(folders) != 1:
        print(__doc__, file=sys.stderr)
        return 2
    rows, skipped = measured_rows(Path(folders[0]))
    missing = [reason for reason in skipped if reason.startswith("NOT SCORED")]
    if missing:
        print("\n".join(missing), file=sys.stderr)
        return 2
    fitted, intervals = [], []
    head = f"{'software':12}{'rows':>5}{'fixed MB':>10}{'eager':>8}{'compiled':>10}"
    print(head + f"   left out: {'MAPE':>7}{'too low':>9}{'80% interval':>16}")
    for software in sorted({row.recipe.software for row in rows}):
        ours = [row for row in rows if row.recipe.software == software]
        found, out = fit(ours), left_out(ours)
        low, high = round(min(0.99, quantile(out, 0.1)), 3), round(max(1.01, quantile(out, 0.9)), 3)
        fitted.append(
            f'    # {SOURCES[software]}\n    "{software}": {{"fixed_bytes": {found.fixed_bytes:.0f}, '
            f'"eager": {found.eager}, "compiled": {found.compiled}}},'
        )
        intervals.append(f'    "{software}": ({low}, {high}),')
        error = statistics.fmean(abs(1 / ratio - 1) for ratio in out)
        print(f"{software:12}{len(ours):5}{found.fixed_bytes / 1e6:10.0f}{found.eager:8.3f}{found.compiled:10.3f}"
              f"   {error:17.2%}{min(1 / ratio - 1 for ratio in out):9.1%}{f'{low} .. {high}':>16}")  # fmt: skip
    text = TEMPLATE.format(fitted="\n".join(fitted), intervals="\n".join(intervals))
    if check:
        print("unchanged" if TARGET.read_text() == text else f"{TARGET} would change")
        return 0 if TARGET.read_text() == text else 1
    TARGET.write_text(text)
    print(f"written: {TARGET}")
    return 0


TEMPLATE = '''"""Fitted numbers of the memory model. Written by benchmarks/fit_memory.py from public measurements."""

from __future__ import annotations

from typing import Any, Final

FITTED: Final[dict[str, dict[str, Any]]] = {{
{fitted}
}}
# Measured over predicted: the middle 80% on model sizes that a fit has not seen.
INTERVAL: Final[dict[str, tuple[float, float]]] = {{
{intervals}
}}
'''


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
