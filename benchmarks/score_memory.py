"""Scores predicted peak memory against public measurements.

    python benchmarks/score_memory.py FOLDER

FOLDER holds `d1_torchtitan.csv` (reserved by the allocator), `d2_simumax_b200_time_memory.csv` (allocated, Megatron-LM)
and `d6_nanotron_best_configs.csv` (of rank 0, whose stage is the first). Constants are those of
`thrifty/cost/memory_constants.py`; printed beside are errors when each model size is predicted with constants fitted
to the others, and a null: states of the formula sheet, 34 s b h L of activations, and fp32 logits.
"""

from __future__ import annotations

import re
import statistics
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from thrifty.catalog import lookup
from thrifty.cost.habits import HABITS, Habits
from thrifty.cost.memory import Memory, by_stage, interval
from thrifty.cost.params import total_parameters
from thrifty.spec.cluster import Cluster
from thrifty.spec.job import Job, ModelShape
from thrifty.spec.load import build
from thrifty.spec.recipe import Batch, Layout, Recipe
from truth import GIB, cluster_of, rows_of

Row = dict[str, str]


@dataclass(frozen=True)
class Measured:
    """One row of a table: what was run, and the bytes it took.

    Attributes:
        habits: name of the software's release in `thrifty.cost.habits.HABITS`.
        reserved: whether the allocator's reservation was measured, or what was allocated.
        stage: whose memory it is; none = the fullest's.
    """

    table: str
    id: str
    group: str
    job: Job
    recipe: Recipe
    cluster: Cluster
    measured_bytes: float
    habits: str
    reserved: bool
    stage: int | None = None


def llama(name: str, **changes: object) -> ModelShape:
    shape = build(ModelShape, lookup.model(name), "")
    return ModelShape(**(shape.model_dump() | {"source": shape.source} | changes))


# SimuMax configs/models (2026-05): its 405B has 16 key/value heads; DeepSeek runs have one dense layer and, by a
# capacity factor of 1, perfectly even experts (simu_tools/megatron_scripts/scripts/run_pretrain_deepseekv2.sh).
_LATENT = {"q_rank": 1536, "kv_rank": 512, "nope_dim": 128, "rope_dim": 64, "value_dim": 128}
_DEEPSEEK = {"heads": 128, "head_dim": 128, "latent": _LATENT, "max_positions": 163840}
_SIMUMAX = {
    "llama3_8b": {"hidden": 4096, "heads": 32, "kv_heads": 8, "head_dim": 128, "ffn": 14336, "vocab_size": 128256},
    "llama3_70b": {"hidden": 8192, "heads": 64, "kv_heads": 8, "head_dim": 128, "ffn": 28672, "vocab_size": 128256},
    "llama3_405b": {"hidden": 16384, "heads": 128, "kv_heads": 16, "head_dim": 128, "ffn": 53248, "vocab_size": 128256},
    "deepseekv2": {
        "hidden": 5120, "ffn": 12288, "vocab_size": 102400, **_DEEPSEEK,
        "experts": {"count": 160, "active": 6, "ffn": 1536, "shared": 2, "dense_layers": 1, "imbalance": 1.0},
    },
    "deepseekv3": {
        "hidden": 7168, "ffn": 18432, "vocab_size": 129280, **_DEEPSEEK,
        "experts": {"count": 256, "active": 8, "ffn": 2048, "shared": 1, "dense_layers": 1, "imbalance": 1.0},
    },
}  # fmt: skip
# nanotron scripts/scaling_benchmarks.py: layers, width, heads, inner width; multi-head attention, 131,072 words, the
# embedding tied where the inner width is under 10,000. These give the table's numbers of parameters.
_NANOTRON = {
    "1.34": (16, 2048, 32, 8192), "3.57": (28, 3072, 32, 8192), "8.86": (32, 4096, 32, 14336),
    "80": (80, 8192, 64, 28672),
}  # fmt: skip


