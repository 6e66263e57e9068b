"""Unequal islands in a netlab beside their simulation: seconds a round and bytes on each link. Needs root.

    sudo python benchmarks/islands_netlab.py [--rounds 3] [--only streaming] [--json FILE]

Ranks of one machine are islands: each has a link of its own rate, sleeps as long as its inner step is to take, and
keeps to the others by `LocalSteps` over an `Exchange`. What `thrifty.cost.islands` says of them is computed from rates,
delays, sleeps, and the seconds that an exchange takes on links without limit, which a run before it measures: encoding,
decoding, sums, gloo. Payload is turned into bytes on the link by `thrifty.cost.wire`.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from dataclasses import asdict, dataclass, replace
from datetime import date
from pathlib import Path
from typing import Any

from netlab import NetlabError, bits_per_second, netlab, seconds
from thrifty.cost.island_links import Island
from thrifty.cost.islands import Scheme, hops, simulate
from thrifty.cost.wire import wire_share

RESULTS = Path(__file__).parent / "results"
WARM_UP = 2  # rounds
TENSORS = 8


@dataclass(frozen=True)
class Arm:
    """Islands and how they keep together; one rate and one sleep for each."""

    name: str
    rates: tuple[str | None, ...]
    compute_s: tuple[float, ...]
    scheme: Scheme
    values: int = 1_000_000
    rounds: int = 6
    delay: str | None = None


FP32 = Scheme(value_bits=32)
SPARSE = Scheme("all_gather", "topk(1/64) + means2")
ARMS = (
    Arm("2 islands, 100 and 20 Mbit/s, fp32 every step", ("100Mbit", "20Mbit"), (0.2, 0.1), FP32),
    Arm("4 islands, one with 20 Mbit/s, fp32 every step", ("100Mbit",) * 3 + ("20Mbit",), (0.2,) * 4, FP32, rounds=4),
    Arm(
        "3 islands, 100, 50, 20 Mbit/s, int8 every step", ("100Mbit", "50Mbit", "20Mbit"), (0.3, 0.1, 0.2),
        Scheme("all_to_all", "int8"),
    ),
    Arm(
        "4 islands, 10 to 100 Mbit/s, sparse every 8 steps", ("100Mbit", "100Mbit", "20Mbit", "10Mbit"),
        (0.05, 0.05, 0.1, 0.15), replace(SPARSE, local_steps=8), values=4_000_000,
    ),
    Arm(
        "3 islands, 50 and 20 Mbit/s, streaming int8 every 8 steps", ("50Mbit", "50Mbit", "20Mbit"), (0.1, 0.2, 0.1),
        Scheme("all_to_all", "int8", local_steps=8, fragments=4, delay=2),
    ),
    Arm(
        "2 islands, streaming fp32, the link too narrow", ("20Mbit", "50Mbit"), (0.05, 0.1),
        replace(FP32, local_steps=8, fragments=4, delay=4), rounds=4,
    ),
    Arm(
        "3 islands, 20 Mbit/s and 25 ms each, int8 every step", ("20Mbit",) * 3, (0.1, 0.2, 0.1),
        Scheme("all_to_all", "int8"), delay="25ms",
    ),
)  # fmt: skip


def worker(asked: dict[str, Any]) -> None:
    """One island: prints its seconds a round."""
    import torch
    import torch.distributed as dist

    from thrifty.compress import AVERAGE, Exchange, Identity, LocalSteps, codec_of

    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    rank, scheme = dist.get_rank(), asked["scheme"]
    size = asked["values"] // TENSORS
    draw = torch.Generator().manual_seed(1)
    model = [(f"w{place}", torch.nn.Parameter(torch.randn(size, generator=draw))) for place in range(TENSORS)]
    codec = Identity() if scheme["codec"] is None else codec_of(scheme["codec"])
    exchange = Exchange(codec, how=scheme["route"])
    local = LocalSteps(
        model, exchange, every=scheme["local_steps"], outer=AVERAGE, fragments=scheme["fragments"],
        delay=scheme["delay"],
    )  # fmt: skip
    moves = [torch.randn(size, generator=draw.manual_seed(rank + 2)) * 1e-3 for _ in range(TENSORS)]

    def step() -> None:
        time.sleep(asked["compute_s"][rank])
        with torch.no_grad():
            for (_, parameter), move in zip(model, moves, strict=True):
                parameter.add_(move)
        local.after_step()

    def rounds(number: int) -> float:
        begin = time.perf_counter()
        for _ in range(number * scheme["local_steps"]):
            step()
        return time.perf_counter() - begin

    rounds(WARM_UP)
    took = rounds(asked["rounds"])
    local.finish()
    dist.barrier()
    print(json.dumps({"round_s": took / asked["rounds"]}))


def launched(arm: Arm) -> tuple[list[float], list[int], list[int]]:
    """Seconds a round by each rank, and the bytes that it sent and received."""
    # Compiling kernels would take longer than the run.
    environment = {"OMP_NUM_THREADS": "1", "TORCHDYNAMO_DISABLE": "1"}
    with netlab(len(arm.rates), list(arm.rates), arm.delay) as lab:
        done = lab.launch([sys.executable, __file__, "--worker", json.dumps(asdict(arm))], environment)
        if any(one.returncode for one in done):
            raise SystemExit("\n".join(f"rank {one.rank}: exit {one.returncode}\n{one.stderr}" for one in done))
        told = [json.loads(one.stdout.splitlines()[-1])["round_s"] for one in done]
        return told, lab.sent_bytes(), lab.received_bytes()


def free(arm: Arm) -> Arm:
    """The same exchange of the whole model on links without limit, and nothing else."""
    alone = replace(arm.scheme, local_steps=1, fragments=1, delay=0)
    count = len(arm.rates)
    return replace(arm, rates=(None,) * count, compute_s=(0.0,) * count, scheme=alone, delay=None, rounds=8)


def measure(arm: Arm) -> dict[str, Any]:
    """One run of an arm beside its simulation."""
    coding_s = statistics.mean(launched(free(arm))[0])
    told, sent, received = launched(arm)
    share = wire_share(link=0 if arm.delay else 14)  # a TUN device has no Ethernet
    islands = []
    for rank, (rate, compute) in enumerate(zip(arm.rates, arm.compute_s, strict=True)):
        bytes_per_s = bits_per_second(rate or "") / 8 / share
        delay = seconds(arm.delay or "0s")
        islands.append(Island(f"rank {rank}", compute, bytes_per_s, bytes_per_s, delay, coding_s=coding_s))
    found = simulate(islands, arm.values, arm.scheme)
    payload = statistics.mean(found.sent) * (arm.rounds + WARM_UP) + at_the_end(arm)
    return {
        "round_s": max(told),
        "predicted_round_s": found.seconds,
        "coding_s": coding_s,
        "limit": found.limit,
        "wire_bytes": statistics.mean([*sent, *received]),
        "predicted_wire_bytes": payload * share,
        "sent_over_received": max(sent) / min(received),
    }


def at_the_end(arm: Arm) -> float:
    """Bytes that an island sends for `finish`: the fragments that have moved on since their last mean came."""
    scheme, islands = arm.scheme, len(arm.rates)
    offsets = [(part + 1) * scheme.local_steps // scheme.fragments for part in range(scheme.fragments)]
    left = sum(offset + scheme.delay < scheme.local_steps for offset in offsets) * arm.values // scheme.fragments
    if not left:
        return 0.0
    times = 2 / islands if scheme.route == "all_reduce" else 1.0
    return times * (islands - 1) * sum(size for _, size in hops(scheme, left, islands))


def gather(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Medians over runs, the range of the time, and what the simulation was off by."""
    found: dict[str, Any] = {key: statistics.median(one[key] for one in runs) for key in runs[0] if key != "limit"}
    found |= {"limit": runs[0]["limit"], "round_s_range": [pick(one["round_s"] for one in runs) for pick in (min, max)]}
    found["time_over_predicted"] = statistics.median(one["round_s"] / one["predicted_round_s"] for one in runs)
    found["bytes_over_predicted"] = found["wire_bytes"] / found["predicted_wire_bytes"]
    return found


