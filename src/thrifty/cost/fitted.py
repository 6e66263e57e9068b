"""Constants of the profiles (`profiles.py`). Written by benchmarks/fit_profiles.py from public measurements."""

from __future__ import annotations

from typing import Any, Final

# Megatron-LM from Hopper on has fused attention and kernels of Transformer Engine.
ERAS: Final[dict[str, dict[str, str]]] = {
    "megatron": dict.fromkeys(("H100", "H200", "H800", "B200", "B300", "GB200", "GB300"), "core"),
}
PROFILES: Final[dict[str, dict[str, Any]]] = {
    "thrifty": {"source": "own runs"},
    "thrifty-cpu": {"source": "own runs"},
    "accelerate": {"source": ""},
    "torchtitan": {"source": ""},
    "megatron": {"source": "", "fused_attention": False},
    "megatron-core": {"source": ""},
    "deepspeed": {"source": "", "fused_attention": False},
    "nanotron": {"source": ""},
}
