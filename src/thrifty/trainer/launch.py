"""Starts the ranks of a run on this machine, or becomes one of them, and turns what goes wrong into one message.

Under torchrun (RANK is set) the process is a rank already. One rank runs right here. Several are started through
torch's elastic launcher, which picks a free port, watches them, and stops all when one dies.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from thrifty.model.hub_files import require_new
from thrifty.spec import legal
from thrifty.spec.bill import Bill
from thrifty.spec.errors import ThriftyError
from thrifty.spec.plan import Plan
from thrifty.trainer.run_folder import RunFolder, finished_steps, write_atomically
from thrifty.trainer.spent import SpentFile


@dataclass(frozen=True)
class Options:
    """What `train` was asked for besides the plan.

    Attributes:
        budget_usd: stop before the run has cost more, resumes included.
        deadline_seconds: stop before this run has lasted longer.
        follow: `tensorboard`, `wandb` or `trackio`: also send the metrics there.
        export: folder for the trained model, as Hugging Face has them.
    """

    resume: bool = False
    budget_usd: float | None = None
    deadline_seconds: float | None = None
    follow: str | None = None
    export: str | None = None


@dataclass(frozen=True)
class Outcome:
    """The measured bill, and why the run stopped early (None when it is complete)."""

    bill: Bill
    stopped: str | None


def run(plan: Plan, root: Path, options: Options, *, began: float | None = None) -> Outcome | None:
    """Executes a plan in `root`.

    Returns:
        The outcome; None on a rank other than 0 of a torchrun that somebody else started.

    Raises:
        ThriftyError: bad input, or what stopped the run, with the last good checkpoint.
    """
    began = began or time.time()
    legal.require_own(plan.job, plan.recipe)
    folder = RunFolder(root)
    in_torchrun = "RANK" in os.environ
    if int(os.environ.get("RANK", 0)) == 0:
        _check_folder(folder, options.resume)
        if options.export is not None:
            require_new(Path(options.export), plan.job.model)
    if in_torchrun or plan.recipe.layout.ranks == 1:
        return run_rank(plan, folder, options, began)
    return _run_ranks(plan, folder, options, began)


def _check_folder(folder: RunFolder, resume: bool) -> None:
    if folder.metrics.exists() and not resume:
        hint = "continue it with --resume, or give another --run-dir"
        raise ThriftyError("this folder already holds a run", where=str(folder.root), hint=hint)
    if resume and not folder.root.is_dir():
        raise ThriftyError(
            "there is no run to resume",
            where=str(folder.root),
            hint="give its folder with --run-dir, or start without --resume",
        )
    try:
        folder.root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ThriftyError(
            f"cannot be made: {error.strerror}", where=str(folder.root), hint="give another --run-dir"
        ) from None


def run_rank(plan: Plan, folder: RunFolder, options: Options, began: float) -> Outcome | None:
    """Trains as one rank, in this process."""
    spent = _open_spent(plan, folder, options, began) if int(os.environ.get("RANK", 0)) == 0 else None
    with spent or nullcontext():
        return _train(plan, folder, options, began, spent)


def _open_spent(plan: Plan, folder: RunFolder, options: Options, began: float) -> SpentFile:
    return SpentFile(folder.spent, plan.cluster, began, resume=options.resume, rows=folder.read_metrics)


def _train(plan: Plan, folder: RunFolder, options: Options, began: float, spent: SpentFile | None) -> Outcome | None:
    from thrifty.trainer.allocator import keep_freed_memory
    from thrifty.trainer.follow import open_follower
    from thrifty.trainer.history import remember
    from thrifty.trainer.limits import Limits
    from thrifty.trainer.loop import execute
    from thrifty.trainer.record import Record
    from thrifty.trainer.world import join

    keep_freed_memory()
    world = join(plan)
    follower = open_follower(options.follow, folder.root, plan) if options.follow and world.rank == 0 else None
    record = Record(folder, rank=world.rank, spent=spent, follow=follower)
    try:
        limits = Limits(options.budget_usd, options.deadline_seconds)
        export = Path(options.export) if options.export is not None else None
        bill, stopped = execute(plan, world, record, resume=options.resume, limits=limits, began=began, export=export)
        if world.rank == 0:
            remember(plan, bill, folder)
    except (RuntimeError, ThriftyError) as error:  # the latter from an exchange between islands
        lost = _lost(error, folder)
        if lost is None:
            raise
        raise lost from None
    finally:
        record.close()
    world.close()
    return Outcome(bill, stopped) if world.rank == 0 else None


class LostRank(ThriftyError):
    """Another rank went away. Whoever started the ranks knows more about why."""


def _lost(error: Exception, folder: RunFolder) -> LostRank | None:
    """What gloo and NCCL say when the other end of a connection is gone; None for any other error."""
    signs = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "remote process exited")
    if not any(sign in str(error) for sign in signs):
        return None
    return LostRank("lost contact with another rank", where=str(folder.root), hint=_ways_on(folder))


def _ways_on(folder: RunFolder) -> str:
    steps = finished_steps(folder.checkpoints)
    last = f"the last good checkpoint is step {steps[-1]}" if steps else "there is no checkpoint yet"
    return f"{last}; continue with --resume"


def _run_ranks(plan: Plan, folder: RunFolder, options: Options, began: float) -> Outcome:
    """Starts the plan's ranks here and waits for them."""
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    from thrifty.planner.emit import write_plan

    ranks = plan.recipe.layout.ranks
    nodes, per_node = plan.cluster.nodes, plan.cluster.per_node
    if ranks > per_node:
        raise ThriftyError(
            f"the plan has {ranks} ranks, one machine of this cluster has {per_node}",
            where="recipe.layout",
            hint=f"on every node: torchrun --nnodes {nodes} --nproc-per-node {per_node} -m thrifty train PLAN",
        )
    request, answer = folder.root / "launch.yaml", folder.root / "launch.json"
    answer.unlink(missing_ok=True)
    write_plan(plan, request)
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)  # this function reports
    logging.getLogger("torch.distributed.run").setLevel(logging.CRITICAL)
    config = LaunchConfig(
        min_nodes=1, max_nodes=1, nproc_per_node=ranks, rdzv_backend="c10d", rdzv_endpoint="localhost:0",
        max_restarts=0, monitor_interval=0.1, run_id=str(os.getpid()),
    )  # fmt: skip
    # Several ranks share this machine's cores; torch's default of one pool per rank as wide as the machine would not.
    os.environ.setdefault("OMP_NUM_THREADS", str(plan.cluster.devices_per_rank(ranks)))
    arguments = [
        "-m",
        "thrifty.trainer.launch",
        str(request),
        str(folder.root),
        repr(began),
        json.dumps(asdict(options)),
    ]
    _open_spent(plan, folder, options, began)  # rank 0 takes over
    try:
        elastic_launch(config, sys.executable)(*arguments)
    except ChildFailedError as error:
        raise _explain(error.failures, folder, answer) from None
    except SignalException:
        pass  # the ranks have checkpointed and written their outcome
    finally:
        request.unlink(missing_ok=True)
    content = _answer(answer)
    if "bill" not in content:
        raise ThriftyError("the ranks ended without a bill", where=str(folder.root), hint="continue with --resume")
    return Outcome(Bill.model_validate(content["bill"]), content["stopped"])


