"""Scores predicted step time and memory against public measurements of fully sharded training.

    python benchmarks/score_planner.py FOLDER [--json FILE]

FOLDER holds `d1_torchtitan.csv` and `d3_llmfoundry_mpt_fsdp.csv`: one measured run a row. Scored are the rows that
are fully sharded data parallel alone, in bf16. The null is one constant MFU for all rows of a table: the median of
those same rows, so the null has seen what it is scored on and the planner has not. Constants of the cost model were
set on GEMM tables and on the A100 rows of every second model size (`FITTED`); the rest is held out.
"""

from __future__ import annotations

import csv
import json
import statistics
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from thrifty.catalog import lookup
from thrifty.cost.compute import rank_of
from thrifty.cost.flops import model_flops_per_token
from thrifty.cost.memory import memory
from thrifty.cost.step import step_seconds
from thrifty.spec.cluster import Cluster
from thrifty.spec.job import Job, ModelShape
from thrifty.spec.load import build
from thrifty.spec.recipe import Batch, Exchange, Layout, Recipe

GIB = 2**30
FITTED = ("125m", "760m", "3b", "13b")  # on A100s; the other sizes and every H100 row are held out

# MPT: (layers, width, heads), from llm-foundry scripts/train/yamls/pretrain; GPT-2 like, no biases, tied.
MPT = {
    "125m": (12, 768, 12), "350m": (24, 1024, 16), "760m": (24, 1536, 12), "1b": (24, 2048, 16), "3b": (32, 2560, 20),
    "7b": (32, 4096, 32), "13b": (40, 5120, 40), "30b": (48, 7168, 56), "70b": (80, 8192, 64),
}  # fmt: skip


@dataclass(frozen=True)
class Score:
    """One measured run beside its prediction."""

    id: str
    group: str
    held_out: bool
    measured_seconds: float
    predicted_seconds: float
    mfu: float
    measured_bytes: float | None = None
    predicted_bytes: float | None = None


def rows_of(path: Path) -> list[dict[str, str]]:
    """Rows of a CSV whose comment lines start with #."""
    return list(csv.DictReader(line for line in path.read_text().splitlines() if not line.startswith("#")))


@cache
def cluster_of(text: str) -> Cluster:
    settings = lookup.cluster(text)
    if settings.at("price") is None:
        settings = settings.put("price", 0.0, "benchmark")
    return build(Cluster, settings, "")


def mpt_shape(name: str, sequence_length: int) -> ModelShape:
    layers, hidden, heads = MPT[name]
    return ModelShape(
        name=f"mpt-{name}", layers=layers, hidden=hidden, heads=heads, kv_heads=heads, head_dim=hidden // heads,
        ffn=4 * hidden, vocab_size=50368, max_positions=sequence_length, norm="layernorm", mlp="gelu",
        positions="learned", tied_embeddings=True,
    )  # fmt: skip


def score(job: Job, cluster: Cluster, recipe: Recipe, tokens_per_s_per_gpu: float, **rest: Any) -> Score:
    tokens = recipe.batch.sequences * job.sequence_length
    measured = tokens / (tokens_per_s_per_gpu * cluster.devices)
    flops = model_flops_per_token(job.model, job.sequence_length) * tokens
    peak = rank_of(cluster, recipe).peak_flops * cluster.devices
    predicted = step_seconds(job, cluster, recipe).total
    used = memory(job, cluster, recipe).peak if rest.get("measured_bytes") else None
    mfu = flops / (measured * peak)
    return Score(measured_seconds=measured, predicted_seconds=predicted, mfu=mfu, predicted_bytes=used, **rest)


def foundry(folder: Path) -> list[Score]:
    """MosaicML's MPT runs: FSDP on A100 and H100, 125M to 70B, sequences of 512 to 65,536."""
    chips = {"h100_80gb": "h100", "a100_80gb": "a100-80gb", "a100_40gb": "a100-40gb"}
    found = []
    for row in rows_of(folder / "d3_llmfoundry_mpt_fsdp.csv"):
        if "bf16" not in row["precision"]:
            continue  # fp8 is not in this cost model
        gpus, length = int(row["gpus"]), int(row["seq"])
        job = Job(model=mpt_shape(row["model"], length), steps=1, sequence_length=length)
        recipe = Recipe(
            layout=Layout(shard=gpus, reshard_after_forward=row["sharding"] == "FULL_SHARD"),
            batch=Batch(sequences=int(row["global_batch"]), micro_sequences=int(row["micro_batch"])),
            recompute="full" if row["activation_ckpt"] == "True" else "none",
            exchange=Exchange(dtype="bf16"),
        )
        held_out = not (row["gpu"].startswith("a100") and row["model"] in FITTED)
        rate = float(row["tokens_per_s_per_gpu"])
        cluster = cluster_of(f"{gpus}x{chips[row['gpu']]}")
        found.append(score(job, cluster, recipe, rate, id=row["id"], group=row["gpu"], held_out=held_out))
    return found


