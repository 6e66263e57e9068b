"""Cost to a target loss, a row for each job file of a ladder: each changes one thing, and runs in a process of its own.

    python benchmarks/ladder.py input.txt [--jobs jobs/shakespeare-cpu.yaml jobs/ladder/*.yaml] [--seeds 3]

The target is the median validation loss of the first row. A row's cost is the wall time of `thrifty train`, from start
to bill: imports, data, evaluations and compilation are in it. Rows are run in turn, seed by seed, so that what else the
machine does falls on all of them; ratios are paired within a seed.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
JOBS = [ROOT / "jobs/shakespeare-cpu.yaml", *sorted((ROOT / "jobs/ladder").glob("*.yaml"))]
RESULTS = ROOT / "benchmarks/results/ladder.json"


def run(job: Path, text: Path, seed: int) -> dict[str, Any]:
    """One training run: seconds from start to end, and what its bill says."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "run"
        command = [sys.executable, "-m", "thrifty", "train", str(job), "--run-dir", str(root)]
        for setting in (f"job.data.path={text}", f"job.seed={seed}"):
            command += ["--set", setting]
        begin = time.perf_counter()
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        seconds = time.perf_counter() - begin
        if done.returncode:
            sys.exit(f"{job}: {done.stderr[-2000:]}")
        bill = json.loads((root / "bill.json").read_text())["measured"]
    return {
        "job": job.stem, "seed": seed, "seconds": seconds, "load": os.getloadavg()[0], "loss": bill["loss"]["value"],
        "steps": bill["steps"]["value"], "tokens": bill["tokens"]["value"],
    }  # fmt: skip


def table(runs: list[dict[str, Any]]) -> str:
    """A line for each row: losses, steps, tokens, seconds, and seconds over the first row's of the same seed."""
    names = list(dict.fromkeys(one["job"] for one in runs))
    first = {one["seed"]: one["seconds"] for one in runs if one["job"] == names[0]}
    target = statistics.median(one["loss"] for one in runs if one["job"] == names[0])
    lines = [
        f"target {target:.4f}, the median of {names[0]}",
        "",
        "| row | loss | reaches it | steps | tokens | s | of the first |",
        "|---|---|---|---|---|---|---|",
    ]
    for name in names:
        some = [one for one in runs if one["job"] == name]
        losses, ratios = [one["loss"] for one in some], [one["seconds"] / first[one["seed"]] for one in some]
        loss = statistics.median(losses)
        lines.append(
            f"| {name} | {loss:.4f} ({min(losses):.4f} to {max(losses):.4f}) | {'yes' if loss <= target else 'no'} "
            f"| {some[0]['steps']:.0f} | {some[0]['tokens'] / 1e3:.0f}k "
            f"| {statistics.median(one['seconds'] for one in some):.1f} "
            f"| {statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f}) |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("text", type=Path, help="what is trained on, e.g. tinyshakespeare's input.txt")
    parser.add_argument("--jobs", type=Path, nargs="+", default=JOBS)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=RESULTS)
    asked = parser.parse_args()
    if not asked.text.is_file():
        sys.exit(f"{asked.text} is missing: the ladder needs the text that nanoGPT's CPU recipe trains on")
    runs = []
    for seed in range(1337, 1337 + asked.seeds):
        for job in asked.jobs:
            runs.append(run(job, asked.text.resolve(), seed))
            print(f"{runs[-1]['job']} seed {seed}: {runs[-1]['loss']:.4f} in {runs[-1]['seconds']:.1f} s", flush=True)
    print("\n" + table(runs))
    asked.out.write_text(json.dumps({"runs": runs}, indent=1) + "\n")


if __name__ == "__main__":
    main()
