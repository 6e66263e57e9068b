"""What DeepSpeed and Accelerate share: Hugging Face's model configuration, and the words of its causal-LM script.

The script is examples/pytorch/language-modeling/run_clm.py of transformers, which trains from scratch when given
`--config_name` alone; its options are those of transformers 5.24's TrainingArguments.
"""

from __future__ import annotations

import json
import math
import shlex

from thrifty.catalog.hf_config import config_from_shape
from thrifty.planner.emit.common import (
    Notes,
    data_kind,
    from_environment,
    known_schedule,
    no_compressed_exchange,
    number,
    only_decoders,
    plain_updates_only,
    refuse,
    run_name,
    tokenizer_line,
)
from thrifty.spec.errors import ThriftyError
from thrifty.spec.plan import Plan

MODEL_FILE = "model.json"
SCHEDULES = {"cosine": "cosine_with_min_lr", "wsd": "warmup_stable_decay", "constant": "constant_with_warmup"}


def require(software: str, plan: Plan) -> None:
    """Refuses what neither tool takes from its configuration: it would have to be in the model's own code.

    Raises:
        ThriftyError: with the key and a way out.
    """
    only_decoders(software, plan)
    no_compressed_exchange(software, plan)
    plain_updates_only(software, plan)
    shape, layout, recipe = plan.job.model, plan.recipe.layout, plan.recipe
    elsewhere = "emit it for megatron or torchtitan"
    for key, value in (("experts", shape.experts), ("latent", shape.latent)):
        if value is not None:
            what = "is written for dense models with plain attention: the shape goes into Hugging Face's config.json"
            refuse(software, f"job.model.{key}", what, elsewhere)
    for axis, size in (("pipeline", layout.pipeline), ("expert", layout.expert)):
        if size > 1:
            what = f"takes {axis} {size} from the model's code, not from its configuration"
            refuse(software, f"recipe.layout.{axis}", what, f"{elsewhere}, or plan again with {axis}: 1")
    if recipe.recompute == "selective":
        what = "recomputes whole blocks or nothing through its configuration"
        refuse(software, "recipe.recompute", what, f"{elsewhere}, or plan again with recompute: full or none")
    if plan.cluster.accelerator.kind != "gpu" and layout.ranks > 1:
        hint = "emit the torchrun command of Thrifty's own trainer, or plan for GPUs"
        refuse(software, "cluster.accelerator", "is written for GPUs", hint)


def model_file(plan: Plan) -> str:
    """The model's shape as Hugging Face's config.json.

    Raises:
        ThriftyError: no architecture of transformers holds it.
    """
    try:
        config = config_from_shape(plan.job.model)
    except ThriftyError as error:
        raise ThriftyError(error.what, where="job.model", hint=error.hint) from None
    return json.dumps(config, indent=2) + "\n"


def lines(plan: Plan, notes: Notes) -> list[str]:
    """Shell lines that the words below need: run_clm.py, data, tokenizer, run folder, and where to continue."""
    data = plan.job.data
    kind = data_kind(data)
    readable = kind == "dataset" or (kind is not None and data.path.endswith((".txt", ".json")))
    if not readable:
        notes.say(
            "job.data.path", f"run_clm.py does not read {data.path}; set DATA to a .txt or .json file, or a data set"
        )
    elif data.text_field != "text" and kind != "text":
        notes.say("job.data.text_field", f"run_clm.py reads the column 'text', else the first; not {data.text_field}")
    if data.packing == "documents":
        notes.say("job.data.packing", "run_clm.py joins documents and cuts windows anywhere")
    return [
        "RUN_CLM=${RUN_CLM:-run_clm.py}  # examples/pytorch/language-modeling/run_clm.py of transformers",
        from_environment("DATA", data.path if readable else None, "what run_clm.py is to train on"),
        'case "$DATA" in *.txt | *.json | *.csv) SOURCE=--train_file ;; *) SOURCE=--dataset_name ;; esac',
        tokenizer_line(plan, notes),
        f"RUN=${{RUN_DIR:-{shlex.quote('runs/' + run_name(plan))}}}",
        "RESUME=()",
        'LAST=$(find "$RUN" -maxdepth 1 -name "checkpoint-*" 2>/dev/null | sort -V | tail -n 1 || true)',
        'if [ -n "$LAST" ]; then RESUME=(--resume_from_checkpoint "$LAST"); fi',
    ]


