"""Real processes over gloo that stay up for a whole test session: starting torch anew for each test takes seconds.

    results = pool(4).run(function, *arguments)      # function(*arguments) on every rank, results in rank order

The function must be importable (a top-level function of a module under tests/), its arguments and results picklable.
A rank that raises fails the test with its traceback; a rank that hangs is killed with its pool, and the next test gets
a new one.
"""

from __future__ import annotations

import datetime
import os
import sys
import tempfile
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

TIMEOUT_SECONDS = 120.0
GRACE_SECONDS = 5.0  # for the others once a rank has failed: they may wait for it in a collective

KEPT: set[Any] = set()  # process groups of a rank that stay open between tests


class RankFailure(AssertionError):
    """What went wrong on a rank, with its traceback."""


class Pool:
    """`size` ranks of one gloo process group."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._store = tempfile.NamedTemporaryFile(prefix="thrifty-store-", delete=False)  # noqa: SIM115
        context = mp.get_context("spawn")
        self._pipes: list[Connection] = []
        self._processes = []
        for rank in range(size):
            ours, theirs = context.Pipe()
            process = context.Process(
                target=_serve, args=(rank, size, self._store.name, theirs, list(sys.path)), daemon=True
            )
            process.start()
            theirs.close()
            self._pipes.append(ours)
            self._processes.append(process)

    @property
    def alive(self) -> bool:
        return all(process.is_alive() for process in self._processes)

    def run(self, function: Callable[..., Any], *arguments: Any) -> list[Any]:
        """Calls the function on every rank at once.

        Raises:
            RankFailure: a rank raised, died, or took longer than two minutes.
        """
        for pipe in self._pipes:
            pipe.send((function, arguments))
        found: dict[int, Any] = {}
        deadline = datetime.datetime.now() + datetime.timedelta(seconds=TIMEOUT_SECONDS)
        while len(found) < self.size:
            left = (deadline - datetime.datetime.now()).total_seconds()
            waiting = {self._pipes[rank]: rank for rank in range(self.size) if rank not in found}
            failed = any(not good for good, _ in found.values())
            ready = wait(list(waiting), timeout=min(max(0.0, left), GRACE_SECONDS) if failed else max(0.0, left))
            if not ready and failed:
                break
            if not ready:
                self.close()
                raise RankFailure(f"ranks {sorted(waiting.values())} of {self.size} did not answer in time")
            for pipe in ready:
                rank = waiting[pipe]  # type: ignore[index]
                try:
                    found[rank] = pipe.recv()  # type: ignore[union-attr]
                except EOFError:
                    self.close()
                    raise RankFailure(f"rank {rank} of {self.size} died") from None
        failures = {rank: told for rank, (good, told) in found.items() if not good}
        if failures:
            self.close()  # the others may be in the middle of a collective
            raise RankFailure("\n".join(f"rank {rank}:\n{told}" for rank, told in sorted(failures.items())))
        return [found[rank][1] for rank in range(self.size)]

    def close(self) -> None:
        for process in self._processes:
            process.kill()
        for process in self._processes:
            process.join()
        Path(self._store.name).unlink(missing_ok=True)


def _serve(rank: int, size: int, store: str, pipe: Connection, path: list[str]) -> None:
    """A rank: does what it is told until the pipe closes."""
    sys.path[:] = path
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", store=dist.FileStore(store, size), rank=rank, world_size=size,
        timeout=datetime.timedelta(seconds=TIMEOUT_SECONDS / 2),
    )  # fmt: skip
    while True:
        try:
            function, arguments = pipe.recv()
        except EOFError:
            return
        try:
            pipe.send((True, function(*arguments)))
        except BaseException:
            pipe.send((False, traceback.format_exc()))
        _forget_groups()


def _forget_groups() -> None:
    """Closes what a test has opened: each gloo group has a thread that wakes a hundred times a second."""
    kept = {dist.group.WORLD, *KEPT}
    for group in list(dist.distributed_c10d._world.pg_map):
        if group not in kept:
            dist.destroy_process_group(group)
