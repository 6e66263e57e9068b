"""Tensor parallelism: the matrices of a decoder over the ranks of one mesh axis, from outside and by name.

    query, key, value, gate, up    split by outputs (rows of the weight): each rank has some heads, some inner units
    output, down                   split by inputs (columns): each rank has one term of the sum that is the result
    embed, head                    split by the vocabulary (rows)
    norms, positions, the biases of output and down    whole on every rank

Parameters become DTensors on the axis, so that starting values, FSDP2, the optimizer and checkpoints see the whole
model; activations stay plain tensors, and this module alone decides what is sent and when:

    norm -> [copy_in | gather_in] -> split products -> [sum_out | scatter_out] -> residual stream

with the pairs of `parallel.collectives`, the second of each under sequence parallelism, which splits the stream and
the norms along the sequence too. A block so has two collectives each way whatever is in it (Megatron-LM, Shoeybi et
al. 2019, arXiv:1909.08053; Korthikanti et al. 2022, arXiv:2205.05198).

What the module reads of a model are names and `embed`, `positions`, `norm`, `head`, each of which may be absent, as on
a stage of a pipeline.
"""

from __future__ import annotations

from functools import cache, partial
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Placement, Replicate, Shard

from thrifty.parallel.collectives import Group, copy_in, gather_in, scatter_out, sum_out
from thrifty.parallel.loss import IGNORE, SplitVocabulary

BY_OUTPUTS = ("query", "key", "value", "gate", "up", "embed", "head")
BY_INPUTS = ("output", "down")
ENTRANCES = ("attention_norm", "mlp_norm", "norm")  # what the split products read
OF_ONE_HEAD = ("query_norm", "key_norm")  # whole, but used on this rank's heads alone


def placement(name: str) -> Placement:
    """How a parameter lies on the tensor axis, by its name in the model."""
    module, _, kind = name.rpartition(".")
    layer = module.rpartition(".")[2]
    if layer in BY_OUTPUTS:
        return Shard(0)
    return Shard(1) if layer in BY_INPUTS and kind == "weight" else Replicate()


def parallelize_tensor(model: nn.Module, mesh: DeviceMesh, *, sequence_parallel: bool) -> None:
    """Splits a model over the axis `tensor`, in place.

    Args:
        model: on the meta device. Its layers compute with the local part of a DTensor parameter.
        mesh: with the axis `tensor`, whose size divides heads, kv_heads and ffn, and the sequence where that is split.
        sequence_parallel: also split the residual stream along the sequence.
    """
    axis = mesh["tensor"]
    group = axis.get_group()
    # One hook for all: the compiler compares objects, and would compile every block anew.
    entrance = partial(_enter, gather_in if sequence_parallel else copy_in, group)
    for module_name, module in model.named_modules():
        for name, parameter in module.named_parameters(module_name, recurse=False):
            where = placement(name)
            local = torch.empty(_local_shape(parameter, where, axis), dtype=parameter.dtype, device=parameter.device)
            split = DTensor.from_local(
                local, axis, [where], run_check=False, shape=parameter.shape, stride=parameter.stride()
            )
            setattr(module, name.rpartition(".")[2], nn.Parameter(split))
        layer = module_name.rpartition(".")[2]
        if layer in BY_INPUTS:
            module.__class__ = _row_class(type(module))
            module.tensor_group, module.sequence_parallel = group, sequence_parallel
        elif layer in ENTRANCES:
            module.register_forward_hook(entrance)
    vocabulary = SplitVocabulary(model.shape.vocab_size, group)
    if model.embed is not None:
        model.embed.forward = partial(_look_up, model.embed, vocabulary, model.compute_dtype, sequence_parallel)
    if model.positions is not None and sequence_parallel:
        model.positions.register_forward_hook(partial(_own_rows, group))
    model.vocabulary = vocabulary


def _local_shape(parameter: Tensor, where: Placement, axis: DeviceMesh) -> list[int]:
    shape = list(parameter.shape)
    if isinstance(where, Shard):
        part = -(-shape[where.dim] // axis.size())
        shape[where.dim] = max(0, min(part, shape[where.dim] - part * axis.get_local_rank()))
    return shape


def _enter(enter: Any, group: Group, module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
    return enter(output, group)


def _own_rows(group: Group, module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
    return output.chunk(group.size())[group.rank()]  # (seq, hidden) -> (seq / ranks, hidden)


@cache
def _row_class(base: type[nn.Module]) -> type[nn.Module]:
    """A linear layer of the model's own kind that holds some columns of its weight."""
    return type(f"Row{base.__name__}", (base,), {"forward": _row_linear})


def _row_linear(self: Any, x: Tensor) -> Tensor:
    """The sum over ranks of products with parts of the weight; the bias is added once, to the sum."""
    y = F.linear(x, self.weight.to_local().to(x.dtype))
    y = scatter_out(y, self.tensor_group) if self.sequence_parallel else sum_out(y, self.tensor_group)
    return y if self.bias is None else y + self.bias.to_local().to(y.dtype)


def _look_up(
    module: nn.Module, vocabulary: SplitVocabulary, dtype: torch.dtype | None, sequence_parallel: bool, tokens: Tensor
) -> Tensor:
    """Rows of an embedding that is split by the vocabulary: of each token one rank has the row, the others zeros."""
    ids = vocabulary.here(tokens)
    rows = F.embedding(ids.clamp_min(0), module.weight.to_local())
    rows = rows.to(dtype or rows.dtype) * (ids != IGNORE)[..., None]
    return scatter_out(rows, vocabulary.group) if sequence_parallel else sum_out(rows, vocabulary.group)


@torch.no_grad()
def sum_partial_gradients(model: nn.Module, mesh: DeviceMesh, *, sequence_parallel: bool) -> None:
    """Completes the gradients of parameters that every rank holds whole but has used on a part of the work.

    Under sequence parallelism these are all that are not split (each rank has seen some tokens), else the norms of
    queries and keys (some heads). They are small, and a sum, so one message a step carries them all, after the last
    backward pass.
    """
    found = []
    for name, parameter in model.named_parameters():
        used_in_part = sequence_parallel or name.split(".")[-2] in OF_ONE_HEAD
        if parameter.grad is not None and used_in_part and isinstance(placement(name), Replicate):
            found.append(parameter.grad.to_local())
    sizes = [gradient.numel() for gradient in found]
    if not sum(sizes):
        return
    together = torch.cat([gradient.flatten() for gradient in found])
    dist.all_reduce(together, group=mesh["tensor"].get_group())
    torch._foreach_copy_(found, [p.view_as(g) for p, g in zip(together.split(sizes), found, strict=True)])
