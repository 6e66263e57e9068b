"""Readers of the public tables that the planner is scored on (a1, a2, b, c1, c2, d1 to d7): a row becomes a case.

What a row does not say and every row of its table shares (vocabulary, recomputation, adapters of the machine) stands
here, with where it is from. A row that lacks an input is named with the reason, never dropped silently.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from thrifty.spec.cluster import Cluster
from thrifty.spec.errors import ThriftyError
from thrifty.spec.job import Experts, Job, LatentAttention, ModelShape
from truth import GIB, Case, Skipped, case, cluster_of, gpt, gpt_flops, named, rows_of, whole, with_chip

# ---- Megatron-LM on A100 (Narayanan et al. 2021; Korthikanti et al. 2022; Smith et al. 2022)

SELENE_NODE = 8 * 25e9  # eight HDR adapters of 200 Gbit/s


def megatron_2021(row: dict[str, str]) -> Case:
    """a1: weak scaling, everything recomputed; FLOPs counted with the recomputed pass."""
    length, gpus = int(row["seq"]), int(row["gpus"])
    shape = gpt(int(row["layers"]), int(row["hidden"]), int(row["heads"]), length, int(row["vocab"]))
    sequences = int(row["global_batch"])
    seconds = gpt_flops(shape, sequences, length, 4) / (float(row["achieved_tflops_per_gpu"]) * 1e12 * gpus)
    pipeline, chunk = int(row["pp"]), whole(row["vpp_layers_per_chunk"], 0)
    interleave = shape.layers // pipeline // chunk if chunk else 1
    layout = megatron_layout(row, interleave=interleave, schedule="interleaved" if interleave > 1 else "1f1b")
    return case(
        row["params_B"], "A100", row["params_B"], Job(model=shape, steps=1, sequence_length=length),
        cluster_of(f"{gpus}xa100", SELENE_NODE), seconds, (sequences, int(row["micro_batch"])), "megatron", layout,
        recompute="full",
    )  # fmt: skip


def megatron_layout(row: dict[str, str], **rest: Any) -> dict[str, Any]:
    """Replicas inside the fast network; tensor parallelism without sequence parallelism unless told."""
    plain = {"shard": int(row["dp"]), "zero": 0, "tensor": int(row["tp"]), "pipeline": int(row["pp"])}
    return plain | {"sequence_parallel": False} | rest


def zero3_or_ptd(row: dict[str, str]) -> Case:
    """a2: ZeRO-3 (DeepSpeed) against tensor and pipeline parallelism on the same machines."""
    length, gpus = int(row["seq"]), int(row["gpus"])
    shape = gpt(int(row["layers"]), int(row["hidden"]), int(row["heads"]), length, int(row["vocab"]))
    sequences, micro = int(row["global_batch"]), int(row["micro_batch"])
    seconds = gpt_flops(shape, sequences, length, 4) / (float(row["achieved_tflops_per_gpu"]) * 1e12 * gpus)
    sharded = row["scheme"] == "zero3"
    layout = {"shard": gpus, "zero": 3} if sharded else megatron_layout(row)
    return case(
        row["params_B"], "A100", f"{row['params_B']}-{gpus}", Job(model=shape, steps=1, sequence_length=length),
        cluster_of(f"{gpus}xa100", SELENE_NODE), seconds, (sequences, micro),
        "deepspeed" if sharded else "megatron", layout, recompute="full",
    )  # fmt: skip


def korthikanti(row: dict[str, str]) -> Case | str:
    """b: iteration times of sequence parallelism with selective recomputation, against full recomputation."""
    if row["metric"] != "iter_time_s":
        return "not a time: a value of the paper's own formula"
    length, gpus = int(row["seq"]), int(row["gpus"])
    shape = gpt(int(row["layers"]), int(row["hidden"]), int(row["heads"]), length, int(row["vocab"]))
    pipeline, interleave = int(row["pp"]), whole(row["vp"])
    selective = "selective" in row["technique"]
    layout = {
        "tensor": int(row["tp"]), "pipeline": pipeline, "interleave": interleave, "zero": 0,
        "schedule": "interleaved" if interleave > 1 else "1f1b", "sequence_parallel": selective,
    }  # fmt: skip
    return case(
        row["model"], "A100", row["model"], Job(model=shape, steps=1, sequence_length=length),
        cluster_of(f"{gpus}xa100", SELENE_NODE), float(row["value"]),
        (int(row["global_batch"]), int(row["micro_batch"])), "megatron", layout,
        recompute="selective" if selective else "full",
    )  # fmt: skip


def mt_nlg(row: dict[str, str]) -> Case:
    """d7: 530B by Megatron-DeepSpeed on Selene, everything recomputed, microbatch 1."""
    length, gpus = int(row["seq"]), int(row["gpus"])
    shape = gpt(int(row["layers"]), int(row["hidden"]), int(row["heads"]), length)
    return case(
        row["params_B"], "A100", row["params_B"], Job(model=shape, steps=1, sequence_length=length),
        cluster_of(f"{gpus}xa100", SELENE_NODE), float(row["iter_s"]), (int(row["global_batch"]), 1), "deepspeed",
        megatron_layout(row), recompute="full",
    )  # fmt: skip


# ---- Megatron-DeepSpeed on A100 (vTrain)


def vtrain(row: dict[str, str], recompute: str, node_bytes_per_s: float) -> Case:
    length, gpus = int(row["seq"]), int(row["gpus"])
    shape = gpt(int(row["layers"]), int(row["hidden"]), int(row["heads"]), length)
    sequences = int(row["global_batch"])
    return case(
        f"{shape.layers}x{shape.hidden}", "A100", f"{shape.layers}x{shape.hidden}-{gpus}-{sequences}",
        Job(model=shape, steps=1, sequence_length=length), cluster_of(f"{gpus}xa100", node_bytes_per_s),
        float(row["iter_ms"]) / 1e3, (sequences, int(row["micro_batch"])), "deepspeed", megatron_layout(row),
        recompute=recompute,
    )  # fmt: skip


def vtrain_many(row: dict[str, str]) -> Case:
    """d4: 64 to 512 A100, four HDR adapters a node, full activation checkpointing."""
    return vtrain(row, "full", 4 * 25e9)


def vtrain_one(row: dict[str, str]) -> Case:
    """d5: one node of the same software. That all is recomputed is inferred: only so do d4's constants fit both."""
    return vtrain(row, "full", 4 * 25e9)