def words(plan: Plan, notes: Notes, *, recompute: bool) -> list[str]:
    """run_clm.py and its options, in shell syntax.

    Args:
        recompute: the Trainer does the recomputation of blocks; else the tool's own file says so.
    """
    recipe, job = plan.recipe, plan.job
    optimizer, schedule = recipe.optimizer, recipe.schedule
    evaluation, checkpoint = recipe.evaluation, recipe.checkpoint
    kwargs: dict[str, float | int | str] = {}
    if schedule.name == "cosine":
        kwargs = {"min_lr_rate": schedule.final_ratio}
    elif schedule.name == "wsd":
        decay = max(1, round(schedule.decay_fraction * plan.total_steps))
        kwargs = {"num_decay_steps": decay, "min_lr_ratio": schedule.final_ratio, "decay_type": "linear"}
    if checkpoint.asynchronous:
        notes.say("recipe.checkpoint.asynchronous", "the Trainer writes checkpoints while training waits")
    if job.target_loss is not None:
        notes.say("job.target_loss", f"the Trainer does not stop at loss {job.target_loss:g}; it runs all the steps")
    if job.seed >= 2**32:
        notes.say("job.seed", f"taken modulo 2^32: {job.seed % 2**32}")
    percent = max(1, round(100 * job.data.validation_fraction))
    options: dict[str, str] = {
        "config_name": f'"$HERE"/{MODEL_FILE}',
        "tokenizer_name": '"$TOKENIZER"',
        "validation_split_percentage": str(percent),
        "block_size": str(job.sequence_length),
        "do_train": "true",
        "do_eval": "true",
        "max_steps": str(plan.total_steps),
        "per_device_train_batch_size": str(recipe.batch.micro_sequences),
        "per_device_eval_batch_size": str(recipe.batch.micro_sequences),
        "gradient_accumulation_steps": str(recipe.accumulation),
        "learning_rate": number(optimizer.lr),
        "adam_beta1": number(optimizer.beta1),
        "adam_beta2": number(optimizer.beta2),
        "adam_epsilon": number(optimizer.eps),
        "weight_decay": number(optimizer.weight_decay),
        "max_grad_norm": number(optimizer.clip_norm),
        "lr_scheduler_type": SCHEDULES[known_schedule("the Trainer", plan, SCHEDULES)],
        **({"lr_scheduler_kwargs": shlex.quote(json.dumps(kwargs))} if kwargs else {}),
        "warmup_steps": str(schedule.warmup_steps),
        # For fp8 Accelerate's file sets the precision, which this option would set back to bf16.
        "bf16": str(recipe.precision == "bf16").lower(),
        "torch_compile": str(recipe.compile).lower(),
        **({"gradient_checkpointing": "true"} if recompute and recipe.recompute == "full" else {}),
        "use_cpu": str(plan.cluster.accelerator.kind == "cpu").lower(),
        "seed": str(job.seed % 2**32),
        "save_strategy": "steps",
        "save_steps": str(checkpoint.every_steps or plan.total_steps),
        "save_total_limit": str(checkpoint.keep),
        "eval_strategy": "steps",
        "eval_steps": str(evaluation.every_steps or plan.total_steps),
        "max_eval_samples": str(evaluation.sequences),
        "logging_steps": str(max(1, min(10, math.ceil(plan.total_steps / 10)))),
    }
    return [
        '"$RUN_CLM"', '"$SOURCE" "$DATA"', '--output_dir "$RUN"', '"${RESUME[@]}"',
        *(f"--{key} {value}" for key, value in options.items()),
    ]  # fmt: skip
