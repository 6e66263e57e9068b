"""Quality and speed at nanoGPT's published CPU recipe: the trainer beside the hand-written loop, three seeds each.

    python benchmarks/shakespeare.py --data tinyshakespeare.txt [--steps 2000] [--seeds 3]

Both train 2,000 steps of 12 x 64 characters in fp32 with AdamW. Published final validation loss: 1.88
(karpathy/nanoGPT README). Both are evaluated on every window of the validation text; the hand-written loop also on
20 random batches, as the recipe does, to show what that draw alone moves.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path

from throughput import HAND, JOBS, ROOT, machine


def hand(data: Path, steps: int, seed: int) -> tuple[float, float, float]:
    """Validation loss on the whole text, tokens/s, and the loss on 20 random batches."""
    command = [sys.executable, HAND, "--data", data, "--steps", steps, "--seed", seed, "--eval-batches", 20]
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    return found["val_loss_whole"], found["tokens_per_second"], found["val_loss"]


def thrifty(data: Path, steps: int, seed: int) -> tuple[float, float]:
    """Validation loss and tokens/s; the rate leaves out the steps before which an evaluation or a checkpoint stood."""
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        command = [
            sys.executable,
            "-m",
            "thrifty",
            "train",
            str(ROOT / "jobs" / JOBS["shakespeare"]),
            "--run-dir",
            str(run),
        ]
        whole = ("recipe.evaluation.every_steps=0", "recipe.evaluation.sequences=1000000")
        for setting in (*whole, f"job.data.path={data}", f"job.steps={steps}", f"job.seed={seed}"):
            command += ["--set", setting]
        subprocess.run(command, capture_output=True, text=True, check=True)
        rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        loss = json.loads((run / "bill.json").read_text())["measured"]["loss"]["value"]
    train = [row for row in rows if row["split"] == "train"][steps // 5 :]
    looked = {row["step"] for row in rows if row["split"] == "val"}
    gaps = [
        (b["tokens"] - a["tokens"], b["seconds"] - a["seconds"]) for a, b in pairwise(train) if a["step"] not in looked
    ]
    return loss, sum(tokens for tokens, _ in gaps) / sum(seconds for _, seconds in gaps)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="the tinyshakespeare text")
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "shakespeare.json")
    args = parser.parse_args()
    if args.data is None or not args.data.is_file():
        raise SystemExit(f"MISSING: --data must name the tinyshakespeare text, got {args.data}")
    arms: dict[str, list[tuple[float, ...]]] = {"hand-written": [], "thrifty": []}
    for seed in range(args.seeds):
        arms["hand-written"].append(hand(args.data, args.steps, seed))
        arms["thrifty"].append(thrifty(args.data, args.steps, seed))
        for name, found in arms.items():
            print(
                f"seed {seed} {name:13} validation loss {found[-1][0]:.4f}  {found[-1][1]:8,.0f} tokens/s", flush=True
            )
    drawn = [found[2] for found in arms["hand-written"]]
    print(
        f"hand-written  on 20 random batches: mean {statistics.mean(drawn):.4f}, {min(drawn):.4f} to {max(drawn):.4f}"
    )
    ratios = [ours[1] / null[1] for ours, null in zip(arms["thrifty"], arms["hand-written"], strict=True)]
    for name, found in arms.items():
        losses = [loss for loss, _ in found]
        print(f"{name:13} validation loss mean {statistics.mean(losses):.4f}, {min(losses):.4f} to {max(losses):.4f}")
    middle = statistics.median(ratios)
    print(f"tokens/s, thrifty over hand-written: median {middle:.3f}, {min(ratios):.3f} to {max(ratios):.3f}")
    content = {
        "date": time.strftime("%Y-%m-%d"),
        "machine": machine(),
        "steps": args.steps,
        "arms": arms,
        "ratios": ratios,
    }
    args.out.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
