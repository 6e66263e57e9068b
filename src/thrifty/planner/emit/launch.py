"""The script that starts one node's ranks: a torchrun command, or accelerate's. Every launcher runs it on each node."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from thrifty.planner.emit import accelerate, deepspeed, megatron, thrifty, torchtitan
from thrifty.planner.emit.common import Entry, head, nodes, refuse
from thrifty.spec.plan import Plan

ENTRIES: dict[str, Callable[[Plan], Entry]] = {
    "thrifty": thrifty.entry,
    "torchtitan": torchtitan.entry,
    "megatron": megatron.entry,
    "deepspeed": deepspeed.entry,
    "accelerate": accelerate.entry,
}


def entry_of(plan: Plan) -> Entry:
    """The program of the software that the plan is for.

    Raises:
        ThriftyError: that software has no configuration here, or cannot express the plan.
    """
    software = plan.recipe.software
    if software not in ENTRIES:
        hint = f"emit it for another: {', '.join(name for name in ENTRIES if name != 'thrifty')}"
        refuse(software, "recipe.software", "plans are priced, but no configuration is written for it", hint)
    return ENTRIES[software](plan)


def script_name(entry: Entry) -> str:
    return "accelerate-launch.sh" if entry.accelerate else f"torchrun-{entry.software}.sh"


def with_script(plan: Plan, entry: Entry) -> dict[str, str]:
    """The entry's files and the script that runs its program on one node."""
    return {**entry.files, script_name(entry): script(plan, entry)}


def script(plan: Plan, entry: Entry) -> str:
    """Bash that starts this node's ranks. With several nodes it wants NODE_RANK and MASTER_ADDR in the environment."""
    number, per_node = nodes(plan)
    lines = [
        "#!/usr/bin/env bash",
        head(plan, entry.notes).rstrip(),
        f"# Installs with: {entry.setup}",
    ]
    if number > 1:
        lines.append(
            f"# Run it on each of {number} nodes, NODE_RANK 0 to {number - 1}, MASTER_ADDR the host of node 0."
        )
    lines += ["set -euo pipefail", 'HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)', *entry.lines]
    words = _accelerate(entry, number, per_node) if entry.accelerate else _torchrun(number, per_node)
    lines.append(" \\\n  ".join(["exec " + " ".join(words), *entry.program]))
    return "\n".join(lines) + "\n"


_RANK, _HOST = '"${NODE_RANK:?of this node, from 0}"', '"${MASTER_ADDR:?host of node 0}"'
_PORT = '"${MASTER_PORT:-29500}"'


def _torchrun(number: int, per_node: int) -> list[str]:
    words = ["torchrun", "--nnodes", str(number), "--nproc-per-node", str(per_node)]
    if number == 1:
        return [*words, "--standalone"]
    return [*words, "--node-rank", _RANK, "--master-addr", _HOST, "--master-port", _PORT]


def _accelerate(entry: Entry, number: int, per_node: int) -> list[str]:
    words = ["accelerate", "launch", "--config_file", f'"$HERE"/{entry.accelerate}']
    if number == 1:
        return words
    where = ["--machine_rank", _RANK, "--main_process_ip", _HOST, "--main_process_port", _PORT]
    return [*words, *where]


def torchrun(plan: Plan) -> dict[str, str]:
    """The plan as a torchrun command for its own software (accelerate's plans are started by `accelerate launch`)."""
    return with_script(plan, entry_of(plan))


def next_step(files: dict[str, str], folder: Path) -> str:
    """The command that starts what was written."""
    starters = {"job.slurm": "sbatch", "sky.yaml": "sky launch", "trainjob.yaml": "kubectl create -f"}
    for name, command in starters.items():
        if name in files:
            return f"{command} {folder / name}"
    name = next(name for name in files if name.endswith(".sh"))
    return f"bash {folder / name}"
