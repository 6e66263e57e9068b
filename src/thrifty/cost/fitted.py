"""Constants of the profiles (`profiles.py`). Written by benchmarks/fit_profiles.py from public measurements."""

from __future__ import annotations

from typing import Any, Final

ERAS: Final[dict[str, dict[str, str]]] = {}
PROFILES: Final[dict[str, dict[str, Any]]] = {
    "thrifty": {"source": "own runs"},
    "thrifty-cpu": {"source": "own runs"},
    "accelerate": {"source": ""},
    "torchtitan": {"source": ""},
    "megatron": {"source": "", "fused_attention": False},
    "deepspeed": {"source": "", "fused_attention": False},
    "nanotron": {"source": ""},
}
