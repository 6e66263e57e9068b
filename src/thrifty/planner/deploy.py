"""Lays out a model to be served: every split of the devices is priced, and the one with most tokens/s is taken."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from thrifty.cost.serving import Served, Speculation, Traffic, engine_of, serve
from thrifty.cost.serving_step import Deployment
from thrifty.spec.cluster import Cluster
from thrifty.spec.errors import ThriftyError
from thrifty.spec.job import ModelShape


@dataclass(frozen=True)
class Formats:
    """How weights and cache are stored, and the software that serves them."""

    weights: str = "bf16"
    kv: str = "bf16"
    engine: str = "vllm"


def deploy(
    shape: ModelShape,
    cluster: Cluster,
    traffic: Traffic,
    formats: Formats,
    *,
    tensor: int | None = None,
    speculation: Speculation | None = None,
) -> tuple[Deployment, Served]:
    """The layout that makes the most tokens on all devices of the cluster, and its figures.

    Args:
        tensor: devices that share every layer; none = whichever is best. Mixtures of experts may also hold the
            attention several times and share their experts among all devices of a replica.

    Raises:
        ThriftyError: no layout can be; the reason is that of the widest one.
    """
    engine = engine_of(formats.engine)
    best: tuple[Deployment, Served] | None = None
    reason: ThriftyError | None = None
    for one in _layouts(shape, cluster.devices, tensor, formats):
        try:
            found = serve(shape, cluster, one, engine, traffic, speculation)
        except ThriftyError as error:
            reason = error
            continue
        if best is None or found.tokens_per_second > best[1].tokens_per_second:
            best = one, found
    if best is None:
        raise reason or _no_split(tensor, cluster)
    return best


def _no_split(tensor: int | None, cluster: Cluster) -> ThriftyError:
    what = f"tensor {tensor} does not divide {cluster.devices} devices"
    divisors = ", ".join(str(n) for n in range(1, cluster.devices + 1) if cluster.devices % n == 0)
    return ThriftyError(what, where="--tensor", hint=f"choose one of {divisors}")


def _layouts(shape: ModelShape, devices: int, tensor: int | None, formats: Formats) -> Iterator[Deployment]:
    """Splits of all devices into tensor x data x replicas, narrow ones first."""
    for one in (n for n in range(1, devices + 1) if devices % n == 0):
        if (tensor is not None and one != tensor) or shape.heads % one:
            continue
        groups = devices // one
        shared = range(1, groups + 1) if shape.experts is not None else range(1, 2)
        for data in (n for n in shared if groups % n == 0):
            yield Deployment(one, data, groups // data, formats.weights, "", formats.kv)