def torchtitan(folder: Path) -> list[Score]:
    """Llama 3.1 8B under FSDP2, eager and compiled. Its selective recomputation lies between our none and full."""
    h100 = cluster_of("8xh100")
    # That cluster's H100 is a 500 W part with 96 GB of HBM2e.
    chip = h100.accelerator
    slower = chip.memory_bandwidth.model_copy(update={"value": 2.4e12})
    larger = chip.memory.model_copy(update={"value": 95.0 * GIB})
    h100 = h100.model_copy(
        update={"accelerator": chip.model_copy(update={"memory_bandwidth": slower, "memory": larger})}
    )
    shape = build(ModelShape, lookup.model("llama-3.1-8b"), "")
    found = []
    for row in rows_of(folder / "d1_torchtitan.csv"):
        if row["id"] not in ("tt_t1_0", "tt_t1_1"):
            continue  # the only rows of one-dimensional FSDP in bf16 whose hardware and recomputation are named
        job = Job(model=shape, steps=1, sequence_length=int(row["seq"]))
        for recompute in ("none", "full"):
            recipe = Recipe(
                layout=Layout(shard=8),
                batch=Batch(sequences=int(row["global_batch"]), micro_sequences=int(row["local_batch"])),
                recompute=recompute,
                compile="compile" in row["technique"],
                exchange=Exchange(dtype="fp32"),
            )
            named = {"id": f"{row['id']} ({row['technique']}) if {recompute}", "group": "torchtitan", "held_out": True}
            size = float(row["peak_mem_GiB"]) * GIB
            found.append(score(job, h100, recipe, float(row["tokens_per_s_per_gpu"]), measured_bytes=size, **named))
    return found


def errors(scores: list[Score]) -> tuple[float, float, float]:
    """Median and 95th percentile of |predicted / measured - 1|, and the median signed error."""
    signed = [s.predicted_seconds / s.measured_seconds - 1 for s in scores]
    return *_spread(signed), statistics.median(signed)


def null_errors(scores: list[Score]) -> tuple[float, float]:
    """The same for one constant MFU."""
    constant = statistics.median(s.mfu for s in scores)
    return _spread([s.mfu / constant - 1 for s in scores])


def _spread(signed: list[float]) -> tuple[float, float]:
    size = sorted(map(abs, signed))
    return statistics.median(size), size[min(len(size) - 1, round(0.95 * (len(size) - 1)))]


def main(arguments: list[str]) -> int:
    target = Path("benchmarks/results/score_planner.json")
    if "--json" in arguments:
        target = Path(arguments.pop(arguments.index("--json") + 1))
        arguments.remove("--json")
    if len(arguments) != 1:
        print(__doc__, file=sys.stderr)
        return 2
    folder = Path(arguments[0])
    missing = [n for n in ("d1_torchtitan.csv", "d3_llmfoundry_mpt_fsdp.csv") if not (folder / n).is_file()]
    if missing:
        print(f"NOT SCORED: {folder} lacks {' and '.join(missing)}", file=sys.stderr)
        return 2
    rows = foundry(folder)
    subsets = {
        "all": rows,
        "fitted sizes on A100": [s for s in rows if not s.held_out],
        "held out": [s for s in rows if s.held_out],
        **{gpu: [s for s in rows if s.group == gpu] for gpu in sorted({s.group for s in rows})},
    }
    table = []
    print("MPT under FSDP, bf16: time of a step, |predicted / measured - 1|\n")
    print(f"{'rows':24}{'n':>5}{'median':>9}{'95th':>8}{'bias':>8}   null: {'median':>7}{'95th':>8}")
    for name, subset in subsets.items():
        middle, tail, bias = errors(subset)
        null_middle, null_tail = null_errors(subset)
        table.append({
            "rows": name, "n": len(subset), "median_error": middle, "p95_error": tail, "bias": bias,
            "null_median_error": null_middle, "null_p95_error": null_tail,
        })  # fmt: skip
        print(f"{name:24}{len(subset):5}{middle:9.1%}{tail:8.1%}{bias:+8.1%}   {null_middle:13.1%}{null_tail:8.1%}")
    titan = torchtitan(folder)
    print("\nLlama 3.1 8B, torchtitan, selective recomputation: predicted / measured (none and full enclose it)\n")
    for s in titan:
        time_ratio = s.predicted_seconds / s.measured_seconds
        memory_ratio = (s.predicted_bytes or 0) / (s.measured_bytes or 1)
        reserved = f"{(s.measured_bytes or 0) / GIB:.0f} GiB reserved"
        print(f"{s.id:44} time {time_ratio:5.2f}   memory {memory_ratio:5.2f} of {reserved}")
    everything = [vars(s) | {"ratio": s.predicted_seconds / s.measured_seconds} for s in rows + titan]
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps({"time": table, "rows": everything}, indent=1) + "\n")
    print(f"\nwritten: {target}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
