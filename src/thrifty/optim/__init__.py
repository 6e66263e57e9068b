"""Optimizers and schedules for anybody's training loop."""

from importlib import import_module
from typing import Any

# Found on first use: schedules are read where torch is not imported.
_HOME = {
    "Adam8bit": "blockwise",
    "AdamW": "full",
    "AdamW4bit": "blockwise",
    "AdamW8bit": "blockwise",
    "Lamb": "trust",
    "Lars": "trust",
    "Lion8bit": "blockwise",
    "MicroSquares": "small_gradients",
    "Muon": "muon",
    "NoiseScale": "noise_scale",
    "NormSquares": "small_gradients",
    "measuring_hook": "small_gradients",
    "unsharded_parameters": "small_gradients",
}

__all__ = list(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'thrifty.optim' has no attribute {name!r}")
    return getattr(import_module(f"thrifty.optim.{_HOME[name]}"), name)
