"""The collectives of an exchange, in a process group of its own; what fails in them ends in a `ThriftyError`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from thrifty.spec.errors import ThriftyError

WHERE = "exchange"


class Wire:
    """A process group of the same ranks as `group`, for one thread. Payloads go through host memory, over gloo.

    Every rank of the job makes it at the same time. Without `torch.distributed` it is a group of one.
    """

    def __init__(self, group: Any = None, timeout_seconds: float | None = None) -> None:
        self._group: Any = None
        self.size, self.rank, self.timeout_seconds = 1, 0, timeout_seconds or 0.0
        if not dist.is_initialized():
            return
        parent = group if group is not None else dist.group.WORLD
        ranks = dist.get_process_group_ranks(parent)
        self.size, self.rank = len(ranks), dist.get_rank(parent)
        self.timeout_seconds = timeout_seconds or _timeout_seconds(parent)
        if dist.get_world_size() > 1:
            self._group = _of_its_own(ranks, timedelta(seconds=self.timeout_seconds))

    def all_reduce(self, values: Tensor) -> None:
        """Sums in place."""
        with self._errors():
            dist.all_reduce(values, group=self._group)

    def reduce_scatter(self, values: Tensor) -> Tensor:
        """This rank's part of the sum of (parts, values)."""
        part = values.new_empty(values.shape[1])
        name = "reduce_scatter_single" if hasattr(dist, "reduce_scatter_single") else "reduce_scatter_tensor"
        with self._errors():
            getattr(dist, name)(part, values.reshape(-1), group=self._group)
        return part

    def gather(self, values: Tensor) -> Tensor:
        """Every rank's flat tensor, as many on each: (ranks, values)."""
        whole = values.new_empty(self.size * values.numel())
        name = "all_gather_single" if hasattr(dist, "all_gather_single") else "all_gather_into_tensor"
        with self._errors():
            getattr(dist, name)(whole, values, group=self._group)
        return whole.view(self.size, -1)

    def gather_bytes(self, buffer: Tensor, sizes: Sequence[int] | None) -> list[Tensor]:
        """Every rank's bytes, of these sizes, or of sizes that are sent first."""
        if sizes is None:
            sizes = self.gather(torch.tensor([buffer.numel()])).view(-1).tolist()
        widest = max(sizes)
        whole = self.gather(fitted(buffer, widest))
        return [whole[rank, :size] for rank, size in enumerate(sizes)]

    def swap_bytes(self, buffers: Sequence[Tensor], size: int | None) -> list[Tensor]:
        """Buffer j to rank j: what came from each, `size` bytes or sizes that are sent first. Our own stays here."""
        out = [0 if rank == self.rank else buffer.numel() for rank, buffer in enumerate(buffers)]
        if size is None:
            told = torch.empty(self.size - 1, dtype=torch.int64)
            one = [int(rank != self.rank) for rank in range(self.size)]
            with self._errors():
                away = torch.tensor([many for rank, many in enumerate(out) if rank != self.rank])
                dist.all_to_all_single(told, away, one, one, group=self._group)
            sizes = told.tolist()
            sizes.insert(self.rank, 0)
        else:
            sizes = [0 if rank == self.rank else size for rank in range(self.size)]
        whole = torch.empty(sum(sizes), dtype=torch.uint8)
        away = torch.cat([buffer for rank, buffer in enumerate(buffers) if rank != self.rank])
        with self._errors():
            dist.all_to_all_single(whole, away, sizes, out, group=self._group)
        found = list(whole.split(sizes))
        found[self.rank] = buffers[self.rank]
        return found

    def close(self) -> None:
        """Ends the group; the others need not."""
        if self._group is not None and dist.is_initialized():
            dist.destroy_process_group(self._group)
        self._group = None

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:
            told = f"a rank died, left, or did not answer within {self.timeout_seconds:g} s"
            hint = f"look at the other ranks' output first; start again from the last checkpoint ({_first(error)})"
            raise ThriftyError(told, where=WHERE, hint=hint) from error


def fitted(buffer: Tensor, size: int) -> Tensor:
    """Cut or filled with zeros, to go where so many bytes are expected."""
    if buffer.numel() == size:
        return buffer
    fitted = torch.zeros(size, dtype=torch.uint8)
    fitted[: buffer.numel()] = buffer[:size]
    return fitted


def _first(error: BaseException) -> str:
    return str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__


def _timeout_seconds(group: Any) -> float:
    """Of the group's own collectives."""
    device = torch.device("cpu" if "cpu" in dist.get_backend_config(group) else "cuda")
    timeout: timedelta = group._get_backend(device).options._timeout
    return timeout.total_seconds()


def _of_its_own(ranks: list[int], timeout: timedelta) -> Any:
    """A group of these ranks, while other ranks make groups of theirs: each is made once, by all, in one order.

    torch's own way for ranks to make their groups apart names them by their members, so that a group which is made,
    closed and made again would find the addresses of the first one.
    """
    world = dist.get_world_size()
    wanted: list[Any] = [ranks] * world
    if len(ranks) < world:
        dist.all_gather_object(wanted, ranks)
    backend = "cpu:gloo,cuda:nccl" if "nccl" in dist.get_backend_config() else "gloo"
    mine = None
    for one in sorted({tuple(group) for group in wanted if len(group) > 1}):
        made = dist.new_group(list(one), timeout=timeout, backend=backend)
        mine = made if list(one) == ranks else mine
    return mine
