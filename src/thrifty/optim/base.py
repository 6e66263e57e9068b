"""What all optimizers here share: the closure, the start of a state, and states on their way in and out."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from thrifty.cost.optimizer import SMALL
from thrifty.cost.payload import block_bytes
from thrifty.optim.sharded import local
from thrifty.optim.travel import Kind, load_states, saved_states
from thrifty.spec.errors import ThriftyError
from thrifty.spec.formats import BlockFormat

Params = Iterable[Any]
Group = dict[str, Any]


class Base(torch.optim.Optimizer):
    """An optimizer whose state is a step count and some moments, each in fp32 or as codes and scales of blocks.

    Args:
        kind: names of the moments, and which are means of squares.
        formats: of each moment, equal in block, or none to keep all moments in fp32.
        small: tensors with fewer values keep fp32 moments; of a split tensor, this rank's piece counts.
        dtype: of the moments of tensors that are not small, where they have no formats.
    """

    def __init__(
        self, params: Params, defaults: Group, kind: Kind, formats: tuple[BlockFormat, ...] | None = None,
        small: int = SMALL, dtype: torch.dtype = torch.float32,
    ) -> None:  # fmt: skip
        _check(defaults)
        self.kind, self.formats, self.small, self.dtype = kind, formats, small, dtype
        super().__init__(params, defaults)

    def __getstate__(self) -> dict[str, Any]:
        """For copies and pickles: torch keeps groups and state alone."""
        own = {name: value for name, value in vars(self).items() if not name.startswith("_")}
        return {**own, **super().__getstate__()}

    def formats_of(self, p: Tensor) -> tuple[BlockFormat, ...] | None:
        """Formats of the moments of a parameter; none where they are kept as floats."""
        return self.formats if self.formats and local(p).numel() >= self.small else None

    def dtype_of(self, p: Tensor) -> torch.dtype:
        """Of the moments of a parameter that are kept as floats."""
        return self.dtype if local(p).numel() >= self.small else torch.float32

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step of all parameters that have a gradient; returns what `closure`, called before, returned."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self._step([(group, [p for p in group["params"] if p.grad is not None]) for group in self.param_groups])
        return loss

    def _step(self, groups: list[tuple[Group, list[Tensor]]]) -> None:
        """A step of the parameters of each group that have a gradient."""
        raise NotImplementedError

    def begun(self, p: Tensor) -> dict[str, Any]:
        """The state of a parameter, its step count one up."""
        state = self.state[p]
        if not state:
            state["step"] = torch.tensor(0.0)
            state.update(zero_moments(self.kind, p, self.formats_of(p), self.dtype_of(p)))
        state["step"] += 1
        return state

    def state_dict(self) -> dict[str, Any]:
        """As of `torch.optim`. Of split parameters the moments are written as fp32 DTensors, for any other layout."""
        told = super().state_dict()
        params = self._params()
        told["state"] = {place: saved_states(state, params[place], self.kind) for place, state in told["state"].items()}
        return told

    @torch.no_grad()
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes states of any width: its own, or fp32 moments as `torch.optim` has them; keeps its own width.

        Raises:
            ThriftyError: moments that are missing, or fit no format.
        """
        super().load_state_dict({**state_dict, "state": {}})
        for group in self.param_groups:
            for setting, value in self.defaults.items():
                group.setdefault(setting, value)  # another optimizer's groups do not know it
        names = [name for group in state_dict["param_groups"] for name in group["params"]]
        for name, p in zip(names, self._params(), strict=True):  # numbers, or names as torch.distributed.checkpoint's
            if name not in state_dict["state"]:
                continue
            saved = state_dict["state"][name]
            self.state[p] = load_states(saved, p, self.kind, self.formats_of(p), self.dtype_of(p))

    def _params(self) -> list[Tensor]:
        return [p for group in self.param_groups for p in group["params"]]


def zero_moments(
    kind: Kind, p: Tensor, forms: tuple[BlockFormat, ...] | None, dtype: torch.dtype
) -> dict[str, Tensor]:  # fmt: skip
    """Moments before the first step: zeros, as codes and scales or as floats."""
    if forms is None:
        return {name: torch.zeros_like(p, dtype=dtype) for name in kind}
    made, piece = {}, local(p)
    for name, form in zip(kind, forms, strict=True):
        codes, scales = block_bytes(piece.numel(), form, form.block)
        made[name] = torch.zeros(codes, dtype=torch.uint8, device=piece.device)
        made[name + "_scale"] = torch.zeros(scales // 2, dtype=torch.bfloat16, device=piece.device)
    return made


def _check(settings: Group) -> None:
    """Raises ThriftyError for settings that make no sense."""
    for name in ("lr", "eps", "weight_decay", "momentum"):
        value = settings.get(name, 0.0)
        if not isinstance(value, Tensor) and not 0 <= value < (1 if name == "momentum" else float("inf")):
            raise ThriftyError(f"{name} of {value}", hint=f"{name} is 0 or more, and {_BELOW.get(name, 'finite')}")
    for beta in settings.get("betas", ()):
        if not 0 <= beta < 1:
            raise ThriftyError(f"a beta of {beta}", hint="betas lie in [0, 1), e.g. betas=(0.9, 0.95)")


_BELOW = {"momentum": "below 1"}
