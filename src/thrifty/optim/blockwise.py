"""Elementwise optimizers whose moments are kept in blocks of 8 or 4 bits."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from thrifty.optim.base import SMALL, Base, Group, Params
from thrifty.optim.elementwise import CHUNK, Formats, step_flat, step_floats
from thrifty.optim.rules import ADAM, ADAMW, LION, Rule, scalars
from thrifty.optim.sharded import local, local_gradient
from thrifty.optim.stable import smaller, surprise, surprise_of_blocks
from thrifty.quant.states import dither
from thrifty.spec.formats import FORMATS, ROOT4, ROOT8, SQUARE4, BlockFormat


class Blockwise(Base):
    """Steps an elementwise rule; moments of tensors with at least `small` values in blocks, of others in fp32.

    Attributes:
        rule: what happens to one value; of the class.

    Args:
        formats: of each moment, equal in block, or none to keep all moments in fp32.
        small: tensors with fewer values keep fp32 moments; of a split tensor, this rank's piece counts.
        compiled: fused kernels; by default for tensors large enough, where a compiler is found.

    A gradient that is inf or nan makes its whole block nan, so that it stays visible.
    """

    rule: Rule

    def __init__(
        self, params: Params, defaults: Group, formats: Formats | None, *, small: int = SMALL,
        compiled: bool | None = None, dtype: torch.dtype = torch.float32,
    ) -> None:  # fmt: skip
        self.compiled = compiled
        kind = dict(zip(self.rule.moments, self.rule.squares, strict=True))
        super().__init__(params, defaults, kind, formats, small, dtype)

    def _step(self, groups: list[tuple[Group, list[Tensor]]]) -> None:
        for _, params in groups:
            for p in params:
                self.begun(p)
        shares = self._shares(groups)
        for group, params in groups:
            self._step_group(group, params, shares)

    def _shares(self, groups: list[tuple[Group, list[Tensor]]]) -> dict[Tensor, Tensor]:
        """Of parameters of groups that are stable, the share of the learning rate that they get."""
        params, sums = [], []
        for group, some in groups:
            for p in some if group.get("stable") else []:
                state, g, forms = self.state[p], local_gradient(p, type(self).__name__), self.formats_of(p)
                h, name = scalars(self.rule, group, int(state["step"]), g), self.rule.moments[1]
                if forms is None:
                    sums.append(surprise(g.reshape(-1), local(state[name]).reshape(-1), h))
                else:
                    kept = state[name], state[name + "_scale"]
                    sums.append(surprise_of_blocks(g.reshape(-1), *kept, h, forms[1], self.compiled))
                params.append(p)
        return dict(zip(params, smaller(sums, params), strict=True)) if params else {}

    def _step_group(self, group: Group, params: list[Tensor], shares: dict[Tensor, Tensor]) -> None:
        together: dict[Any, list[Tensor]] = {}
        made: dict[Any, tuple[Tensor, Tensor]] = {}
        name = type(self).__name__
        for p in params:
            state = self.state[p]
            step = int(state["step"])
            forms = self.formats_of(p)
            if forms is None:
                own = p if p in shares else None  # stepped alone, by a learning rate of its own
                together.setdefault((step, p.device, self._dtypes(p), own), []).append(p)
                continue
            if (step, p.device) not in made:
                u = dither(step, forms[0].block, len(forms) + 1, p.device)
                made[step, p.device] = u, scalars(self.rule, group, step, p)
            u, h = made[step, p.device]
            if p in shares:
                h = scalars(self.rule, {**group, "lr": group["lr"] * shares[p]}, step, p)
            kept = [state[moment + part] for moment in self.rule.moments for part in ("", "_scale")]
            self._step_blocks(local(p), local_gradient(p, name), kept, u, h, forms)
        for (step, device, _, own), params in together.items():
            u = dither(step, CHUNK, len(self.rule.moments) + 1, device)
            moments = [[local(self.state[p][moment]) for p in params] for moment in self.rule.moments]
            gradients = [local_gradient(p, name) for p in params]
            settings = group if own is None else {**group, "lr": group["lr"] * shares[own]}
            h = scalars(self.rule, settings, step, params[0])
            step_floats([local(p) for p in params], gradients, moments, u, h, self.rule, self.compiled)

    def _dtypes(self, p: Tensor) -> tuple[torch.dtype, ...]:
        return p.dtype, p.grad.dtype, self.dtype_of(p)

    def _step_blocks(self, p: Tensor, g: Tensor, kept: list[Tensor], u: Tensor, h: Tensor, forms: Formats) -> None:
        flat = p.detach().reshape(-1)
        step_flat(flat, g.reshape(-1), kept, u, h, self.rule, forms, self.compiled)
        if flat.data_ptr() != p.data_ptr():  # not contiguous: that was a copy
            p.copy_(flat.view(p.shape))


INT8: BlockFormat = FORMATS["int8"]


class _AdamWInBlocks(Blockwise):
    """AdamW, decay decoupled (Loshchilov & Hutter 2019, arXiv:1711.05101), with moments in blocks of `kept` formats.

    Args:
        stable: StableAdamW's smaller steps of tensors whose gradients outgrow their second moment, arXiv:2304.13013.
        small: tensors with fewer values keep fp32 moments.
        compiled: fused kernels; by default for tensors large enough, where a compiler is found.
    """

    rule = ADAMW

    kept: Formats

    def __init__(
        self, params: Params, lr: float | Tensor = 1e-3, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8,
        weight_decay: float = 1e-2, *, stable: bool = False, small: int = SMALL, compiled: bool | None = None,
    ) -> None:  # fmt: skip
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "stable": stable}
        super().__init__(params, defaults, self.kept, small=small, compiled=compiled)


class AdamW8bit(_AdamWInBlocks):
    """AdamW with moments of 8 bits: 2.016 bytes a parameter where AdamW keeps 8. Decay is decoupled.

    Loshchilov & Hutter 2019, arXiv:1711.05101; blockwise states: Dettmers et al. 2022, arXiv:2110.02861.
    """

    kept = (INT8, ROOT8)


class AdamW4bit(_AdamWInBlocks):
    """AdamW with moments of 4 bits: 1.063 bytes a parameter where AdamW keeps 8. Decay is decoupled.

    The second moment has no level of zero, which Li et al. 2023, arXiv:2309.01507, find to be what breaks 4 bits; both
    are rounded so that nothing is lost on the average.
    """

    kept = (SQUARE4, ROOT4)


class Adam8bit(Blockwise):
    """Adam with moments of 8 bits. Decay is a term of the loss, and goes through the moments: arXiv:1412.6980."""

    rule = ADAM

    def __init__(
        self, params: Params, lr: float | Tensor = 1e-3, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8,
        weight_decay: float = 0.0, *, small: int = SMALL, compiled: bool | None = None,
    ) -> None:  # fmt: skip
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        super().__init__(params, defaults, (INT8, ROOT8), small=small, compiled=compiled)


class Lion8bit(Blockwise):
    """Lion with a momentum of 8 bits: 1.008 bytes a parameter. Chen et al. 2023, arXiv:2302.06675."""

    rule = LION

    def __init__(
        self, params: Params, lr: float | Tensor = 1e-4, betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.0, *, small: int = SMALL, compiled: bool | None = None,
    ) -> None:  # fmt: skip
        defaults = {"lr": lr, "betas": betas, "weight_decay": weight_decay}
        super().__init__(params, defaults, (INT8,), small=small, compiled=compiled)
