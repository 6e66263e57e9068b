"""Measures this machine in about a second: matrix rates by dtype, memory bandwidth, overhead of one operation.

The only place that does; `local`, `doctor` and the trainer's MFU read what it found. Results are cached by machine and
torch version, in `thrifty/probe-*.json` of the user's cache folder.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import torch
import torch.nn.functional as F

from thrifty.trainer.run_folder import write_atomically

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def probe(*, refresh: bool = False) -> dict[str, Any]:
    """What this machine is and what it reached just now.

    Returns a dict with `name`, `kind` (`cpu` or `gpu`), `devices`, `memory_bytes` (one device's), `flops` by dtype,
    `memory_bytes_per_s`, `op_seconds`, `runtime_bytes`, `date`, `busy`; on a CPU the rates are the whole machine's.
    """
    path = _cache_path()
    before = None if refresh else _cached(path)
    if before is not None and not before["busy"]:
        return before
    found = _probe_gpu() if torch.cuda.is_available() else _probe_cpu()
    found |= {"date": time.strftime("%Y-%m-%d"), "busy": _is_busy()}
    if before is not None:
        # Other work slows a measurement and never quickens it, so the faster of the two says more about the hardware.
        found["flops"] = {name: max(rate, before["flops"][name]) for name, rate in found["flops"].items()}
        found["memory_bytes_per_s"] = max(found["memory_bytes_per_s"], before["memory_bytes_per_s"])
        found["op_seconds"] = min(found["op_seconds"], before["op_seconds"])
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, json.dumps(found, indent=1))
    except OSError:
        pass  # a read-only home measures every time
    return found


def _cached(path: Path) -> dict[str, Any] | None:
    try:
        found: dict[str, Any] = json.loads(path.read_text())
    except (OSError, json.JSONDecodeError):
        return None  # absent, or damaged: measured again
    return found if "busy" in found else None


def _is_busy() -> bool:
    """Whether other work had the machine in the last minute; a measurement is then kept only until the next one."""
    return hasattr(os, "getloadavg") and os.getloadavg()[0] > 0.4 * cores()


def cache_folder() -> Path:
    """`$XDG_CACHE_HOME/thrifty`, or `~/.cache/thrifty`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "thrifty"


def cpu_name() -> str:
    """The processor's own name."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _cache_path() -> Path:
    identity = [cpu_name(), cores(), psutil.virtual_memory().total, torch.__version__, platform.node()]
    if torch.cuda.is_available():
        identity += [torch.cuda.get_device_name(), torch.cuda.device_count()]
    key = hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:16]
    return cache_folder() / f"probe-{key}.json"


def _best_seconds(work: Callable[[], object], budget_seconds: float) -> float:
    """The fastest of as many runs as fit: on a shared machine the fastest says most about the hardware."""
    work()
    best, end = float("inf"), time.perf_counter() + budget_seconds
    while time.perf_counter() < end:
        begin = time.perf_counter()
        work()
        best = min(best, time.perf_counter() - begin)
    return best


def _matrix_flops(dtype: torch.dtype, device: str, size: int, sync: Callable[[], object]) -> float:
    a = torch.randn(size, size, device=device).to(dtype)
    weight = torch.randn(size, size, device=device).to(dtype)

    def work() -> None:
        F.linear(a, weight)
        sync()

    return 2 * size**3 / _best_seconds(work, 0.2)


def _op_seconds(device: str) -> float:
    """Time of one small operation with autograd recording, forward only, as an eager model dispatches them."""
    x = torch.randn(64, device=device, requires_grad=True)
    ops = 50

    def work() -> None:
        y = x
        for _ in range(ops):
            y = y * 1.0001

    return _best_seconds(work, 0.05) / ops


def _probe_cpu() -> dict[str, Any]:
    threads = torch.get_num_threads()
    torch.set_num_threads(cores())
    try:
        flops = {name: _matrix_flops(dtype, "cpu", 1024, lambda: None) for name, dtype in _DTYPES.items()}
        source = torch.randn(16 * 2**20)  # 64 MiB: more than the caches hold
        target = torch.empty_like(source)
        bandwidth = 2 * source.numel() * 4 / _best_seconds(lambda: target.copy_(source), 0.2)
    finally:
        torch.set_num_threads(threads)
    return {
        "name": cpu_name(), "kind": "cpu", "devices": cores(), "memory_bytes": psutil.virtual_memory().total / cores(),
        "flops": flops, "memory_bytes_per_s": bandwidth, "op_seconds": _op_seconds("cpu"),
        "runtime_bytes": psutil.Process().memory_info().rss,
    }  # fmt: skip


def _probe_gpu() -> dict[str, Any]:
    """Untested without an NVIDIA GPU at hand."""
    device = torch.cuda.get_device_properties(0)
    source = torch.empty(2**28, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)

    def copy() -> None:
        target.copy_(source)
        torch.cuda.synchronize()

    bandwidth = 2 * source.numel() / _best_seconds(copy, 0.1)
    return {
        "name": device.name, "kind": "gpu", "devices": torch.cuda.device_count(), "memory_bytes": device.total_memory,
        "flops": {n: _matrix_flops(d, "cuda", 8192, torch.cuda.synchronize) for n, d in _DTYPES.items()},
        "memory_bytes_per_s": bandwidth, "op_seconds": _op_seconds("cuda"),
        "runtime_bytes": device.total_memory - torch.cuda.mem_get_info()[0],
    }  # fmt: skip
