"""Tensors exchanged together: their place in one flat tensor, by part."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from thrifty.cost.exchange import cut, part_sizes
from thrifty.spec.errors import ThriftyError

FLOATS = (torch.float32, torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class Unit:
    """Names and sizes of the tensors, and into how many parts each is cut.

    Flat, the first part of every tensor comes first, then the second of every one. Which values are in a part depends
    on their tensor alone, not on what else is in the unit.
    """

    names: tuple[str, ...]
    numels: tuple[int, ...]
    parts: int = 1

    @property
    def numel(self) -> int:
        return sum(self.numels)

    @property
    def sizes(self) -> list[int]:
        """Values in each part."""
        return part_sizes(self.numels, self.parts)

    def of_part(self, part: int) -> Unit:
        """One part of each tensor as a unit of its own, under the same names."""
        bounds = (cut(values, part, self.parts) for values in self.numels)
        return Unit(self.names, tuple(end - begin for begin, end in bounds))

    def _pieces(self) -> Iterator[tuple[int, slice, slice]]:
        """Which tensor, where in it, where in the flat one."""
        at = 0
        for part in range(self.parts):
            for place, values in enumerate(self.numels):
                begin, end = cut(values, part, self.parts)
                yield place, slice(begin, end), slice(at, at + end - begin)
                at += end - begin

    def joined(self, tensors: Sequence[Tensor | None]) -> Tensor:
        """The flat fp32 tensor of one-dimensional ones; zeros where there is none."""
        device = next((tensor.device for tensor in tensors if tensor is not None), None)
        flat = torch.empty(self.numel, device=device)
        for place, there, here in self._pieces():
            source = tensors[place]
            if source is None:
                flat[here] = 0
            else:
                flat[here] = source[there]
        return flat

    def add(self, flat: Tensor, tensors: Sequence[Tensor | None], scale: float) -> None:
        """Adds one-dimensional tensors, times `scale`, to the flat one in place."""
        for place, there, here in self._pieces():
            source = tensors[place]
            if source is not None:
                flat[here].add_(source[there], alpha=scale)

    def split(self, flat: Tensor, into: Sequence[Tensor] | None = None) -> list[Tensor]:
        """The one-dimensional tensors of a flat one, written to those given."""
        into = [flat.new_empty(values) for values in self.numels] if into is None else list(into)
        for place, there, here in self._pieces():
            into[place][there] = flat[here]
        return into


def local(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What this rank holds of each: a DTensor's own shard, and other tensors whole.

    Raises:
        ThriftyError: not fp32, bf16 or fp16.
    """
    found = {}
    for name, tensor in tensors.items():
        if tensor.dtype not in FLOATS:
            raise ThriftyError(f"{tensor.dtype} is not exchanged", where=name, hint="fp32, bf16 and fp16 are")
        mine = tensor.to_local() if hasattr(tensor, "to_local") else tensor
        found[name] = mine.detach()
    return found
