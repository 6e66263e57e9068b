"""What memory really holds: parameters, gradients and optimizer state to the byte, saved activations, the peak."""

from __future__ import annotations

import resource
import sys
import time
import weakref
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset
from torch.utils._python_dispatch import TorchDispatchMode


def _local(tensor: Tensor) -> Tensor:
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


def _bytes(tensors: Iterator[Tensor]) -> int:
    """Bytes of this rank's part of each tensor, each storage once."""
    sizes = {}
    for tensor in map(_local, tensors):
        # Not by address: tensors on the meta device have none.
        storage = tensor.untyped_storage()._cdata, tensor.storage_offset()
        if tensor.numel():
            sizes[storage] = tensor.numel() * tensor.element_size()
    return sum(sizes.values())


def _computed_shape(parameter: Tensor) -> tuple[int, ...]:
    """Shape of what this rank computes with: without the split over data ranks, but with that over tensor ranks."""
    if not isinstance(parameter, DTensor) or "tensor" not in (parameter.device_mesh.mesh_dim_names or ()):
        return tuple(parameter.shape)
    axis, where = parameter.device_mesh["tensor"], parameter.placements[-1:]  # the innermost axis
    return compute_local_shape_and_global_offset(tuple(parameter.shape), axis, where)[0]


def head_rows(model: nn.Module) -> int:
    """Logits of a token that this rank makes; 0 where the head is not here."""
    head = model.head or (model.embed if model.norm is not None else None)
    return 0 if head is None else _computed_shape(head.weight)[0]


def parameter_bytes(model: nn.Module) -> int:
    """Bytes of this rank's parameters, a second copy of a tied embedding included, which has no name of its own."""
    return _bytes(p for module in model.modules() for p in module.parameters(recurse=False))


def gradient_bytes(model: nn.Module) -> int:
    """Bytes of this rank's gradients, where there are any now."""
    return _bytes(p.grad for p in model.parameters() if p.grad is not None)


def optimizer_bytes(optimizer: torch.optim.Optimizer) -> int:
    """Bytes of this rank's optimizer state."""
    return _bytes(value for state in optimizer.state.values() for value in state.values() if isinstance(value, Tensor))


@dataclass
class Saved:
    """Bytes that a forward pass kept for the backward pass, the most that logits ever took at once, and the most of
    gathered parameters that were seen after a block."""

    activation_bytes: int = 0
    logit_bytes: int = 0
    gathered_bytes: int = 0


class _Watch(TorchDispatchMode):
    """Follows how many bytes of tensors as wide as the vocabulary are alive, and the most there were; and which tensors
    are weights cast to another dtype."""

    def __init__(self, model: nn.Module, vocab_size: int, weights: set[tuple[int, ...]]) -> None:
        super().__init__()
        self._model, self._vocab_size, self._weights = model, vocab_size, weights
        self._casts: set[int] = set()
        self._alive: set[int] = set()
        self._bytes = self.peak_bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func is torch.ops.aten._to_copy.default and self.is_weight(args[0]):
            key = result.untyped_storage().data_ptr()
            self._casts.add(key)
            weakref.finalize(result, self._casts.discard, key)
        for tensor in result if isinstance(result, tuple | list) else (result,):
            if isinstance(tensor, Tensor) and tensor.dim() > 1 and tensor.shape[-1] == self._vocab_size:
                self._see(tensor)
        return result

    def is_weight(self, tensor: Tensor) -> bool:
        """Whether a tensor is a parameter as it is computed with, gathered or cast. Shapes tell most, but a batch of as
        many tokens as the vocabulary has ids has that of the embedding."""
        if tuple(tensor.shape) not in self._weights:
            return False
        key = tensor.untyped_storage().data_ptr()
        return key in self._casts or key in {_local(p).untyped_storage().data_ptr() for p in self._model.parameters()}

    def _see(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key, size = storage.data_ptr(), storage.nbytes()
        if key in self._alive or tuple(tensor.shape) in self._weights:
            return
        self._alive.add(key)
        self._bytes += size
        self.peak_bytes = max(self.peak_bytes, self._bytes)
        weakref.finalize(tensor, self._gone, key, size)

    def _gone(self, key: int, size: int) -> None:
        self._alive.discard(key)
        self._bytes -= size


@contextmanager
def count_saved(model: nn.Module, vocab_size: int, compiled: bool) -> Iterator[Saved]:
    """Counts what autograd saves inside the block, each storage once, weights (also cast or gathered) left out.

    `vocab_size` is that of the part of the head that this rank holds. Compiled blocks run uncompiled meanwhile: what
    they would save can only be less.
    """
    found, seen = Saved(), set()
    weights = {shape for p in model.parameters() for shape in (_computed_shape(p), _computed_shape(p)[::-1])}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        key = (storage.data_ptr(), storage.nbytes())
        if key not in seen and tensor.numel() and not watch.is_weight(tensor):
            seen.add(key)
            if tensor.shape[-1:] != (vocab_size,):
                found.activation_bytes += storage.nbytes()
        return tensor

    watch = _Watch(model, vocab_size, weights)
    with (
        torch.compiler.set_stance("force_eager") if compiled else nullcontext(),  # its import takes a second
        torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor),
        watch,
    ):
        yield found
    found.logit_bytes = watch.peak_bytes


