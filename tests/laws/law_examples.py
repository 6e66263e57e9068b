"""Runs that a known law made, with scatter from a fixed seed; and a job of the catalog."""

from __future__ import annotations

import random
from collections.abc import Sequence

from thrifty.catalog import lookup
from thrifty.laws.fit import RunRow
from thrifty.laws.law import Constants, LossLaw, loss
from thrifty.spec import Job, ModelShape
from thrifty.spec.load import build

TRUE = LossLaw(
    source="made up",
    constants={"web": Constants(E=1.8, A=480.0, B=2000.0), "code": Constants(E=1.2, A=480.0, B=2000.0)},
    alpha=0.35,
    beta=0.37,
)
SIZES = (2e7, 6e7, 2e8, 6e8)
RATIOS = (5.0, 20.0, 80.0, 320.0)


def rows(
    law: LossLaw = TRUE,
    sizes: Sequence[float] = SIZES,
    ratios: Sequence[float] = RATIOS,
    datasets: Sequence[str] = ("web", "code"),
    scatter: float = 0.0,
    batch_tokens: float | None = 2.0**19,
    seed: int = 0,
) -> list[RunRow]:
    """A grid of sizes and tokens per parameter."""
    generator = random.Random(seed)
    made = []
    for dataset in datasets:
        for n in sizes:
            for ratio in ratios:
                tokens = n * ratio
                steps = tokens / batch_tokens if batch_tokens else None
                value = loss(law, n, tokens, steps, dataset) * (1 + generator.gauss(0, scatter))
                name = f"{dataset}-{n:.0e}-{ratio:g}"
                made.append(RunRow(name, dataset, n, tokens, value, batch_tokens=batch_tokens))
    return made


def job(model: str = "llama-3-8b", **changes: object) -> Job:
    """A model of the catalog for one step of short sequences."""
    shape = build(ModelShape, lookup.model(model), "")
    asked: dict[str, object] = {"model": shape, "steps": 1, "sequence_length": 128}
    return Job.model_validate(asked | changes)
