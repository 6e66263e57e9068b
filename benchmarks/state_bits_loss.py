"""Validation loss of AdamW with moments of 32, 16, 8 and 4 bits, at the rate that is best for 32: three seeds each.

    python benchmarks/state_bits_loss.py --data tinyshakespeare.txt [--steps 2000] [--seeds 3] [--rates 1e-3 2e-3 4e-3]

The model and the recipe of jobs/shakespeare-cpu.yaml, through `thrifty train`, evaluated on every window of the
validation text. The rate is chosen by 32 bits on the first seed alone, and serves all widths.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from throughput import JOBS, ROOT, machine

BITS = (32, 16, 8, 4)
ASKED = {8: 0.005, 4: 0.02}  # at most so much above 32 bits


def trained(data: Path, steps: int, seed: int, rate: float, bits: int) -> float:
    """Validation loss on the whole text."""
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        command = [sys.executable, "-m", "thrifty", "train", str(ROOT / "jobs" / JOBS["shakespeare"])]
        command += ["--run-dir", str(run)]
        for setting in (
            f"job.data.path={data}", f"job.steps={steps}", f"job.seed={seed}", f"recipe.optimizer.lr={rate}",
            f"recipe.optimizer.state_bits={bits}", "recipe.evaluation.every_steps=0",
            "recipe.evaluation.sequences=1000000",
        ):  # fmt: skip
            command += ["--set", setting]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"thrifty train ended with {done.returncode}:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
        return float(json.loads((run / "bill.json").read_text())["measured"]["loss"]["value"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="the tinyshakespeare text")
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rates", type=float, nargs="+", default=[1e-3, 2e-3, 4e-3])
    parser.add_argument("--bits", type=int, nargs="+", default=list(BITS), help="the first is what others are held to")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "state_bits_loss.json")
    args = parser.parse_args()
    if args.data is None or not args.data.is_file():
        raise SystemExit(f"MISSING: --data must name the tinyshakespeare text, got {args.data}")
    usual, *others = args.bits
    grid: dict[float, float] = {}
    for rate in args.rates:
        grid[rate] = trained(args.data, args.steps, 0, rate, usual)
        print(f"{usual} bits, seed 0, rate {rate:g}: validation loss {grid[rate]:.4f}", flush=True)
    best = min(grid, key=grid.__getitem__)
    losses = {bits: [grid[best]] if bits == usual else [] for bits in args.bits}
    for seed in range(args.seeds):
        for bits in args.bits:
            if len(losses[bits]) == seed:
                losses[bits].append(trained(args.data, args.steps, seed, best, bits))
            print(f"seed {seed} {bits:2} bits: validation loss {losses[bits][-1]:.4f}", flush=True)
    means = {bits: statistics.mean(found) for bits, found in losses.items()}
    for bits in others:
        pairs = [a - b for a, b in zip(losses[bits], losses[usual], strict=True)]
        told = f", asked {ASKED[bits]}" if bits in ASKED else ""
        by_seed = " ".join(f"{pair:+.4f}" for pair in pairs)
        print(f"{bits:2} bits: mean {means[bits]:.4f}, {means[bits] - means[usual]:+.4f} of {usual}{told}; {by_seed}")
    found = {
        "machine": machine(), "steps": args.steps, "threads": os.environ.get("OMP_NUM_THREADS"), "rate": best,
        "grid": grid, "losses": losses, "means": means,
    }  # fmt: skip
    args.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
