"""Plain data parallel training between two islands over slow links: step time and bytes beside the plan's. Needs root.

    sudo python benchmarks/slow_links.py [--rounds 3] [--only 100Mbit] [--json FILE]

Two ranks of one core each, an island each, train by `thrifty train` in a netlab; every step they all-reduce their
gradients, in fp32 or bf16. The plan is made before the run: this machine's probe, and the link as it is set.

Bytes are read from the link, from the first rank's start to its end: rendezvous, steering and the checkpoint's
agreement are in. They stand beside the bill's payloads, predicted and counted, times the bytes that a full segment has
on the link over those it carries.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

from netlab import Lab, NetlabError, netlab, seconds
from thrifty import api
from thrifty.cli.common import resolve
from thrifty.cost.wire import gloo_delays, wire_share
from thrifty.planner.emit import write_plan
from thrifty.spec import Cluster, Plan
from thrifty.trainer.run_folder import RunFolder

RESULTS = Path(__file__).parent / "results"
DROPPED = 2  # first steps of a run, that warm up
GLOO_LATENCY = 400e-6  # seconds of one collective between two processes of a machine; as in `trainer/local.py`
JOB = {
    "job": {
        "name": "slow links", "model": {"base": "tiny-1m"}, "data": {"tokenizer": {"kind": "bytes"}},
        "sequence_length": 128,
    },
}  # fmt: skip
RECIPE: dict[str, Any] = {
    "layout": {"island": 2, "shard": 1}, "batch": {"sequences": 8, "micro_sequences": 4}, "precision": "fp32",
    "optimizer": {"lr": 1e-3}, "schedule": {"warmup_steps": 2}, "evaluation": {"every_steps": 0, "sequences": 8},
    "checkpoint": {"every_steps": 0},
}  # fmt: skip


@dataclass(frozen=True)
class Arm:
    """One link and the dtype in which gradients cross it."""

    rate: str | None
    delay: str | None
    dtype: str
    steps: int

    @property
    def name(self) -> str:
        return f"{self.rate or 'no limit'}{', ' + self.delay if self.delay else ''}, {self.dtype}"


LINKS = ((None, None, 20), ("1Gbit", None, 20), ("100Mbit", None, 20), ("10Mbit", None, 6), ("100Mbit", "25ms", 10))
ARMS = tuple(Arm(rate, delay, dtype, steps) for rate, delay, steps in LINKS for dtype in ("fp32", "bf16"))


def plan_of(rate: str | None, delay: str | None, job: dict[str, Any], recipe: dict[str, Any], folder: Path) -> Plan:
    """For two nodes of one core, an island each, with the link that the lab will have."""
    written = folder / "job.yaml"
    written.write_text(json.dumps(job))
    request = resolve(str(written), "local")
    link: dict[str, Any] = request.cluster.inter_island.model_dump()
    source = {"provenance": "assumed", "source": "as the lab shapes it"}
    latency = GLOO_LATENCY + gloo_delays("all_reduce", 2) * seconds(delay or "0s")
    link["latency"] = {"value": f"{latency} s", **source}
    if rate is not None:
        link["bandwidth"] = {"value": f"{rate}/s", **source}
    cluster = request.cluster.model_dump() | {"per_node": 1, "nodes": 2, "islands": 2, "inter_island": link}
    return api.plan(request.job, Cluster.model_validate(cluster), recipe)


def train(lab: Lab, plan: Plan, folder: Path) -> Path:
    """One run as both ranks; they share the run folder."""
    write_plan(plan, folder / "plan.yaml")
    root = folder / "run"
    done = lab.launch(
        [sys.executable, "-m", "thrifty", "train", str(folder / "plan.yaml"), "--run-dir", str(root)],
        {"OMP_NUM_THREADS": "1"}, timeout=600,
    )  # fmt: skip
    if any(one.returncode for one in done):
        raise SystemExit("\n".join(f"rank {one.rank}: exit {one.returncode}\n{one.stderr}" for one in done))
    return root


def measure(arm: Arm) -> dict[str, Any]:
    """One run of an arm: seconds of its steps, and bytes of rank 0."""
    with tempfile.TemporaryDirectory(prefix="slow-links-") as path:
        folder = Path(path)
        job = {"job": JOB["job"] | {"steps": arm.steps}}
        plan = plan_of(arm.rate, arm.delay, job, RECIPE | {"exchange": {"dtype": arm.dtype}}, folder)
        with netlab(2, arm.rate, arm.delay) as lab:
            root = RunFolder(train(lab, plan, folder))
            wire = lab.sent_bytes()
        steps = [row for row in root.read_metrics() if row["split"] == "train"][DROPPED:]
        bills = root.read_bill()
    predicted, measured = (bills[maker].link_bytes["inter_island"].value for maker in ("predicted", "measured"))
    parts = plan.predicted.seconds_by_part
    return {
        "step_s": statistics.median(row["step_seconds"] for row in steps),
        "communication_s": statistics.median(row["communication_seconds"] for row in steps),
        "predicted_step_s": plan.predicted.step_seconds.value,
        "predicted_communication_s": parts["communication"].value / arm.steps,
        "predicted_payload_bytes": predicted, "counted_payload_bytes": measured,
        "predicted_wire_bytes": predicted * wire_share(link=0 if arm.delay else 14),  # a TUN device has no Ethernet
        "wire_bytes": statistics.mean(wire),
    }  # fmt: skip


def gather(rounds: list[dict[str, Any]]) -> dict[str, Any]:
    """Medians over rounds, the range of the step time, and what the plan was off by."""
    found = {key: statistics.median(one[key] for one in rounds) for key in rounds[0]}
    found["step_s_range"] = [pick(one["step_s"] for one in rounds) for pick in (min, max)]
    found["time_over_predicted"] = found["step_s"] / found["predicted_step_s"]
    found["communication_over_predicted"] = found["communication_s"] / found["predicted_communication_s"]
    found["bytes_over_predicted"] = found["wire_bytes"] / found["predicted_wire_bytes"]
    return found


def table(arms: dict[str, dict[str, Any]]) -> str:
    lines = [
        "| link, exchange | step, ms | range | predicted | waiting | predicted | bytes on the link | / predicted |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, arm in arms.items():
        low, high = arm["step_s_range"]
        keys = ("predicted_step_s", "communication_s", "predicted_communication_s")
        milliseconds = [f"{arm['step_s'] * 1e3:.0f}", f"{low * 1e3:.0f} to {high * 1e3:.0f}"]
        milliseconds += [f"{arm[key] * 1e3:.0f}" for key in keys]
        sent = [f"{arm['wire_bytes'] / 1e6:.2f} MB", f"{arm['bytes_over_predicted']:.4f}"]
        lines.append(f"| {name} | {' | '.join(milliseconds + sent)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3, help="runs of each arm, taken in turn")
    parser.add_argument("--only", help="arms whose name has this in it")
    parser.add_argument("--json", type=Path, default=RESULTS / "slow_links.json", help="where the result goes")
    asked = parser.parse_args()
    arms = [arm for arm in ARMS if not asked.only or asked.only in arm.name]
    runs: dict[str, list[dict[str, Any]]] = {arm.name: [] for arm in arms}
    load: list[float] = []
    try:
        for number in range(asked.rounds):
            for arm in arms if number % 2 == 0 else arms[::-1]:
                load.append(os.getloadavg()[0])
                runs[arm.name].append(measure(arm))
                print(f"round {number + 1}, {arm.name}: {runs[arm.name][-1]['step_s'] * 1e3:.0f} ms", file=sys.stderr)
            found = {name: gather(rounds) for name, rounds in runs.items()}
            write(asked.json, found, number + 1, load)  # a round that is cut short loses none before it
    except NetlabError as error:
        raise SystemExit(f"netlab: {error}") from None
    print(table(found))


def write(path: Path, found: dict[str, dict[str, Any]], rounds: int, load: list[float]) -> None:
    content = {
        "date": date.today().isoformat(), "job": JOB["job"], "recipe": RECIPE, "rounds": rounds,
        "load_average": [min(load), max(load)], "arms": found,
    }  # fmt: skip
    path.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
