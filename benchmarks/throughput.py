"""Tokens per second of the trainer beside a careful hand-written loop, in the same run, arms in turn.

    python benchmarks/throughput.py [--data tinyshakespeare.txt] [--rounds 5] [--only shakespeare|19m]

Each arm is a process of its own. A rate is tokens over wall time of the last four fifths of the steps; the trainer's
includes metering and logging every step. Ratios are paired: trainer over hand-written loop of the same round.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from thrifty.trainer.probe import cpu_name

ROOT = Path(__file__).resolve().parent.parent
HAND = ROOT / "benchmarks" / "handwritten.py"
# arm -> (shape, extra arguments of the hand-written loop, or settings of the trainer)
SHAPES = {
    "shakespeare": {
        "steps": 400,
        "hand eager fp32": [],
        "thrifty eager fp32": ["recipe.compile=false"],
    },
    "19m": {
        "steps": 25,
        "hand eager bf16": ["--precision", "bf16"],
        "hand compiled bf16": ["--precision", "bf16", "--compile"],
        "thrifty eager bf16": ["recipe.compile=false"],
        "thrifty compiled bf16": ["recipe.compile=true"],
    },
}
JOBS = {"shakespeare": "shakespeare-cpu.yaml", "19m": "gpt-19m.yaml"}


def hand(shape: str, steps: int, extra: list[str], data: Path | None) -> float:
    command = [sys.executable, str(HAND), "--shape", shape, "--steps", str(steps), *extra]
    done = subprocess.run(
        command + (["--data", str(data)] if data else []), capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(done.stderr)
    return float(json.loads(done.stdout)["tokens_per_second"])


def thrifty(shape: str, steps: int, settings: list[str], data: Path | None) -> float:
    quiet = ["recipe.evaluation.every_steps=0", "recipe.evaluation.sequences=8", "recipe.checkpoint.every_steps=0"]
    settings = [*settings, *quiet, f"job.steps={steps}", *([f"job.data.path={data}"] if data else [])]
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        command = [sys.executable, "-m", "thrifty", "train", str(ROOT / "jobs" / JOBS[shape]), "--run-dir", str(run)]
        for setting in settings:
            command += ["--set", setting]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(done.stderr)
        rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    rows = [row for row in rows if row["split"] == "train"]
    first, last = rows[len(rows) // 5 - 1], rows[-1]
    return (last["tokens"] - first["tokens"]) / (last["seconds"] - first["seconds"])


def machine() -> dict[str, object]:
    """What the figures were measured on."""
    return {"processor": cpu_name(), "cores": os.cpu_count(), "python": platform.python_version()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="the tinyshakespeare text")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", choices=SHAPES)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "throughput.json")
    args = parser.parse_args()
    results = {}
    for shape, content in SHAPES.items():
        if args.only not in (None, shape):
            continue
        data = args.data if shape == "shakespeare" else None
        if shape == "shakespeare" and (data is None or not data.is_file()):
            print(f"MISSING: --data must name the tinyshakespeare text, got {data}: the shakespeare arms are left out")
            continue
        arms = {name: extra for name, extra in content.items() if name != "steps"}
        rates: dict[str, list[float]] = {name: [] for name in arms}
        for _ in range(args.rounds):
            for name, extra in arms.items():
                rates[name].append((hand if name.startswith("hand") else thrifty)(shape, content["steps"], extra, data))
        results[shape] = {name: {"tokens_per_second": r, "median": statistics.median(r)} for name, r in rates.items()}
        print(f"\n{shape}: tokens/s, {args.rounds} rounds")
        for name, r in rates.items():
            print(f"  {name:24} median {statistics.median(r):8,.0f}   range {min(r):,.0f} to {max(r):,.0f}")
        for ours in (name for name in arms if name.startswith("thrifty")):
            for null in (name for name in arms if name.startswith("hand")):
                pairs = [a / b for a, b in zip(rates[ours], rates[null], strict=True)]
                results[shape][f"{ours} / {null}"] = {"paired": pairs, "median": statistics.median(pairs)}
                print(f"  {ours} / {null}: median {statistics.median(pairs):.3f}, {min(pairs):.3f} to {max(pairs):.3f}")
    if not results:
        raise SystemExit(2)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    merged = json.loads(args.out.read_text()) if args.out.exists() else {}
    merged |= {"date": time.strftime("%Y-%m-%d"), "machine": machine(), **results}
    args.out.write_text(json.dumps(merged, indent=1) + "\n")
    print(f"\nwritten: {args.out}")


if __name__ == "__main__":
    main()