def torchtitan(folder: Path) -> Iterator[Measured | str]:
    """Llama and Qwen under FSDP2, tensor, pipeline and context parallelism."""
    names = {"Llama3.1-8B": "llama-3.1-8b", "Llama3.1-70B": "llama-3.1-70b", "Llama3.1-405B": "llama-3.1-405b",
             "Llama3-8B": "llama-3-8b", "Qwen3-8B": "qwen3-8b"}  # fmt: skip
    for row in rows_of(folder / "d1_torchtitan.csv"):
        if not row["peak_mem_GiB"]:
            yield f"{row['id']}: no memory in the table"
            continue
        if row["model"] not in names:
            yield f"{row['id']}: shape of {row['model']} not known"
            continue
        size = {axis: int(number) for axis, number in re.findall(r"(fsdp|tp|pp|cp)(\d+)", row["parallelism"])}
        technique, stages = row["technique"].lower(), size.get("pp", 1)
        interleaved = "interleaved" in technique
        layout = Layout(
            shard=size.get("fsdp", 1), tensor=size.get("tp", 1), pipeline=stages, context=size.get("cp", 1),
            tensor_overlap="asynctp" in technique, schedule="interleaved" if interleaved else "1f1b",
            interleave=2 if interleaved else 1,
        )  # fmt: skip
        # One microbatch for each stage is the default.
        local, length = int(row["local_batch"]), int(row["seq"])
        recipe = Recipe(
            software="torchtitan",
            layout=layout,
            batch=Batch(sequences=local * layout.data_ranks, micro_sequences=local // stages),
            precision="nvfp4"
            if "nvfp4" in technique
            else "fp8"
            if "float8" in technique or "mxfp8" in technique
            else "bf16",
            # Where the table does not say, the default of the configuration: by operation.
            recompute="full" if row["activation_ckpt"] == "full" else "selective",
            compile="compile" in technique,
        )
        shape = llama(names[row["model"]], max_positions=max(length, 131072))
        yield Measured(
            "d1", row["id"], row["model"].split("-")[-1], Job(model=shape, steps=1, sequence_length=length), recipe,
            _titan_cluster(row), float(row["peak_mem_GiB"]) * GIB,
            "torchtitan-2024" if "202412" in row["source"] else "torchtitan", reserved=True,
        )  # fmt: skip


def _titan_cluster(row: Row) -> Cluster:
    """That table's H100 is a part with 96 GB of HBM2e; its Blackwell has 184 GiB."""
    sizes = {"H100 96GB": ("h100", 95.0), "H200": ("h200", None), "Blackwell": ("b200", 184.0)}
    chip, gibibytes = next(found for name, found in sizes.items() if row["hw"].startswith(name))
    cluster = cluster_of(f"{row['gpus']}x{chip}")
    if gibibytes is None:
        return cluster
    memory = cluster.accelerator.memory.model_copy(update={"value": gibibytes * GIB})
    return cluster.model_copy(update={"accelerator": cluster.accelerator.model_copy(update={"memory": memory})})


def simumax(folder: Path) -> Iterator[Measured | str]:
    """Megatron-LM 0.14 with its distributed optimizer on eight B200s."""
    for row in rows_of(folder / "d2_simumax_b200_time_memory.csv"):
        if row["model"] not in _SIMUMAX:
            yield f"{row['id']}: shape of {row['model']} not known"
            continue
        length, dp = int(row["seq"]), int(row["dp"])
        shape = ModelShape(
            **{"max_positions": length, "name": row["model"], "layers": int(row["layers"])} | _SIMUMAX[row["model"]]
        )
        layout = Layout(
            shard=dp, tensor=int(row["tp"]), pipeline=int(row["pp"]), context=int(row["cp"]), expert=int(row["ep"]),
            zero=1,
        )  # fmt: skip
        micro = int(row["micro_batch"])
        recipe = Recipe(
            software="megatron",
            layout=layout,
            batch=Batch(sequences=micro * dp * int(row["num_microbatches"]), micro_sequences=micro),
        )
        yield Measured(
            "d2", row["id"], row["model"], Job(model=shape, steps=1, sequence_length=length), recipe,
            cluster_of("8xb200"), float(row["peak_alloc_GiB"]) * GIB, "megatron", reserved=False,
        )  # fmt: skip


def nanotron(folder: Path) -> Iterator[Measured | str]:
    """nanotron's sweep; each row is written by rank 0, so it is the first stage's memory."""
    for row in rows_of(folder / "d6_nanotron_best_configs.csv"):
        size = row["params_B"].removesuffix(".0")
        if size not in _NANOTRON:
            yield f"{row['id']}: shape of {row['params_B']}B not known"
            continue
        layers, hidden, heads, ffn = _NANOTRON[size]
        shape = ModelShape(
            name=f"nanotron-{size}b", layers=layers, hidden=hidden, heads=heads, ffn=ffn, vocab_size=131072,
            max_positions=4096, tied_embeddings=ffn < 10000,
        )  # fmt: skip
        dp, micro, zero = int(row["dp"]), int(row["micro_batch"]), int(row["zero"])
        layout = Layout(
            island=1 if zero else dp, shard=dp if zero else 1, tensor=int(row["tp"]), pipeline=int(row["pp"]), zero=zero
        )
        batch = Batch(sequences=dp * micro * int(row["grad_accum"]), micro_sequences=micro)
        yield Measured(
            "d6", row["id"], f"{size}B", Job(model=shape, steps=1, sequence_length=4096),
            Recipe(software="nanotron", layout=layout, batch=batch), cluster_of(f"{row['gpus']}xh100"),
            float(row["peak_mem_GB"]) * GIB, "nanotron", reserved=True, stage=0,
        )  # fmt: skip


TABLES: dict[str, tuple[str, Callable[[Path], Iterator[Measured | str]]]] = {
    "d1": ("d1_torchtitan.csv", torchtitan),
    "d2": ("d2_simumax_b200_time_memory.csv", simumax),
    "d6": ("d6_nanotron_best_configs.csv", nanotron),
}


@cache
def measured_rows(folder: Path) -> tuple[list[Measured], list[str]]:
    """Every row that can be predicted, and the others with what they lack."""
    rows, skipped = list[Measured](), list[str]()
    for name, read in TABLES.values():
        if not (folder / name).is_file():
            skipped.append(f"NOT SCORED: {folder} lacks {name}")
            continue
        for row in read(folder):
            skipped.append(row) if isinstance(row, str) else rows.append(row)
    return rows, skipped


def used(row: Measured, habits: Habits | None = None) -> Memory:
    """What was predicted for the rank that was measured."""
    stages = by_stage(row.job, row.cluster, row.recipe, habits or HABITS[row.habits])
    return max(stages, key=lambda m: m.peak) if row.stage is None else stages[row.stage]


def predicted_bytes(row: Measured, habits: Habits | None = None) -> float:
    """As it was measured: in the allocator, so without the context of the device."""
    found = used(row, habits)
    return (found.reserved if row.reserved else found.peak) - row.cluster.accelerator.runtime_memory.value


def null_bytes(row: Measured) -> float:
    """The formula sheet: 16 to 18 bytes a parameter by kind of sharding, 34 s b h for a layer, fp32 logits."""
    shape, layout = row.job.model, row.recipe.layout
    split = layout.tensor * layout.pipeline
    each = (
        16 / (layout.shard * layout.context)
        if row.recipe.software == "torchtitan"
        else 6 + 12 / (layout.shard * layout.context)
    )
    tokens = row.recipe.batch.micro_sequences * row.job.sequence_length / layout.context
    a_layer = {"full": 2, "selective": 34, "none": 34}[row.recipe.recompute] * tokens * shape.hidden / layout.tensor
    flying = min(layout.pipeline, row.recipe.accumulation)
    return (
        each * total_parameters(shape) / split
        + a_layer * shape.layers / layout.pipeline * flying
        + (4 * tokens * shape.vocab_size / layout.tensor)
    )


def score(folder: Path) -> tuple[list[dict[str, object]], list[str]]:
    """Rows with table, id, group, measured_bytes, predicted_bytes, low, high and null_bytes; and what was skipped."""
    rows, skipped = measured_rows(folder)
    found = []
    for row in rows:
        predicted = predicted_bytes(row)
        below, above = interval(row.recipe.software)
        found.append({
            "table": row.table, "id": row.id, "group": row.group, "measured_bytes": row.measured_bytes,
            "predicted_bytes": predicted, "low": predicted * below, "high": predicted * above,
            "null_bytes": null_bytes(row),
        })  # fmt: skip
    return found, skipped


def main(arguments: list[str]) -> int:
    if len(arguments) != 1:
        print(__doc__, file=sys.stderr)
        return 2
    rows, skipped = score(Path(arguments[0]))
    for row in rows:
        ratio = row["predicted_bytes"] / row["measured_bytes"]
        inside = row["low"] <= row["measured_bytes"] <= row["high"]
        print(
            f"{row['table']} {row['id']:56} {row['measured_bytes'] / GIB:7.2f} {row['predicted_bytes'] / GIB:7.2f} GiB "
            f"{ratio - 1:+7.1%} {'' if inside else 'outside'}"
        )
    print(f"\n{'table':8}{'rows':>5}{'MAPE':>8}{'worst':>8}{'too low':>9}{'bias':>8}{'coverage':>10}{'null':>8}")
    for table in TABLES:
        some = [row for row in rows if row["table"] == table]
        if not some:
            continue
        signed = [row["predicted_bytes"] / row["measured_bytes"] - 1 for row in some]
        null = statistics.fmean(abs(row["null_bytes"] / row["measured_bytes"] - 1) for row in some)
        held = statistics.fmean(row["low"] <= row["measured_bytes"] <= row["high"] for row in some)
        print(
            f"{table:8}{len(some):5}{statistics.fmean(map(abs, signed)):8.2%}{max(map(abs, signed)):8.1%}"
            f"{min(signed):9.1%}{statistics.median(signed):+8.1%}{held:10.0%}{null:8.0%}"
        )
    for reason in skipped:
        print(f"skipped  {reason}")
    return 0 if rows else 2


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
