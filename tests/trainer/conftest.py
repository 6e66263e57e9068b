"""A tiny job on a made-up cluster: what training tests run in a second or two."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from thrifty.cost.predict import predict
from thrifty.spec import Cluster, Job, Plan, Recipe
from thrifty.spec.plan import fingerprint

CLUSTER: dict[str, Any] = {
    "name": "two cores", "per_node": 2, "price": "3.6 usd/h", "grid": "400 g/kWh", "pue": 1.25, "goodput": 1.0,
    "utilisation": 1.0, "host_watts": "1 W",
    "accelerator": {
        "name": "a core", "kind": "cpu", "peak_flops": {"fp32": "50 GFLOP/s", "bf16": "100 GFLOP/s"}, "memory": "4GiB",
        "memory_bandwidth": "10 GB/s", "idle_watts": "1 W", "tdp_watts": "4 W", "op_overhead": "5 us",
        "runtime_memory": "300MiB",
    },
    **{link: {"bandwidth": "1 GB/s", "latency": "100 us"} for link in ("intra_node", "inter_node", "inter_island")},
}  # fmt: skip
MODEL: dict[str, Any] = {
    "layers": 2,
    "hidden": 32,
    "heads": 2,
    "ffn": 64,
    "vocab_size": 257,
    "max_positions": 32,
    "tied_embeddings": True,
}
RECIPE: dict[str, Any] = {
    "batch": {"sequences": 4, "micro_sequences": 2}, "precision": "fp32", "optimizer": {"lr": 3e-3},
    "schedule": {"warmup_steps": 5}, "evaluation": {"every_steps": 10, "sequences": 8},
    "checkpoint": {"every_steps": 10, "keep": 3},
}  # fmt: skip


@pytest.fixture
def text_file(tmp_path: Path) -> Path:
    """About 40 kB of words with some order in them."""
    chooser = random.Random(5)
    words = ["the", "cost", "of", "a", "run", "is", "paid", "in", "steps", "and", "tokens", "\n"]
    path = tmp_path / "words.txt"
    path.write_text(" ".join(chooser.choice(words) for _ in range(10_000)))
    return path


@pytest.fixture
def make_plan(text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Plan]:
    """Builds a Plan; keyword arguments change the job, `recipe=` and `cluster=` change those."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def make(
        recipe: dict[str, Any] | None = None,
        model: dict[str, Any] | None = None,
        cluster: dict[str, Any] | None = None,
        **job: Any,
    ) -> Plan:
        data = {"path": str(text_file), **job.pop("data", {})}
        content = {
            "name": "tiny",
            "model": MODEL | (model or {}),
            "data": data,
            "steps": 30,
            "sequence_length": 32,
            **job,
        }
        made = (
            Job.model_validate(content),
            Cluster.model_validate(CLUSTER | (cluster or {})),
            Recipe.model_validate(RECIPE | (recipe or {})),
        )
        return Plan(job=made[0], cluster=made[1], recipe=made[2], predicted=predict(*made), hash=fingerprint(*made))

    return make
