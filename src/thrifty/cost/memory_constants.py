"""Fitted numbers of the memory model. Written by benchmarks/fit_memory.py from public measurements."""

from __future__ import annotations

from typing import Any, Final

FITTED: Final[dict[str, dict[str, Any]]] = {
    # MooreThreads/SimuMax docs/b200, 2026-05: Megatron-LM 0.14, Transformer Engine 2.11
    "megatron": {"fixed_bytes": 5000000, "eager": 1.05, "compiled": 1.05},
    # huggingface/nanotron docs/benchmark_summary.svg, v0.5
    "nanotron": {"fixed_bytes": 0, "eager": 1.04, "compiled": 1.04},
    # pytorch/torchtitan benchmarks/ and nvfp4.md, 2024-12 to 2026-08
    "torchtitan": {"fixed_bytes": 0, "eager": 1.133, "compiled": 1.059},
}
# Measured over predicted: the middle 80% on model sizes that a fit has not seen.
INTERVAL: Final[dict[str, tuple[float, float]]] = {
    "megatron": (0.99, 1.01),
    "nanotron": (0.913, 1.115),
    "torchtitan": (0.951, 1.058),
}
