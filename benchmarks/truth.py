"""Public measurements as cases: a job, a cluster and a recipe with the seconds that a step took.

What cases of all tables share: the noun, clusters and shapes. `truth_tables.py` reads the tables.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from thrifty.catalog import lookup
from thrifty.spec.cluster import Cluster
from thrifty.spec.job import Job, ModelShape
from thrifty.spec.load import build
from thrifty.spec.recipe import Batch, Exchange, Layout, Recipe

GIB = 2**30


@dataclass(frozen=True)
class Case:
    """One measured step.

    Attributes:
        size: the model, by which cases are held out together; likewise `hardware`.
        choice: cases that differ in the layout alone share it: what a search chooses among.
        flops: model FLOPs of the step as the table's own source counts them, for the constant-MFU null.
        peak_bytes: measured peak memory of a device, where the table has it.
    """

    table: str
    id: str
    size: str
    hardware: str
    choice: str
    job: Job
    cluster: Cluster
    recipe: Recipe
    seconds: float
    peak_bytes: float | None = None


@dataclass(frozen=True)
class Skipped:
    """A row that is not scored, and why."""

    table: str
    id: str
    why: str


def rows_of(path: Path) -> list[dict[str, str]]:
    """Rows of a CSV whose comment lines start with #."""
    return list(csv.DictReader(line for line in path.read_text().splitlines() if not line.startswith("#")))


@cache
def cluster_of(text: str, node_bytes_per_s: float | None = None) -> Cluster:
    """A cluster of the catalog; `node_bytes_per_s` is what the adapters of one node carry, where a source says it."""
    settings = lookup.cluster(text)
    if settings.at("price") is None:
        settings = settings.put("price", 0.0, "benchmark")
    cluster = build(Cluster, settings, "")
    if node_bytes_per_s is None:
        return cluster
    # 80% of the line rate, as the catalog assumes for its own.
    each = 0.8 * node_bytes_per_s / cluster.per_node
    link = cluster.inter_node
    return cluster.model_copy(
        update={"inter_node": link.model_copy(update={"bandwidth": link.bandwidth.model_copy(update={"value": each})})}
    )


def with_chip(cluster: Cluster, **figures: float) -> Cluster:
    """The cluster with other figures of its accelerator."""
    chip = cluster.accelerator
    changed = {name: getattr(chip, name).model_copy(update={"value": value}) for name, value in figures.items()}
    return cluster.model_copy(update={"accelerator": chip.model_copy(update=changed)})


@cache
def named(model: str, layers: int | None = None) -> ModelShape:
    """A shape of the catalog, with fewer layers where a run was cut short."""
    shape = build(ModelShape, lookup.model(model), "")
    return shape if layers is None else shape.model_copy(update={"layers": layers})


def gpt(layers: int, hidden: int, heads: int, length: int, vocab: int = 51200) -> ModelShape:
    """A GPT as Megatron-LM builds it: learned positions, biases, tied embeddings, its vocabulary padded to 51,200."""
    return ModelShape(
        name=f"gpt-{layers}x{hidden}", layers=layers, hidden=hidden, heads=heads, kv_heads=heads,
        head_dim=hidden // heads, ffn=4 * hidden, vocab_size=vocab, max_positions=length, norm="layernorm", mlp="gelu",
        positions="learned", tied_embeddings=True, bias="all",
    )  # fmt: skip


def gpt_flops(shape: ModelShape, sequences: float, length: int, passes: int = 3) -> float:
    """24 BLsh^2 (1 + s/6h) FLOPs a pass of the blocks, and 6 BshV for the head (Narayanan et al. 2021)."""
    layers, h = shape.layers, shape.hidden
    blocks = 24 * sequences * layers * length * h * h * (1 + length / (6 * h))
    return passes * blocks + 6 * sequences * length * h * shape.vocab_size


def whole(text: str | None, default: int = 1) -> int:
    """A whole number; the default where the column is empty."""
    return int(float(text)) if text not in (None, "", "NA", "n/a", "-") else default


def case(
    size: str, hardware: str, choice: str, job: Job, cluster: Cluster, seconds: float, batch: tuple[int, int],
    software: str, layout: dict[str, Any], peak: float | None = None, **rest: Any,
) -> Case:  # fmt: skip
    """A case from (sequences, micro_sequences) and what else its recipe says."""
    recipe = Recipe(
        software=software,
        layout=Layout(**layout),
        batch=Batch(sequences=batch[0], micro_sequences=batch[1]),
        exchange=Exchange(dtype=rest.pop("exchange", "bf16")),
        **rest,
    )
    return Case("", "", size, hardware, choice, job, cluster, recipe, seconds, peak)


def groups(cases: list[Case], by: str) -> Iterator[tuple[str, list[Case], list[Case]]]:
    """For each value of `size` or `hardware`: its cases, and the rest."""
    for value in sorted({getattr(c, by) for c in cases}):
        yield value, [c for c in cases if getattr(c, by) == value], [c for c in cases if getattr(c, by) != value]
