"""Written by benchmarks/fit_serving.py: constants of serving, fitted to public measurements. Do not edit."""

from __future__ import annotations

from typing import Final

from thrifty.cost.serving_engines import Engine, Power

_SHARED: Final = {
    "weight_read": 0.9, "kv_read": 0.85, "matmul": {"bf16": 0.65, "fp8": 0.6, "fp4": 0.4}, "prefill_attention": 0.45,
    "expert_read": 1.6, "expert_math": 2.0, "stream_passes": 8.0, "inner_passes": 1.8, "sampling_bytes": 15.0,
    "routed_layer_seconds": 3e-5, "all_reduce_seconds": 9e-6,
}

ENGINES: Final = {
    "vllm": Engine(name="vllm", layer_seconds=5e-5, quantised_layer_seconds=4e-5, host_step_seconds=4e-3, host_sequence_seconds=7e-5, most_sequences=1024, reserved_output=0.5, **_SHARED),
    "tensorrt-llm": Engine(name="tensorrt-llm", layer_seconds=4.7e-5, quantised_layer_seconds=0.0, host_step_seconds=1e-3, host_sequence_seconds=1.5e-6, most_sequences=8192, reserved_output=1.0, **_SHARED),
}
POWER: Final = Power(awake=0.22, busy=0.77, joules_per_byte=7e-11, joules_per_flop=2.8e-12)
CHAT_PROMPT_TOKENS: Final = 260.0
