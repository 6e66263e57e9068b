"""Error feedback: what a codec dropped this time goes along next time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from thrifty.compress.unit import Unit
from thrifty.cost.payload import block_bytes
from thrifty.quant import Quantised, dequantise, quantise
from thrifty.spec.errors import ThriftyError
from thrifty.spec.formats import block_format

Store = Literal["fp32", "bf16", "int8"]
SCALES = "#scales"
ZERO_CODE = 128  # of int8


@dataclass(frozen=True)
class Feedback:
    """How errors are fed back.

    classic (Seide et al. 2014; Karimireddy et al., arXiv:1901.09847), of what a rank hands in, x:
        a = x + decay e;  send C(a);  e = a - D(C(a))
    ef21 (Richtarik et al., arXiv:2106.05203), where each rank keeps an estimate h of what it hands in:
        send C(x - h);  h += D(C(x - h));  the mean of all h is what comes out

    Args:
        decay: below 1 forgets old errors; SparseLoCo (arXiv:2508.15706) takes 0.95 in place of an outer momentum.
        store: type of what is kept, one value for each exchanged one. int8 has scales in blocks of 256. ef21 is kept in
            fp32: an estimate rounded by its sender alone would part from the mean that everybody has.
        two_sided: the rank that sums a part and encodes the sum feeds its error back too.

    Raises:
        ThriftyError: a decay outside (0, 1], or ef21 with a decay, one-sided or not in fp32, which would drift.
    """

    kind: Literal["classic", "ef21"] = "classic"
    decay: float = 1.0
    store: Store = "fp32"
    two_sided: bool = True

    def __post_init__(self) -> None:
        if self.kind not in ("classic", "ef21") or self.store not in ("fp32", "bf16", "int8"):
            told = f"no feedback of kind {self.kind!r} kept in {self.store!r}"
            raise ThriftyError(told, where="feedback", hint="classic or ef21, in fp32, bf16 or int8")
        if not 0 < self.decay <= 1:
            raise ThriftyError(f"decay {self.decay} is not above 0 and at most 1", where="feedback")
        if self.kind == "ef21" and (self.decay != 1 or not self.two_sided or self.store != "fp32"):
            hint = "decay, one side and other types than fp32 are for classic feedback"
            raise ThriftyError("ef21 would drift", where="feedback", hint=hint)


class Kept:
    """One flat tensor for each parameter, by name."""

    def __init__(self, store: Store = "fp32") -> None:
        self.store = store
        self._of: dict[str, Tensor | Quantised] = {}

    def __len__(self) -> int:
        return len(self._of)

    @property
    def nbytes(self) -> int:
        """Bytes that they take."""
        return sum(one.nbytes for one in self._of.values())

    def joined(self, unit: Unit, device: torch.device) -> Tensor:
        """What is kept of a unit's tensors, flat, in fp32; zeros for those of which nothing is.

        Raises:
            ThriftyError: kept of a tensor of another size.
        """
        flat = torch.zeros(unit.numel, device=device)
        self.add_to(unit, flat)
        return flat

    def add_to(self, unit: Unit, flat: Tensor, scale: float = 1.0) -> None:
        """Adds what is kept of a unit's tensors, times `scale`, to the flat tensor in place.

        Raises:
            ThriftyError: kept of a tensor of another size.
        """
        kept = [self.get(name, numel) for name, numel in zip(unit.names, unit.numels, strict=True)]
        unit.add(flat, kept, scale)

    def keep(self, unit: Unit, flat: Tensor) -> None:
        """Takes the flat tensor of a unit apart and keeps it."""
        for name, values in zip(unit.names, unit.split(flat), strict=True):
            if self.store == "int8":
                self._of[name] = quantise(values, "int8")
            else:
                self._of[name] = values.to(torch.bfloat16) if self.store == "bf16" else values

    def get(self, name: str, numel: int) -> Tensor | None:
        """What is kept of one tensor, in fp32; none if nothing is.

        Raises:
            ThriftyError: kept of a tensor of another size.
        """
        kept = self._of.get(name)
        if kept is None:
            return None
        values = dequantise(kept) if isinstance(kept, Quantised) else kept
        if values.numel() != numel:
            told = f"{values.numel()} values of error are kept, and {numel} are exchanged"
            hint = "the layout has changed since: reset() starts without errors"
            raise ThriftyError(told, where=name, hint=hint)
        return values.float()

    def state_dict(self) -> dict[str, Tensor]:
        """By name; int8 as codes, and their scales under `name#scales`."""
        state = {}
        for name, kept in self._of.items():
            if isinstance(kept, Quantised):
                # The last block is filled up; without that the codes are as many as the values.
                state[name], state[name + SCALES] = kept.codes[: kept.numel], kept.scales
            else:
                state[name] = kept
        return state

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Takes the place of everything kept. What was kept in another type is converted."""
        self._of = {}
        for name, values in state.items():
            if name.endswith(SCALES):
                continue
            if values.dtype != torch.uint8:
                self.keep(Unit((name,), (values.numel(),)), values.float())
                continue
            form = block_format("int8")
            filled = values.new_full((block_bytes(values.numel(), form, form.block)[0],), ZERO_CODE)
            filled[: values.numel()] = values
            found = Quantised(filled, state[name + SCALES].clone(), form, form.block, values.numel())
            if self.store == "int8":
                self._of[name] = found
            else:
                self.keep(Unit((name,), (values.numel(),)), dequantise(found))