def _is_shard(parameter: Tensor) -> bool:
    axes = (parameter.device_mesh.mesh_dim_names or ()) if isinstance(parameter, DTensor) else ()
    return any(axis.startswith("shard") for axis in axes)


@contextmanager
def count_forward(model: nn.Module, compiled: bool) -> Iterator[Saved]:
    """`count_saved` for a Transformer or a part of one, and what sharding gathers meanwhile."""
    gathered = _Gathered(model, model.blocks.children())
    with count_saved(model, head_rows(model), compiled) as found:
        yield found
    gathered.stop()
    found.gathered_bytes = gathered.peak_bytes


class _Gathered:
    """Follows the bytes of parameters that sharding has gathered, seen after each block of a forward pass."""

    def __init__(self, model: nn.Module, blocks: Iterable[nn.Module]) -> None:
        self.peak_bytes = 0
        self._model = model
        self._handles = [block.register_forward_hook(self._look) for block in blocks]

    def _look(self, *_: Any) -> None:
        if isinstance(self._model, FSDPModule):
            gathered = (_local(p) for p in self._model.parameters() if not _is_shard(p))
            self.peak_bytes = max(self.peak_bytes, sum(p.numel() * p.element_size() for p in gathered))

    def stop(self) -> None:
        for handle in self._handles:
            handle.remove()


_STATUS, _CLEAR_REFS = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def reset_peak(device: torch.device) -> None:
    """Starts `peak_bytes` anew, so that preparing the data does not count as training. Linux and CUDA only."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    with suppress(OSError):
        _CLEAR_REFS.write_text("5")  # resets VmHWM; see proc(5)


class Peak:
    """`peak_bytes`, read at most once a second: on a CPU that takes the kernel longer than the rest of a log row."""

    def __init__(self, device: torch.device) -> None:
        self._device, self._bytes, self._next = device, 0, 0.0

    def bytes(self) -> int:
        if time.monotonic() >= self._next:
            self._bytes, self._next = peak_bytes(self._device), time.monotonic() + 1.0
        return self._bytes


def peak_bytes(device: torch.device) -> int:
    """The most memory held since `reset_peak`: allocated on the GPU and its context, or the peak resident set."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device)) + _context_bytes(device)
    return _resident_bytes()


def reserved_bytes(device: torch.device) -> int:
    """The same as the allocator reserves it; on a CPU there is no difference."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_reserved(device)) + _context_bytes(device)
    return _resident_bytes()


def _context_bytes(device: torch.device) -> int:
    """What is in use on the GPU now outside of the allocator: context, kernels, communicators."""
    free, total = torch.cuda.mem_get_info(device)
    return max(0, total - free - int(torch.cuda.memory_reserved(device)))


def _resident_bytes() -> int:
    with suppress(OSError):
        for line in _STATUS.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024  # written in kB, which are KiB
    scale = 1 if sys.platform == "darwin" else 1024  # ru_maxrss is in bytes on macOS, in KiB elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale
