"""What serving software gets out of a device: few constants, each with a physical meaning. Values: `serving_fit`."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Engine:
    """Constants of one serving software on accelerators of any kind.

    Attributes:
        name: as the user writes it.
        weight_read: share of memory bandwidth at which weights are read.
        kv_read: the same of cached keys and values.
        matmul: share of the best product of the device that products reach, by rate (`bf16`, `fp8`, `fp4`).
        prefill_attention: the same of a prompt's attention, in 16 bits.
        expert_variety: share of tokens that choose their experts on their own; the rest choose alike.
        expert_read: factor on the time to read routed experts: the fullest rank, and small scattered products.
        expert_math: factor on the time of their products.
        stream_passes: times that a token's vector of width `hidden` is read or written in a layer beside products.
        inner_passes: the same of the MLP's inner vector.
        sampling_bytes: moved for each logit of each generated token.
        layer_seconds: fixed time of a layer: kernels that are too short to fill the device.
        quantised_layer_seconds: on top, where activations are quantised layer by layer.
        routed_layer_seconds: on top, for routing.
        all_reduce_seconds: fixed time of one all-reduce; a layer has two.
        host_step_seconds: the scheduler's time of a step.
        host_sequence_seconds: host time of one generated token: scheduling, sampling's result, detokenising, sending.
        most_sequences: that run at a time.
        reserved_output: share of a sequence's output that memory is kept for: 1 where nothing may be evicted, 1/2 where
            pages are taken as they fill.
        memory_share: of a device's memory that the engine uses.
    """

    name: str
    weight_read: float
    kv_read: float
    matmul: dict[str, float]
    prefill_attention: float
    expert_variety: float
    expert_read: float
    expert_math: float
    stream_passes: float
    inner_passes: float
    sampling_bytes: float
    layer_seconds: float
    quantised_layer_seconds: float
    routed_layer_seconds: float
    all_reduce_seconds: float
    host_step_seconds: float
    host_sequence_seconds: float
    most_sequences: int
    reserved_output: float
    memory_share: float = 0.9


@dataclass(frozen=True, slots=True)
class Power:
    """watts = idle + (TDP - idle) (1 - exp(-x)), x = awake + busy x share + joules/s of bytes and FLOPs / (TDP - idle).

    Attributes:
        awake: clocks up, waiting.
        busy: for the share of a step in which kernels run.
        joules_per_byte: read from memory.
        joules_per_flop: in 16 bits; a FLOP of 8 bits takes half of it, one of 4 bits a quarter.
    """

    awake: float
    busy: float
    joules_per_byte: float
    joules_per_flop: float