# ---- Megatron-Core on Hopper and Blackwell


def megatron_core(row: dict[str, str]) -> Case | str:
    """c1: weak scaling on H100, all overlaps on, distributed optimizer.

    Neither microbatch nor interleaving is said. Taken: 2 sequences where there is no pipeline, else 1, and as many
    chunks a stage as divide its layers, up to 6.
    """
    if not row["pp"] or not row["dp"]:
        return "lacks pp, dp and layout"
    length, gpus = int(row["seq"]), int(row["gpus"])
    shape = gpt(int(row["layers"]), int(row["hidden"]), int(row["heads"]), length, int(row["vocab"]))
    shape = shape.model_copy(update={"tied_embeddings": False})
    sequences = int(row["global_batch"])
    seconds = gpt_flops(shape, sequences, length) / (float(row["model_tflops_per_gpu"]) * 1e12 * gpus)
    pipeline, tensor = int(row["pp"]), int(row["tp"])
    each = shape.layers // pipeline
    interleave = max(v for v in range(1, 7) if each % v == 0) if pipeline > 1 else 1
    layout = megatron_layout(
        row, zero=1, sequence_parallel=tensor > 1, tensor_overlap=tensor > 1, interleave=interleave,
        schedule="interleaved" if interleave > 1 else "1f1b",
    )  # fmt: skip
    return case(
        row["model"], "H100", row["model"], Job(model=shape, steps=1, sequence_length=length),
        cluster_of(f"{gpus}xh100", 8 * 50e9), seconds, (sequences, 1 if pipeline > 1 else 2), "megatron", layout,
        exchange="fp32", recompute="none",
    )  # fmt: skip


BRIDGE = {
    "LLAMA3_8B": "llama-3-8b", "LLAMA3_70B": "llama-3-70b", "LLAMA3.1_405B": "llama-3.1-405b",
    "Qwen3_30B_a3B": "qwen3-30b-a3b", "Qwen3_235B_a22B": "qwen3-235b-a22b", "DeepSeekV3": "deepseek-v3",
}  # fmt: skip
BRIDGE_PRECISION = {
    "BF16": ("bf16", "tensor"), "FP8": ("fp8", "tensor"), "FP8-CS": ("fp8", "tensor"), "FP8-MX": ("fp8", "block"),
    "MXFP8": ("fp8", "block"), "NVFP4": ("nvfp4", "block"),
}  # fmt: skip


