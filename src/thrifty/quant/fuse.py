"""When plain torch functions are fused by `torch.compile`, and how."""

from __future__ import annotations

import shutil
import types
import warnings
from collections.abc import Callable
from functools import cache
from typing import Any

import torch

COMPILE_FROM = 1 << 16  # values; smaller tensors finish before a compiled kernel is looked up


@cache
def can_compile(device: str) -> bool:
    """Whether `torch.compile` finds what it needs: a C++ compiler for CPUs, Triton for GPUs. Says so once if not."""
    from torch.utils._triton import has_triton

    found = has_triton() if device == "cuda" else any(shutil.which(name) for name in ("c++", "g++", "clang++"))
    if not found:
        missing = "Triton" if device == "cuda" else "a C++ compiler"
        warnings.warn(f"quantizing uncompiled, several times slower: {missing} was not found", stacklevel=2)
    return bool(found)


def fused(function: types.FunctionType, name: str, options: dict[str, Any] | None = None) -> Callable:
    """`torch.compile` with code of its own: it keeps eight variants of one code, and runs a ninth format unfused.

    Args:
        options: of the compiler.
    """
    code = function.__code__.replace(co_name="".join(c if c.isalnum() else "_" for c in name))
    own = types.FunctionType(code, function.__globals__, code.co_name, None, function.__closure__)
    return torch.compile(own, options=options)
