"""Written by benchmarks/fit_serving.py: constants of serving, fitted to public measurements. Do not edit.

TensorRT-LLM v1.0 at full load (NVIDIA/TensorRT-LLM docs/source/performance/perf-overview.md) and vLLM by batch,
with power (ml-energy/leaderboard, 2026-02): H100, B200, GB200; 8B to 405B, one mixture of experts.
"""

from __future__ import annotations

from typing import Final

from thrifty.cost.serving_engines import Engine, Power

ENGINES: Final = {
    "vllm": Engine(
        name="vllm",
        weight_read=0.93,
        kv_read=0.928,
        matmul={"fp4": 0.382, "fp8": 0.618, "bf16": 0.719},
        prefill_attention=0.512,
        expert_variety=0.382,
        expert_read=1.96,
        expert_math=1.51,
        stream_passes=7.15,
        inner_passes=1.81,
        sampling_bytes=14.2,
        layer_seconds=4.65e-05,
        quantised_layer_seconds=3.93e-05,
        routed_layer_seconds=6.95e-05,
        all_reduce_seconds=9.97e-06,
        host_step_seconds=0.00408,
        host_sequence_seconds=7.58e-05,
        most_sequences=1024,
        reserved_output=0.5,
        memory_share=0.9,
    ),
    "tensorrt-llm": Engine(
        name="tensorrt-llm",
        weight_read=0.93,
        kv_read=0.928,
        matmul={"fp4": 0.382, "fp8": 0.618, "bf16": 0.719},
        prefill_attention=0.512,
        expert_variety=0.382,
        expert_read=1.96,
        expert_math=1.51,
        stream_passes=7.15,
        inner_passes=1.81,
        sampling_bytes=14.2,
        layer_seconds=4.34e-05,
        quantised_layer_seconds=0,
        routed_layer_seconds=6.95e-05,
        all_reduce_seconds=9.97e-06,
        host_step_seconds=0.001,
        host_sequence_seconds=1.88e-06,
        most_sequences=8192,
        reserved_output=1,
        memory_share=0.9,
    ),
}
POWER: Final = Power(
    awake=0.301,
    busy=0.753,
    joules_per_byte=8.21e-11,
    joules_per_flop=2.39e-12,
)
# Measured over predicted on models that the fit had not seen: the middle four fifths.
INTERVALS: Final = {
    "vllm": {
        "itl_seconds": (0.782, 1.223),
        "joules_per_token": (0.845, 1.32),
        "tokens_per_second": (0.784, 1.122),
        "watts": (0.847, 1.168),
    },
    "tensorrt-llm": {
        "itl_seconds": (0.782, 1.223),
        "joules_per_token": (0.845, 1.32),
        "tokens_per_second": (0.893, 1.126),
        "watts": (0.847, 1.168),
    },
}
# Mean prompt of the vLLM runs (LM-Arena chats), in tokens: fitted with the rest, as the source does not give it.
CHAT_PROMPT_TOKENS: Final = 259.0
