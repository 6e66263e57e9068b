"""Scores the planner against public measurements: time, memory, serving, bookkeeping, and the layout it would choose.

    python benchmarks/score_planner.py FOLDER [--json FILE] [--cross-validate] [--readme FILE]

FOLDER holds tables in the format that `truth_tables.py`, `score_memory.py`, `serving_rows.py` and
`score_bookkeeping.py` read. Errors are predicted / measured - 1. The null is one constant
MFU for all rows of a table: the median of those same rows, so the null has seen what it is scored on. `coverage` is the
share of rows inside the profile's 80% interval. `--cross-validate` scores each row with constants fitted without its
model size too (some minutes). `--readme` rewrites the error table between its markers in FILE.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections import Counter, defaultdict
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import fit_profiles
import score_bookkeeping
import score_memory
import score_serving
from thrifty.cost.compute import rank_of
from thrifty.cost.flops import model_flops_per_token
from thrifty.cost.profiles import PROFILES, profile
from thrifty.cost.step import step_seconds
from truth import Case, Skipped
from truth_tables import READERS, read

START, END = "<!-- errors: written by benchmarks/score_planner.py -->", "<!-- end of errors -->"
STEMS = {name.partition("_")[0]: name.removesuffix(".csv") for name in READERS}  # d4 -> d4_vtrain_multinode
NAMES = {
    "a1": "Megatron-LM 2021, 1.7B to 1T, A100", "a2": "ZeRO-3 against 3D, 175B, A100",
    "b": "sequence parallelism, 22B and 1T, A100", "c1": "Megatron-Core, 2B to 314B, H100",
    "c2": "Megatron-Bridge, fp8 and nvfp4, H100 to GB300", "d1": "torchtitan, 1D to 4D, bf16 and float8, H100 to B200",
    "d2": "SimuMax's runs, dense, MoE, long context, B200", "d3": "llm-foundry FSDP, 125M to 70B, A100 and H100",
    "d4": "vTrain, 64 to 512 A100", "d5": "vTrain, 1 to 8 A100", "d6": "nanotron's best layouts, 8 to 512 H100",
    "d7": "MT-NLG 530B, A100",
}  # fmt: skip


@dataclass(frozen=True)
class Row:
    """One measured quantity beside its prediction and the null's.

    Attributes:
        low, high: ends of the 80% interval of the prediction.
        null: what the null predicts.
    """

    table: str
    id: str
    measured: float
    predicted: float
    low: float
    high: float
    null: float | None


@dataclass(frozen=True)
class Score:
    """A table's errors, as fractions."""

    rows: int
    mape: float
    median: float
    worst: float
    bias: float
    coverage: float
    null_mape: float | None


def score(rows: list[Row]) -> Score:
    signed = [row.predicted / row.measured - 1 for row in rows]
    nulls = [abs(row.null / row.measured - 1) for row in rows if row.null is not None]
    return Score(
        rows=len(rows),
        mape=statistics.mean(map(abs, signed)),
        median=statistics.median(map(abs, signed)),
        worst=max(signed, key=abs),
        bias=statistics.median(signed),
        coverage=statistics.mean(row.low <= row.measured <= row.high for row in rows),
        null_mape=statistics.mean(nulls) if nulls else None,
    )


def time_rows(cases: list[Case]) -> list[Row]:
    """Predicted and measured seconds of every case, with the null of its table."""
    mfu: dict[str, list[float]] = defaultdict(list)
    for case in cases:
        mfu[case.table].append(ideal_seconds(case) / case.seconds)
    usual = {table: statistics.median(values) for table, values in mfu.items()}
    found = []
    for case in cases:
        predicted = step_seconds(case.job, case.cluster, case.recipe).total
        how = profile(case.recipe.software, case.cluster)
        null = ideal_seconds(case) / usual[case.table]
        found.append(Row(case.table, case.id, case.seconds, predicted, predicted * how.low, predicted * how.high, null))
    return found


def ideal_seconds(case: Case) -> float:
    """Model FLOPs of a step at the peak of all devices."""
    tokens = case.recipe.batch.sequences * case.job.sequence_length
    peak = rank_of(case.cluster, case.recipe).peak_flops * case.recipe.layout.ranks
    return model_flops_per_token(case.job.model, case.job.sequence_length) * tokens / peak


