"""Optimizers whose moments are kept in blocks of 8 or 4 bits."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from thrifty.cost.payload import block_bytes
from thrifty.optim.elementwise import Formats, step_flat
from thrifty.optim.rules import ADAM, ADAMW, LION, Rule, scalars
from thrifty.optim.travel import load_states, saved_states
from thrifty.quant.states import dither
from thrifty.spec.errors import ThriftyError
from thrifty.spec.formats import FORMATS, ROOT8, BlockFormat

SMALL = 4096  # values; below, moments stay in fp32: such tensors weigh nothing, and norms and biases are touchy

Params = Iterable[Any]


def local(tensor: Tensor) -> Tensor:
    """This rank's piece of a tensor that may be split."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


class Blockwise(torch.optim.Optimizer):
    """Steps an elementwise rule; moments of tensors with at least `small` values in blocks, of others in fp32.

    Args:
        rule: what happens to one value.
        formats: of each moment, equal in block, or none to keep all moments in fp32.
        small: tensors with fewer values keep fp32 moments; of a split tensor, this rank's piece counts.
        compiled: fused kernels; by default for tensors large enough, where a compiler is found.

    A gradient that is inf or nan makes its whole block of 256 nan, so that it stays visible.
    """

    def __init__(
        self, params: Params, defaults: dict[str, Any], rule: Rule, formats: Formats | None,
        *, small: int = SMALL, compiled: bool | None = None,
    ) -> None:  # fmt: skip
        check_settings(defaults)
        self.rule, self.formats, self.small, self.compiled = rule, formats, small, compiled
        super().__init__(params, defaults)

    def formats_of(self, p: Tensor) -> Formats | None:
        """Formats of the moments of a parameter; none where they are kept in fp32."""
        return self.formats if self.formats and local(p).numel() >= self.small else None

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step of all parameters that have a gradient; returns what `closure`, called before, returned."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            self._step_group(group)
        return loss

    def _step_group(self, group: dict[str, Any]) -> None:
        together: dict[Any, list[Tensor]] = {}
        made: dict[Any, tuple[Tensor, Tensor]] = {}
        for p in group["params"]:
            if p.grad is None:
                continue
            if p.grad.is_sparse:
                raise ThriftyError(f"{type(self).__name__} takes no sparse gradients", hint="use torch.optim.SparseAdam")
            state = self.state[p] or self._begin(p)
            state["step"] += 1
            step = int(state["step"])
            forms = self.formats_of(p)
            if forms is None:
                together.setdefault((step, p.device, p.dtype), []).append(p)
                continue
            if (step, p.device) not in made:
                u = dither(step, forms[0].block, len(forms), p.device)
                made[step, p.device] = u, scalars(self.rule, group, step, p)
            u, h = made[step, p.device]
            kept = [state[name + part] for name in self.rule.moments for part in ("", "_scale")]
            self._step_blocks(local(p), local(p.grad), kept, u, h, forms)
        for (step, _, _), params in together.items():
            self._step_together(params, scalars(self.rule, group, step, params[0]))

    def _begin(self, p: Tensor) -> dict[str, Any]:
        state = self.state[p]
        state["step"] = torch.tensor(0.0)
        state.update(zero_moments(self.rule, local(p), self.formats_of(p)))
        return state

    def _step_blocks(self, p: Tensor, g: Tensor, kept: list[Tensor], u: Tensor, h: Tensor, forms: Formats) -> None:
        flat = p.detach().reshape(-1)
        step_flat(flat, g.reshape(-1), kept, u, h, self.rule, forms, self.compiled)
        if flat.data_ptr() != p.data_ptr():  # not contiguous: that was a copy
            p.copy_(flat.view(p.shape))

    def _step_together(self, params: list[Tensor], h: Tensor) -> None:
        """Tensors with fp32 moments as one: one kernel each operation, not one each tensor."""
        places = [local(p) for p in params]
        p, g = (torch.cat([t.reshape(-1) for t in ts]).float() for ts in (places, [local(p.grad) for p in params]))
        states = [[self.state[p][name] for p in params] for name in self.rule.moments]
        old = [torch.cat([t.reshape(-1) for t in ts]) for ts in states]
        new = self.rule.advance(p, g, old, h)
        moved = self.rule.move(p, g, old, new, h)
        sizes = [t.numel() for t in places]
        for targets, values in zip([places, *states], [moved, *new], strict=True):
            pieces = [piece.view(t.shape) for piece, t in zip(values.split(sizes), targets, strict=True)]
            torch._foreach_copy_(targets, pieces)

    def state_dict(self) -> dict[str, Any]:
        """As of `torch.optim`. Of split parameters the moments are written as fp32 DTensors, for any other layout."""
        told = super().state_dict()
        params = [p for group in self.param_groups for p in group["params"]]
        told["state"] = {
            place: saved_states(state, params[place], self.rule) for place, state in told["state"].items()
        }
        return told

    @torch.no_grad()
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes states of any width: its own, or fp32 moments as `torch.optim` has them; keeps its own width.

        Raises:
            ThriftyError: moments that are missing, or fit no format.
        """
        super().load_state_dict({**state_dict, "state": {}})
        params = [p for group in self.param_groups for p in group["params"]]
        for place, saved in state_dict["state"].items():
            p = params[place]
            self.state[p] = load_states(saved, p, self.rule, self.formats_of(p))


def zero_moments(rule: Rule, p: Tensor, forms: Formats | None) -> dict[str, Tensor]:
    """Moments before the first step: zeros, as codes and scales or in fp32."""
    if forms is None:
        return {name: torch.zeros_like(p, dtype=torch.float32) for name in rule.moments}
    made = {}
    for name, form in zip(rule.moments, forms, strict=True):
        codes, scales = block_bytes(p.numel(), form, form.block)
        made[name] = torch.zeros(codes, dtype=torch.uint8, device=p.device)
        made[name + "_scale"] = torch.zeros(scales // 2, dtype=torch.bfloat16, device=p.device)
    return made


def check_settings(settings: dict[str, Any]) -> None:
    """Raises ThriftyError for a rate, a decay, an epsilon or betas that make no sense."""
    for name in ("lr", "eps", "weight_decay"):
        value = settings.get(name, 0.0)
        if not isinstance(value, Tensor) and not 0 <= value < float("inf"):
            raise ThriftyError(f"{name} of {value}", hint=f"{name} is 0 or more, and finite")
    for beta in settings.get("betas", ()):
        if not 0 <= beta < 1:
            raise ThriftyError(f"a beta of {beta}", hint="betas lie in [0, 1), e.g. betas=(0.9, 0.95)")


INT8: BlockFormat = FORMATS["int8"]


class AdamW8bit(Blockwise):
    """AdamW with moments of 8 bits: 2.016 bytes a parameter where AdamW keeps 8. Decay is decoupled.

    Loshchilov & Hutter 2019, arXiv:1711.05101; blockwise states: Dettmers et al. 2022, arXiv:2110.02861.

    Args:
        small: tensors with fewer values keep fp32 moments.
        compiled: fused kernels; by default for tensors large enough, where a compiler is found.
    """

    def __init__(
        self, params: Params, lr: float | Tensor = 1e-3, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8,
        weight_decay: float = 1e-2, *, small: int = SMALL, compiled: bool | None = None,
    ) -> None:  # fmt: skip
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        super().__init__(params, defaults, ADAMW, (INT8, ROOT8), small=small, compiled=compiled)


class Adam8bit(Blockwise):
    """Adam with moments of 8 bits. Decay is a term of the loss, and goes through the moments: arXiv:1412.6980."""

    def __init__(
        self, params: Params, lr: float | Tensor = 1e-3, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8,
        weight_decay: float = 0.0, *, small: int = SMALL, compiled: bool | None = None,
    ) -> None:  # fmt: skip
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        super().__init__(params, defaults, ADAM, (INT8, ROOT8), small=small, compiled=compiled)


class Lion8bit(Blockwise):
    """Lion with a momentum of 8 bits: 1.008 bytes a parameter. Chen et al. 2023, arXiv:2302.06675."""

    def __init__(
        self, params: Params, lr: float | Tensor = 1e-4, betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.0, *, small: int = SMALL, compiled: bool | None = None,
    ) -> None:  # fmt: skip
        defaults = {"lr": lr, "betas": betas, "weight_decay": weight_decay}
        super().__init__(params, defaults, LION, (INT8,), small=small, compiled=compiled)
