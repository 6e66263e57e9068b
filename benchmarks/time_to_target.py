"""What compression and local steps do to the time to a target loss between two islands over slow links. Needs root.

    sudo python benchmarks/time_to_target.py [--quick] [--json FILE]

Two ranks of one core each are an island each. Losses do not depend on the link, so that they are trained once, without
one: every arm on the same grid of learning rates with one seed, and with two more seeds at its best rate. The target is
what plain fp32 reaches after four fifths of its steps. How long a step takes is measured on each link, arms in turn; a
step's time on the link, in fractions of a round where steps are local, times the steps to the target is the time to it.

    time to target = steps to target x median seconds of a step on that link

Bytes are read from the link.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
from datetime import date
from itertools import pairwise
from pathlib import Path
from typing import Any

from netlab import NetlabError, netlab
from slow_links import RESULTS, plan_of, train
from thrifty.cost.wire import wire_share
from thrifty.trainer.run_folder import RunFolder

STEPS, EVERY = 300, 30
TARGET_AT = 0.8  # of the steps of plain fp32
RATES = (7.5e-4, 1.5e-3, 3e-3)
SEEDS = (1, 2, 3)
ARMS: dict[str, dict[str, Any]] = {
    "fp32": {},
    "bf16": {"dtype": "bf16"},
    "int4": {"codec": "int4"},
    "2 bits": {"codec": "means2"},
    "sparse": {"codec": "threshold(1/32) + means2"},
    "30 local steps + sparse": {
        "local_steps": 30,
        "codec": "topk(1/8) + means2",
        "outer_lr": 1.0,
        "outer_momentum": 0.0,
    },
    "15 local steps + sparse": {
        "local_steps": 15,
        "codec": "topk(1/8) + means2",
        "outer_lr": 1.0,
        "outer_momentum": 0.0,
    },
}
# Each link with the steps in which an arm's step time is seen; fp32 takes 3.6 s a step over the slowest.
LINKS: dict[str | None, int] = {None: 60, "1Gbit": 60, "100Mbit": 60, "10Mbit": 60}
FEW = {"fp32": 8, "bf16": 12, "int4": 20, "2 bits": 30, "sparse": 40}  # over 10 Mbit/s
JOB: dict[str, Any] = {
    "job": {
        "name": "to target", "model": {"base": "tiny-1m"}, "data": {"tokenizer": {"kind": "bytes"}},
        "sequence_length": 128,
    },
}  # fmt: skip


def recipe(exchange: dict[str, Any], lr: float) -> dict[str, Any]:
    return {
        "layout": {"island": 2, "shard": 1}, "batch": {"sequences": 4, "micro_sequences": 2}, "precision": "fp32",
        "optimizer": {"lr": lr}, "schedule": {"name": "constant", "warmup_steps": 20},
        "evaluation": {"every_steps": EVERY, "sequences": 64}, "checkpoint": {"every_steps": 0}, "exchange": exchange,
    }  # fmt: skip


class Losses:
    """Validation losses of whole runs without a link, kept in a file so that a run cut short loses none."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.found: dict[str, list[list[float]]] = json.loads(path.read_text()) if path.exists() else {}

    def curve(self, arm: str, lr: float, seed: int) -> list[list[float]]:
        """(step, validation loss) of a run."""
        key = f"{arm}, lr {lr:g}, seed {seed}"
        if key not in self.found:
            rows = run(ARMS[arm], lr, seed, None, STEPS)["rows"]
            self.found[key] = [[row["step"], row["loss"]] for row in rows if row["split"] == "val"]
            self.path.write_text(json.dumps(self.found))
            print(f"{key}: {self.found[key][-1][1]:.3f}", file=sys.stderr, flush=True)
        return self.found[key]


def run(exchange: dict[str, Any], lr: float, seed: int, rate: str | None, steps: int) -> dict[str, Any]:
    """One run between two islands: rows of its metrics, bytes on the link, and the two bills."""
    with tempfile.TemporaryDirectory(prefix="to-target-") as path:
        job = JOB["job"] | {"steps": steps, "seed": seed}
        plan = plan_of(rate, None, {"job": job}, recipe(exchange, lr), Path(path))
        with netlab(2, rate) as lab:
            root = RunFolder(train(lab, plan, Path(path)))
            wire = statistics.mean(lab.sent_bytes())
        bills = root.read_bill()
        sent = {maker: bills[maker].link_bytes["inter_island"].value for maker in ("predicted", "measured")}
        return {
            "rows": list(root.read_metrics()), "wire_bytes": wire, "payload_bytes": sent,
            "predicted_step_s": plan.predicted.step_seconds.value,
        }  # fmt: skip


def steps_to(curve: list[list[float]], target: float) -> float | None:
    """Where a curve first meets a loss, between evaluations on a straight line; none where it does not."""
    for (before, high), (after, low) in pairwise(curve):
        if low <= target:
            return before + (after - before) * (high - target) / (high - low) if high > target else before
    return None


