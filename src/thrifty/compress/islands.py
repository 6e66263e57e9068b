"""A mean in two stages: plain inside an island, and by slices between islands."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from thrifty.compress.unit import Unit
from thrifty.compress.wire import WHERE, Wire
from thrifty.spec.errors import ThriftyError


def over_islands(island: Wire, tensors: Mapping[str, Tensor], between: Callable[[dict[str, Tensor]], None]) -> None:
    """Mean of the island, of one slice each; `between` islands of the slice; slices to the whole island again.

    Args:
        tensors: one-dimensional; overwritten.
        between: takes the mean of this rank's slice of each tensor over islands, in place.

    Raises:
        ThriftyError: `between` raised it on any rank of the island.
    """
    unit = Unit(tuple(tensors), tuple(tensor.numel() for tensor in tensors.values()), island.size)
    widest = max(unit.sizes)
    flat = unit.joined(list(tensors.values()))
    parts = flat.new_zeros(island.size, widest)
    for row, values in zip(parts, flat.split(unit.sizes), strict=True):
        row[: values.numel()] = values
    mine = island.reduce_scatter(parts) / island.size
    slices = unit.of_part(island.rank)
    values = slices.split(mine[: slices.numel])
    failure: ThriftyError | None = None
    try:
        between(dict(zip(unit.names, values, strict=True)))
    except ThriftyError as error:
        failure = error
    row = flat.new_zeros(widest + 1)  # the last value says whether the rank has failed
    row[: slices.numel] = slices.joined(values)
    row[-1] = float(failure is not None)
    whole = island.gather(row)
    if failure is not None:
        raise failure
    failed = whole[:, -1].nonzero().view(-1).tolist()
    if failed:
        raise ThriftyError(f"the exchange between islands failed on rank {failed[0]} of this island", where=WHERE)
    unit.split(torch.cat([row[:size] for row, size in zip(whole, unit.sizes, strict=True)]), list(tensors.values()))
