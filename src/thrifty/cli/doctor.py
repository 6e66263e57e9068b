"""`thrifty doctor`: what this machine can do, and what is missing."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from thrifty.cli.common import Json

# import name -> (what it is for, how it is installed)
_PARTS = {
    "torch": ("training", "pip install 'thrifty[train]'"),
    "numpy": ("training", "pip install 'thrifty[train]'"),
    "safetensors": ("reading and writing Hugging Face folders", "pip install 'thrifty[train]'"),
    "tokenizers": ("BPE tokenizers", "pip install 'thrifty[train]'"),
    "altair": ("charts of the report page", "pip install 'thrifty[report]'"),
    "vl_convert": ("charts of the report page", "pip install 'thrifty[report]'"),
    "transformers": ("nothing by itself; checks of Hugging Face folders", "pip install 'thrifty[hf]'"),
    "datasets": ("data from the datasets library", "pip install 'thrifty[hf]'"),
    "pyarrow": ("Parquet files", "pip install pyarrow"),
    "pynvml": ("energy counters of NVIDIA GPUs", "pip install 'thrifty[gpu]'"),
}


LAST_RUNS = 10  # whose error is told


def command(
    refresh: Annotated[
        bool, typer.Option("--refresh", help="Measure again instead of using what was found before.")
    ] = False,
    json: Json = False,
) -> None:
    """Say what this machine can do, and what is missing."""
    import importlib.util

    from thrifty.cli.common import print_json

    parts = {name: importlib.util.find_spec(name) is not None for name in _PARTS}
    machine = _machine(refresh) if parts["torch"] and parts["numpy"] else None
    if json:
        print_json({"machine": machine, "installed": parts})
        return
    for line in _lines(parts, machine):
        typer.echo(line)


def _machine(refresh: bool) -> dict[str, Any]:
    import shutil
    from pathlib import Path

    from thrifty.trainer import probe
    from thrifty.trainer.energy import method_here

    found = probe.probe(refresh=refresh)
    return found | {
        "calibration": _calibration(),
        "cache_folder": str(probe.cache_folder()),
        "free_disk_bytes": shutil.disk_usage(Path.cwd()).free,
        "energy_method": method_here(found["kind"] == "gpu"),
    }


def _calibration() -> dict[str, Any]:
    """The profile that plans for this machine are priced with, and how far off the last runs were."""
    import datetime

    from thrifty.cost.profiles import profile
    from thrifty.planner.calibrated import read_calibration
    from thrifty.spec.cluster import Cluster
    from thrifty.spec.errors import ThriftyError
    from thrifty.spec.load import build
    from thrifty.trainer.history import median_error, read_history
    from thrifty.trainer.local import calibration_path, local_cluster

    path = calibration_path()
    try:
        own = read_calibration(path).profile if path.exists() else None
    except ThriftyError as error:
        return {"path": str(path), "problem": str(error)}
    cluster = build(Cluster, local_cluster(), "")
    how = profile("thrifty", cluster)
    runs = read_history(cluster.accelerator.name, cluster.devices, "thrifty")
    age = (datetime.date.today() - datetime.date.fromisoformat(own.date)).days if own else None
    last = runs[-LAST_RUNS:]
    return {
        "path": str(path), "profile": how.name, "date": how.date, "age_days": age, "runs": own.runs if own else 0,
        "runs_remembered": len(runs), "last_runs": len(last), "last_error": median_error(last),
    }  # fmt: skip


def _calibration_line(found: dict[str, Any]) -> str:
    if "problem" in found:
        return f"damaged: {found['problem']}"
    age = found["age_days"]
    text = f"{found['profile']}, {age} day{'s' * (age != 1)} old, {found['runs']} runs" if found["date"] else "none yet"
    if found["last_error"] is not None:
        text += f"; the last {found['last_runs']} runs: median error of a step {found['last_error']:.0%}"
    return text if found["date"] else f"{text}: thrifty calibrate"


def _lines(parts: dict[str, bool], machine: dict[str, Any] | None) -> list[str]:
    from thrifty.spec.units import show

    lines = []
    if machine is not None:
        rates = ", ".join(f"{name} {show(rate, 'FLOP/s')}" for name, rate in machine["flops"].items())
        found = machine
        devices = f"{found['devices']} {'GPU' if found['kind'] == 'gpu' else 'core'}{'s' * (found['devices'] > 1)}"
        lines += [
            f"{found['name']}: {devices}, {show(found['memory_bytes'], 'byte')} each",
            f"  matrix products  {rates} (measured {found['date']}; the whole machine)",
            f"  memory           copies {show(found['memory_bytes_per_s'], 'byte/s')}",
            f"  one operation    {show(found['op_seconds'], 's')}",
            f"  calibration      {_calibration_line(found['calibration'])}",
            f"  energy           {found['energy_method']}",
            f"  disk here        {show(found['free_disk_bytes'], 'byte')} free; cache in {found['cache_folder']}",
        ]
        if found["flops"]["bf16"] < 1.3 * found["flops"]["fp32"]:
            lines.append("  note             bf16 is hardly faster than fp32 here")
    for name, there in parts.items():
        purpose, install = _PARTS[name]
        lines.append(f"  {'ok     ' if there else 'missing'}  {name:13} {purpose}{'' if there else f': {install}'}")
    return lines
