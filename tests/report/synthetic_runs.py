"""Plans, bills and metrics of runs that never ran."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from thrifty.planner.emit import write_plan
from thrifty.spec import Bill, Cluster, Job, Plan, Recipe
from thrifty.spec.bill import MEMORY_TERMS, TIME_PARTS
from thrifty.spec.figure import Figure, measured, modelled
from thrifty.spec.plan import fingerprint
from thrifty.trainer.run_folder import RunFolder

FLOPS_PER_TOKEN = 3.0e6
TOKENS_PER_STEP = 32 * 64

TIME_SHARES = dict(zip(TIME_PARTS, (0.03, 0.71, 0.09, 0.07, 0.01, 0.05, 0.02, 0.02), strict=True))
MEMORY_MIB = dict(zip(MEMORY_TERMS, (9.5, 9.5, 19.0, 61.0, 24.0, 4.0, 310.0), strict=True))


def bill(maker: str, *, steps: int, step_seconds: float, loss: float | None, wobble: float = 0.0) -> Bill:
    """A bill whose parts add up; `wobble` spreads the single terms, as measuring does."""

    def make(value: float, unit: str, source: str = "") -> Figure:
        if maker == "measured":
            return measured(value, unit, source or "clock")
        return modelled(value, unit, source or "formula", low=0.85 * value, high=1.15 * value)

    def spread(shares: dict[str, float]) -> dict[str, float]:
        return {key: value * (1 + wobble * math.sin(3 * i + 1)) for i, (key, value) in enumerate(shares.items())}

    shares = spread(TIME_SHARES)
    seconds = steps * step_seconds / (1 - 0.12)
    scale = seconds / sum(shares.values())
    memory = {key: value * 2**20 for key, value in spread(MEMORY_MIB).items()}
    tokens = steps * TOKENS_PER_STEP
    return Bill(
        maker=maker,
        seconds=make(seconds, "s"),
        step_seconds=make(step_seconds, "s"),
        seconds_by_part={part: make(share * scale, "s") for part, share in shares.items()},
        steps=make(steps, "1"),
        tokens=make(tokens, "token"),
        tokens_per_second=make(TOKENS_PER_STEP / step_seconds, "token/s"),
        model_flops=make(FLOPS_PER_TOKEN * tokens, "FLOP"),
        hardware_flops=make(FLOPS_PER_TOKEN * tokens, "FLOP"),
        mfu=make(0.41, "1"),
        memory={term: make(value, "byte") for term, value in memory.items()},
        peak_memory=make(0.97 * sum(memory.values()), "byte"),
        link_bytes={"intra_node": make(steps * 9.5 * 2**20, "byte"), "inter_node": make(0.0, "byte")},
        energy=modelled(seconds * 31.0, "J", "declared") if maker == "measured" else make(seconds * 28.0, "J"),
        usd=make(seconds * 0.10 / 3600, "usd"),
        co2=make(seconds * 31.0 / 3.6e6 * 400, "g"),
        loss=None if loss is None else make(loss, "nat/token"),
    )


def make_plan(
    *, steps: int = 400, lr: float = 1e-3, name: str = "tiny", predicted: Bill | None = None, **job: Any
) -> Plan:
    model = {"layers": 4, "hidden": 128, "heads": 4, "ffn": 512, "vocab_size": 256, "source": "made for this test"}
    wanted = Job.model_validate({"name": name, "model": model, "steps": steps, "sequence_length": 64} | job)
    link = {"bandwidth": "10GB/s", "latency": "20us"}
    accelerator = {
        "name": "one core",
        "kind": "cpu",
        "peak_flops": {
            "fp32": {
                "value": "60GFLOP/s",
                "provenance": "measured",
                "source": "probe of this machine",
                "date": "2026-11-20",
            }
        },
        "memory": "2GiB",
        "memory_bandwidth": "10GB/s",
        "idle_watts": "2W",
        "tdp_watts": "12W",
        "op_overhead": "2us",
        "runtime_memory": "300MiB",
    }
    price = {
        "value": "0.05usd/h",
        "provenance": "published",
        "source": "a price list <of> somebody & co",
        "date": "2026-10-01",
    }
    cluster = Cluster.model_validate(
        {
            "name": "local",
            "accelerator": accelerator,
            "per_node": 2,
            "intra_node": link,
            "inter_node": link,
            "inter_island": link,
        }
        | {"price": price, "grid": "400g/kWh", "pue": 1.0, "goodput": 1.0, "utilisation": 0.9, "host_watts": "10W"}
    )
    recipe = Recipe.model_validate(
        {"batch": {"sequences": 32, "micro_sequences": 16}, "optimizer": {"lr": lr}, "layout": {"shard": 2}}
    )
    return Plan(
        job=wanted,
        cluster=cluster,
        recipe=recipe,
        predicted=predicted or bill("predicted", steps=steps, step_seconds=0.4, loss=None),
        reasons=("fp32: the processor has no bf16 matrix unit", "no recomputation: activations take 12% of the memory"),
        made_with="thrifty 0.1.0, 2026-11-24",
        hash=fingerprint(wanted, cluster, recipe),
    )


def metrics(*, steps: int, step_seconds: float, every: int, speed: float) -> list[dict[str, Any]]:
    """Rows of a falling loss with a little noise, evaluated every so many steps."""
    rows: list[dict[str, Any]] = []
    for step in range(1, steps + 1):
        seconds = step * step_seconds / 0.88
        cost = {
            "tokens": step * TOKENS_PER_STEP,
            "seconds": seconds,
            "usd": seconds * 0.10 / 3600,
            "energy_joules": seconds * 31.0,
        }
        loss = 1.55 + 4.0 / (1 + speed * step / 25) + 0.06 * math.sin(11 * step) / (1 + step / 100)
        rows.append({"step": step, "split": "train", "loss": loss, "lr": 1e-3, "grad_norm": 1.0, **cost})
        if step % every == 0 or step == steps:
            rows.append({"step": step, "split": "val", "loss": 1.58 + 4.0 / (1 + speed * step / 25), **cost})
    return rows


def write_run(
    parent: Path,
    name: str = "run",
    *,
    steps: int = 400,
    step_seconds: float = 0.43,
    speed: float = 1.0,
    every: int = 50,
    billed: bool = True,
    run_steps: int | None = None,
    **plan: Any,
) -> Path:
    """Writes a run folder.

    Args:
        speed: how fast the loss falls.
        every: steps between evaluations.
        billed: false as after a kill: no bill.json.
        run_steps: steps that were made, where they are fewer than planned.
        plan: for `make_plan`.
    """
    folder = RunFolder(parent / name)
    folder.root.mkdir()
    done = run_steps or steps
    made = make_plan(steps=steps, name=name, **plan)
    write_plan(made, folder.plan)
    rows = metrics(steps=done, step_seconds=step_seconds, every=every, speed=speed)
    folder.metrics.write_text("".join(json.dumps(row) + "\n" for row in rows))
    machine = {"processor": "a <processor>", "threads": 2}
    folder.manifest.write_text(json.dumps({"plan": made.hash, "data": {"sha256": "ab" * 32}, "runs": [machine]}))
    if billed:
        loss = [row["loss"] for row in rows if row["split"] == "val"][-1]
        folder.write_bill(
            made.predicted, bill("measured", steps=done, step_seconds=step_seconds, loss=loss, wobble=0.12)
        )
    return folder.root
