"""Written by benchmarks/fit_serving.py: constants of serving, fitted to public measurements. Do not edit.

TensorRT-LLM v1.0 at full load (NVIDIA/TensorRT-LLM docs/source/performance/perf-overview.md) and vLLM by
batch, with power (ml-energy/leaderboard, 2026-02): H100, B200, GB200; 8B to 405B, one mixture of experts.
"""

from __future__ import annotations

from typing import Final

from thrifty.cost.serving_engines import Engine, Power

ENGINES: Final = {
    "vllm": Engine(
        name="vllm",
        weight_read=0.95,
        kv_read=0.93,
        matmul={"bf16": 0.87, "fp4": 0.509, "fp8": 0.846},
        prefill_attention=0.684,
        expert_variety=0.383,
        expert_read=2,
        expert_math=1.68,
        stream_passes=6.49,
        inner_passes=1.76,
        sampling_bytes=14,
        layer_seconds=5.11e-05,
        quantised_layer_seconds=3.87e-05,
        routed_layer_seconds=6.64e-05,
        all_reduce_seconds=9.24e-06,
        host_step_seconds=0.00397,
        host_sequence_seconds=7.55e-05,
        most_sequences=1024,
        reserved_output=0.5,
        memory_share=0.9,
    ),
    "tensorrt-llm": Engine(
        name="tensorrt-llm",
        weight_read=0.95,
        kv_read=0.93,
        matmul={"bf16": 0.87, "fp4": 0.509, "fp8": 0.846},
        prefill_attention=0.684,
        expert_variety=0.383,
        expert_read=2,
        expert_math=1.68,
        stream_passes=6.49,
        inner_passes=1.76,
        sampling_bytes=14,
        layer_seconds=4.28e-05,
        quantised_layer_seconds=0,
        routed_layer_seconds=6.64e-05,
        all_reduce_seconds=9.24e-06,
        host_step_seconds=0.001,
        host_sequence_seconds=1.94e-06,
        most_sequences=8192,
        reserved_output=1,
        memory_share=0.9,
    ),
}
POWER: Final = Power(
    awake=0.291,
    busy=0.775,
    joules_per_byte=8.21e-11,
    joules_per_flop=2.39e-12,
)
# Measured over predicted on models that the fit had not seen: the middle four fifths.
INTERVALS: Final = {
    "vllm": {
        "itl_seconds": (0.784, 1.233),
        "joules_per_token": (0.845, 1.335),
        "tokens_per_second": (0.779, 1.128),
        "watts": (0.848, 1.168),
    },
    "tensorrt-llm": {
        "itl_seconds": (0.784, 1.233),
        "joules_per_token": (0.845, 1.335),
        "tokens_per_second": (0.886, 1.133),
        "watts": (0.848, 1.168),
    },
}
# Mean prompt of the vLLM runs (LM-Arena chats) in tokens: fitted with the rest, as the source lacks it.
CHAT_PROMPT_TOKENS: Final = 255.0
