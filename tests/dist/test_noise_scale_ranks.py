"""Small gradients on ranks, before they are reduced: the same squared norms as one process finds in turn."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.distributed as dist
from pool import Pool
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from thrifty.optim import MicroSquares, measuring_hook, unsharded_parameters
from thrifty.optim.small_gradients import square

RANKS, MICRO = 2, 3


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 10), nn.Tanh(), nn.Linear(10, 4)).double()


def batch(rank: int, micro: int) -> Tensor:
    draw = torch.Generator().manual_seed(10 * rank + micro)
    return torch.randn(5, 6, generator=draw, dtype=torch.float64)


def loss(net: nn.Module, x: Tensor) -> Tensor:
    return net(x).square().mean()


def alone(micro: int) -> tuple[float, float]:
    """Mean squared norm over ranks and microbatches, and that of the mean gradient, in one process."""
    net = model()
    found = [
        torch.autograd.grad(loss(net, batch(rank, i)), list(net.parameters()))
        for rank in range(RANKS)
        for i in range(micro)
    ]
    mean = [torch.stack(parts).mean(0) for parts in zip(*found, strict=True)]
    return sum(float(square(one)) for one in found) / len(found), float(square(mean))


def under_ddp() -> tuple[float, float]:
    net = DistributedDataParallel(model())
    hook, take = measuring_hook(allreduce_hook)
    net.register_comm_hook(None, hook)
    loss(net, batch(dist.get_rank(), 0)).backward()
    take()
    net.zero_grad()
    loss(net, batch(dist.get_rank(), 0)).backward()
    return take()


def under_fsdp(reshard: bool) -> tuple[float, float]:
    net, mesh = model(), init_device_mesh("cpu", (RANKS,))
    fully_shard(net[0], mesh=mesh, reshard_after_forward=reshard)
    fully_shard(net, mesh=mesh)
    watch = MicroSquares(unsharded_parameters(net))
    for i in range(MICRO):
        loss(net, batch(dist.get_rank(), i)).backward()
    gradients: list[Tensor] = [p.grad.to_local() / MICRO for p in net.parameters() if p.grad is not None]  # type: ignore[attr-defined]
    both = torch.tensor([watch.take() / (RANKS * MICRO), float(square(gradients))])
    dist.all_reduce(both)
    return float(both[0]), float(both[1])


def test_a_hook_of_ddp_measures_what_ranks_have_before(pool: Callable[[int], Pool]) -> None:
    for found in pool(RANKS).run(under_ddp):
        assert found == pytest.approx(alone(1), rel=1e-6)


@pytest.mark.parametrize("reshard", [True, False])
def test_under_fsdp_every_microbatch_of_every_rank_counts(pool: Callable[[int], Pool], reshard: bool) -> None:
    for found in pool(RANKS).run(under_fsdp, reshard):
        assert found == pytest.approx(alone(MICRO), rel=1e-6)
