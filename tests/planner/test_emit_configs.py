"""torchtitan, Megatron-LM, DeepSpeed, Accelerate: a file reads back as the plan, or the plan's key is refused."""

from __future__ import annotations

import ast
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import megatron_options
import pytest
import yaml
from emit_argv import argv, options, write
from emit_plans import DEEPSEEK, changed, model, plan, plans

from thrifty.catalog.hf_config import shape_from_config
from thrifty.planner.emit.common import parts_of_layers
from thrifty.planner.emit.targets import TARGETS, emit
from thrifty.spec import ThriftyError
from thrifty.spec.plan import Plan

SOFTWARE = ("torchtitan", "megatron", "deepspeed", "accelerate")


def expressible() -> list[tuple[str, str]]:
    """Every pair of plan and software that is written rather than refused."""
    found = []
    for name, one in plans().items():
        for target in SOFTWARE:
            try:
                emit(one, target)
            except ThriftyError:
                continue
            found.append((name, target))
    return found


PAIRS = expressible()


def wanted(one: Plan) -> dict[str, Any]:
    """What every software has to agree on with the plan."""
    recipe, layout = one.recipe, one.recipe.layout
    return {
        "world": layout.ranks, "data ranks": layout.data_ranks, "tensor": layout.tensor, "pipeline": layout.pipeline,
        "context": layout.context, "micro": recipe.batch.micro_sequences, "sequences": recipe.batch.sequences,
        "sequence length": one.job.sequence_length, "steps": one.total_steps, "lr": recipe.optimizer.lr,
        "beta2": recipe.optimizer.beta2, "decay": recipe.optimizer.weight_decay, "clip": recipe.optimizer.clip_norm,
        "warm-up": recipe.schedule.warmup_steps, "seed": one.job.seed,
        "save every": recipe.checkpoint.every_steps or one.total_steps,
    }  # fmt: skip


# ---- readers: files of one software -> the same keys


def call(tree: ast.AST, name: str) -> dict[str, Any]:
    """Keyword arguments of the first call of a name, those that are literals."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and ast.unparse(node.func) == name:
            found = {}
            for keyword in node.keywords:
                try:
                    found[str(keyword.arg)] = ast.literal_eval(keyword.value)
                except ValueError:
                    found[str(keyword.arg)] = ast.unparse(keyword.value)
            return found
    raise AssertionError(f"no call of {name}")


def adamw(tree: ast.AST) -> dict[str, Any]:
    """The optimizer's numbers, which stand in a dict of its own function."""
    function = next(node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and node.name == "adamw")
    numbers = next(node for node in ast.walk(function) if isinstance(node, ast.Dict))
    keys = [ast.literal_eval(key) for key in numbers.keys if key is not None]
    return {key: ast.literal_eval(v) for key, v in zip(keys, numbers.values, strict=True) if key != "weight_decay"}


def read_torchtitan(files: dict[str, str], folder: Path) -> dict[str, Any]:
    tree = ast.parse(files["torchtitan_plan.py"])
    layout, training = call(tree, "ParallelismConfig"), call(tree, "TrainingConfig")
    groups = call(tree, "OptimizersContainer.Config")["param_groups"]
    data = layout["data_parallel_replicate_degree"] * layout["data_parallel_shard_degree"]
    pipeline, tensor = layout["pipeline_parallel_degree"], layout["tensor_parallel_degree"]
    optimizer, context = adamw(tree), layout["context_parallel_degree"]
    micro = layout["pipeline_parallel_microbatch_size"] if pipeline > 1 else training["local_batch_size"]
    assert training["global_batch_size"] % (training["local_batch_size"] * data) == 0
    return {
        "world": data * pipeline * tensor * context, "data ranks": data, "tensor": tensor, "pipeline": pipeline,
        "context": context, "micro": micro, "sequences": training["global_batch_size"],
        "sequence length": training["seq_len"], "steps": training["steps"], "lr": optimizer["lr"],
        "beta2": optimizer["betas"][1], "decay": float(re.findall(r"adamw\('\.\*', ([^)]*)\)", groups)[0]),
        "clip": training["max_norm"], "warm-up": call(tree, "LRSchedulersContainer.Config")["warmup_steps"],
        "seed": call(tree, "DebugConfig")["seed"], "save every": call(tree, "CheckpointManager.Config")["interval"],
    }  # fmt: skip