def step_seconds(rows: list[dict[str, Any]], exchange: dict[str, Any]) -> float:
    """Mean over whole rounds where steps are local, else the median; without the first steps, which warm up."""
    times = [row["step_seconds"] for row in rows if row["split"] == "train"]
    if exchange.get("local_steps", 1) > 1:
        return statistics.mean(times[-30:])
    return statistics.median(times[min(20, len(times) // 3) :])


def tuned(losses: Losses, arm: str, grid: tuple[float, ...], seeds: tuple[int, ...]) -> dict[str, Any]:
    """The best rate by the loss at the end, and the curves of all seeds at it."""
    last = {lr: losses.curve(arm, lr, seeds[0])[-1][1] for lr in grid}
    best = min(last, key=last.__getitem__)
    return {"lr": best, "by_rate": last, "curves": [losses.curve(arm, best, seed) for seed in seeds]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one rate, one seed, one round")
    parser.add_argument("--rounds", type=int, default=3, help="runs of each arm on each link, taken in turn")
    parser.add_argument("--only", help="links whose rate has this in it")
    parser.add_argument("--json", type=Path, default=RESULTS / "time_to_target.json", help="where the result goes")
    asked = parser.parse_args()
    grid, seeds, rounds = (RATES[1:2], SEEDS[:1], 1) if asked.quick else (RATES, SEEDS, asked.rounds)
    losses = Losses(asked.json.with_suffix(".losses.json"))
    load = [os.getloadavg()[0]]
    try:
        found = {arm: tuned(losses, arm, grid, seeds) for arm in ARMS}
        plain = found["fp32"]["curves"]
        target = statistics.median(next(loss for step, loss in curve if step >= TARGET_AT * STEPS) for curve in plain)
        content: dict[str, Any] = {
            "date": date.today().isoformat(), "job": JOB["job"], "steps": STEPS, "target_loss": target,
            "grid": grid, "seeds": seeds, "arms": {}, "links": {},
        }  # fmt: skip
        for arm, one in found.items():
            to = [steps_to(curve, target) for curve in one["curves"]]
            content["arms"][arm] = {
                "exchange": ARMS[arm], "lr": one["lr"], "final_by_rate": one["by_rate"],
                "final_loss": [curve[-1][1] for curve in one["curves"]], "steps_to_target": to,
            }  # fmt: skip
        for link, seen in LINKS.items():
            if asked.only and asked.only not in (link or "no limit"):
                continue
            runs = on_link(link, seen, {arm: one["lr"] for arm, one in found.items()}, rounds, load)
            content["links"][link or "no limit"] = {
                arm: gather(content["arms"][arm], many) for arm, many in runs.items()
            }
            content["load_average"] = [min(load), max(load)]
            asked.json.write_text(json.dumps(content, indent=1) + "\n")
    except NetlabError as error:
        raise SystemExit(f"netlab: {error}") from None
    print(table(content))


def on_link(
    link: str | None, seen: int, rates: dict[str, float], rounds: int, load: list[float]
) -> dict[str, list[dict[str, Any]]]:
    """Runs of every arm on a link, in turn, back and forth."""
    runs: dict[str, list[dict[str, Any]]] = {arm: [] for arm in ARMS}
    for number in range(rounds):
        for arm in list(ARMS) if number % 2 == 0 else list(ARMS)[::-1]:
            load.append(os.getloadavg()[0])
            steps = FEW.get(arm, seen) if link == "10Mbit" else seen
            one = run(ARMS[arm], rates[arm], SEEDS[0], link, steps)
            one["step_s"] = step_seconds(one.pop("rows"), ARMS[arm])
            one["steps"] = steps
            runs[arm].append(one)
            told = f"{link}, round {number + 1}, {arm}: {one['step_s'] * 1e3:.0f} ms"
            print(told, file=sys.stderr, flush=True)
    return runs


def gather(arm: dict[str, Any], runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Of one arm on one link."""
    times = [one["step_s"] for one in runs]
    step, reached = statistics.median(times), [steps for steps in arm["steps_to_target"] if steps is not None]
    all_reached = len(reached) == len(arm["steps_to_target"])
    return {
        "step_s": step, "step_s_range": [min(times), max(times)],
        "predicted_step_s": runs[0]["predicted_step_s"],
        "bytes_a_step": statistics.median(one["wire_bytes"] / one["steps"] for one in runs),
        "bytes_over_predicted": statistics.median(
            one["wire_bytes"] / max(1.0, one["payload_bytes"]["predicted"] * wire_share()) for one in runs
        ),
        "seconds_to_target": [step * steps for steps in reached] if all_reached else None,
    }  # fmt: skip


def table(content: dict[str, Any]) -> str:
    lines = [f"target: validation loss {content['target_loss']:.3f}"]
    lines += ["", "| arm | best lr | loss at the end | steps to target |", "|---|---|---|---|"]
    for arm, one in content["arms"].items():
        final = sorted(one["final_loss"])
        to = [f"{steps:.0f}" if steps is not None else "never" for steps in one["steps_to_target"]]
        shown = f"{statistics.median(final):.3f} ({final[0]:.3f} to {final[-1]:.3f})"
        lines.append(f"| {arm} | {one['lr']:g} | {shown} | {', '.join(to)} |")
    for link, arms in content["links"].items():
        base = arms["bf16"]["seconds_to_target"]
        lines += ["", f"**{link}**", "", "| arm | step, ms | range | predicted | MB a step | to target, s | of bf16 |"]
        lines.append("|---|---|---|---|---|---|---|")
        for arm, one in arms.items():
            low, high = (f"{end * 1e3:.0f}" for end in one["step_s_range"])
            to, share = "never", ""
            if one["seconds_to_target"]:
                to = f"{statistics.median(one['seconds_to_target']):.1f}"
                share = f"{statistics.median(one['seconds_to_target']) / statistics.median(base):.2f}" if base else ""
            cells = [f"{one['step_s'] * 1e3:.0f}", f"{low} to {high}", f"{one['predicted_step_s'] * 1e3:.0f}"]
            lines.append(f"| {arm} | {' | '.join(cells)} | {one['bytes_a_step'] / 1e6:.4f} | {to} | {share} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
