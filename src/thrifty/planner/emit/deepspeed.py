"""DeepSpeed's JSON configuration (docs: deepspeed.ai/docs/config-json; keys of 0.19), run by transformers' run_clm.py.

DeepSpeed reads batch, precision, ZeRO, optimizer and warm-up from the file; steps, sequence and model come from the
script's options, which the Trainer compares with the file.
"""

from __future__ import annotations

import json
from typing import Any

from thrifty.cost.params import total_parameters
from thrifty.planner.emit import hf
from thrifty.planner.emit.common import Entry, Notes, refuse
from thrifty.spec.plan import Plan

CONFIG = "deepspeed.json"


def entry(plan: Plan) -> Entry:
    """`torchrun ... run_clm.py --deepspeed deepspeed.json`.

    Raises:
        ThriftyError: DeepSpeed's configuration cannot express the plan.
    """
    hf.require("DeepSpeed", plan)
    notes = Notes()
    config = json.dumps(configuration(plan, notes), indent=2) + "\n"
    lines, words = hf.lines(plan, notes), hf.words(plan, notes, recompute=True)
    return Entry(
        software="deepspeed",
        files={CONFIG: config, hf.MODEL_FILE: hf.model_file(plan)},
        program=[*words, f'--deepspeed "$HERE"/{CONFIG}'],
        setup="pip install deepspeed accelerate datasets evaluate 'transformers>=5'",
        lines=lines,
        notes=notes.lines,
    )


def configuration(plan: Plan, notes: Notes) -> dict[str, Any]:
    """The file's content."""
    recipe, layout, optimizer = plan.recipe, plan.recipe.layout, plan.recipe.optimizer
    _require(plan)
    config: dict[str, Any] = {
        "train_batch_size": recipe.batch.sequences,
        "train_micro_batch_size_per_gpu": recipe.batch.micro_sequences,
        "gradient_accumulation_steps": recipe.accumulation,
        "gradient_clipping": optimizer.clip_norm,
        "bf16": {"enabled": recipe.precision == "bf16"},
        "communication_data_type": recipe.exchange.dtype,
        "data_types": {"grad_accum_dtype": "fp32"},
        "zero_optimization": _zero(plan, notes),
        "optimizer": {
            "type": "AdamW",
            "params": {
                "lr": optimizer.lr,
                "betas": [optimizer.beta1, optimizer.beta2],
                "eps": optimizer.eps,
                "weight_decay": optimizer.weight_decay,
            },
        },
    }
    if recipe.schedule.name != "wsd":  # DeepSpeed has no such schedule; without one the Trainer's own is used
        config["scheduler"] = _scheduler(plan)
    if layout.tensor > 1:
        config["tensor_parallel"] = {"autotp_size": layout.tensor}
        if layout.sequence_parallel:
            notes.say("recipe.layout.sequence_parallel", "DeepSpeed keeps norms and the residual stream whole")
    return config


def _require(plan: Plan) -> None:
    recipe, layout = plan.recipe, plan.recipe.layout
    if recipe.precision in ("fp8", "nvfp4"):
        what = f"has no {recipe.precision} matrix products in its configuration"
        refuse(
            "DeepSpeed", "recipe.precision", what, "emit it for megatron or torchtitan, or plan with precision: bf16"
        )
    if recipe.optimizer.state_bits != 32:
        what = f"keeps Adam's moments in 32 bits, not {recipe.optimizer.state_bits}"
        refuse("DeepSpeed", "recipe.optimizer.state_bits", what, "plan with state_bits: 32, or emit it for accelerate")
    if layout.context > 1:
        what = f"splits sequences by heads (Ulysses), which was not priced; context is {layout.context}"
        refuse("DeepSpeed", "recipe.layout.context", what, "emit it for megatron, torchtitan or accelerate")
    if layout.island > 1 and layout.shard > 1:
        what = f"shards over all data ranks; {layout.island} islands of {layout.shard} would be one"
        hint = f"plan with island: 1 and shard: {layout.data_ranks}, or emit it for accelerate"
        refuse("DeepSpeed", "recipe.layout.island", what, hint)
    if layout.tensor > 1 and layout.zero == 3 and layout.shard > 1:
        hint = "plan with zero: 1 or 2, or tensor: 1"
        refuse("DeepSpeed", "recipe.layout.zero", "does not combine its tensor parallelism with ZeRO-3", hint)
    if layout.tensor_overlap:
        hint = "plan with tensor_overlap: false, or emit it for megatron"
        refuse("DeepSpeed", "recipe.layout.tensor_overlap", "does not hide tensor-parallel traffic", hint)


def _zero(plan: Plan, notes: Notes) -> dict[str, Any]:
    """ZeRO's stage; with `reshard_after_forward` off, stage 3 never lets go of a gathered parameter before backward."""
    layout = plan.recipe.layout
    stage = layout.zero if layout.shard > 1 else 0
    zero: dict[str, Any] = {"stage": stage, "overlap_comm": True, "contiguous_gradients": True}
    if stage == 3:
        zero["stage3_gather_16bit_weights_on_model_save"] = True
        if layout.reshard_after_forward:
            notes.say("recipe.layout.reshard_after_forward", "DeepSpeed keeps up to 1e9 gathered parameters alive")
        else:
            kept = 2 * total_parameters(plan.job.model)
            zero |= {"stage3_max_live_parameters": kept, "stage3_max_reuse_distance": kept}
    return zero


def _scheduler(plan: Plan) -> dict[str, Any]:
    schedule, rate = plan.recipe.schedule, plan.recipe.optimizer.lr
    if schedule.name == "constant":
        warmup = {"warmup_min_lr": 0, "warmup_max_lr": rate, "warmup_num_steps": schedule.warmup_steps}
        return {"type": "WarmupLR", "params": {**warmup, "warmup_type": "linear"}}
    params = {
        "total_num_steps": plan.total_steps,
        "warmup_min_ratio": 0.0,
        "warmup_num_steps": schedule.warmup_steps,
        "warmup_type": "linear",
        "cos_min_ratio": schedule.final_ratio,
    }
    return {"type": "WarmupCosineLR", "params": params}
