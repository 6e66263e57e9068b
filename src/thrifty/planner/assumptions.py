"""The figures of a cluster that a plan rests on: names, places, and the same cluster with one of them changed.

A path is dotted (`inter_node.bandwidth`, `accelerator.peak_flops.bf16`).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from thrifty.spec.cluster import Cluster
from thrifty.spec.figure import Figure
from thrifty.spec.plan import Plan


class Used(NamedTuple):
    """A figure that entered a bill: its name for people, its path in the cluster, and itself."""

    name: str
    path: str
    figure: Figure


def used(plan: Plan) -> Iterator[Used]:
    """Every figure of the cluster that a plan's bill was made from; of the links, those that it sends over."""
    for name, path in _paths(plan):
        yield Used(name, path, figure_at(plan.cluster, path))


def _paths(plan: Plan) -> Iterator[tuple[str, str]]:
    chip, precision = plan.cluster.accelerator, plan.recipe.precision
    yield from ((name, name) for name in ("price", "goodput", "grid", "pue"))
    yield f"{precision} peak", f"accelerator.peak_flops.{precision}"
    if precision in chip.achievable_flops:
        yield f"{precision} best product", f"accelerator.achievable_flops.{precision}"
    yield "memory bandwidth", "accelerator.memory_bandwidth"
    yield "memory", "accelerator.memory"
    for link, sent in plan.predicted.link_bytes.items():
        if sent.value:
            name = link.replace("_", "-")
            yield f"{name} link", f"{link}.bandwidth"
            yield f"{name} latency", f"{link}.latency"
    yield "TDP", "accelerator.tdp_watts"
    yield "idle", "accelerator.idle_watts"
    yield "host", "host_watts"
    yield "utilisation", "utilisation"
    yield "op overhead", "accelerator.op_overhead"
    yield "runtime memory", "accelerator.runtime_memory"


def figure_at(cluster: Cluster, path: str) -> Figure:
    """The figure at a path."""
    node: Any = cluster
    for part in path.split("."):
        node = node[part] if isinstance(node, dict) else getattr(node, part)
    assert isinstance(node, Figure)
    return node


def changed(cluster: Cluster, path: str, value: float) -> Cluster:
    """The same cluster with another value at a path. Not validated: for pricing what if, not for a plan."""
    altered = _changed(cluster, path.split("."), value)
    assert isinstance(altered, Cluster)
    return altered


def _changed(node: Any, parts: list[str], value: float) -> Any:
    if not parts:
        return node.model_copy(update={"value": value})
    head, rest = parts[0], parts[1:]
    if isinstance(node, dict):
        return node | {head: _changed(node[head], rest, value)}
    return node.model_copy(update={head: _changed(getattr(node, head), rest, value)})