def table(arms: dict[str, dict[str, Any]]) -> str:
    lines = [
        "| islands | round, s | range | simulated | ratio | bytes on a link | / predicted | limited by |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, arm in arms.items():
        low, high = arm["round_s_range"]
        lines.append(
            f"| {name} | {arm['round_s']:.2f} | {low:.2f} to {high:.2f} | {arm['predicted_round_s']:.2f} "
            f"| {arm['time_over_predicted']:.3f} | {arm['wire_bytes'] / 1e6:.1f} MB "
            f"| {arm['bytes_over_predicted']:.3f} | {arm['limit']} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3, help="runs of each arm, taken in turn")
    parser.add_argument("--only", help="arms whose name has this in it")
    parser.add_argument("--json", type=Path, default=RESULTS / "islands_netlab.json", help="where the result goes")
    parser.add_argument("--worker", type=json.loads, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.worker:
        worker(asked.worker)
        return
    arms = [arm for arm in ARMS if not asked.only or asked.only in arm.name]
    runs: dict[str, list[dict[str, Any]]] = {arm.name: [] for arm in arms}
    load = []
    try:
        for number in range(asked.rounds):
            for arm in arms:
                load.append(os.getloadavg()[0])
                runs[arm.name].append(one := measure(arm))
                print(
                    f"run {number + 1}, {arm.name}: {one['round_s']:.3f} s, simulated {one['predicted_round_s']:.3f}",
                    file=sys.stderr,
                )
            found = {name: gather(some) for name, some in runs.items()}
            content = {"date": date.today().isoformat(), "runs": number + 1, "load_average": [min(load), max(load)]}
            content["arms"] = {
                arm.name: {"rates": arm.rates, "compute_s": arm.compute_s, "values": arm.values, "delay": arm.delay,
                           "scheme": asdict(arm.scheme), **found[arm.name]} for arm in arms
            }  # fmt: skip
            asked.json.write_text(json.dumps(content, indent=1) + "\n")  # a run that is cut short loses none before it
    except NetlabError as error:
        raise SystemExit(f"netlab: {error}") from None
    print(table(found))


if __name__ == "__main__":
    main()