def megatron(files: dict[str, str], folder: Path) -> tuple[Any, int]:
    words = argv(files, folder, sys.executable)
    launched = options(words[: words.index("/megatron/pretrain_gpt.py")])
    world = int(launched["nnodes"]) * int(launched["nproc-per-node"])
    (connections,) = re.findall(r"CUDA_DEVICE_MAX_CONNECTIONS=(\d+)", files["torchrun-megatron.sh"])
    own = words[words.index("/megatron/pretrain_gpt.py") + 1 :]
    return megatron_options.validated(own, world, connections), world


def read_megatron(files: dict[str, str], folder: Path) -> dict[str, Any]:
    args, world = megatron(files, folder)
    return {
        "world": world, "data ranks": args.data_parallel_size, "tensor": args.tensor_model_parallel_size,
        "pipeline": args.pipeline_model_parallel_size, "context": args.context_parallel_size,
        "micro": args.micro_batch_size, "sequences": args.global_batch_size, "sequence length": args.seq_length,
        "steps": args.train_iters, "lr": args.lr, "beta2": args.adam_beta2, "decay": args.weight_decay,
        "clip": args.clip_grad, "warm-up": args.lr_warmup_iters, "seed": args.seed, "save every": args.save_interval,
    }  # fmt: skip


def run_clm(files: dict[str, str], folder: Path) -> dict[str, Any]:
    """What the options of run_clm.py say."""
    words = argv(files, folder, sys.executable)
    given = options(words[words.index("run_clm.py") + 1 :])
    return {
        "micro": int(given["per_device_train_batch_size"]), "sequence length": int(given["block_size"]),
        "steps": int(given["max_steps"]), "lr": float(given["learning_rate"]), "beta2": float(given["adam_beta2"]),
        "decay": float(given["weight_decay"]), "clip": float(given["max_grad_norm"]),
        "warm-up": int(given["warmup_steps"]), "seed": int(given["seed"]), "save every": int(given["save_steps"]),
        "accumulation": int(given["gradient_accumulation_steps"]),
    }  # fmt: skip


def read_deepspeed(files: dict[str, str], folder: Path) -> dict[str, Any]:
    found, config = run_clm(files, folder), json.loads(files["deepspeed.json"])
    launched = options(argv(files, folder, sys.executable))
    tensor = config.get("tensor_parallel", {}).get("autotp_size", 1)
    world = int(launched["nnodes"]) * int(launched["nproc-per-node"])
    assert config["train_micro_batch_size_per_gpu"] == found["micro"]
    assert config["gradient_accumulation_steps"] == found.pop("accumulation")
    optimizer = config["optimizer"]["params"]
    assert (optimizer["lr"], optimizer["betas"][1]) == (found["lr"], found["beta2"])
    assert config["gradient_clipping"] == found["clip"]
    together = config["train_micro_batch_size_per_gpu"] * config["gradient_accumulation_steps"]
    data = config["train_batch_size"] // together
    here = {"sequences": config["train_batch_size"], "world": world, "data ranks": data, "tensor": tensor}
    return found | here | {"pipeline": 1, "context": 1}


