"""Megatron-LM: the options of pretrain_gpt.py.

Options and what combines are those of megatron/training/arguments.py as of Megatron core 0.15 (github.com/NVIDIA/
Megatron-LM), and the layer classes' own checks as of megatron-core 0.16.
"""

from __future__ import annotations

import math
import shlex

from thrifty.planner.emit.common import (
    Entry,
    Notes,
    from_environment,
    known_schedule,
    no_compressed_exchange,
    number,
    only_decoders,
    parts_of_layers,
    plain_updates_only,
    refuse,
    run_name,
    tokenizer_line,
)
from thrifty.planner.emit.megatron_model import model
from thrifty.spec.plan import Plan

SCHEDULES = {"cosine": "cosine", "wsd": "WSD", "linear": "linear", "constant": "constant"}
SHARDING = {2: "optim_grads", 3: "optim_grads_params"}  # of Megatron-FSDP
MOMENTS = {32: "fp32", 16: "bf16", 8: "fp8"}


def entry(plan: Plan) -> Entry:
    """`torchrun ... pretrain_gpt.py` with the plan as options.

    Raises:
        ThriftyError: Megatron-LM cannot express the plan.
    """
    only_decoders("Megatron-LM", plan)
    no_compressed_exchange("Megatron-LM", plan)
    plain_updates_only("Megatron-LM", plan)
    if plan.cluster.accelerator.kind != "gpu":
        refuse("Megatron-LM", "cluster.accelerator", "needs GPUs", "plan for GPUs: --on 8xh100")
    _require(plan)
    notes = Notes()
    options = [
        *model(plan.job.model, notes),
        *parallel(plan, notes),
        *precision(plan),
        *training(plan, notes),
        *storage(plan, notes),
    ]
    fsdp = {"--use-megatron-fsdp", "--use-torch-fsdp2"} & set(options)
    lines = [
        from_environment("MEGATRON", None, "the folder of a Megatron-LM checkout"),
        from_environment("DATA", None, "prefix of what tools/preprocess_data.py wrote"),
        tokenizer_line(plan, notes),
        f"RUN=${{RUN_DIR:-{shlex.quote('runs/' + run_name(plan))}}}",
        # One queue keeps communication of tensor and context parallelism ahead of what waits for it; FSDP needs more.
        f"export CUDA_DEVICE_MAX_CONNECTIONS={8 if fsdp else 1}",
    ]
    return Entry(
        software="megatron",
        files={},
        program=['"$MEGATRON"/pretrain_gpt.py', *options],
        setup="git clone https://github.com/NVIDIA/Megatron-LM; pip install megatron-core transformer-engine[pytorch]",
        lines=lines,
        notes=notes.lines,
    )


def _require(plan: Plan) -> None:
    shape, recipe = plan.job.model, plan.recipe
    if shape.latent is None and shape.kv_heads % recipe.layout.tensor:
        what = f"splits whole key/value heads: {shape.kv_heads} heads over tensor {recipe.layout.tensor}"
        refuse("Megatron-LM", "recipe.layout.tensor", what, f"plan with tensor: {shape.kv_heads} or a divisor of it")
    if shape.experts is not None and recipe.precision == "fp32":
        hint = "plan with precision: bf16"
        refuse("Megatron-LM", "recipe.precision", "multiplies grouped experts in 16 bits or less", hint)


def parallel(plan: Plan, notes: Notes) -> list[str]:
    """Layout: tensor, pipeline, context and expert axes, and what the data ranks shard."""
    layout = plan.recipe.layout
    options = [
        f"--tensor-model-parallel-size {layout.tensor}",
        f"--pipeline-model-parallel-size {layout.pipeline}",
        f"--context-parallel-size {layout.context}",
    ]
    if layout.context > 1 and plan.job.sequence_length % (2 * layout.context):
        what = (
            f"cuts sequences into 2 x context = {2 * layout.context} pieces; {plan.job.sequence_length} is no multiple"
        )
        refuse("Megatron-LM", "recipe.layout.context", what, "change sequence_length or context")
    if layout.tensor > 1:
        options += ["--sequence-parallel"] * layout.sequence_parallel
        if layout.tensor_overlap and not layout.sequence_parallel:
            hint = "plan with sequence_parallel: true, or tensor_overlap: false"
            refuse("Megatron-LM", "recipe.layout.tensor_overlap", "overlaps it only with sequence parallelism", hint)
        options += ["--tp-comm-overlap"] * layout.tensor_overlap
    if layout.expert > 1:
        # Experts are split by the tensor axis too, and their axis is taken from data and context ranks, as in the plan.
        options += [
            f"--expert-model-parallel-size {layout.expert}",
            f"--expert-tensor-parallel-size {layout.tensor}",
        ]
    return options + _pipeline(plan) + _data(plan, notes)


