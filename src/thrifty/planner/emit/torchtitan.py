"""torchtitan's configuration: a Python module, chosen with `--module torchtitan_plan --config plan`.

torchtitan left TOML for Python registries; this is written for release 0.3.0 (github.com/pytorch/torchtitan), whose
dataclasses are `TrainingConfig`, `ParallelismConfig`, `LRSchedulersContainer.Config` and so on.
"""

from __future__ import annotations

import json
import re
import shlex

from thrifty.planner.emit import torchtitan_model
from thrifty.planner.emit.common import (
    Entry,
    Notes,
    data_kind,
    from_environment,
    head,
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
from thrifty.spec.plan import Plan

MODULE = "torchtitan_plan"
SCHEDULES = {"gpipe": "GPipe", "1f1b": "1F1B", "interleaved": "Interleaved1F1B", "zbv": "ZBVZeroBubble"}
IMPLEMENTATIONS = {32: "fused", 16: "fused_opt_states_bf16"}
CONVERTERS = {
    ("fp8", "row"): 'Float8LinearConverter.Config(recipe_name="rowwise", filter_fqns=["lm_head"]{compiled})',
    ("fp8", "block"): 'MXFP8LinearConverter.Config(fqns=["layers."]{compiled})',
    ("nvfp4", "block"): 'NVFP4LinearConverter.Config(fqns=["layers."]{compiled})',
}


def entry(plan: Plan) -> Entry:
    """`torchrun ... -m torchtitan.train --module torchtitan_plan --config plan`.

    Raises:
        ThriftyError: torchtitan cannot express the plan.
    """
    only_decoders("torchtitan", plan)
    no_compressed_exchange("torchtitan", plan)
    plain_updates_only("torchtitan", plan)
    notes = Notes()
    _require(plan, notes)
    kind = data_kind(plan.job.data)
    if kind is None:
        notes.say(
            "job.data.path", f"torchtitan does not read {plan.job.data.path}; set DATA to a data set's name or path"
        )
    lines = [
        from_environment("DATA", plan.job.data.path if kind else None, "what torchtitan is to train on"),
        tokenizer_line(plan, notes),
        f"RUN=${{RUN_DIR:-{shlex.quote('runs/' + run_name(plan))}}}",
        "export DATA TOKENIZER RUN",
        'export PYTHONPATH="$HERE${PYTHONPATH:+:$PYTHONPATH}"',
    ]
    return Entry(
        software="torchtitan",
        files={f"{MODULE}.py": configuration(plan, notes)},
        program=["-m torchtitan.train", f"--module {MODULE}", "--config plan"],
        setup="pip install torchtitan==0.3.0" + (" torchao" if plan.recipe.precision in ("fp8", "nvfp4") else ""),
        lines=lines,
        notes=notes.lines,
    )


def _require(plan: Plan, notes: Notes) -> None:
    recipe, layout, shape = plan.recipe, plan.recipe.layout, plan.job.model
    if plan.cluster.accelerator.kind != "gpu":
        refuse("torchtitan", "cluster.accelerator", "needs GPUs", "plan for GPUs: --on 8xh100")
    if layout.shard > 1 and layout.zero != 3:
        hint = "plan with zero: 3, and reshard_after_forward: false to spend memory and save traffic"
        refuse("torchtitan", "recipe.layout.zero", f"shards parameters too (FSDP2); zero is {layout.zero}", hint)
    if layout.pipeline > 1 and layout.schedule not in SCHEDULES:
        what = f"has no schedule {layout.schedule} (its zero-bubble schedule interleaves)"
        refuse("torchtitan", "recipe.layout.schedule", what, f"plan with one of {', '.join(SCHEDULES)}")
    if layout.pipeline > 1 and shape.tied_embeddings:
        hint = "plan with pipeline: 1, or emit it for megatron"
        refuse("torchtitan", "recipe.layout.pipeline", "does not tie embeddings across stages", hint)
    if shape.latent is None and shape.kv_heads % layout.tensor:
        what = f"splits whole key/value heads: {shape.kv_heads} heads over tensor {layout.tensor}"
        refuse("torchtitan", "recipe.layout.tensor", what, f"plan with tensor: {shape.kv_heads} or a divisor of it")
    _require_experts(plan)
    pieces = (layout.tensor if layout.sequence_parallel else 1) * (2 * layout.context if layout.context > 1 else 1)
    if plan.job.sequence_length % pieces:
        what = f"cuts sequences into {pieces} pieces; {plan.job.sequence_length} is no multiple"
        refuse("torchtitan", "recipe.layout.context", what, "change sequence_length, context or tensor")
    if layout.tensor_overlap and layout.tensor > 1 and not recipe.compile:
        hint = "plan with compile: true, or tensor_overlap: false"
        refuse("torchtitan", "recipe.layout.tensor_overlap", "overlaps it in compiled blocks only", hint)
    if layout.context > 1 and layout.shard > 1:
        notes.say("recipe.layout.shard", "torchtitan shards parameters over the context ranks too")
    _require_numbers(plan, notes)


def _require_experts(plan: Plan) -> None:
    layout = plan.recipe.layout
    if layout.expert > 1 and layout.tensor > 1:
        what = "takes expert ranks from the tensor axis too, which was not priced"
        refuse("torchtitan", "recipe.layout.expert", what, "plan with tensor: 1, or emit it for megatron")
    ranks = layout.shard * layout.context
    if ranks % layout.expert:
        what = f"takes the {layout.expert} expert ranks from {ranks} shard and context ranks"
        refuse("torchtitan", "recipe.layout.expert", what, "plan with a larger shard axis")


def _require_numbers(plan: Plan, notes: Notes) -> None:
    recipe, layout = plan.recipe, plan.recipe.layout
    scaling = "block" if recipe.precision == "nvfp4" else recipe.scaling
    if recipe.precision in ("fp8", "nvfp4") and (recipe.precision, scaling) not in CONVERTERS:
        what = f"has fp8 with scales by row or by block, not by {recipe.scaling}"
        refuse("torchtitan", "recipe.scaling", what, "plan with scaling: row or block")
    if recipe.precision in ("fp8", "nvfp4") and plan.job.model.experts is not None:
        notes.say("recipe.precision", f"{recipe.precision} in attention and dense layers; experts stay in bf16")
    if recipe.exchange.dtype != "fp32" and layout.ranks > 1:
        hint = "plan again with --set recipe.exchange.dtype=fp32"
        refuse("torchtitan", "recipe.exchange.dtype", "reduces gradients in fp32", hint)
    if recipe.optimizer.state_bits not in IMPLEMENTATIONS:
        what = f"keeps moments in 32 or 16 bits, not {recipe.optimizer.state_bits}"
        refuse("torchtitan", "recipe.optimizer.state_bits", what, "plan with state_bits: 32 or 16")
    if recipe.recompute == "selective" and recipe.software != "torchtitan":
        what = "recomputes other operations when selective (every second matrix product, but not attention)"
        hint = "plan with recompute: full or none, or plan it for torchtitan: --set recipe.software=torchtitan"
        refuse("torchtitan", "recipe.recompute", what, hint)
    if recipe.checkpoint.keep < 2:
        refuse("torchtitan", "recipe.checkpoint.keep", "keeps at least two", "plan with keep: 2")


def configuration(plan: Plan, notes: Notes) -> str:
    """The Python module."""
    name = torchtitan_model.family(plan.job.model)
    if plan.job.target_loss is not None:
        notes.say(
            "job.target_loss", f"torchtitan does not stop at loss {plan.job.target_loss:g}; it runs all the steps"
        )
    if plan.job.data.packing == "stream":
        notes.say("job.data.packing", "torchtitan joins documents, and attention stays within each")
    if plan.recipe.evaluation.sequences:
        notes.say("recipe.evaluation", "torchtitan validates on its data set c4_validation; enable validator for yours")
    body = torchtitan_model.source(plan.job.model, name) + "\n\n" + _plan(plan, name)
    imported = _imports(body, torchtitan_model.IMPORTS[name])
    return f"{head(plan, notes.lines)}\n{imported}\n\n\n{body}"


# Where torchtitan 0.3.0 has what a configuration may use; a file imports what it does.
IMPORTS = {
    "torchtitan.components.checkpoint": ["CheckpointManager"],
    "torchtitan.components.loss": ["ChunkedLossWrapper", "CrossEntropyLoss"],
    "torchtitan.components.optimizer": [
        "LRSchedulersContainer", "OptimizersContainer", "ParamGroupConfig", "register_moe_load_balancing_hook",
    ],
    "torchtitan.components.quantization": ["Float8LinearConverter", "MXFP8LinearConverter", "NVFP4LinearConverter"],
    "torchtitan.config": ["CompileConfig", "DebugConfig", "ParallelismConfig", "TrainingConfig"],
    "torchtitan.distributed.activation_checkpoint": ["FullAC", "SelectiveAC"],
    "torchtitan.distributed.pipeline_parallel": ["pipeline_llm"],
    "torchtitan.hf_datasets": ["DatasetConfig"],
    "torchtitan.hf_datasets.text_datasets": ["DATASETS", "HuggingFaceTextDataLoader"],
    "torchtitan.models.common": ["ComplexRoPE", "CosSinRoPE", "Embedding", "Linear", "RMSNorm"],
    "torchtitan.models.common.config_utils": [
        "get_attention_config", "make_ffn_config", "make_gqa_config", "make_moe_config", "make_routed_experts_config",
        "make_router_config",
    ],
    "torchtitan.models.common.param_init": ["skip_param_init"],
    "torchtitan.protocols.model_spec": ["ModelSpec"],
    "torchtitan.trainer": ["Trainer"],
}  # fmt: skip


def _imports(body: str, model: dict[str, list[str]]) -> str:
    """The import lines that a body needs."""
    used = set(re.findall(r"\w+", body))
    lines = ["import os", "from functools import partial", "", "import torch.nn as nn"]
    lines.append("from datasets import load_dataset")
    for module, names in sorted((IMPORTS | model).items()):
        wanted = [name for name in names if name in used]
        if wanted:
            lines.append(f"from {module} import {', '.join(wanted)}")
    return "\n".join(lines)


def _converter(plan: Plan) -> str:
    recipe = plan.recipe
    scaling = "block" if recipe.precision == "nvfp4" else recipe.scaling
    template = CONVERTERS.get((recipe.precision, scaling), "")
    return template.format(compiled=f", model_compile_enabled={recipe.compile}")


def _plan(plan: Plan, name: str) -> str:
    job, recipe, steps = plan.job, plan.recipe, plan.total_steps
    layout, optimizer = recipe.layout, recipe.optimizer
    parallelize = torchtitan_model.FAMILIES[name][2]
    balance = "register_moe_load_balancing_hook" if name != "llama3" else "None"
    converted = f"{_converter(plan)}.build().convert(model())" if _converter(plan) else "model()"
    recompute = {"none": "None", "full": "FullAC.Config()", "selective": "SelectiveAC.Config()"}[recipe.recompute]
    checkpoint = recipe.checkpoint
    return f"""\
def adamw(pattern, weight_decay):
    return ParamGroupConfig(
        pattern=pattern,
        optimizer_name="AdamW",
        optimizer_kwargs={{
            "lr": {number(optimizer.lr)},
            "betas": ({number(optimizer.beta1)}, {number(optimizer.beta2)}),
            "eps": {number(optimizer.eps)},
            "weight_decay": weight_decay,
        }},
    )


def plan():
    spec = ModelSpec(
        name="{name}",
        flavor={json.dumps(job.model.name)},
        model={converted},
        parallelize_fn={parallelize},
        pipelining_fn=pipeline_llm,
        post_optimizer_build_fn={balance},
        state_dict_adapter=None,
    )
    {_data(plan)}
    return Trainer.Config(
        model_spec=spec,
        hf_assets_path=os.environ["TOKENIZER"],
        dump_folder=os.environ["RUN"],
        loss=ChunkedLossWrapper.Config(loss_fn=CrossEntropyLoss.Config(global_vocab_size={job.model.vocab_size})),
        optimizer=OptimizersContainer.Config(
            param_groups=[adamw("norm", 0.0), adamw(".*", {number(optimizer.weight_decay)})],  # norms do not decay
            implementation="{IMPLEMENTATIONS[optimizer.state_bits]}",
        ),
        lr_scheduler=LRSchedulersContainer.Config({_schedule(plan)}),
        training=TrainingConfig(
            {_training(plan)},
        ),
        parallelism=ParallelismConfig(
            data_parallel_replicate_degree={layout.island},
            data_parallel_shard_degree={layout.shard},
            fsdp_reshard_after_forward="{"always" if layout.reshard_after_forward else "never"}",
            tensor_parallel_degree={layout.tensor},
            enable_sequence_parallel={layout.sequence_parallel},
            context_parallel_degree={layout.context},
            expert_parallel_degree={layout.expert},
            pipeline_parallel_degree={layout.pipeline},{_pipeline(plan)}
        ),
        dataloader=HuggingFaceTextDataLoader.Config(dataset="plan"),
        checkpoint=CheckpointManager.Config(
            enable=True,
            interval={checkpoint.every_steps or steps},
            keep_latest_k={checkpoint.keep},
            last_save_model_only=False,
            async_mode="{"async" if checkpoint.asynchronous else "disabled"}",
        ),
        activation_checkpoint={recompute},
        compile=CompileConfig(
            enable={recipe.compile}, enable_async_tensor_parallel={layout.tensor_overlap and layout.tensor > 1}
        ),
        debug=DebugConfig(seed={job.seed}),
    )
"""


def _data(plan: Plan) -> str:
    """The line that registers the plan's data with torchtitan's loader."""
    data = plan.job.data
    kind = data_kind(data)
    files = {
        "text": '"text", data_files=path',
        "json": '"json", data_files=path',
        "parquet": '"parquet", data_files=path',
    }
    load = f"load_dataset({files.get(kind or '', 'path')}, split='train', streaming=True)"
    field = json.dumps("text" if kind == "text" else data.text_field)
    return f"""DATASETS["plan"] = DatasetConfig(
        path=os.environ["DATA"],
        loader=lambda path: {load},
        sample_processor=lambda sample: sample[{field}],
    )"""


def _schedule(plan: Plan) -> str:
    schedule = plan.recipe.schedule
    words = [f"warmup_steps={schedule.warmup_steps}"]
    known_schedule("torchtitan", plan, ("cosine", "wsd", "linear", "constant"))
    if schedule.name == "cosine":
        words += ['decay_type="cosine"', f"min_lr_factor={number(schedule.final_ratio)}"]
    elif schedule.name == "linear":
        words += ['decay_type="linear"', f"min_lr_factor={number(schedule.final_ratio)}"]
    elif schedule.name == "wsd":
        words += [f"decay_ratio={number(schedule.decay_fraction)}", 'decay_type="linear"']
        words.append(f"min_lr_factor={number(schedule.final_ratio)}")
    else:
        words.append("decay_ratio=0.0")
    return ", ".join(words)


def _training(plan: Plan) -> str:
    """A pipeline takes all of a step's microbatches in one pass, so there a local batch is the rank's whole share."""
    recipe, layout = plan.recipe, plan.recipe.layout
    local = recipe.batch.micro_sequences * (recipe.accumulation if layout.pipeline > 1 else 1)
    words = {
        "local_batch_size": str(local),
        "global_batch_size": str(recipe.batch.sequences),
        "seq_len": str(plan.job.sequence_length),
        "steps": str(plan.total_steps),
        "max_norm": number(recipe.optimizer.clip_norm) if recipe.optimizer.clip_norm else 'float("inf")',
        "mixed_precision_param": '"float32"' if recipe.precision == "fp32" else '"bfloat16"',
        "disable_cuda_graphs": "True",  # not priced, and not there for pipelines and experts
    }
    return ",\n            ".join(f"{key}={value}" for key, value in words.items())


def _pipeline(plan: Plan) -> str:
    layout = plan.recipe.layout
    if layout.pipeline == 1:
        return ""
    parts = [[f"layers.{layer}" for layer in part] for part in parts_of_layers(plan)]
    parts[0].insert(0, "tok_embeddings")
    parts[-1] += ["norm", "lm_head"]
    rows = "".join(f"\n                {json.dumps(part)}," for part in parts)
    return f"""
            pipeline_parallel_schedule="{SCHEDULES[layout.schedule]}",
            pipeline_parallel_microbatch_size={plan.recipe.batch.micro_sequences},
            module_fqns_per_model_part=[{rows}
            ],"""