def bridge(row: dict[str, str]) -> Case | str:
    """c2: Megatron-Bridge's published pre-training throughput; mixtures of experts are a table of their own.

    The same recipe of one of them took 29 and 51 s in two releases: no constant is fitted to them.
    """
    if not row["section"].startswith("Pre-Training"):
        return "fine-tuning or LoRA, which is no recipe of this planner"
    model = row["model"].split(" ")[0]
    if model not in BRIDGE:
        return f"{row['model']}: shape or routing is not in this benchmark"
    length, gpus = int(row["seq"]), int(row["gpus"])
    tp, pp, cp, vp = (whole(row[key]) for key in ("tp", "pp", "cp", "vp"))
    sequences, micro = int(row["gbs"]), int(row["mbs"])
    precision, scaling = BRIDGE_PRECISION[row["precision"]]
    data = gpus // (tp * pp * cp)
    if data * tp * pp * cp != gpus:
        return "its axes do not make its GPUs"
    fsdp = bool(whole(row["fsdp"], 0))
    layout = {
        "shard": data, "zero": 3 if fsdp else 1, "tensor": tp, "pipeline": pp, "context": cp, "interleave": vp,
        "schedule": "interleaved" if vp > 1 and pp > 1 else "1f1b", "sequence_parallel": tp > 1,
        "tensor_overlap": tp > 1, "expert": whole(row["ep"]),
    }  # fmt: skip
    if pp == 1:
        layout["interleave"] = 1
    chip = row["system"].removeprefix("DGX-").lower()
    seconds = sequences * length / (float(row["tokens_per_s_per_gpu"]) * gpus)
    found = case(
        model, chip.upper(), f"{model}-{gpus}-{precision}",
        Job(model=named(BRIDGE[model]), steps=1, sequence_length=length), cluster_of(f"{gpus}x{chip}"), seconds,
        (sequences, micro), "megatron", layout, precision=precision, scaling=scaling, exchange="bf16",
    )  # fmt: skip
    return replace(found, table="" if found.job.model.experts is None else "-moe")


def _deepseek(
    layers: int, dense: int, hidden: int, heads: int, ffn: int, vocab: int, mix: dict[str, int]
) -> ModelShape:
    return ModelShape(
        layers=layers, hidden=hidden, heads=heads, kv_heads=heads, head_dim=192, ffn=ffn, vocab_size=vocab,
        max_positions=163840, experts=Experts(dense_layers=dense, imbalance=1.0, **mix),
        latent=LatentAttention(q_rank=1536, kv_rank=512, nope_dim=128, rope_dim=64, value_dim=128),
    )  # fmt: skip


def simumax_shape(model: str, layers: int) -> ModelShape:
    """Shapes of the SimuMax runs, cut to a few layers; of DeepSeek's, no layer is dense there."""
    if model == "deepseekv2":
        mix = {"count": 160, "active": 6, "ffn": 1536, "shared": 2}
        return _deepseek(layers, 0, 5120, 128, 12288, 102400, mix)
    if model == "deepseekv3":
        mix = {"count": 256, "active": 8, "ffn": 2048, "shared": 1}
        return _deepseek(layers, 0, 7168, 128, 18432, 129280, mix)
    return named(
        {"llama3_8b": "llama-3-8b", "llama3_70b": "llama-3-70b", "llama3_405b": "llama-3.1-405b"}[model], layers
    )


def simumax(row: dict[str, str]) -> Case:
    """d2: eight B200 in one node, Megatron-LM 0.14 with Transformer Engine, distributed optimizer."""
    length, gpus = int(row["seq"]), int(row["gpus"])
    shape = simumax_shape(row["model"], int(row["layers"])).model_copy(update={"max_positions": max(length, 8192)})
    layout = {
        "shard": int(row["dp"]), "zero": 1, "tensor": int(row["tp"]), "pipeline": int(row["pp"]),
        "context": int(row["cp"]), "expert": int(row["ep"]), "sequence_parallel": int(row["tp"]) > 1,
    }  # fmt: skip
    sequences = int(row["micro_batch"]) * int(row["num_microbatches"]) * int(row["dp"])
    return case(
        row["model"], "B200", f"{row['model']}-{row['num_microbatches']}-{length}",
        Job(model=shape, steps=1, sequence_length=length), cluster_of(f"{gpus}xb200"), float(row["iter_ms"]) / 1e3,
        (sequences, int(row["micro_batch"])), "megatron", layout, float(row["peak_alloc_GiB"]) * GIB, exchange="fp32",
    )  # fmt: skip


# ---- PyTorch FSDP: MosaicML llm-foundry, torchtitan