def read_accelerate(files: dict[str, str], folder: Path) -> dict[str, Any]:
    found, config = run_clm(files, folder), yaml.safe_load(files["accelerate.yaml"])
    axes = config.get("parallelism_config", {})
    context = axes.get("parallelism_config_cp_size", 1)
    world = config["num_processes"]
    if axes:
        sizes = [axes[f"parallelism_config_{key}_size"] for key in ("dp_replicate", "dp_shard", "tp")]
        assert sizes[0] * sizes[1] * sizes[2] * context == world
    sequences = found["micro"] * found.pop("accumulation") * world // context
    here = {"world": world, "data ranks": world // context, "tensor": 1, "pipeline": 1, "context": context}
    return found | here | {"sequences": sequences}


READERS: dict[str, Callable[[dict[str, str], Path], dict[str, Any]]] = {
    "torchtitan": read_torchtitan,
    "megatron": read_megatron,
    "deepspeed": read_deepspeed,
    "accelerate": read_accelerate,
}


# ---- tests


def test_every_software_is_written_for_many_plans() -> None:
    counted = {target: sum(pair[1] == target for pair in PAIRS) for target in SOFTWARE}
    assert all(number >= 5 for number in counted.values()), counted
    assert {name for name, _ in PAIRS} >= set(plans()) - {"cpu"}


@pytest.mark.parametrize(("name", "target"), PAIRS)
def test_it_reads_back_as_the_plan(name: str, target: str, tmp_path: Path) -> None:
    one = plans()[name]
    assert READERS[target](emit(one, target), tmp_path) == wanted(one)


@pytest.mark.parametrize("name", sorted(plans()))
@pytest.mark.parametrize("target", sorted(TARGETS))
def test_a_plan_is_written_or_refused_with_its_key_and_a_way_out(name: str, target: str) -> None:
    refused, files = None, {}
    try:
        files = emit(plans()[name], target)
    except ThriftyError as error:
        refused = error
    if refused is not None:
        assert refused.where.startswith(("recipe.", "job.", "cluster.")), refused
        assert refused.hint, refused
    else:
        assert files
        assert all(text.endswith("\n") for text in files.values())


@pytest.mark.parametrize("name", sorted(plans()))
def test_a_plan_for_a_software_is_written_for_it(name: str) -> None:
    software = plans()[name].recipe.software
    assert software == "thrifty" or (name, software) in PAIRS


FSDP, TP = plans()["8b fsdp"], plans()["70b tp8 pp4"]
MOE = plan(DEEPSEEK, "8xh100", layout={"shard": 8})
KEPT = "recipe.layout.reshard_after_forward"
OVERLAP = {"tensor_overlap": True, "tensor": 2, "shard": 32}
REFUSED: list[tuple[str, Plan, str]] = [
    *[(target, changed(FSDP, exchange={"codec": "means2"}), "recipe.exchange.codec") for target in SOFTWARE],
    *[(target, changed(FSDP, exchange={"local_steps": 30}), "recipe.exchange.local_steps") for target in SOFTWARE],
    *[(target, MOE, "job.model.experts") for target in ("deepspeed", "accelerate")],
    *[(target, TP, "recipe.layout.pipeline") for target in ("deepspeed", "accelerate")],
    ("torchtitan", TP, "recipe.layout.zero"),
    ("torchtitan", changed(FSDP, recompute="selective"), "recipe.recompute"),
    ("torchtitan", changed(FSDP, precision="fp8", scaling="tensor"), "recipe.scaling"),
    ("torchtitan", changed(FSDP, exchange={"dtype": "bf16"}), "recipe.exchange.dtype"),
    ("torchtitan", changed(FSDP, optimizer={"state_bits": 8}), "recipe.optimizer.state_bits"),
    ("torchtitan", changed(FSDP, optimizer={"name": "muon"}), "recipe.optimizer.name"),
    ("megatron", changed(FSDP, optimizer={"name": "lion"}), "recipe.optimizer.name"),
    ("accelerate", changed(plans()["8b keeping"], optimizer={"name": "lamb"}), "recipe.optimizer.name"),
    ("deepspeed", changed(FSDP, optimizer={"stable": True}), "recipe.optimizer.stable"),
    ("torchtitan", changed(FSDP, checkpoint={"keep": 1}), "recipe.checkpoint.keep"),
    ("torchtitan", plan("gpt2-124m", "h100", layout={}, sequence=1024), "job.model.norm"),
    ("torchtitan", plan("qwen2-7b", "h100", layout={}), "job.model.bias"),
    ("torchtitan", plan("llama-3.2-1b", "8xh100", layout={"pipeline": 8}), "recipe.layout.pipeline"),
    ("torchtitan", changed(TP, layout={"zero": 3, "schedule": "zero_bubble"}), "recipe.layout.schedule"),
    ("torchtitan", changed(plans()["moe ep8"], layout={"shard": 8, "tensor": 2}), "recipe.layout.expert"),
    ("torchtitan", changed(FSDP, layout=OVERLAP), "recipe.layout.tensor_overlap"),
    ("megatron", changed(TP, layout={"schedule": "gpipe"}), "recipe.layout.schedule"),
    ("megatron", changed(TP, layout={"zero": 3}), "recipe.layout.zero"),
    ("megatron", changed(TP, layout={"zero": 3, "reshard_after_forward": False}), KEPT),
    ("megatron", changed(TP, precision="fp8", scaling="row"), "recipe.scaling"),
    ("megatron", changed(FSDP, optimizer={"state_bits": 8}), "recipe.optimizer.state_bits"),
    ("megatron", changed(TP, optimizer={"state_bits": 4}), "recipe.optimizer.state_bits"),
    ("megatron", plan("llama-3.1-8b", "16xh100", layout={"tensor": 16}), "recipe.layout.tensor"),
    ("megatron", plans()["cpu"], "cluster.accelerator"),
    ("deepspeed", changed(FSDP, precision="fp8"), "recipe.precision"),
    ("deepspeed", plan(model("llama-3-8b").model_copy(update={"norm": "layernorm"}), "h100", layout={}), "job.model"),
    ("deepspeed", plans()["two islands"], "recipe.layout.island"),
    ("deepspeed", plans()["long context"], "recipe.layout.context"),
    ("deepspeed", changed(FSDP, recompute="selective"), "recipe.recompute"),
    ("deepspeed", changed(FSDP, layout={"shard": 32, "tensor": 2}), "recipe.layout.zero"),
    ("accelerate", FSDP, "recipe.exchange.dtype"),
    ("accelerate", plans()["zero 2"], "recipe.layout.zero"),
    ("accelerate", changed(FSDP, layout={"shard": 32, "tensor": 2}), "recipe.layout.tensor"),
    ("accelerate", changed(plans()["fp8 tensor"], scaling="block"), "recipe.precision"),
    ("accelerate", changed(plans()["8b keeping"], optimizer={"state_bits": 16}), "recipe.optimizer.state_bits"),
    ("accelerate", plans()["cpu"], "cluster.accelerator"),
]  # fmt: skip


@pytest.mark.parametrize(("target", "one", "key"), REFUSED)
def test_what_a_software_cannot_express_is_refused(target: str, one: Plan, key: str) -> None:
    with pytest.raises(ThriftyError) as error:
        emit(one, target)
    assert error.value.where == key
    assert error.value.hint


@pytest.mark.parametrize("name", [name for name, target in PAIRS if target in ("deepspeed", "accelerate")])
def test_hugging_face_gets_the_same_model(name: str, tmp_path: Path) -> None:
    one = plans()[name]
    target = next(target for other, target in PAIRS if other == name and target in ("deepspeed", "accelerate"))
    read = shape_from_config(json.loads(emit(one, target)["model.json"]))
    known = {"name": read.name, "source": read.source}
    assert read == one.job.model.model_copy(update=known)


@pytest.mark.parametrize(
    ("name", "wants"),
    [
        (
            "70b tp8 pp4",
            {"recompute_granularity": "full", "use_distributed_optimizer": True, "sequence_parallel": True},
        ),
        ("8b fsdp", {"data_parallel_sharding_strategy": "optim_grads_params", "ckpt_format": "fsdp_dtensor"}),
        ("8b keeping", {"torch_fsdp2_no_reshard_after_forward": True, "grad_reduce_in_bf16": True}),
        ("two islands", {"num_distributed_optimizer_instances": 2, "use_megatron_fsdp": True}),
        (
            "latent moe",
            {"kv_lora_rank": 512, "moe_shared_expert_intermediate_size": 2816, "expert_model_parallel_size": 8},
        ),
        ("latent moe", {"moe_layer_freq": "[0]*1+[1]*26", "q_lora_rank": None, "expert_tensor_parallel_size": 1}),
        ("fp8 blocks", {"fp8_format": "hybrid", "fp8_recipe": "mxfp8"}),
        ("nvfp4", {"fp4_format": "e2m1", "fp4_recipe": "nvfp4"}),
        ("wsd", {"lr_decay_style": "WSD", "lr_wsd_decay_iters": 250, "rope_scaling_factor": 8.0}),
        ("one gpu", {"position_embedding_type": "learned_absolute", "normalization": "LayerNorm", "swiglu": False}),
        (
            "zero 2",
            {"add_qkv_bias": True, "disable_bias_linear": True, "data_parallel_sharding_strategy": "optim_grads"},
        ),
        ("uneven stages", {"pipeline_model_parallel_layout": "Et*11|t*11|t*10L"}),
    ],
)
def test_megatron_gets_the_levers(name: str, wants: dict[str, Any], tmp_path: Path) -> None:
    one = plans()[name]
    if one.recipe.optimizer.state_bits == 8:
        one = changed(one, optimizer=one.recipe.optimizer.model_dump() | {"state_bits": 32})
    args, _ = megatron(emit(one, "megatron"), tmp_path)
    assert {key: getattr(args, key) for key in wants} == wants


def test_moments_of_8_bits_need_the_distributed_optimizer(tmp_path: Path) -> None:
    args, _ = megatron(emit(changed(TP, optimizer={"state_bits": 8}), "megatron"), tmp_path)
    assert (args.use_precision_aware_optimizer, args.exp_avg_dtype, args.exp_avg_sq_dtype) == (True, "fp8", "fp8")


@pytest.mark.parametrize(
    ("name", "wants"),
    [
        ("8b fsdp", {"fsdp_reshard_after_forward": "always", "expert_parallel_degree": 1}),
        ("70b interleaved", {"pipeline_parallel_schedule": "Interleaved1F1B", "pipeline_parallel_microbatch_size": 1}),
        ("moe ep8", {"expert_parallel_degree": 8, "data_parallel_shard_degree": 16}),
        ("two islands", {"data_parallel_replicate_degree": 2, "data_parallel_shard_degree": 8}),
        ("long context", {"context_parallel_degree": 8}),
    ],
)
def test_torchtitan_gets_the_layout(name: str, wants: dict[str, Any]) -> None:
    found = call(ast.parse(emit(plans()[name], "torchtitan")["torchtitan_plan.py"]), "ParallelismConfig")
    assert {key: found[key] for key in wants} == wants


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("fp8 rows", 'Float8LinearConverter.Config(recipe_name="rowwise"'),
        ("nvfp4", 'NVFP4LinearConverter.Config(fqns=["layers."], model_compile_enabled=True)'),
        ("70b interleaved", "activation_checkpoint=SelectiveAC.Config()"),
        ("long context", 'scaling="llama", scaling_factor=8, low_freq_factor=1, high_freq_factor=4'),
        ("latent moe fsdp", "make_mla_attention_config("),
    ],
)
def test_torchtitan_gets_the_levers(name: str, text: str) -> None:
    assert text in emit(plans()[name], "torchtitan")["torchtitan_plan.py"]


