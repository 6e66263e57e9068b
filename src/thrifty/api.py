"""The three calls of the Python interface: plan, predict, train."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from thrifty.spec import Bill, Cluster, Job, Plan, Recipe


def plan(
    job: Job | str | Path, cluster: Cluster | str | Path = "local", recipe: Recipe | dict[str, Any] | None = None
) -> Plan:
    """Prices a job on a cluster and picks what the recipe leaves open.

    Args:
        job: a Job, a YAML file, a model name of the catalog, or a Hugging Face config.json.
        cluster: a Cluster, a YAML file, `local`, or a short form such as `64xh100`.
        recipe: a whole Recipe, or the keys that are to be kept, e.g. `{"precision": "fp32"}`; the rest is chosen.

    Raises:
        ThriftyError: bad input, or nothing fits the cluster.
    """
    from thrifty.cli.common import local_cluster, resolve
    from thrifty.planner import search
    from thrifty.planner.request import read_cluster
    from thrifty.spec.load import from_dict

    kept = from_dict(recipe, "the call") if isinstance(recipe, dict) else recipe
    if isinstance(job, Job):
        where = cluster if isinstance(cluster, Cluster) else read_cluster(str(cluster), local=local_cluster)[0]
        return search.plan(job, where, kept)
    request = resolve(str(job), None if isinstance(cluster, Cluster) else str(cluster))
    where = cluster if isinstance(cluster, Cluster) else request.cluster
    return search.plan(request.job, where, kept if kept is not None else request.recipe)


def predict(job: Job, cluster: Cluster, recipe: Recipe) -> Bill:
    """What a run would cost; see docs/cost-model.md for every formula."""
    from thrifty.cost.predict import predict as price

    return price(job, cluster, recipe)


def train(
    plan: Plan,
    run_dir: str | Path,
    *,
    resume: bool = False,
    budget_usd: float | None = None,
    deadline_seconds: float | None = None,
    export: str | Path | None = None,
) -> Bill:
    """Executes a plan and returns the measured bill; several ranks are started as processes of this machine.

    Args:
        export: a new folder for the trained model, as Hugging Face has them.

    Raises:
        ThriftyError: bad input, or what stopped the run. The run folder keeps all that was computed.
    """
    from thrifty.trainer import launch

    options = launch.Options(
        resume=resume,
        budget_usd=budget_usd,
        deadline_seconds=deadline_seconds,
        export=None if export is None else str(export),
    )
    outcome = launch.run(plan, Path(run_dir), options, began=time.time())
    if outcome is None:
        from thrifty.trainer.run_folder import RunFolder

        return RunFolder(run_dir).read_bill()["measured"]
    return outcome.bill
