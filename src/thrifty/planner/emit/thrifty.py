"""A plan for Thrifty's own trainer: the plan file itself, run by `thrifty train` on every rank."""

from __future__ import annotations

import shlex

from thrifty.planner.emit.common import Entry, run_name
from thrifty.spec import legal
from thrifty.spec.load import to_yaml
from thrifty.spec.plan import Plan


def entry(plan: Plan) -> Entry:
    """`torchrun ... -m thrifty train plan.yaml`. A second start continues from the last checkpoint.

    Raises:
        ThriftyError: the trainer does not run this recipe.
    """
    legal.require(plan.job, plan.recipe)
    lines = [
        f"RUN=${{RUN_DIR:-{shlex.quote('runs/' + run_name(plan))}}}",
        "RESUME=()",
        'if [ -e "$RUN/metrics.jsonl" ]; then RESUME=(--resume); fi',
    ]
    if plan.cluster.accelerator.kind == "cpu":
        threads = plan.cluster.devices_per_rank(plan.recipe.layout.ranks)
        lines.append(f"export OMP_NUM_THREADS={threads}  # the ranks share the cores")
    return Entry(
        software="thrifty",
        files={"plan.yaml": to_yaml(plan)},
        program=["-m thrifty train", '"$HERE"/plan.yaml', '--run-dir "$RUN"', '"${RESUME[@]}"'],
        setup="pip install 'thrifty[train]'",
        lines=lines,
        notes=["on several nodes, RUN_DIR (runs/...) must lie on storage that all of them share"],
    )
