"""Starting values as a function of (seed, parameter name) alone: the same on any layout, device, dtype and order."""

from __future__ import annotations

import hashlib
import math

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

STD = 0.02  # GPT-2 (Radford et al. 2019)
RESIDUAL = ("attention.output.weight", "mlp.down.weight")  # what is added to the residual stream, twice a block
BLOCK_ELEMENTS = 2**20  # values drawn from one generator; a rank draws only the blocks that it holds rows of


@torch.no_grad()
def initialise(module: nn.Module, seed: int) -> None:
    """Fills every parameter of a Transformer in place.

    Matrices are normal with deviation 0.02, those that write to the residual stream with 0.02 / sqrt(2 layers); norms
    are 1 and biases 0. A sharded module (FSDP2, tensor parallel) gets the values of the whole one. Values are drawn in
    fp32 on the host, so that no device or dtype changes them.

    Args:
        module: a Transformer or a stage of one, on a real device: names are those of `module.named_parameters()`.
    """
    layers = module.shape.layers  # of the whole model
    for name, parameter in module.named_parameters():
        if parameter.dim() == 2:
            _fill_normal(parameter, STD / math.sqrt(2 * layers) if name.endswith(RESIDUAL) else STD, f"{seed}/{name}")
        else:
            parameter.fill_(0.0 if name.endswith("bias") else 1.0)


def _fill_normal(parameter: Tensor, std: float, key: str) -> None:
    """Rows are drawn in blocks, each from a generator of its own, keyed by its first row."""
    columns = parameter.shape[1]
    block = max(1, BLOCK_ELEMENTS // columns)
    rows, kept_columns = held(parameter)
    local = parameter.to_local() if isinstance(parameter, DTensor) else parameter
    for begin in range(rows.start // block * block, rows.stop, block):
        digest = hashlib.sha256(f"{key}/{begin}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
        size = min(block, parameter.shape[0] - begin)
        values = torch.empty(size, columns, dtype=torch.float32).normal_(0.0, std, generator=generator)
        first, last = max(begin, rows.start), min(begin + size, rows.stop)
        local[first - rows.start : last - rows.start] = values[first - begin : last - begin, kept_columns]


def held(parameter: Tensor) -> tuple[slice, ...]:
    """Where the values that this rank holds lie in the whole tensor, one slice per dimension."""
    shape, offset = tuple(parameter.shape), (0,) * parameter.dim()
    if isinstance(parameter, DTensor):
        shape, offset = compute_local_shape_and_global_offset(shape, parameter.device_mesh, parameter.placements)
    return tuple(slice(begin, begin + size) for begin, size in zip(offset, shape, strict=True))
