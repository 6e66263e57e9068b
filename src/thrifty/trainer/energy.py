"""Energy: joules and the method that gave them. NVML's counter, RAPL's counter, or a declared model."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any, NamedTuple

from thrifty.spec.cluster import Cluster

_RAPL = Path("/sys/class/powercap")


class Reading(NamedTuple):
    """Joules since the meter started, drawn by this machine's share of the run, and how they were found."""

    joules: float
    method: str
    provenance: str  # measured | modelled


class EnergyMeter:
    """Reads joules of the devices that this process uses, from when it was made.

    In order of preference: NVML's total-energy counter of the process's GPU; RAPL's package counters of a CPU (the
    whole package, divided by the ranks on this machine); else a model: with u the process's CPU time divided by the
    wall time of its cores,

        watts = devices x (idle + (TDP - idle) x u)          on a CPU
        watts = idle + (TDP - idle) x cluster.utilisation    on a GPU without a counter

    Hosts and PUE are not in here; the bill adds them.
    """

    def __init__(self, cluster: Cluster, *, devices: int, local_ranks: int, gpu_index: int | None) -> None:
        self._cluster, self._devices, self._local_ranks = cluster, devices, local_ranks
        self._begin, self._begin_cpu = time.perf_counter(), time.process_time()
        self._nvml = _nvml_handle(gpu_index) if gpu_index is not None else None
        self._gpu = gpu_index is not None
        self._rapl = (
            [] if self._gpu else sorted(p for p in _RAPL.glob("intel-rapl:?") if os.access(p / "energy_uj", os.R_OK))
        )
        self._rapl_last = [_read_int(zone / "energy_uj") for zone in self._rapl]
        self._rapl_joules = 0.0
        self._nvml_begin = _nvml_joules(self._nvml)

    def read(self) -> Reading:
        """Joules so far."""
        if self._nvml is not None:
            return Reading(_nvml_joules(self._nvml) - self._nvml_begin, "NVML total-energy counter", "measured")
        if self._rapl:
            for i, zone in enumerate(self._rapl):
                now = _read_int(zone / "energy_uj")
                delta = now - self._rapl_last[i]
                # The counter wraps at max_energy_range_uj; it is read at every step, so it wraps at most once between.
                self._rapl_joules += (delta if delta >= 0 else delta + _read_int(zone / "max_energy_range_uj")) / 1e6
                self._rapl_last[i] = now
            return Reading(self._rapl_joules / self._local_ranks, "RAPL package counters", "measured")
        seconds = time.perf_counter() - self._begin
        chip = self._cluster.accelerator
        idle, span = chip.idle_watts.value, chip.tdp_watts.value - chip.idle_watts.value
        if self._gpu:
            share, how = self._cluster.utilisation.value, "cluster.utilisation"
        else:
            share = min(1.0, (time.process_time() - self._begin_cpu) / max(1e-9, seconds * self._devices))
            how = f"CPU time {share:.0%}"
        watts = self._devices * (idle + span * share)
        return Reading(watts * seconds, f"model: idle + (TDP - idle) x {how}", "modelled")


def _nvml_handle(gpu_index: int) -> Any:
    """NVML's handle of a GPU, or None without NVML. Untested without an NVIDIA GPU."""
    try:
        import pynvml
    except ImportError:
        return None
    try:
        pynvml.nvmlInit()
        handle = pynvml.nvmlDeviceGetHandleByIndex(gpu_index)
        pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)
    except pynvml.NVMLError:  # no driver, or a GPU without the counter
        return None
    return handle


def _nvml_joules(handle: Any) -> float:
    if handle is None:
        return 0.0
    import pynvml

    return float(pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)) / 1e3  # millijoules


def _read_int(path: Path) -> int:
    return int(path.read_text())


def method_here(gpu: bool) -> str:
    """How energy would be found on this machine."""
    if gpu and _nvml_handle(0) is not None:
        return "measured: NVML total-energy counter"
    if not gpu and any(os.access(zone / "energy_uj", os.R_OK) for zone in _RAPL.glob("intel-rapl:?")):
        return "measured: RAPL package counters"
    return "modelled: idle + (TDP - idle) x utilisation; no readable counter"
