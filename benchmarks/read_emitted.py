"""The inside of check_emit.py: run by the environment that has a tool, it reads that tool's files. No thrifty here."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import importlib.metadata
import io
import json
import os
import re
import sys
from pathlib import Path
from typing import Any


def read_torchrun(folder: Path, expected: dict[str, Any]) -> None:
    from torch.distributed.run import get_args_parser

    args = get_args_parser().parse_args(words(folder))
    assert int(args.nnodes) * int(args.nproc_per_node) == expected["world"]


def read_kubeflow(folder: Path, expected: dict[str, Any]) -> None:
    import yaml
    from kubeflow_trainer_api import models

    config, job = yaml.safe_load_all((folder / "trainjob.yaml").read_text())
    assert models.IoK8sApiCoreV1ConfigMap.from_dict(config).to_dict() == config
    read = models.TrainerV1alpha1TrainJob.from_dict(job)
    assert read.to_dict() == job, "a key that the API does not know"
    assert read.spec.trainer.num_nodes == expected["nodes"]


def read_skypilot(folder: Path, expected: dict[str, Any]) -> None:
    import sky

    here = Path.cwd()
    os.chdir(folder)
    try:
        task = sky.Task.from_yaml("sky.yaml")
    finally:
        os.chdir(here)
    assert task.num_nodes == expected["nodes"]
    (resources,) = task.resources
    if resources.accelerators:
        (number,) = resources.accelerators.values()
        assert number == expected["per_node"]


def read_accelerate(folder: Path, expected: dict[str, Any]) -> None:
    from accelerate.commands import launch
    from accelerate.commands.config.config_args import load_config_from_file

    read = load_config_from_file(str(folder / "accelerate.yaml"))
    assert read.num_processes == expected["world"]
    given = words(folder)[1:]
    parser = launch.launch_command_parser()
    args = parser.parse_args(given)
    known = {action.dest for action in parser._actions}
    assert {*read.fsdp_config, *read.parallelism_config, *read.fp8_config} <= known
    merged, _, _ = launch._validate_launch_command(args)
    assert merged.num_processes == expected["world"]
    if expected["world"] > 1 and read.fsdp_config:
        assert merged.use_fsdp
        assert str(merged.fsdp_version) == "2"
    if read.parallelism_config:
        assert merged.parallelism_config_cp_size == expected["layout"]["context"]
        assert merged.parallelism_config_dp_replicate_size == expected["layout"]["island"]


def read_deepspeed(folder: Path, expected: dict[str, Any]) -> None:
    import transformers
    from deepspeed.runtime import config as ds_config
    from transformers.integrations.deepspeed import HfTrainerDeepSpeedConfig

    class Ranks:
        """The process group that DeepSpeed asks how many ranks share a batch."""

        def get_rank(self) -> int:
            return 0

        def get_world_size(self) -> int:
            return int(expected["data_ranks"])

    ds_config.dist = Ranks()
    path = folder / "deepspeed.json"
    content = json.loads(path.read_text())
    read = ds_config.DeepSpeedConfig(content)
    assert read.train_batch_size == expected["sequences"]
    assert read.gradient_accumulation_steps == expected["accumulation"]
    assert read.optimizer_name == "adamw"
    assert read.optimizer_params["lr"] == expected["lr"]
    assert read.zero_optimization_stage == (expected["layout"]["zero"] if expected["layout"]["shard"] > 1 else 0)
    unknown = set(content) - known_keys()
    assert not unknown, f"keys that DeepSpeed does not read: {unknown}"
    given = words(folder)
    given = given[given.index("run_clm.py") + 1 : given.index("--deepspeed")]
    parser = transformers.HfArgumentParser(transformers.TrainingArguments)
    args, _ = parser.parse_args_into_dataclasses([*given, "--use_cpu", "true"], return_remaining_strings=True)
    compared = HfTrainerDeepSpeedConfig(str(path))
    args.__class__.world_size = property(lambda self: expected["data_ranks"])  # type: ignore[assignment]
    compared.trainer_config_process(args)
    compared.trainer_config_finalize(args, type("Model", (), {"config": None})(), expected["steps"])
    assert not compared.mismatches


def known_keys() -> set[str]:
    """Every name of a key that DeepSpeed's sources spell out."""
    import deepspeed

    source = Path(deepspeed.__file__).parent
    files = [source / "runtime" / "constants.py", source / "runtime" / "config.py", *source.glob("runtime/*/config.py")]
    files += [*source.glob("runtime/*/constants.py"), source / "runtime" / "precision_config.py"]
    text = "\n".join(file.read_text() for file in files if file.exists())
    return set(re.findall(r"[\"']([a-z0-9_]+)[\"']", text))