def test_fp8_is_not_set_back_to_bf16_by_the_trainer_s_options(tmp_path: Path) -> None:
    files = emit(plans()["fp8 tensor"], "accelerate")
    assert yaml.safe_load(files["accelerate.yaml"])["mixed_precision"] == "fp8"
    assert options(argv(files, tmp_path, sys.executable))["bf16"] == "false"


def test_names_and_paths_survive_the_shell(tmp_path: Path) -> None:
    odd = 'it\'s $HOME "x" `id` }'
    one = plan("llama-3-8b", "8xh100", layout={"shard": 8}, job={"name": odd, "data": {"path": f"/{odd}.txt"}})
    words = argv(emit(one, "deepspeed"), tmp_path, sys.executable, DATA="")
    assert options(words)["train_file"] == f"/{odd}.txt"
    assert options(words)["output_dir"] == f"runs/{odd}-{one.hash[:8]}"
    assert options(argv(emit(one, "torchrun"), tmp_path, sys.executable))["run-dir"] == f"runs/{odd}-{one.hash[:8]}"


def test_pipelines_hold_every_layer_once() -> None:
    for name in ("70b interleaved", "70b tp8 pp4", "uneven stages"):
        one = plans()[name]
        parts = parts_of_layers(one)
        assert len(parts) == one.recipe.layout.pipeline * one.recipe.layout.interleave
        assert [layer for part in parts for layer in part] == list(range(one.job.model.layers))
    written = call(ast.parse(emit(plans()["70b interleaved"], "torchtitan")["torchtitan_plan.py"]), "ParallelismConfig")
    stages = written["module_fqns_per_model_part"]
    assert (len(stages), stages[0][0], stages[-1][-2:]) == (8, "tok_embeddings", ["norm", "lm_head"])


