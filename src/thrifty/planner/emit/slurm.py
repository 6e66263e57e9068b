"""A SLURM batch script (`sbatch job.slurm`): one task a node, each starting its ranks."""

from __future__ import annotations

import math

from thrifty.planner.emit.common import head, nodes, slug
from thrifty.planner.emit.launch import entry_of, script_name, with_script
from thrifty.spec.plan import Plan

TIME_MARGIN = 1.25  # over the predicted time, where the prediction has no upper end
START_SECONDS = 600


def emit(plan: Plan) -> dict[str, str]:
    """`job.slurm` beside the script and configuration that it runs.

    Raises:
        ThriftyError: as `launch.entry_of` and `common.nodes`.
    """
    entry = entry_of(plan)
    number, per_node = nodes(plan)
    options = {
        "job-name": slug(plan.job.name),
        "nodes": str(number),
        "ntasks-per-node": "1",
        **_devices(plan, per_node),
        "time": time_limit(plan),
        "signal": "TERM@120",
        "requeue": "",
        "output": "%x-%j.out",
    }
    lines = ["#!/bin/bash"]
    lines += [f"#SBATCH --{key}={value}" if value else f"#SBATCH --{key}" for key, value in options.items()]
    notes = [
        "Partition and account are your site's: sbatch --partition=... --account=... job.slurm",
        f"The node type must have {plan.cluster.per_node} x {plan.cluster.accelerator.name}.",
        "The time limit is the predicted time and a margin. A run that reaches it continues when submitted again.",
    ]
    lines += [
        head(plan, notes).rstrip(),
        "set -euo pipefail",
        'cd "$SLURM_SUBMIT_DIR"',
        'MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)',
        "MASTER_PORT=$((20000 + SLURM_JOB_ID % 20000))",
        "export MASTER_ADDR MASTER_PORT",
        f"srun bash -c 'NODE_RANK=$SLURM_NODEID exec bash ./{script_name(entry)}'",
    ]
    return {"job.slurm": "\n".join(lines) + "\n", **with_script(plan, entry)}


def _devices(plan: Plan, per_node: int) -> dict[str, str]:
    if plan.cluster.accelerator.kind == "cpu":
        return {"cpus-per-task": str(plan.cluster.per_node)}
    whole = {"exclusive": ""} if per_node == plan.cluster.per_node else {}
    return {"gpus-per-node": str(per_node), **whole}


def time_limit(plan: Plan) -> str:
    """SLURM's D-HH:MM:SS for the upper end of the predicted time, and ten minutes to start."""
    seconds = plan.predicted.seconds
    longest = seconds.high if seconds.high is not None else seconds.value * TIME_MARGIN
    minutes = math.ceil((longest + START_SECONDS) / 60)
    return f"{minutes // 1440}-{minutes // 60 % 24:02}:{minutes % 60:02}:00"