def read_torchtitan(folder: Path, expected: dict[str, Any]) -> None:
    import torch
    from torchtitan.components.quantization import float8, mx, nvfp4
    from torchtitan.config import ConfigManager

    # The converters look for the GPU that they are for; what they convert can be seen without one.
    for module in (float8, mx, nvfp4):
        module.has_cuda_capability = lambda *_: True
    os.environ |= {"DATA": "data", "TOKENIZER": str(folder), "RUN": "run"}
    sys.path.insert(0, str(folder))
    try:
        sys.modules.pop("torchtitan_plan", None)
        given = words(folder)
        config = ConfigManager().parse_args(given[given.index("torchtitan.train") + 1 :])
    finally:
        sys.path.pop(0)
    layout, parallel = expected["layout"], config.parallelism
    axes = (
        parallel.data_parallel_replicate_degree, parallel.data_parallel_shard_degree, parallel.context_parallel_degree,
        parallel.tensor_parallel_degree, parallel.pipeline_parallel_degree,
    )  # fmt: skip
    assert torch.tensor(axes).prod() == expected["world"]
    dims = importlib.import_module("torchtitan.distributed.parallel_dims").ParallelDims
    dims(
        dp_replicate=axes[0], dp_shard=axes[1], cp=axes[2], tp=axes[3], pp=axes[4], ep=layout["expert"],
        world_size=expected["world"], spmd_backend=parallel.spmd_backend,
    )  # fmt: skip
    assert config.training.global_batch_size == expected["sequences"]
    assert config.training.seq_len == expected["sequence_length"]
    groups = config.optimizer.param_groups
    assert {group.optimizer_kwargs["lr"] for group in groups} == {expected["lr"]}
    config.model_spec.model.update_from_config(config=config)
    with torch.device("meta"):
        model = config.model_spec.model.build()
    tied = config.model_spec.model.enable_weight_tying
    counted = sum(parameter.numel() for parameter in model.parameters())
    assert counted == expected["parameters"], f"{counted} parameters, {expected['parameters']} planned (tied: {tied})"
    check_stages(parallel, model)
    optimizers = importlib.import_module("torchtitan.components.optimizer").OptimizersContainer
    grouped, _ = optimizers._build_param_groups(model, groups, {})
    plain = {name for group in grouped["AdamW"] if not group["weight_decay"] for name in group["param_names"]}
    assert plain == {name for name, parameter in model.named_parameters() if parameter.dim() < 2}
    config.lr_scheduler.build(optimizers=[torch.optim.SGD([torch.zeros(1)], lr=1.0)], training_steps=expected["steps"])


def check_stages(parallel: Any, model: Any) -> None:
    """The pipeline's parts name every module of the model once."""
    if parallel.pipeline_parallel_degree == 1:
        return
    from torch.distributed.pipelining.schedules import get_schedule_class

    get_schedule_class(parallel.pipeline_parallel_schedule)
    named = [name for part in parallel.module_fqns_per_model_part for name in part]
    layers = [f"layers.{layer}" for layer in model.layers]
    assert sorted(named) == sorted(["tok_embeddings", *layers, "norm", "lm_head"])


