"""AdamW in full width, or with moments of 16 bits: torch's, but all tensors in one call and one pass over memory.

It reads 16 bytes a parameter and writes 12, which two cores of a server wait for, as `torch.optim.AdamW(fused=True)`
does: it is as fast (docs/optimizers.md), and rounds weights in bfloat16 by chance, which torch does not.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from thrifty.optim.base import SMALL, Group, Params
from thrifty.optim.blockwise import Blockwise
from thrifty.optim.rules import ADAMW
from thrifty.spec.errors import ThriftyError


class AdamW(Blockwise):
    """AdamW with the settings and the state dict of `torch.optim.AdamW`. Decay is decoupled: arXiv:1711.05101.

    Weights in bfloat16 are rounded by chance, so that steps below their last bit are not lost.

    Args:
        maximize: climb, not descend.
        state_bits: of each moment, 32 or 16 (bfloat16, rounded by chance: 4 bytes a parameter where 32 bits take 8).
        stable: StableAdamW's smaller steps of tensors whose gradients outgrow their second moment, arXiv:2304.13013.
        small: tensors with fewer values keep fp32 moments.

    Raises:
        ThriftyError: other bits, or amsgrad.
    """

    rule = ADAMW

    def __init__(
        self, params: Params, lr: float | Tensor = 1e-3, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8,
        weight_decay: float = 1e-2, amsgrad: bool = False, *, maximize: bool = False, state_bits: int = 32,
        stable: bool = False, small: int = SMALL, compiled: bool | None = None,
    ) -> None:  # fmt: skip
        if state_bits not in (16, 32):
            raise ThriftyError(f"moments of {state_bits} bits", hint="valid choices: 32, 16; or AdamW8bit, AdamW4bit")
        defaults = {
            "lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "amsgrad": amsgrad,
            "maximize": maximize, "stable": stable,
        }  # fmt: skip
        dtype = torch.float32 if state_bits == 32 else torch.bfloat16
        super().__init__(params, defaults, None, small=small, compiled=compiled, dtype=dtype)

    def add_param_group(self, param_group: Group) -> None:
        """As of `torch.optim`, without amsgrad."""
        super().add_param_group(param_group)
        _no_amsgrad(self.param_groups[-1])

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes states of any width, of `torch.optim.AdamW` as they are, without amsgrad."""
        for group in state_dict["param_groups"]:
            _no_amsgrad(group)
        super().load_state_dict(state_dict)


def _no_amsgrad(group: Group) -> None:
    if group.get("amsgrad"):
        raise ThriftyError("AdamW without amsgrad was asked for amsgrad", hint="use torch.optim.AdamW(amsgrad=True)")