def _pipeline(plan: Plan) -> list[str]:
    layout = plan.recipe.layout
    if layout.pipeline == 1:
        return []
    if layout.schedule not in ("1f1b", "interleaved"):
        what = f"runs pipelines by 1f1b or interleaved, not {layout.schedule}"
        refuse("Megatron-LM", "recipe.layout.schedule", what, "plan with schedule: 1f1b, or emit it for torchtitan")
    parts = layout.pipeline * layout.interleave
    if plan.job.model.layers % parts == 0:
        return [f"--num-virtual-stages-per-pipeline-rank {layout.interleave}"] * (layout.interleave > 1)
    sizes = [len(part) for part in parts_of_layers(plan)]
    stages = "|".join(f"t*{size}" for size in sizes)
    return [f"--pipeline-model-parallel-layout {shlex.quote(f'E{stages}L')}"]


def _data(plan: Plan, notes: Notes) -> list[str]:
    """Replicas, the distributed optimizer (zero 1), or Megatron-FSDP (zero 2 and 3)."""
    layout = plan.recipe.layout
    options = ["--overlap-grad-reduce"] * (layout.data_ranks * layout.context > 1)
    if layout.shard == 1:
        return options
    if layout.zero == 3 and not layout.reshard_after_forward:
        return [*options, *_torch_fsdp(plan)]
    instances = [f"--num-distributed-optimizer-instances {layout.island}"] * (layout.island > 1)
    options += ["--use-distributed-optimizer", "--overlap-param-gather", *instances]
    if layout.context > 1:
        notes.say("recipe.layout.shard", "Megatron-LM shards over the context ranks too")
    if layout.zero == 1:
        return options
    if layout.pipeline > 1:
        hint = "plan with zero: 1, or pipeline: 1"
        refuse("Megatron-LM", "recipe.layout.zero", "combines pipelines with zero 1 only", hint)
    return [
        *options,
        "--use-megatron-fsdp",
        f"--data-parallel-sharding-strategy {SHARDING[layout.zero]}",
        "--ckpt-format fsdp_dtensor",
        "--no-gradient-accumulation-fusion",
    ]


def _torch_fsdp(plan: Plan) -> list[str]:
    """torch's FSDP2, which can keep gathered parameters until the backward pass; Megatron-FSDP cannot."""
    layout, shape = plan.recipe.layout, plan.job.model
    others = {"island": layout.island, "pipeline": layout.pipeline, "expert": layout.expert}
    also = next((f"{axis} {size}" for axis, size in others.items() if size > 1), "")
    also = also or ("tied embeddings" if shape.tied_embeddings else "")
    if also:
        what = f"keeps gathered parameters for the backward pass with torch's FSDP2 only, and that not with {also}"
        hint = "plan with reshard_after_forward: true, or zero: 1"
        refuse("Megatron-LM", "recipe.layout.reshard_after_forward", what, hint)
    return ["--use-torch-fsdp2", "--torch-fsdp2-no-reshard-after-forward", "--no-gradient-accumulation-fusion"]


def precision(plan: Plan) -> list[str]:
    """Compute and reduction types, and those of the optimizer's moments."""
    recipe = plan.recipe
    options = ["--bf16"] * (recipe.precision != "fp32")
    if recipe.precision == "fp8":
        if recipe.scaling == "row":
            what = "scales fp8 by tensor or by block, not by row"
            refuse(
                "Megatron-LM", "recipe.scaling", what, "plan with scaling: tensor or block, or emit it for torchtitan"
            )
        # Blackwell's matrix units take the scales of blocks of 32; Hopper's do not, and 128 x 128 are done in software.
        blackwell = {"fp4", "nvfp4"} & set(plan.cluster.accelerator.peak_flops)
        name = "tensorwise" if recipe.scaling == "tensor" else "mxfp8" if blackwell else "blockwise"
        options += ["--fp8-format hybrid", f"--fp8-recipe {name}"]
    elif recipe.precision == "nvfp4":
        options += ["--fp4-format e2m1", "--fp4-recipe nvfp4"]
    if recipe.precision == "fp32" and recipe.exchange.dtype != "fp32":
        hint = "plan again with --set recipe.exchange.dtype=fp32"
        refuse("Megatron-LM", "recipe.exchange.dtype", "reduces fp32 gradients in fp32", hint)
    if recipe.precision != "fp32":
        reduced = {"fp32": "--accumulate-allreduce-grads-in-fp32", "bf16": "--grad-reduce-in-bf16"}
        options.append(reduced[recipe.exchange.dtype])
    return options + _moments(plan)