def read_megatron(folder: Path, expected: dict[str, Any]) -> None:
    import torch
    from megatron.core.distributed import DistributedDataParallelConfig
    from megatron.core.optimizer import OptimizerConfig
    from megatron.core.transformer.pipeline_parallel_layer_layout import PipelineParallelLayerLayout
    from megatron.core.transformer.transformer_config import MLATransformerConfig, TransformerConfig

    args = megatron_options(folder)
    if CHECKOUT is not None:
        megatron_checkout(folder, expected)
    shape = MLATransformerConfig if args.multi_latent_attention else TransformerConfig
    values = {name: value for name, value in vars(args).items() if name in fields(shape) and value is not None}
    half = torch.bfloat16 if args.bf16 else torch.float32
    values |= {
        "add_bias_linear": not args.disable_bias_linear,
        "num_moe_experts": args.num_experts,
        "layernorm_epsilon": args.norm_epsilon,
        "gated_linear_unit": args.swiglu,
        "activation_func": torch.nn.functional.silu if args.swiglu else torch.nn.functional.gelu,
        "num_query_groups": args.num_query_groups if args.group_query_attention else None,
        "pipeline_dtype": half,
        "params_dtype": half,
        "fp8": args.fp8_format,
        "gradient_accumulation_fusion": False,
        "virtual_pipeline_model_parallel_size": args.num_virtual_stages_per_pipeline_rank,
        "bias_activation_fusion": False,
        "sequence_parallel": args.sequence_parallel and args.tensor_model_parallel_size > 1,
    }
    if args.moe_layer_freq:
        values["moe_layer_freq"] = eval(args.moe_layer_freq, {})  # as Megatron-LM does with this option
    if isinstance(values.get("recompute_modules"), str):
        values["recompute_modules"] = [values["recompute_modules"]]
    if args.fp4_format:
        values["fp4"] = args.fp4_format
    if args.pipeline_model_parallel_layout:
        layout = PipelineParallelLayerLayout.from_str(
            args.pipeline_model_parallel_layout, args.pipeline_model_parallel_size
        )
        layout.validate_layer_layout(args.num_layers, None)
    config = shape(**values)
    assert config.num_layers == args.num_layers
    sharding = args.data_parallel_sharding_strategy or "no_shard"
    DistributedDataParallelConfig(
        use_megatron_fsdp=args.use_megatron_fsdp, data_parallel_sharding_strategy=sharding,
        use_distributed_optimizer=args.use_distributed_optimizer, overlap_grad_reduce=args.overlap_grad_reduce,
        overlap_param_gather=args.overlap_param_gather,
        num_distributed_optimizer_instances=args.num_distributed_optimizer_instances or 1,
    )  # fmt: skip
    types = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp8": torch.uint8, None: torch.float32}
    optimizer = OptimizerConfig(
        optimizer=args.optimizer, lr=args.lr, min_lr=args.min_lr, weight_decay=args.weight_decay, bf16=args.bf16,
        adam_beta1=args.adam_beta1, adam_beta2=args.adam_beta2, adam_eps=args.adam_eps, clip_grad=args.clip_grad,
        use_distributed_optimizer=args.use_distributed_optimizer, params_dtype=half,
        use_precision_aware_optimizer=False, exp_avg_dtype=types[args.exp_avg_dtype],
    )  # fmt: skip
    assert optimizer.lr == expected["lr"]


def megatron_options(folder: Path) -> Any:
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests" / "planner"))
    import megatron_options

    given = words(folder)
    return megatron_options.parser().parse_args(given[given.index("/megatron/pretrain_gpt.py") + 1 :])


def megatron_checkout(folder: Path, expected: dict[str, Any]) -> None:
    """Megatron-LM's own parser, from the checkout that was named."""
    sys.path.insert(0, str(CHECKOUT))
    from megatron.training.arguments import parse_args

    given = words(folder)
    sys.argv = given[given.index("/megatron/pretrain_gpt.py") :]
    args = parse_args()
    assert (args.global_batch_size, args.lr) == (expected["sequences"], expected["lr"])


def fields(config: Any) -> set[str]:
    return {field.name for field in dataclasses.fields(config)}


def words(folder: Path) -> list[str]:
    """What the script gives to its launcher."""
    found: list[str] = json.loads((folder / "argv.json").read_text())
    return found


CHECKOUT: Path | None = None
READ = {
    "torchrun": (read_torchrun, "torch.distributed.run"), "kubeflow": (read_kubeflow, "kubeflow_trainer_api"),
    "skypilot": (read_skypilot, "sky.Task.from_yaml of skypilot"), "accelerate": (read_accelerate, "accelerate"),
    "deepspeed": (read_deepspeed, "DeepSpeedConfig and transformers' Trainer, deepspeed"),
    "torchtitan": (read_torchtitan, "ConfigManager and the model on the meta device, torchtitan"),
    "megatron": (read_megatron, "the configuration classes of megatron-core"),
}  # fmt: skip


def main(target: str, folder: Path, package: str) -> dict[str, Any]:
    read, by = READ[target]
    done, failed = 0, {}
    for place in sorted(path for path in folder.iterdir() if path.is_dir()):
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                read(place, json.loads((place / "expected.json").read_text()))
        except Exception as error:  # whatever a tool raises is the finding
            failed[place.name] = f"{type(error).__name__}: {error}"[:500]
        else:
            done += 1
    version = importlib.metadata.version(package)
    return {"read": done, "failed": failed, "by": by, "version": version}


if __name__ == "__main__":
    CHECKOUT = Path(sys.argv[4]).resolve() if len(sys.argv) > 4 else None
    print(json.dumps(main(sys.argv[1], Path(sys.argv[2]), sys.argv[3])))
