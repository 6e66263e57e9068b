"""Fitted numbers of the memory model. Written by benchmarks/fit_memory.py from public measurements."""

from __future__ import annotations

from typing import Any, Final

FITTED: Final[dict[str, dict[str, Any]]] = {}
# Measured over predicted: the 80% interval of errors on model sizes that a fit has not seen.
INTERVAL: Final[dict[str, tuple[float, float]]] = {}
