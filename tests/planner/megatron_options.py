"""Megatron-LM's command line as far as plans use it: option -> type, choices or flag.

Facts read from megatron/training/arguments.py of github.com/NVIDIA/Megatron-LM, Megatron core 0.15 (2025), which is not
on PyPI. `validated` checks what its validate_args asserts about combinations.
"""

from __future__ import annotations

import argparse

FLAGS = """
    group-query-attention untie-embeddings-and-output-weights swiglu disable-bias-linear add-qkv-bias qk-layernorm
    multi-latent-attention use-rope-scaling moe-grouped-gemm sequence-parallel tp-comm-overlap overlap-grad-reduce
    overlap-param-gather use-distributed-optimizer use-megatron-fsdp use-torch-fsdp2
    torch-fsdp2-no-reshard-after-forward no-gradient-accumulation-fusion bf16 accumulate-allreduce-grads-in-fp32
    grad-reduce-in-bf16
    use-precision-aware-optimizer log-throughput exit-signal-handler async-save reset-position-ids
    reset-attention-mask
"""
WHOLE = """
    num-layers hidden-size ffn-hidden-size num-attention-heads kv-channels num-query-groups vocab-size
    max-position-embeddings rotary-base seq-length micro-batch-size global-batch-size train-iters lr-decay-iters
    lr-warmup-iters lr-wsd-decay-iters tensor-model-parallel-size pipeline-model-parallel-size context-parallel-size
    expert-model-parallel-size expert-tensor-parallel-size num-virtual-stages-per-pipeline-rank
    num-distributed-optimizer-instances num-experts moe-router-topk moe-ffn-hidden-size
    moe-shared-expert-intermediate-size q-lora-rank kv-lora-rank qk-head-dim qk-pos-emb-head-dim v-head-dim
    recompute-num-layers eval-interval eval-iters save-interval log-interval seed
"""
REAL = """
    norm-epsilon rope-scaling-factor lr min-lr adam-beta1 adam-beta2 adam-eps weight-decay clip-grad attention-dropout
    hidden-dropout moe-aux-loss-coeff
"""
TEXT = "split tokenizer-model save load tensorboard-dir data-path pipeline-model-parallel-layout moe-layer-freq"
CHOICES = {
    "normalization": ["LayerNorm", "RMSNorm"],
    "position-embedding-type": ["learned_absolute", "rope", "mrope", "relative", "none"],
    "rope-type": ["rope", "yarn"],
    "optimizer": ["adam", "sgd"],
    "lr-decay-style": ["constant", "linear", "cosine", "inverse-square-root", "WSD"],
    "lr-wsd-decay-style": ["exponential", "linear", "cosine", "minus_sqrt"],
    "recompute-granularity": ["full", "selective"],
    "recompute-method": ["uniform", "block"],
    "recompute-modules": ["core_attn", "moe_act", "layernorm", "mla_up_proj", "mlp", "moe", "shared_experts"],
    "data-parallel-sharding-strategy": ["no_shard", "optim", "optim_grads", "optim_grads_params"],
    "ckpt-format": ["torch", "torch_dist", "zarr", "torch_dcp", "fsdp_dtensor"],
    "fp8-format": ["e4m3", "hybrid"],
    "fp8-recipe": ["tensorwise", "delayed", "mxfp8", "blockwise"],
    "fp4-format": ["e2m1"],
    "fp4-recipe": ["nvfp4"],
    "exp-avg-dtype": ["fp32", "fp16", "bf16", "fp8"],
    "exp-avg-sq-dtype": ["fp32", "fp16", "bf16", "fp8"],
    "moe-token-dispatcher-type": ["allgather", "alltoall", "flex"],
    "moe-router-load-balancing-type": ["aux_loss", "seq_aux_loss", "global_aux_loss", "sinkhorn", "none"],
    "tokenizer-type": ["HuggingFaceTokenizer", "GPT2BPETokenizer", "NullTokenizer", "TikTokenizer", "Llama2Tokenizer"],
}  # fmt: skip


def _window(text: str) -> tuple[int, int]:
    left, right = text.split(",")
    return int(left), int(right)


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(allow_abbrev=False, exit_on_error=False)
    for name in FLAGS.split():
        made.add_argument(f"--{name}", action="store_true")
    for names, kind in ((WHOLE, int), (REAL, float), (TEXT, str)):
        for name in names.split():
            made.add_argument(f"--{name}", type=kind)
    for name, allowed in CHOICES.items():
        made.add_argument(f"--{name}", choices=allowed)
    made.add_argument("--window-size", type=_window)
    return made


def validated(words: list[str], world: int, max_connections: str) -> argparse.Namespace:
    """Parses as Megatron-LM would, and checks what it asserts."""
    args = parser().parse_args(words)
    model = args.tensor_model_parallel_size * args.pipeline_model_parallel_size * args.context_parallel_size
    assert world % model == 0
    args.data_parallel_size = world // model
    assert args.global_batch_size % (args.micro_batch_size * args.data_parallel_size) == 0
    assert args.max_position_embeddings >= args.seq_length
    assert args.min_lr <= args.lr
    assert args.context_parallel_size == 1 or args.seq_length % (2 * args.context_parallel_size) == 0
    given = [args.num_virtual_stages_per_pipeline_rank, args.pipeline_model_parallel_layout]
    assert sum(value is not None for value in given) <= 1
    if args.pipeline_model_parallel_layout is None:
        assert args.num_layers % args.pipeline_model_parallel_size == 0
    if args.expert_model_parallel_size:
        assert args.num_experts % args.expert_model_parallel_size == 0
    assert not (args.tp_comm_overlap and not args.sequence_parallel)
    assert not (args.overlap_param_gather and not args.overlap_grad_reduce)
    assert not args.overlap_param_gather or args.use_distributed_optimizer or args.use_megatron_fsdp
    assert not (args.recompute_granularity == "selective" and args.recompute_method)
    assert not (args.fp8_format and args.fp4_format)
    assert not args.moe_grouped_gemm or args.bf16
    assert (args.ckpt_format == "fsdp_dtensor") == bool(args.use_megatron_fsdp)
    if args.use_torch_fsdp2:
        assert args.pipeline_model_parallel_size == 1
        assert not args.use_distributed_optimizer
        assert args.no_gradient_accumulation_fusion
        assert args.untie_embeddings_and_output_weights
    if args.use_torch_fsdp2 or args.use_megatron_fsdp:
        assert max_connections != "1"
    elif args.tensor_model_parallel_size > 1 or args.context_parallel_size > 1:
        assert max_connections == "1"
    return args