# MPT: (layers, width, heads), from llm-foundry scripts/train/yamls/pretrain; GPT-2 like, no biases, tied.
MPT = {
    "125m": (12, 768, 12), "350m": (24, 1024, 16), "760m": (24, 1536, 12), "1b": (24, 2048, 16), "3b": (32, 2560, 20),
    "7b": (32, 4096, 32), "13b": (40, 5120, 40), "30b": (48, 7168, 56), "70b": (80, 8192, 64),
}  # fmt: skip


def foundry(row: dict[str, str]) -> Case | str:
    """d3: MosaicML's MPT runs: FSDP on A100 and H100, 125M to 70B, sequences of 512 to 65,536."""
    chips = {"h100_80gb": "h100", "a100_80gb": "a100-80gb", "a100_40gb": "a100-40gb"}
    gpus, length = int(row["gpus"]), int(row["seq"])
    layers, hidden, heads = MPT[row["model"]]
    shape = gpt(layers, hidden, heads, length, 50368).model_copy(update={"bias": "none"})
    layout = {"shard": gpus, "reshard_after_forward": row["sharding"] == "FULL_SHARD"}
    seconds = int(row["global_batch"]) * length / (float(row["tokens_per_s_per_gpu"]) * gpus)
    return case(
        row["model"], row["gpu"].partition("_")[0].upper(), f"{row['model']}-{row['gpu']}-{gpus}-{length}",
        Job(model=shape, steps=1, sequence_length=length), cluster_of(f"{gpus}x{chips[row['gpu']]}"), seconds,
        (int(row["global_batch"]), int(row["micro_batch"])), "accelerate", layout,
        recompute="full" if row["activation_ckpt"] == "True" else "none",
        precision="fp8" if "fp8" in row["precision"] else "bf16",
    )  # fmt: skip


TITAN = {
    "Llama3.1-8B": "llama-3.1-8b", "Llama3.1-70B": "llama-3.1-70b", "Llama3.1-405B": "llama-3.1-405b",
    "Llama3-8B": "llama-3-8b", "Qwen3-8B": "qwen3-8b",
}  # fmt: skip


def titan_cluster(hardware: str, gpus: int) -> Cluster:
    """The machines of torchtitan's tables; the H100 there is a 500 W part with 96 GB of HBM2e at 2.4 TB/s."""
    if "HBM2e" in hardware:
        return with_chip(cluster_of(f"{gpus}xh100"), memory_bandwidth=2.4e12, memory=95.0 * GIB, tdp_watts=500.0)
    if hardware.startswith("H200"):
        return cluster_of(f"{gpus}xh200")
    if "SM100" in hardware:
        return with_chip(cluster_of(f"{gpus}xb200"), memory=184.0 * GIB)
    return cluster_of(f"{gpus}x{hardware.split()[0].lower()}")


