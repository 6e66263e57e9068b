"""A SkyPilot task (`sky launch sky.yaml`): it rents the nodes, copies this folder there, and starts every node's ranks.

Keys as in SkyPilot 0.14 (docs.skypilot.co, "SkyPilot YAML"); `SKYPILOT_NODE_RANK` and `SKYPILOT_NODE_IPS` are its own.
"""

from __future__ import annotations

from typing import Any

from thrifty.planner.emit.common import head, nodes, refuse, slug, to_yaml
from thrifty.planner.emit.launch import entry_of, script_name, with_script
from thrifty.spec.plan import Plan

# Catalog name -> SkyPilot's, which goes by chip and memory, not by form factor.
ACCELERATORS = {
    "V100-SXM2-32GB": "V100-32GB", "A100-SXM-40GB": "A100", "A100-SXM-80GB": "A100-80GB", "A100-PCIe-80GB": "A100-80GB",
    "H100-SXM-80GB": "H100", "H100-PCIe-80GB": "H100", "H200-SXM-141GB": "H200", "B200-SXM-180GB": "B200",
    "B300-SXM-288GB": "B300", "GB200-SXM-186GB": "GB200", "GB300-SXM-288GB": "GB300", "MI300X": "MI300X", "L4": "L4",
    "L40S": "L40S", "RTX-3090": "RTX3090", "RTX-4090": "RTX4090", "RTX-5090": "RTX5090",
}  # fmt: skip


def emit(plan: Plan) -> dict[str, str]:
    """`sky.yaml` beside the script and configuration that it runs.

    Raises:
        ThriftyError: SkyPilot has no name for the accelerator; else as `launch.entry_of` and `common.nodes`.
    """
    entry = entry_of(plan)
    number, _ = nodes(plan)
    task: dict[str, Any] = {
        "name": slug(plan.job.name),
        "num_nodes": number,
        "resources": _resources(plan),
        "workdir": ".",
        "setup": entry.setup + "\n",
        "run": "export NODE_RANK=$SKYPILOT_NODE_RANK\n"
        'export MASTER_ADDR=$(echo "$SKYPILOT_NODE_IPS" | head -n 1)\n'
        f"bash {script_name(entry)}\n",
    }
    notes = [
        "Run it in this folder: sky launch sky.yaml. SkyPilot asks for the price that it finds before it rents.",
        f"Priced at {plan.cluster.price} a device; SkyPilot names accelerators by chip and memory alone.",
    ]
    return {"sky.yaml": head(plan, notes) + to_yaml(task), **with_script(plan, entry)}


def _resources(plan: Plan) -> dict[str, Any]:
    chip, per_node = plan.cluster.accelerator, plan.cluster.per_node
    if chip.kind == "cpu":
        gib = chip.memory.value * per_node / 2**30
        return {"cpus": f"{per_node}+", "memory": f"{gib:.0f}+"}
    if chip.name not in ACCELERATORS:
        hint = f"SkyPilot knows: {', '.join(ACCELERATORS)}; or write it for SLURM"
        refuse("SkyPilot", "cluster.accelerator.name", f"has no name for {chip.name}", hint)
    return {"accelerators": {ACCELERATORS[chip.name]: per_node}}