def test_what_a_software_takes_differently_is_said_in_the_script() -> None:
    script = emit(FSDP, "megatron")["torchrun-megatron.sh"]
    for key in ("job.model.vocab_size", "recipe.checkpoint.keep", "job.data.tokenizer"):
        assert f"# {key}: " in script


def test_data_and_tokenizer_of_the_plan_are_the_defaults(tmp_path: Path) -> None:
    data = {"path": "/corpus/all.txt", "tokenizer": {"kind": "hf", "path": "org/llama"}}
    one = plan("llama-3-8b", "8xh100", layout={"shard": 8}, job={"data": data}, exchange={"dtype": "bf16"})
    words = argv(emit(one, "accelerate"), tmp_path, sys.executable, DATA="", TOKENIZER="")
    given = options(words)
    assert (given["train_file"], given["tokenizer_name"]) == ("/corpus/all.txt", "org/llama")
    other = argv(emit(one, "accelerate"), tmp_path, sys.executable, DATA="org/dataset")
    assert options(other)["dataset_name"] == "org/dataset"


# ---- the tools' own readers, those that install quickly


@pytest.mark.parametrize("name", [name for name, target in PAIRS if target == "accelerate"])
def test_accelerate_reads_its_file(name: str, tmp_path: Path) -> None:
    reader = pytest.importorskip("accelerate.commands.config.config_args")
    launcher = pytest.importorskip("accelerate.commands.launch")
    one = plans()[name]
    folder = write(emit(one, "accelerate"), tmp_path)
    read = reader.load_config_from_file(str(folder / "accelerate.yaml"))
    assert (read.num_processes, read.num_machines) == (one.recipe.layout.ranks, one.cluster.nodes)
    known = {action.dest for action in launcher.launch_command_parser()._actions}
    for section in (read.fsdp_config, read.parallelism_config, read.fp8_config):
        assert set(section) <= known, "keys that `accelerate launch` would drop"