def _moments(plan: Plan) -> list[str]:
    bits, layout = plan.recipe.optimizer.state_bits, plan.recipe.layout
    if bits == 32:
        return []
    if bits not in MOMENTS:
        hint = "plan with state_bits: 32, 16 or 8"
        refuse("Megatron-LM", "recipe.optimizer.state_bits", f"has no moments of {bits} bits", hint)
    if layout.shard == 1 or layout.zero != 1 or plan.recipe.precision == "fp32":
        what = f"keeps moments of {bits} bits in its distributed optimizer only"
        hint = "plan with shard: 2 or more, zero: 1 and precision: bf16, or state_bits: 32"
        refuse("Megatron-LM", "recipe.optimizer.state_bits", what, hint)
    name = MOMENTS[bits]
    return ["--use-precision-aware-optimizer", f"--exp-avg-dtype {name}", f"--exp-avg-sq-dtype {name}"]


def training(plan: Plan, notes: Notes) -> list[str]:
    """Batch, steps, sequence, optimizer, schedule, recomputation and seed."""
    recipe, job, steps = plan.recipe, plan.job, plan.total_steps
    optimizer, schedule = recipe.optimizer, recipe.schedule
    options = {
        "micro-batch-size": recipe.batch.micro_sequences,
        "global-batch-size": recipe.batch.sequences,
        "seq-length": job.sequence_length,
        "train-iters": steps,
        "optimizer": "adam",
        "lr": number(optimizer.lr),
        "min-lr": number(optimizer.lr * schedule.final_ratio if schedule.name != "constant" else 0.0),
        "lr-decay-style": SCHEDULES[known_schedule("Megatron-LM", plan, SCHEDULES)],
        "lr-decay-iters": steps,
        "lr-warmup-iters": schedule.warmup_steps,
        "adam-beta1": number(optimizer.beta1),
        "adam-beta2": number(optimizer.beta2),
        "adam-eps": number(optimizer.eps),
        "weight-decay": number(optimizer.weight_decay),
        "clip-grad": number(optimizer.clip_norm),
        "attention-dropout": "0.0",
        "hidden-dropout": "0.0",
        "seed": job.seed % 2**31,
    }
    if job.seed >= 2**31:
        notes.say("job.seed", f"taken modulo 2^31: {job.seed % 2**31}")
    words = [f"--{key} {value}" for key, value in options.items()]
    if schedule.name == "wsd":
        decay = max(1, round(schedule.decay_fraction * steps))
        words += ["--lr-wsd-decay-style linear", f"--lr-wsd-decay-iters {decay}"]
    if recipe.recompute == "full":
        words += ["--recompute-granularity full", "--recompute-method uniform", "--recompute-num-layers 1"]
    elif recipe.recompute == "selective":
        words += ["--recompute-granularity selective", "--recompute-modules core_attn"]
    if recipe.compile:
        notes.say("recipe.compile", "Megatron-LM has fused kernels of its own and no torch.compile of blocks")
    if job.target_loss is not None:
        notes.say("job.target_loss", f"Megatron-LM does not stop at loss {job.target_loss:g}; it runs all the steps")
    return words


def storage(plan: Plan, notes: Notes) -> list[str]:
    """Data, tokenizer, evaluation and checkpoints."""
    job, recipe, steps = plan.job, plan.recipe, plan.total_steps
    checkpoint, evaluation = recipe.checkpoint, recipe.evaluation
    share = job.data.validation_fraction
    notes.say("job.data.path", f"prepare {job.data.path} with tools/preprocess_data.py --append-eod, and set DATA")
    notes.say("recipe.checkpoint.keep", f"Megatron-LM keeps all; the plan keeps {checkpoint.keep}")
    if job.data.packing == "documents":
        notes.say("job.data.packing", "Megatron-LM joins documents; attention stays within each, samples do not")
    fsdp = recipe.layout.zero > 1 and recipe.layout.shard > 1
    if checkpoint.asynchronous and fsdp:
        notes.say("recipe.checkpoint.asynchronous", "Megatron-FSDP writes checkpoints while training waits")
    options = [
        '--data-path "$DATA"',
        f"--split {number(100 * (1 - share))},{number(100 * share)},0",
        "--tokenizer-type HuggingFaceTokenizer",
        '--tokenizer-model "$TOKENIZER"',
        f"--eval-interval {evaluation.every_steps or steps}",
        f"--eval-iters {math.ceil(evaluation.sequences / recipe.batch.sequences)}",
        '--save "$RUN/checkpoints"',
        '--load "$RUN/checkpoints"',
        f"--save-interval {checkpoint.every_steps or steps}",
        '--tensorboard-dir "$RUN/tensorboard"',
        "--log-interval 1",
        "--log-throughput",
        "--exit-signal-handler",
    ]
    options += ["--async-save"] * (checkpoint.asynchronous and not fsdp)
    return options + ["--reset-position-ids", "--reset-attention-mask"] * (job.data.packing == "documents")
