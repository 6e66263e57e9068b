"""What every attempt at a run has cost so far, in a small file that neither a kill nor a dropped metrics row shortens.

    {"began": ..., "before": {"seconds", "usd", "energy_joules"}, "seconds": ..., "usd": ..., "energy_joules": ...}

Rank 0 rewrites it about once a second from its first moment on, so that start-up, steps after the last checkpoint and
attempts that never reached a step are paid for once more people look at "$ so far". `began` tells attempts apart.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

from thrifty.spec.cluster import Cluster
from thrifty.trainer.run_folder import write_atomically

INTERVAL_SECONDS = 1.0


class Spent(NamedTuple):
    """Wall seconds, dollars and joules (hosts and PUE included), of all ranks together."""

    seconds: float = 0.0
    usd: float = 0.0
    energy_joules: float = 0.0

    def plus(self, other: Spent) -> Spent:
        return Spent(*(a + b for a, b in zip(self, other, strict=True)))

    def at_least(self, row: Mapping[str, Any]) -> Spent:
        """The larger of each figure and the one that a metrics row or a checkpoint names."""
        return Spent(*(max(mine, float(row.get(name, 0.0))) for name, mine in self._asdict().items()))


def idle(cluster: Cluster, seconds: float) -> Spent:
    """What a cluster costs while its devices wait, as they do in start-up."""
    watts = (cluster.accelerator.idle_watts.value + cluster.host_watts.value) * cluster.devices * cluster.pue.value
    return Spent(seconds, usd_per_second(cluster) * seconds, watts * seconds)


def usd_per_second(cluster: Cluster) -> float:
    """Every device of the cluster is paid for while the run lasts."""
    return cluster.price.value * cluster.devices / 3600


class SpentFile:
    """The file of one run, written by rank 0; entered, it keeps writing in a thread of its own.

    Attributes:
        before: what earlier attempts have spent.
        now: total at this moment; the meter replaces the first one, which takes the devices to be idle.
    """

    def __init__(
        self, path: Path, cluster: Cluster, began: float, *, resume: bool, rows: Callable[[], Iterable[dict[str, Any]]]
    ) -> None:
        """Opens the file and writes it for the first time.

        Args:
            began: when this attempt was started, seconds since the epoch.
            resume: count earlier attempts; without it the run is a new one and starts at zero.
            rows: reads metrics.jsonl, whose last row may be younger than the file.
        """
        self.path, self._began = path, began
        self.before = Spent()
        found = _read(path)
        if found.get("began") == began:  # the launcher of this attempt has opened it already
            self.before = self.before.at_least(found["before"])
        elif resume:
            for source in (found, *rows()):
                self.before = self.before.at_least(source)
        self.now: Callable[[], Spent] = lambda: self.before.plus(idle(cluster, time.time() - began))
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._keep_writing, name="spent", daemon=True)
        self.write()

    def write(self) -> None:
        """Writes the figures of this moment. Without fsync: a kill loses nothing, a power cut at most some seconds."""
        content = {"began": self._began, "before": self.before._asdict(), **self.now()._asdict()}
        with suppress(OSError):  # a full disk is reported by the writes that a run cannot do without
            write_atomically(self.path, json.dumps(content) + "\n", durable=False)

    def _keep_writing(self) -> None:
        while not self._stop.wait(INTERVAL_SECONDS):
            self.write()

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()
        self.write()


def _read(path: Path) -> dict[str, Any]:
    """Content of the file; empty where there is none that can be read."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
