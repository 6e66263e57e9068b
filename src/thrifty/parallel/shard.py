"""Fully sharded data parallel by FSDP2, hybrid when there are several islands."""

from __future__ import annotations

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

from thrifty.parallel.mesh import sharing

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def shard(
    model: nn.Module,
    mesh: DeviceMesh,
    *,
    blocks: list[nn.Module],
    precision: str = "fp32",
    exchange_dtype: str = "fp32",
    reshard_after_forward: bool = True,
    islands_apart: bool = False,
) -> None:
    """Shards each block, then the rest of the model as one unit (embedding, last norm, head), in place.

    Each parameter is split along its first dimension over the mesh axes `shard` and `context`; gradients are averaged
    over them (reduce-scatter) and over `island` (all-reduce). Parameters are gathered in the compute precision.

    Args:
        mesh: with axes `island`, `shard` and `context`; the model's parameters may still be on the meta device.
        blocks: the units that are gathered one at a time.
        exchange_dtype: in which gradients are reduced.
        islands_apart: leave the island axis out: what crosses it is not this module's.
    """
    exchange = _DTYPES[exchange_dtype]
    # fp64 models, which only tests train, are gathered and reduced as they are.
    compute = _DTYPES[precision] if precision != "fp32" else None
    reduce = exchange if compute is not None or exchange_dtype != "fp32" else None
    policy = MixedPrecisionPolicy(param_dtype=compute, reduce_dtype=reduce)
    # One island needs the one-dimensional mesh: the two-dimensional one would all-reduce in a group of one.
    data_mesh = sharing(mesh)
    if mesh["island"].size() > 1 and not islands_apart:
        data_mesh = DeviceMesh._concatenate([mesh["island"], data_mesh])
    for block in blocks:
        fully_shard(block, mesh=data_mesh, mp_policy=policy, reshard_after_forward=reshard_after_forward)
    # The root is needed again at once in the backward pass, so it stays gathered.
    fully_shard(model, mesh=data_mesh, mp_policy=policy, reshard_after_forward=False)


def set_last_microbatch(model: nn.Module, last: bool) -> None:
    """Gradients are summed over microbatches inside an island and cross the islands once a step."""
    if isinstance(model, FSDPModule):
        model.set_requires_all_reduce(last)
        model.set_is_last_backward(last)


def release_gathered(model: nn.Module) -> None:
    """Frees what a forward pass without a backward pass leaves gathered, so that parameters are shards again."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()