def search_scores(cases: list[Case]) -> dict[str, tuple[int, float, float]]:
    """For each table: groups of runs that differ in layout alone, and the best measured time over the chosen's.

    The chosen layout is the one predicted fastest among those that were measured; a group has three at the least.
    Returns groups, mean and worst of best / chosen.
    """
    by_choice: dict[tuple[str, str], list[Case]] = defaultdict(list)
    for case in cases:
        by_choice[case.table, case.choice].append(case)
    found: dict[str, list[float]] = defaultdict(list)
    for (table, _), group in by_choice.items():
        if len(group) >= 3 and len({(c.recipe.layout, c.recipe.batch) for c in group}) >= 3:
            chosen = min(group, key=lambda c: step_seconds(c.job, c.cluster, c.recipe).total)
            found[table].append(min(c.seconds for c in group) / chosen.seconds)
    return {table: (len(v), statistics.mean(v), min(v)) for table, v in sorted(found.items())}


def other_rows(folder: Path) -> tuple[dict[str, list[Row]], list[Skipped]]:
    """Memory, serving and bookkeeping, by table and quantity; and what was left out."""
    found: dict[str, list[Row]] = defaultdict(list)
    skipped: list[Skipped] = []
    memory, left_out = score_memory.score(folder)
    for one in memory:
        values = (float(str(one[key])) for key in ("measured_bytes", "predicted_bytes", "low", "high", "null_bytes"))
        name = f"{STEMS[str(one['table'])]}.memory"
        found[name].append(Row(name, str(one["id"]), *values))
    skipped += [Skipped("memory", *text.partition(": ")[::2]) for text in left_out]
    for scorer in (score_serving, score_bookkeeping):
        tables, more = scorer.score(folder)
        skipped += more
        for name, rows in tables.items():
            found[name] += [Row(name, r.id, r.measured, r.predicted, r.low, r.high, r.null) for r in rows]
    return found, skipped


def held_out(cases: list[Case]) -> dict[str, float]:
    """Mean absolute error of each table when no constant has seen the model size that it is scored on."""
    shipped, errors = dict(PROFILES), defaultdict(list)
    for name, tables in fit_profiles.TABLES.items():
        ours = [c for c in cases if c.table in tables and profile(c.recipe.software, c.cluster).name == name]
        ratios = fit_profiles.cross_validate(ours, name, "size")
        for case in ours:
            if case.id in ratios:
                errors[case.table].append(abs(ratios[case.id] - 1))
    PROFILES.update(shipped)
    return {table: statistics.mean(sizes) for table, sizes in errors.items()}


def print_scores(title: str, scores: dict[str, Score], cross: dict[str, float]) -> None:
    print(f"{title:44}{'rows':>5}{'MAPE':>8}{'median':>8}{'worst':>8}{'bias':>8}{'cover':>7}{'null':>8}{'CV':>8}")
    for name, one in scores.items():
        null = "" if one.null_mape is None else f"{one.null_mape:.1%}"
        apart = f"{cross[name]:8.1%}" if name in cross else ""
        print(
            f"{STEMS.get(name, name):44}{one.rows:5}{one.mape:8.1%}{one.median:8.1%}{one.worst:+8.0%}{one.bias:+8.1%}"
            f"{one.coverage:7.0%}{null:>8}{apart}"
        )
    print()


def told_skipped(skipped: list[Skipped]) -> None:
    """Every row that is not scored, counted by reason."""
    for (table, why), number in sorted(Counter((s.table, s.why) for s in skipped).items()):
        print(f"not scored: {table}: {number} row{'s' if number > 1 else ''}: {why}")


OTHER_NAMES = {
    "d1_torchtitan.memory": "peak memory, torchtitan", "d2_simumax_b200_time_memory.memory": "peak memory, Megatron-LM",
    "d6_nanotron_best_configs.memory": "peak memory, nanotron",
    "g1_inference_throughput.tokens_per_second": "serving, TensorRT-LLM: tokens/s",
    "g2_mlenergy_inference_energy.tokens_per_second": "serving, vLLM: tokens/s",
    "g2_mlenergy_inference_energy.joules_per_token": "serving, vLLM: joules a token",
    "e_training_cost_energy_carbon.MWh": "published MWh from published hours and watts",
    "e_training_cost_energy_carbon.tCO2": "published tCO2 from published MWh and grid",
}  # fmt: skip