def torchtitan(row: dict[str, str]) -> Case | str:
    """d1: tokens/s and peak memory of Llama 3.1 under one to four dimensions, bf16 and float8."""
    gpus, length, local = int(row["gpus"]), int(row["seq"]), int(row["local_batch"])
    axes = {name: int(size) for name, size in re.findall(r"(fsdp|tp|pp|cp|dp|ddp|hsdp)(\d+)", row["parallelism"])}
    technique = row["technique"]
    tensor, pipeline, context = axes.get("tp", 1), axes.get("pp", 1), axes.get("cp", 1)
    shard = axes.get("fsdp", 1)
    layout = {
        "shard": shard, "tensor": tensor, "pipeline": pipeline, "context": context,
        "tensor_overlap": "asyncTP" in technique,
    }  # fmt: skip
    if "interleaved" in technique.lower():
        layout |= {"schedule": "interleaved", "interleave": 2}
    if shard * tensor * pipeline * context * axes.get("dp", 1) != gpus:
        return f"{row['parallelism']} does not make {gpus} GPUs"
    low = "float8" in technique or "FP8" in technique
    precision = "nvfp4" if "NVFP4" in technique else "fp8" if low else "bf16"
    scaling = "row" if "rowwise" in technique else "block" if "MX" in technique or precision == "nvfp4" else "tensor"
    kind = row["activation_ckpt"]
    recompute = "full" if kind == "full" else "selective" if kind.startswith("selective") else "none"
    sequences = whole(row["global_batch"], local * shard)
    micro = max(1, local // pipeline) if pipeline > 1 else local
    seconds = sequences * length / (float(row["tokens_per_s_per_gpu"]) * gpus)
    peak = float(row["peak_mem_GiB"]) * GIB if row["peak_mem_GiB"] else None
    model = TITAN[row["model"]]
    return case(
        row["model"], row["hw"].split()[0], f"{row['model']}-{gpus}-{length}",
        Job(model=named(model).model_copy(update={"max_positions": 131072}), steps=1, sequence_length=length),
        titan_cluster(row["hw"], gpus), seconds, (sequences, micro), "torchtitan", layout, peak, recompute=recompute,
        precision=precision, scaling=scaling, compile="compile" in technique, exchange="fp32",
    )  # fmt: skip


# ---- nanotron on H100 (Ultra-Scale Playbook): Llama-like, full attention heads, vocabulary of 131,072, 4,096 tokens

# (layers, hidden, heads, ffn, tied embeddings): the parameters in the table follow from these to three digits.
NANOTRON = {
    "1.34": (16, 2048, 32, 8192, True), "3.57": (28, 3072, 24, 8192, True), "8.86": (32, 4096, 32, 14336, False),
    "80.0": (80, 8192, 64, 28672, False),
}  # fmt: skip


def nanotron(row: dict[str, str]) -> Case | str:
    """d6: the best layout of each size and number of nodes; MFU counts attention whole, against 989 TFLOP/s."""
    billions = float(row["params_B"])
    key = min(NANOTRON, key=lambda name: abs(float(name) / billions - 1))
    if abs(float(key) / billions - 1) > 0.02:
        return f"no shape is known for {row['params_B']}B"
    layers, hidden, heads, ffn, tied = NANOTRON[key]
    shape = ModelShape(
        name=f"nanotron-{key}b", layers=layers, hidden=hidden, heads=heads, kv_heads=heads, ffn=ffn,
        head_dim=hidden // heads, vocab_size=131072, max_positions=4096, tied_embeddings=tied,
    )  # fmt: skip
    length, gpus, sequences = 4096, int(row["gpus"]), int(row["global_batch_seq"])
    blocks = layers * (4 * hidden * hidden + 3 * hidden * ffn + 2 * length * hidden)
    flops = 6 * sequences * length * (blocks + hidden * shape.vocab_size)
    layout = {
        "shard": int(row["dp"]), "zero": int(row["zero"]), "tensor": int(row["tp"]), "pipeline": int(row["pp"]),
        "sequence_parallel": int(row["tp"]) > 1,
    }  # fmt: skip
    return case(
        key, "H100", f"{key}-{gpus}", Job(model=shape, steps=1, sequence_length=length),
        cluster_of(f"{gpus}xh100"), flops / (float(row["mfu_pct"]) / 100 * 989e12 * gpus),
        (sequences, int(row["micro_batch"])), "nanotron", layout, float(row["peak_mem_GB"]) * 1e9, exchange="fp32",
    )  # fmt: skip


READERS: dict[str, Callable[[dict[str, str]], Case | str]] = {
    "a1_megatron_sc21_weak_scaling.csv": megatron_2021,
    "a2_megatron_sc21_zero3_vs_ptd.csv": zero3_or_ptd,
    "b_korthikanti_memory_time.csv": korthikanti,
    "c1_megatron_h100_scaling.csv": megatron_core,
    "c2_megatron_bridge_perf.csv": bridge,
    "d1_torchtitan.csv": torchtitan,
    "d2_simumax_b200_time_memory.csv": simumax,
    "d3_llmfoundry_mpt_fsdp.csv": foundry,
    "d4_vtrain_multinode.csv": vtrain_many,
    "d5_vtrain_singlenode_sample.csv": vtrain_one,
    "d6_nanotron_best_configs.csv": nanotron,
    "d7_mtnlg_530b.csv": mt_nlg,
}


Reading = tuple[list[Case], list[Skipped]]


def read(folder: Path) -> Reading:
    """All cases of the tables that are in the folder, and what was skipped."""
    cases: list[Case] = []
    skipped: list[Skipped] = []
    for name, reader in READERS.items():
        path = folder / name
        if not path.is_file():
            skipped.append(Skipped(name.partition("_")[0], "all rows", f"{name} is not in the folder"))
            continue
        for row in rows_of(path):
            table = name.partition("_")[0]
            try:
                found = reader(row)
            except (ThriftyError, ValueError, KeyError, ZeroDivisionError) as error:
                skipped.append(Skipped(table, row.get("id", "?"), f"lacks an input: {error}".splitlines()[0]))
                continue
            if isinstance(found, str):
                skipped.append(Skipped(table, row["id"], found))
            else:
                cases.append(replace(found, table=table + found.table, id=row["id"]))
    return cases, skipped
