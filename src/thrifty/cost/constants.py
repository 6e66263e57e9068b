"""The few numbers of the cost model that no catalog and no formula gives, each with where it comes from."""

from __future__ import annotations

from typing import Final

# --- matrix products -------------------------------------------------------------------------------------------------
# Efficiency of an (m, n, k) product falls off as d / (d + half) in each dimension. GPU: least mean error over 112
# measured bf16 products on an A100 (SimuMax configs/system/a100_pcie.json, 2026-05), 5% mean. CPU: fp32 and bf16
# products of 128..2048 on an AVX-512 core reach the same rate whatever their shape, 2026-11.
GEMM_HALF_OUTER: Final = {"gpu": 192.0, "tpu": 192.0, "cpu": 4.0}  # rows and columns of the result
GEMM_HALF_INNER: Final = {"gpu": 128.0, "tpu": 128.0, "cpu": 4.0}  # the summed dimension

# Best-shape rates are bursts; under the power limit of sustained training faster chips keep less of them. The share is
# (reference / peak)^exponent: 1 on an A100 (0.80 of peak = its best shape), 0.64 on a B200 (0.50 of peak sustained
# against 0.78 best), both from the same tables as above; an H100 (0.77) is interpolated.
SUSTAINED_REFERENCE_FLOPS: Final = 312e12
SUSTAINED_EXPONENT: Final = 0.226
# Best shape over dense peak where the catalog has no measured best: median of the A100, H100 and B200 figures
# (stas00/ml-engineering, compute/accelerator, 2026-08: 0.87, 0.80, 0.78).
ACHIEVABLE_SHARE: Final = 0.80

# --- attention -------------------------------------------------------------------------------------------------------
# Fused attention over s tokens runs at share x s / (s + half) of the matrix rate, counting causal FLOPs. GPU: the one
# constant fitted to whole runs (31 MPT runs on A100, mosaicml/llm-foundry scripts/train/benchmarking, read 2025-07).
# CPU: torch 2.13 on an AVX-512 core, 64 to 2,048 tokens; in bf16 it keeps fp32's pace and suffers more when short.
ATTENTION_SHARE: Final = {"gpu": 0.35, "tpu": 0.35, "cpu": 0.65}
ATTENTION_HALF: Final = {"gpu": (0.0, 0.0), "tpu": (0.0, 0.0), "cpu": (120.0, 200.0)}  # (fp32, bf16), in tokens
ATTENTION_BACKWARD: Final = 2.5  # products of the backward pass for one of the forward pass: 5 for 2
# GELU's forward and backward pass on a core for each element, in FLOPs of its fp32 matrix rate, over the time of its
# bytes: (fp32, bf16), torch 2.13, 2026-11. On a GPU it hides behind memory, as SiLU does everywhere.
GELU_FLOPS: Final = {"gpu": ((0.0, 0.0),) * 2, "tpu": ((0.0, 0.0),) * 2, "cpu": ((125.0, 0.0), (180.0, 200.0))}

# --- memory traffic of elementwise operations ------------------------------------------------------------------------
BANDWIDTH_SHARE: Final = {"gpu": 0.85, "tpu": 0.85, "cpu": 1.0}  # a CPU's bandwidth is measured, not a data sheet's
COMPILED_BYTES_SHARE: Final = 0.45  # of elementwise traffic that fused kernels still move
COMPILED_KERNEL_SHARE: Final = 0.35  # of operations that are still dispatched
COMPILE_SECONDS: Final = {"cpu": 25.0, "gpu": 60.0, "tpu": 60.0}

# --- communication ---------------------------------------------------------------------------------------------------
# A GPU's copies run beside its kernels and slow them a little (Galvatron ships 1.126); gloo runs on the cores that
# compute, so on a CPU nothing is hidden.
OVERLAP_SLOWDOWN: Final = 1.1
# gloo has no reduce-scatter of its own: of 0.25 to 4 MiB it took 2.8 to 4.9 times an all-gather that sends as much
# (torch 2.13, two ranks on two cores, 2026-11); the lower end, since larger messages tend to it.
GLOO_REDUCE_SCATTER: Final = 2.8
# Host time of FSDP2 around one collective (hooks, copies in and out), hidden behind kernels on a GPU.
SHARDING_HOST_SECONDS: Final = 3e-4
# Host time of clipping and updating one sharded tensor, over a plain one's dispatch (torch 2.13, 2026-11).
SHARDED_UPDATE_SECONDS: Final = 4e-5
STEERING_MESSAGES: Final = 2  # small all-reduces of a step: target count and stop flags, loss

# --- around the steps ------------------------------------------------------------------------------------------------
STEP_HOST_SECONDS: Final = {"cpu": 2e-4, "gpu": 2e-3, "tpu": 2e-3}  # the loop itself: batch, logging, schedule
STARTUP_SECONDS: Final = {"cpu": 6.0, "gpu": 60.0, "tpu": 120.0}  # imports, process groups, first kernels, data open
# Written and verified by one node; assumed: a laptop's disk, NVMe or a modest parallel file system.
CHECKPOINT_BYTES_PER_S: Final = {"cpu": 5e8, "gpu": 1e9, "tpu": 1e9}
# The index, reading back, hashing, renaming and the ranks' agreement, however small the model (torch 2.13, 2026-11).
CHECKPOINT_FIXED_SECONDS: Final = {"cpu": 0.18, "gpu": 0.5, "tpu": 0.5}
CHECKPOINT_BYTES_PER_PARAMETER: Final = 12  # fp32 weights and two AdamW moments

# --- the model's own kernels -----------------------------------------------------------------------------------------
# As in model/loss.py: logits exist for one chunk of tokens at a time.
LOSS_CHUNK_ROWS: Final = 512
LOSS_CHUNK_BYTES: Final = 2**24

# As in model/short_attention.py: on a CPU, bf16 sequences up to this long keep their probabilities, block by block;
# fp32 ones up to one block do.
SHORT_ATTENTION_LONGEST: Final = 512
SHORT_ATTENTION_BLOCK: Final = 64

# --- memory ----------------------------------------------------------------------------------------------------------
# Share of a device's memory that a plan may fill: the allocator's blocks are 3 to 10% larger than the tensors in them.
USABLE_MEMORY: Final = {"gpu": 0.92, "tpu": 0.92, "cpu": 0.85}

# --- intervals: factors below and above a figure ---------------------------------------------------------------------
# GPU: holds 95% of the 119 MPT runs (benchmarks/score_planner.py). CPU: assumed, shared machines vary by more.
TIME_INTERVAL: Final = {"gpu": (0.87, 1.15), "tpu": (0.7, 1.4), "cpu": (0.7, 1.5)}
# Parts that depend on the disk, the operating system and the other ranks more than on arithmetic: assumed.
LOOSE_PARTS: Final = ("startup", "communication", "optimizer", "data", "checkpoint")
LOOSE_INTERVAL: Final = (0.4, 2.5)
# Tensors kept are counted; what kernels and the allocator hold beside them is not.
ACTIVATION_INTERVAL: Final = (0.95, 1.15)