def readme_table(
    scores: dict[str, Score],
    beside: dict[str, Score],
    cross: dict[str, float],
    search: dict[str, tuple[int, float, float]],
) -> str:
    """The error tables in Markdown."""
    head = "rows | error | worst | other sizes only | null | in the 80% interval |"
    lines = [f"| time of a step (null: constant MFU) | {head}", "|---|---|---|---|---|---|---|"]
    lines += [_line(NAMES[name], one, cross.get(name)) for name, one in scores.items() if name in NAMES]
    lines += ["", f"| memory, serving, bookkeeping | {head}", "|---|---|---|---|---|---|---|"]
    lines += [_line(OTHER_NAMES[name], one, None) for name, one in beside.items() if name in OTHER_NAMES]
    if search:
        groups = sum(n for n, _, _ in search.values())
        mean = sum(n * m for n, m, _ in search.values()) / groups
        lines += [
            "",
            f"Of {groups} groups of measured layouts the planner takes one that reaches {mean:.1%} of the best.",
        ]
    return "\n".join(lines)


def _line(name: str, one: Score, apart: float | None) -> str:
    cells = ["" if value is None else f"{value:.1%}" for value in (apart, one.null_mape)]
    return f"| {name} | {one.rows} | {one.mape:.1%} | {one.worst:+.0%} | {' | '.join(cells)} | {one.coverage:.0%} |"


def write_readme(path: Path, table: str) -> None:
    text = path.read_text(encoding="utf-8")
    if START not in text or END not in text:
        raise SystemExit(f"{path} has no markers {START!r} and {END!r}")
    before, _, rest = text.partition(START)
    _, _, after = rest.partition(END)
    path.write_text(f"{before}{START}\n{table}\n{END}{after}", encoding="utf-8")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--json", type=Path, default=Path("benchmarks/results/score_planner.json"))
    parser.add_argument("--cross-validate", action="store_true")
    parser.add_argument("--readme", type=Path)
    args = parser.parse_args()
    cases, skipped = read(args.folder)
    if not cases and not any(args.folder.glob("*.csv")):
        print(f"NOT SCORED: {args.folder} has none of the tables", file=sys.stderr)
        return 2
    rows: dict[str, list[Row]] = defaultdict(list)
    for row in time_rows(cases):
        rows[row.table].append(row)
    others, more = other_rows(args.folder)
    scores = {table: score(found) for table, found in sorted(rows.items())}
    beside = {table: score(found) for table, found in others.items()}
    skipped += more
    cross = held_out(cases) if args.cross_validate else {}
    search = search_scores(cases)

    print_scores("time of a step", scores, cross)
    print_scores("memory, serving, bookkeeping", beside, {})
    print("\nchosen layout among those measured: best time / chosen's")
    for table, (number, mean, worst) in search.items():
        print(f"{table:12}{number:5} groups{mean:8.1%}   worst {worst:.1%}")
    print()
    told_skipped(skipped)

    tables = {STEMS.get(name, name): asdict(one) for name, one in scores.items()}
    for name, value in cross.items():
        tables[STEMS.get(name, name)]["cross_validated_mape"] = value
    content: dict[str, Any] = {"tables": tables | {name: asdict(one) for name, one in beside.items()}}
    content["search"] = {t: {"groups": n, "mean": m, "worst": w} for t, (n, m, w) in search.items()}
    content["skipped"] = dict(Counter(f"{s.table}: {s.why}" for s in skipped))
    content["rows"] = [asdict(row) for found in (*rows.values(), *others.values()) for row in found]
    args.json.parent.mkdir(parents=True, exist_ok=True)
    args.json.write_text(json.dumps(content, indent=1) + "\n")
    if args.readme is not None:
        write_readme(args.readme, readme_table(scores, beside, cross, search))
    print(f"\nwritten: {args.json}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
