"""This process among the ranks: its numbers, its device, and the few exchanges that steer a run."""

from __future__ import annotations

import datetime
import os
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from thrifty.parallel.context import own_part
from thrifty.parallel.mesh import coordinates
from thrifty.spec.errors import ThriftyError
from thrifty.spec.plan import Plan
from thrifty.spec.recipe import Layout

ONE_RANK = Layout()


@dataclass(frozen=True)
class World:
    """One rank of a run. With one rank there is no process group at all.

    Attributes:
        island_nodes: nodes of one island of the cluster; none = all nodes are in one.
        near: gloo group of the steering messages within an island, where islands take several steps by themselves.
    """

    rank: int
    size: int
    local_rank: int
    local_size: int
    device: torch.device
    control: Any = None  # gloo group for the steering messages, so that they never queue behind gradients
    writer: Any = None  # gloo group for checkpoints, which may be written while training goes on
    layout: Layout = ONE_RANK
    island_nodes: int | None = None
    near: Any = None

    @property
    def apart(self) -> bool:
        """Whether each island takes its steps by itself, and meets the others now and then."""
        return self.near is not None

    @property
    def data_ranks(self) -> int:
        """Groups of ranks that see different samples."""
        return self.layout.data_ranks

    @property
    def data_rank(self) -> int:
        """Which of them this rank is in: samples are dealt by this number."""
        place = coordinates(self.layout, self.rank)
        return place["island"] * self.layout.shard + place["shard"]

    @property
    def averaged_ranks(self) -> int:
        """Ranks over which sharding averages gradients that must be summed: each has other tokens."""
        return (self.layout.shard if self.apart else self.layout.data_ranks) * self.layout.context

    def own_tokens(self, x: torch.Tensor) -> torch.Tensor:
        """Of (sequences, length), the columns that this rank computes, where context ranks share sequences."""
        return own_part(x, coordinates(self.layout, self.rank)["context"], self.layout.context)

    @property
    def counts_targets(self) -> bool:
        """Whether sums over ranks take this rank's count of targets: one of the ranks that see the same tokens."""
        place = coordinates(self.layout, self.rank)
        return place["pipeline"] == place["tensor"] == 0

    @property
    def counts_loss(self) -> bool:
        """Whether sums over ranks take this rank's losses: tensor ranks know the same; early stages know none."""
        return coordinates(self.layout, self.rank)["tensor"] == 0

    @property
    def mesh_device(self) -> str:
        """The kind of device that process groups speak for. A dry run holds its tensors on none."""
        return "cpu" if self.device.type == "meta" else self.device.type

    def sum(self, *values: float) -> list[float]:
        """Each value summed over all ranks, in float64, which is exact for counts below 2^53."""
        return self._reduce(values, dist.ReduceOp.SUM)

    def sum_of_step(self, *values: float) -> list[float]:
        """Each value summed over the ranks that take an optimizer step together: all, or those of one island."""
        return self._reduce(values, dist.ReduceOp.SUM, self.near)

    def max(self, *values: float) -> list[float]:
        """Each value's largest over all ranks."""
        return self._reduce(values, dist.ReduceOp.MAX)

    def _reduce(self, values: tuple[float, ...], op: Any, group: Any = None) -> list[float]:
        if self.size == 1:
            return list(values)
        message = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(message, op=op, group=group or self.control)
        return message.tolist()

    def share(self, value: Any) -> Any:
        """Rank 0's value, on every rank."""
        if self.size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0, group=self.control)
        return box[0]

    def gather(self, value: Any) -> list[Any]:
        """Every rank's value, in rank order, on every rank."""
        return self._gather(value, self.control)

    def gather_of_step(self, value: Any) -> list[Any]:
        """The values of the ranks that take an optimizer step together."""
        return self._gather(value, self.near or self.control)

    def _gather(self, value: Any, group: Any) -> list[Any]:
        if self.size == 1:
            return [value]
        box: list[Any] = [None] * dist.get_world_size(group)
        dist.all_gather_object(box, value, group=group)
        return box

    def node_of(self, rank: int) -> int:
        """The node that a rank is on: they are placed node by node in rank order."""
        return rank // self.local_size

    def link_of(self, ranks: list[int]) -> str:
        """Slowest link between ranks."""
        nodes = {self.node_of(rank) for rank in ranks}
        if len(nodes) == 1:
            return "intra_node"
        islands = {node // (self.island_nodes or self.size) for node in nodes}
        return "inter_island" if len(islands) > 1 else "inter_node"

    def close(self) -> None:
        if self.size > 1 and dist.is_initialized():
            dist.destroy_process_group()


def join(plan: Plan) -> World:
    """Reads torchrun's environment (RANK, WORLD_SIZE, ...), picks the device and opens the process group.

    Raises:
        ThriftyError: the number of processes or the kind of device is not what the plan says, or the port is taken.
    """
    rank, size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    local_rank, local_size = int(os.environ.get("LOCAL_RANK", 0)), int(os.environ.get("LOCAL_WORLD_SIZE", size))
    ranks = plan.recipe.layout.ranks
    if size != ranks:
        raise ThriftyError(
            f"the plan is for {ranks} ranks, but {size} were started",
            where="recipe.layout",
            hint=f"start {ranks} processes (--nproc), or plan again with --set recipe.layout.shard={size}",
        )
    device = _device(plan, local_rank)
    if device.type == "cpu":
        torch.set_num_threads(plan.cluster.devices_per_rank(size))
    if size == 1:
        return World(0, 1, 0, 1, device)
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    try:
        dist.init_process_group(backend, timeout=datetime.timedelta(minutes=30))
    except dist.DistNetworkError as error:
        port = os.environ.get("MASTER_PORT", "?")
        busy = "EADDRINUSE" in str(error) or "in use" in str(error)
        what = f"port {port} is in use" if busy else f"the ranks could not connect: {str(error).splitlines()[0]}"
        hint = "free it or choose another: torchrun --master-port N, or let `thrifty train --nproc` pick one"
        raise ThriftyError(what, where=f"{os.environ.get('MASTER_ADDR', 'localhost')}:{port}", hint=hint) from None
    control, writer = dist.new_group(backend="gloo"), dist.new_group(backend="gloo")
    island_nodes = plan.cluster.nodes // plan.cluster.islands
    near = near_group(plan.recipe.layout) if plan.recipe.exchange.local_steps > 1 else None
    return World(rank, size, local_rank, local_size, device, control, writer, plan.recipe.layout, island_nodes, near)


def near_group(layout: Layout) -> Any:
    """The gloo group of this rank's island. All ranks call it."""
    each = layout.ranks // layout.island  # the outermost axis: ranks of an island follow each other
    ranks = [list(range(first, first + each)) for first in range(0, layout.ranks, each)]
    return dist.new_subgroups_by_enumeration(ranks, backend="gloo")[0]


def _device(plan: Plan, local_rank: int) -> torch.device:
    chip = plan.cluster.accelerator
    if chip.kind == "cpu":
        return torch.device("cpu")
    if chip.kind == "gpu" and torch.cuda.is_available():
        torch.cuda.set_device(local_rank)
        return torch.device("cuda", local_rank)
    there = "no GPU that torch can use" if chip.kind == "gpu" else "none"
    raise ThriftyError(
        f"the plan is for {chip.name}, and this machine has {there}",
        where="cluster.accelerator",
        hint="run it on that cluster, or plan for this machine: thrifty plan JOB --on local",
    )
