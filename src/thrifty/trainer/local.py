"""`local`: this machine as a cluster, from the probe."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from thrifty.catalog import lookup
from thrifty.planner.calibrated import read_calibration
from thrifty.spec.load import Settings, from_dict
from thrifty.trainer.probe import cache_folder, machine_key, probe

# A cloud virtual CPU, for machines whose owner has not said what they cost.
_VCPU_PRICE = {
    "value": "0.0446 usd/h",
    "provenance": "assumed",
    "source": "AWS c7i.large on demand, us-east-1: 0.0893 usd/h for 2 vCPU",
    "date": "2025-01-01",
}
_VCPU_IDLE = {"value": "1 W", "provenance": "assumed", "source": "a server core without work"}
_VCPU_TDP = {
    "value": "4 W",
    "provenance": "assumed",
    "source": "server CPUs of 64 to 128 cores have a TDP of about 360 to 500 W",
}
_VCPU_HOST = {"value": "1 W", "provenance": "assumed", "source": "memory, fans and supply around a core"}
# All-gathers of 4 KiB to 16 MiB by gloo between two processes on two AVX-512 cores, torch 2.13.
_GLOO = "gloo over loopback, medians of 20 calls elsewhere"
_LOOPBACK = {
    "bandwidth": {"value": "1.0 GB/s", "provenance": "assumed", "source": _GLOO, "date": "2026-11-24"},
    "latency": {"value": "400 us", "provenance": "assumed", "source": _GLOO, "date": "2026-11-24"},
}


def calibration_path() -> Path:
    """Where `calibrate` keeps what it found about this machine and this torch."""
    return cache_folder() / f"profile-{machine_key()}.yaml"


def local_cluster(*, calibrated: bool = True) -> Settings:
    """Settings of a Cluster: this machine's GPUs under their catalog name, or its CPU cores as it was measured.

    Each core of a CPU counts as one device; a rank gets an equal share of them.

    Args:
        calibrated: with the rates, link and constants that `thrifty calibrate` found, if it was run here.

    Raises:
        ThriftyError: the calibration of this machine is damaged.
    """
    found = probe()
    tree = _gpus(found) if found["kind"] == "gpu" else _cores(found)
    if not calibrated or not calibration_path().exists():
        return from_dict(tree, f"probe of this machine, {found['date']}")
    known = read_calibration(calibration_path())
    tree |= {"accelerator": known.accelerator.model_dump(), "profile": known.profile.model_dump()}
    if known.link is not None:
        tree |= dict.fromkeys(("intra_node", "inter_node", "inter_island"), known.link.model_dump())
    return from_dict(tree, f"calibration of this machine, {known.profile.date}")


def _measured(value: float, unit: str, date: str) -> dict[str, Any]:
    return {"value": value, "unit": unit, "provenance": "measured", "source": "probe of this machine", "date": date}


def _cores(found: dict[str, Any]) -> dict[str, Any]:
    cores, date = found["devices"], found["date"]
    return {
        "name": "local",
        "accelerator": {
            "name": f"one core of {cores}, {found['name']}",
            "kind": "cpu",
            "peak_flops": {name: _measured(rate / cores, "FLOP/s", date) for name, rate in found["flops"].items()},
            "achievable_flops": {n: _measured(r / cores, "FLOP/s", date) for n, r in found["usual_flops"].items()},
            "memory": _measured(found["memory_bytes"], "byte", date),
            "memory_bandwidth": _measured(found["memory_bytes_per_s"] / cores, "byte/s", date),
            "idle_watts": _VCPU_IDLE,
            "tdp_watts": _VCPU_TDP,
            "op_overhead": _measured(found["op_seconds"], "s", date),
            "runtime_memory": _measured(found["runtime_bytes"], "byte", date),
        },
        "per_node": cores,
        "intra_node": _LOOPBACK,
        "inter_node": _LOOPBACK,
        "inter_island": _LOOPBACK,
        "price": _VCPU_PRICE,
        "grid": lookup.surroundings().at("grid"),
        "pue": {"value": 1.0, "provenance": "assumed", "source": "not in a data centre"},
        "goodput": {"value": 1.0, "provenance": "assumed", "source": "one machine, a short run"},
        "utilisation": {"value": 1.0, "provenance": "assumed", "source": "all cores compute"},
        "host_watts": _VCPU_HOST,
    }


def _gpus(found: dict[str, Any]) -> dict[str, Any]:
    """The catalog's entry for the GPU's own name; its peak is never another chip's. Untested without a GPU."""
    name = lookup.accelerator_name(found["name"], "--on local")
    return dict(lookup.cluster(f"1x{found['devices']}x{name}").tree) | {"name": "local"}
