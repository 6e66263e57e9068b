"""What each software that a recipe may be written for runs: one row each, from its documentation, read 2026-11."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Runs:
    """What a software runs of a recipe.

    Attributes:
        called: its name in messages.
        axes: of the layout, that may exceed 1; with `island`, islands shard by themselves.
        zero: what its shard axis can divide (`Layout.zero`); `zero_in_pipelines` the same beside pipeline stages.
        tensor_overlap: tensor-parallel traffic hidden behind products; `overlap_needs_compile` in compiled blocks only.
        optimizers: that are written in its configuration, and whose memory and time are known in it; `state_bits` the
            widths of their moments.
        codecs: between islands, that plans may propose; none = not compressed. `any_codec`: others too, if asked for.
        local_steps: islands that exchange only every so many steps.
        kinds, experts, latent: shapes of models.
    """

    called: str
    axes: tuple[str, ...]
    zero: tuple[int, ...]
    zero_in_pipelines: tuple[int, ...]
    schedules: tuple[str, ...] = ()
    tensor_overlap: bool = False
    overlap_needs_compile: bool = False
    precisions: tuple[str, ...] = ("fp32", "bf16")
    recompute: tuple[str, ...] = ("none", "full")
    compile: bool = False
    optimizers: tuple[str, ...] = ("adamw",)
    state_bits: tuple[int, ...] = (32,)
    codecs: tuple[str | None, ...] = (None,)
    any_codec: bool = False
    local_steps: bool = False
    kinds: tuple[str, ...] = ("decoder",)
    experts: bool = False
    latent: bool = False


RUNS = {
    # This version of the trainer.
    "thrifty": Runs(
        called="the trainer",
        axes=("island", "shard", "pipeline", "context", "tensor"),
        zero=(3,),
        zero_in_pipelines=(3,),
        schedules=("gpipe", "1f1b", "interleaved", "zero_bubble", "zbv"),
        recompute=("none", "selective", "full"),
        compile=True,
        optimizers=("adamw", "adam", "sgd", "adagrad", "rmsprop", "adafactor", "lion", "lamb", "lars", "muon"),
        state_bits=(32, 16, 8, 4),
        codecs=(None, "int8", "int4", "means2"),
        any_codec=True,
        local_steps=True,
    ),
    # FSDP2 with HSDP, TP (asynchronous in compiled blocks), CP, EP; torch.distributed.pipelining's schedules; float8
    # and MX training by torchao; bf16 Adam states; semi-synchronous training through torchft, fp8 on the wire.
    "torchtitan": Runs(
        called="torchtitan",
        axes=("island", "shard", "pipeline", "context", "tensor", "expert"),
        zero=(3,),
        zero_in_pipelines=(3,),
        schedules=("gpipe", "1f1b", "interleaved", "zbv"),
        tensor_overlap=True,
        overlap_needs_compile=True,
        precisions=("fp32", "bf16", "fp8", "nvfp4"),
        recompute=("none", "selective", "full"),
        compile=True,
        state_bits=(32, 16),
        codecs=(None, "fp8_e4m3"),
        local_steps=True,
        experts=True,
        latent=True,
    ),
    # Plain data parallelism or the distributed optimizer, in instances too (--num-distributed-optimizer-instances);
    # --tp-comm-overlap; precision-aware optimizer states; its kernels are fused by hand, not by torch.compile.
    "megatron": Runs(
        called="Megatron-LM",
        axes=("island", "shard", "pipeline", "context", "tensor", "expert"),
        zero=(0, 1),
        zero_in_pipelines=(0, 1),
        schedules=("1f1b", "interleaved"),
        tensor_overlap=True,
        precisions=("fp32", "bf16", "fp8", "nvfp4"),
        recompute=("none", "selective", "full"),
        state_bits=(32, 16, 8),
        kinds=("decoder", "encoder", "vit"),
        experts=True,
        latent=True,
    ),
    # ZeRO over all data ranks; its pipeline engine asserts stage < 2; it trains any module.
    "deepspeed": Runs(
        called="DeepSpeed",
        axes=("shard", "pipeline"),
        zero=(0, 1, 2, 3),
        zero_in_pipelines=(0, 1),
        schedules=("1f1b",),
        compile=True,
        kinds=("decoder", "encoder", "vit"),
        experts=True,
        latent=True,
    ),
    # FSDP: FULL_SHARD, SHARD_GRAD_OP (gathered once) and HYBRID_SHARD, over any module.
    "accelerate": Runs(
        called="Accelerate",
        axes=("island", "shard"),
        zero=(3,),
        zero_in_pipelines=(),
        compile=True,
        kinds=("decoder", "encoder", "vit"),
        experts=True,
        latent=True,
    ),
    # Replicas or ZeRO-1, pipelines all-forward-all-backward or 1F1B.
    "nanotron": Runs(
        called="nanotron",
        axes=("shard", "pipeline", "tensor"),
        zero=(0, 1),
        zero_in_pipelines=(0, 1),
        schedules=("gpipe", "1f1b"),
    ),
}