@pytest.mark.parametrize(("name", "target"), [pair for pair in PAIRS if pair[1] in ("deepspeed", "accelerate")])
def test_transformers_reads_the_options(name: str, target: str, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    words = argv(emit(plans()[name], target), tmp_path, sys.executable)
    words = words[words.index("run_clm.py") + 1 :]
    if "--deepspeed" in words:
        words = words[: words.index("--deepspeed")]
    words = [*words, "--use_cpu", "true"]  # no GPU here to check the others against
    arguments, rest = transformers.HfArgumentParser(transformers.TrainingArguments).parse_args_into_dataclasses(
        words, return_remaining_strings=True
    )
    assert arguments.learning_rate == plans()[name].recipe.optimizer.lr
    assert arguments.max_steps == plans()[name].total_steps
    assert arguments.lr_scheduler_type.value.startswith(("cosine", "warmup", "constant"))
    own = {
        "config_name",
        "tokenizer_name",
        "validation_split_percentage",
        "block_size",
        "max_eval_samples",
        "train_file",
    }
    assert set(options(rest)) == own, "the options of run_clm.py itself"


def test_transformers_reads_the_model(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    folder = write(emit(plans()["zero 2"], "deepspeed"), tmp_path)
    read = transformers.AutoConfig.from_pretrained(str(folder / "model.json"))
    shape = model("qwen2-7b")
    assert (read.model_type, read.num_hidden_layers, read.hidden_size) == ("qwen2", shape.layers, shape.hidden)


@pytest.mark.parametrize("target", SOFTWARE)
@pytest.mark.parametrize("shape", ["linear", "inverse_sqrt"])
def test_other_shapes_of_the_schedule_are_written_or_refused(target: str, shape: str) -> None:
    one = changed(
        plans()[next(name for name, software in PAIRS if software == target)],
        schedule={"name": shape, "warmup_steps": 7, "final_ratio": 0.3},
    )
    written = {("megatron", "linear"): "--lr-decay-style linear", ("torchtitan", "linear"): 'decay_type="linear"'}
    if (target, shape) in written:
        assert any(written[target, shape] in text for text in emit(one, target).values())
        return
    with pytest.raises(ThriftyError, match=f"not written with schedule {shape}") as caught:
        emit(one, target)
    assert caught.value.where == "recipe.schedule.name"
    assert "cosine" in caught.value.hint
