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

    Returns a dict with `name`, `kind` (`cpu` or `gpu`), `devices`, `memory_bytes` (one device's), `flops` (best) and
    `usual_flops` (median) by dtype,
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
    return found if {"busy", "usual_flops"} <= found.keys() else None


def load() -> float:
    """Processes that wanted a core in the last minute, over the cores; 0 where the system does not say."""
    return os.getloadavg()[0] / cores() if hasattr(os, "getloadavg") else 0.0


def _is_busy() -> bool:
    """Whether other work had the machine in the last minute; a measurement is then kept only until the next one."""
    return load() > 0.4


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
    return cache_folder() / f"probe-{machine_key()}.json"


def machine_key() -> str:
    """Tells this machine under this torch from any other, for the names of files."""
    identity = [cpu_name(), cores(), psutil.virtual_memory().total, torch.__version__, platform.node()]
    if torch.cuda.is_available():
        identity += [torch.cuda.get_device_name(), torch.cuda.device_count()]
    return hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:16]


def _times(work: Callable[[], object], budget_seconds: float) -> list[float]:
    """Sorted times of as many runs as fit; the first, which warms up, is left out."""
    work()
    found = []
    end = time.perf_counter() + budget_seconds
    while time.perf_counter() < end:
        begin = time.perf_counter()
        work()
        found.append(time.perf_counter() - begin)
    return sorted(found)


def _matrix_flops(dtype: torch.dtype, device: str, size: int, sync: Callable[[], object]) -> tuple[float, float]:
    """The best and the median rate: what the hardware can do, and what a run on it may expect."""
    a = torch.randn(size, size, device=device).to(dtype)
    weight = torch.randn(size, size, device=device).to(dtype)

    def work() -> None:
        F.linear(a, weight)
        sync()

    times = _times(work, 0.25)
    return 2 * size**3 / times[0], 2 * size**3 / times[len(times) // 2]


def _rates(device: str, size: int, sync: Callable[[], object]) -> dict[str, dict[str, float]]:
    found = {name: _matrix_flops(dtype, device, size, sync) for name, dtype in _DTYPES.items()}
    return {"flops": {n: best for n, (best, _) in found.items()}, "usual_flops": {n: u for n, (_, u) in found.items()}}


def product_seconds(device: str, precision: str, way: str, m: int, n: int, k: int, budget_seconds: float) -> float:
    """Time of one product of a linear layer with k inputs and n outputs on m tokens: the lower quartile of a few.

    Args:
        way: `forward` x W^T, `input gradient` dy W, or `weight gradient` dy^T x.
    """
    dtype = _DTYPES[precision]
    x, weight, dy = (torch.randn(shape, device=device).to(dtype) for shape in ((m, k), (n, k), (m, n)))
    ways: dict[str, Callable[[], object]] = {
        "forward": lambda: F.linear(x, weight),
        "input gradient": lambda: dy @ weight,
        "weight gradient": lambda: dy.T @ x,
    }

    def work() -> None:
        ways[way]()
        if device != "cpu":
            torch.cuda.synchronize()

    times = _times(work, budget_seconds)
    return times[len(times) // 4]


def _op_seconds(device: str) -> float:
    """Time of one small operation with autograd recording, forward only, as an eager model dispatches them."""
    x = torch.randn(64, device=device, requires_grad=True)
    ops = 50

    def work() -> None:
        y = x
        for _ in range(ops):
            y = y * 1.0001

    return _times(work, 0.05)[0] / ops


def _probe_cpu() -> dict[str, Any]:
    threads = torch.get_num_threads()
    torch.set_num_threads(cores())
    try:
        rates = _rates("cpu", 1024, lambda: None)
        source = torch.randn(16 * 2**20)  # 64 MiB: more than the caches hold
        target = torch.empty_like(source)
        times = _times(lambda: target.copy_(source), 0.2)
        bandwidth = 2 * source.numel() * 4 / times[len(times) // 2]
    finally:
        torch.set_num_threads(threads)
    return {
        "name": cpu_name(), "kind": "cpu", "devices": cores(), "memory_bytes": psutil.virtual_memory().total / cores(),
        **rates, "memory_bytes_per_s": bandwidth, "op_seconds": _op_seconds("cpu"),
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

    bandwidth = 2 * source.numel() / _times(copy, 0.1)[0]
    return {
        "name": device.name, "kind": "gpu", "devices": torch.cuda.device_count(), "memory_bytes": device.total_memory,
        **_rates("cuda", 8192, torch.cuda.synchronize),
        "memory_bytes_per_s": bandwidth, "op_seconds": _op_seconds("cuda"),
        "runtime_bytes": device.total_memory - torch.cuda.mem_get_info()[0],
    }  # fmt: skip
