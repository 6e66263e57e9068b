"""Accelerate's configuration file (`accelerate launch --config_file`), with FSDP2; run by transformers' run_clm.py.

Keys as in Accelerate 1.15 (huggingface.co/docs/accelerate, "FSDP", and `ParallelismConfig`).
"""

from __future__ import annotations

from typing import Any

from thrifty.planner.emit import hf
from thrifty.planner.emit.common import Entry, Notes, head, nodes, refuse, to_yaml
from thrifty.spec.plan import Plan

CONFIG = "accelerate.yaml"
# torchao's AdamW keeps its moments in blocks of 8 or 4 bits, also of sharded parameters.
OPTIMIZERS = {32: "adamw_torch_fused", 8: "adamw_torch_8bit", 4: "adamw_torch_4bit"}


def entry(plan: Plan) -> Entry:
    """`accelerate launch --config_file accelerate.yaml run_clm.py`.

    Raises:
        ThriftyError: Accelerate's configuration cannot express the plan.
    """
    hf.require("Accelerate", plan)
    _require(plan)
    notes, config = Notes(), configuration(plan)
    lines, words = hf.lines(plan, notes), hf.words(plan, notes, recompute="fsdp_config" not in config)
    packages = "accelerate datasets evaluate 'transformers>=5'"
    extra = " torchao" if plan.recipe.precision == "fp8" or plan.recipe.optimizer.state_bits < 32 else ""
    return Entry(
        software="accelerate",
        files={CONFIG: head(plan) + to_yaml(config), hf.MODEL_FILE: hf.model_file(plan)},
        program=[*words, f"--optim {OPTIMIZERS[plan.recipe.optimizer.state_bits]}"],
        setup=f"pip install {packages}{extra}",
        lines=lines,
        notes=notes.lines,
        accelerate=CONFIG,
    )


def configuration(plan: Plan) -> dict[str, Any]:
    """The file's content."""
    recipe, layout = plan.recipe, plan.recipe.layout
    number, _ = nodes(plan)
    sharded = layout.shard * layout.context > 1
    config: dict[str, Any] = {
        "compute_environment": "LOCAL_MACHINE",
        "distributed_type": "FSDP" if sharded else "MULTI_GPU" if layout.ranks > 1 else "NO",
        "num_machines": number,
        "num_processes": layout.ranks,
        "mixed_precision": {"fp32": "no", "bf16": "bf16", "fp8": "fp8"}[recipe.precision],
        "use_cpu": plan.cluster.accelerator.kind == "cpu",
        "main_training_function": "main",
        "rdzv_backend": "static",
        "same_network": True,
    }
    if sharded:
        config["fsdp_config"] = {
            "fsdp_version": 2,
            "fsdp_reshard_after_forward": layout.reshard_after_forward,
            "fsdp_auto_wrap_policy": "TRANSFORMER_BASED_WRAP",
            "fsdp_activation_checkpointing": recipe.recompute == "full",
            "fsdp_cpu_ram_efficient_loading": False,
            "fsdp_offload_params": False,
            "fsdp_state_dict_type": "SHARDED_STATE_DICT",
        }
    if sharded and (layout.island > 1 or layout.context > 1):
        sizes: dict[str, int | str] = {"dp_replicate_size": layout.island, "dp_shard_size": layout.shard, "tp_size": 1}
        if layout.context > 1:
            sizes |= {"cp_size": layout.context, "cp_comm_strategy": "allgather"}
        config["parallelism_config"] = {f"parallelism_config_{key}": value for key, value in sizes.items()}
    if recipe.precision == "fp8":
        config["fp8_config"] = {"fp8_backend": "AO"}
    return config


def _require(plan: Plan) -> None:
    recipe, layout = plan.recipe, plan.recipe.layout
    if layout.tensor > 1:
        what = f"splits matrices only of a model that was loaded with a tp_plan; tensor is {layout.tensor}"
        refuse("Accelerate", "recipe.layout.tensor", what, "emit it for megatron or torchtitan, or plan with tensor: 1")
    if layout.zero != 3 and layout.shard > 1:
        hint = "plan with zero: 3 (and reshard_after_forward: false, which spends the memory to save traffic)"
        refuse("Accelerate", "recipe.layout.zero", f"shards parameters too (FSDP2); zero is {layout.zero}", hint)
    if layout.island > 1 and layout.shard == 1 and layout.context > 1:
        hint = f"plan with island: 1 and shard: {layout.island}"
        refuse("Accelerate", "recipe.layout.island", "needs a shard axis beside replicas that split sequences", hint)
    if recipe.precision == "nvfp4" or (recipe.precision == "fp8" and recipe.scaling != "tensor"):
        what = f"has fp8 with one scale a tensor; the plan has {recipe.precision} by {recipe.scaling}"
        refuse(
            "Accelerate", "recipe.precision", what, "plan with precision: bf16, or emit it for megatron or torchtitan"
        )
    if recipe.optimizer.state_bits not in OPTIMIZERS:
        hint = "plan with state_bits: 32, 8 or 4"
        refuse("Accelerate", "recipe.optimizer.state_bits", "has no AdamW with moments of 16 bits", hint)
    reduced = "fp32" if recipe.precision == "fp32" or layout.shard * layout.context == 1 else "bf16"
    if layout.ranks > 1 and recipe.exchange.dtype != reduced:
        what = f"reduces gradients of such a plan in {reduced}, not {recipe.exchange.dtype}"
        hint = f"plan again with --set recipe.exchange.dtype={reduced}"
        refuse("Accelerate", "recipe.exchange.dtype", what, hint)