def _answer(path: Path) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads(path.read_text())
        path.unlink()
    except (OSError, ValueError):
        return {}
    return content


def _explain(failures: dict[int, Any], folder: RunFolder, answer: Path) -> ThriftyError:
    """The message that a rank left behind, or which rank died of what."""
    content = _answer(answer)
    if "what" in content:
        return ThriftyError(content["what"], where=content["where"], hint=content["hint"])
    first = min(failures.values(), key=lambda failure: failure.timestamp)
    rank = next(rank for rank, failure in failures.items() if failure is first)
    how = f"was killed ({first.signal_name()})" if first.exitcode < 0 else f"ended with exit code {first.exitcode}"
    return ThriftyError(
        f"rank {rank} {how}; the other ranks were stopped", where=str(folder.root), hint=_ways_on(folder)
    )


def _leave(answer: Path, content: dict[str, Any]) -> None:
    """Several ranks may find the same mistake at once: each writes a file of its own, and the last rename stays."""
    own = answer.with_name(f"launch-{os.environ.get('RANK', 0)}.json")
    write_atomically(own, json.dumps(content))
    os.replace(own, answer)


def _main(request: str, root: str, began: str, options: str) -> int:
    """A rank that `_run_ranks` started: leaves its outcome, or its error, in launch.json."""
    from thrifty.planner.emit import read_plan

    answer = Path(root) / "launch.json"
    try:
        outcome = run_rank(read_plan(Path(request)), RunFolder(root), Options(**json.loads(options)), float(began))
    except LostRank as error:
        return error.exit_code  # the launcher sees which rank died, and how
    except ThriftyError as error:
        _leave(answer, {"what": error.what, "where": error.where, "hint": error.hint})
        return error.exit_code
    if outcome is not None:
        _leave(answer, {"bill": outcome.bill.model_dump(mode="json"), "stopped": outcome.stopped})
    return 0


if __name__ == "__main__":
    sys.exit(_main(*sys.argv[1:]))
