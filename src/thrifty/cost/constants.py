"""The few numbers of the cost model that no catalog and no formula gives, each with where it comes from."""

from __future__ import annotations

from typing import Final

# --- matrix products -------------------------------------------------------------------------------------------------
# Efficiency of an (m, n, k) product falls off as d / (d + half) in each dimension. GPU: least mean error over 112
# measured bf16 products on an A100 (SimuMax configs/system/a100_pcie.json, 2026-05), 5% mean. CPU: fp32 and bf16
# products of 128..2048 on an AVX-512 core reach the same rate whatever their shape, 2026-11.
GEMM_HALF_OUTER: Final = {"gpu": 192.0, "tpu": 192.0, "cpu": 4.0}  # rows and columns of the result
GEMM_HALF_INNER: Final = {"gpu": 128.0, "tpu": 128.0, "cpu": 4.0}  # the summed dimension

# Best-shape rates are bursts; training runs into the power limit. A device keeps the share (reference / (best rate /
# TDP))^exponent of its best rate, at most all: 1 on an A100 (0.68 TFLOP/J), 0.64 on a B200 (1.75 TFLOP/J), both from
# sustained products against best ones in the tables above; an H100 (0.78, and 0.67 for a part of 500 W) lies between.
# A product in half the bits takes half the energy.
SUSTAINED_FLOPS_PER_JOULE: Final = {"fp32": 0.68e12, "bf16": 0.68e12, "fp8": 1.36e12, "nvfp4": 2.72e12}
SUSTAINED_EXPONENT: Final = 0.47
# Best shape over dense peak where the catalog has no measured best: median of the A100, H100 and B200 figures
# (stas00/ml-engineering, compute/accelerator, 2026-08: 0.87, 0.80, 0.78).
ACHIEVABLE_SHARE: Final = 0.80

# --- attention -------------------------------------------------------------------------------------------------------
# Fused attention over s tokens runs at share x s / (s + half) of the matrix rate, counting causal FLOPs; the share is
# the profile's. CPU: torch 2.13 on an AVX-512 core, 64 to 2,048 tokens, share 0.65; in bf16 it keeps fp32's pace and
# suffers more when short.
ATTENTION_HALF: Final = {"gpu": (0.0, 0.0), "tpu": (0.0, 0.0), "cpu": (120.0, 200.0)}  # (fp32, bf16), in tokens
ATTENTION_BACKWARD: Final = 2.5  # products of the backward pass for one of the forward pass: 5 for 2
# What attention that is not fused moves for each score beside its products: softmax and dropout in 16 bits, read and
# written each, with a byte of mask.
SCORE_BYTES_FORWARD: Final = 10.0
SCORE_BYTES_BACKWARD: Final = 12.0
# GELU's forward and backward pass on a core for each element, in FLOPs of its fp32 matrix rate, over the time of its
# bytes: (fp32, bf16), torch 2.13, 2026-11. On a GPU it hides behind memory, as SiLU does everywhere.
GELU_FLOPS: Final = {"gpu": ((0.0, 0.0),) * 2, "tpu": ((0.0, 0.0),) * 2, "cpu": ((125.0, 0.0), (180.0, 200.0))}

# --- memory traffic of elementwise operations ------------------------------------------------------------------------
BANDWIDTH_SHARE: Final = {"gpu": 0.85, "tpu": 0.85, "cpu": 1.0}  # a CPU's bandwidth is measured, not a data sheet's
COMPILED_BYTES_SHARE: Final = 0.45  # of elementwise traffic that fused kernels still move
COMPILED_KERNEL_SHARE: Final = 0.35  # of operations that are still dispatched
# Power of the mean that joins the time of a GPU's kernels and of their launches; the higher, the nearer to the maximum.
QUEUE_SHARPNESS: Final = 3.0
COMPILE_SECONDS: Final = {"cpu": 25.0, "gpu": 60.0, "tpu": 60.0}

# --- communication ---------------------------------------------------------------------------------------------------
# A GPU's copies run beside its kernels and slow them a little (Galvatron ships 1.126); gloo runs on the cores that
# compute, so on a CPU nothing is hidden.
OVERLAP_SLOWDOWN: Final = 1.1
# Host time of FSDP2 around one collective (hooks, copies in and out), hidden behind kernels on a GPU.
SHARDING_HOST_SECONDS: Final = 3e-4
# Host time of clipping and updating one sharded tensor, over a plain one's dispatch (torch 2.13, 2026-11).
SHARDED_UPDATE_SECONDS: Final = 4e-5
# The catalog's latency is that of 8 ranks; on a GPU it grows with them: 38 us for 2 A100, 88 us for 8 (all-reduce of
# 1 MiB less its bytes, VIA-Research/vTrain trace/a100, 2024).
LATENCY_OF_RANKS: Final = (0.25, 0.094)  # base, each rank up to 8
# Share of tensor-parallel traffic that stays in sight when it is cut up and sent behind the products it feeds.
ASYNC_TENSOR_EXPOSED: Final = 0.3
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
# Time's interval is the profile's.
# Parts that depend on the disk, the operating system and the other ranks more than on arithmetic: assumed.
LOOSE_PARTS: Final = ("startup", "communication", "optimizer", "data", "checkpoint")
LOOSE_INTERVAL: Final = (0.4, 2.5)
# Tensors kept are counted; what kernels and the allocator hold beside them is not.
ACTIVATION_INTERVAL: Final = (0.95, 1.15)
