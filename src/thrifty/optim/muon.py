"""Muon: momentum, made orthogonal. Matrices of a shape go together; each rank of a group takes its share of them."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor

from thrifty.cost.optimizer import MUON_BATCH_BYTES
from thrifty.optim.base import SMALL, Base, Group, Params
from thrifty.optim.elementwise import CHUNK, step_flat, step_floats
from thrifty.optim.newton_schulz import STEPS, Coefficients, orthogonalised
from thrifty.optim.rules import MOMENTUM, STEP, scalars
from thrifty.optim.sharded import local, local_gradient
from thrifty.optim.share import shared_out
from thrifty.quant.states import dither
from thrifty.spec.errors import ThriftyError, did_you_mean
from thrifty.spec.formats import FORMATS

# Bytes of matrices that are orthogonalised in one go: enough for full speed, little beside the model. On CPUs larger
# results come from fresh pages, which cost as much as a fifth of the multiplications.
BATCH_BYTES = {"cpu": 1 << 22}


def _as_adamw(rows: int, columns: int) -> float:
    return 0.2 * math.sqrt(max(rows, columns))


# What the learning rate is multiplied by. The second gives steps the root mean square of AdamW's: arXiv:2502.16982.
SCALES = {"original": lambda rows, columns: math.sqrt(max(1.0, rows / columns)), "match_rms_adamw": _as_adamw}


class Muon(Base):
    """Momentum, orthogonalised, for the matrices inside a model; embeddings, heads, norms and biases want AdamW.

        b = momentum b + (1 - momentum) g;  u = (1 - momentum) g + momentum b     with Nesterov, else u = b
        p = (1 - lr weight_decay) p - lr scale(p) orthogonalised(u)

    Jordan et al. 2024, with the arguments of `torch.optim.Muon`.

    Args:
        ns_coefficients: of every step, as torch's (3.4445, -4.775, 2.0315); by default the best for `ns_steps`, of
            which 4 do what 5 of those do. A state dict of torch's brings its own.
        adjust_lr_fn: scale(p) is sqrt(max(1, rows / columns)), "original", or 0.2 sqrt(max(rows, columns)),
            "match_rms_adamw", under which AdamW's rate and decay serve.
        bits: of the momentum, 32, 16 (bfloat16) or 8 (1.008 bytes a parameter).
        group: ranks with equal parameters and gradients (data parallel): each orthogonalises a share of the matrices
            and sends it in bfloat16. Parameters split by FSDP2 are shared out over their ranks without it.
        small: matrices with fewer values keep fp32 momentum.

    Raises:
        ThriftyError: a parameter that is no matrix, an unknown scale, other bits.
    """

    def __init__(
        self, params: Params, lr: float | Tensor = 1e-3, weight_decay: float = 0.1, momentum: float = 0.95,
        nesterov: bool = True, ns_coefficients: Coefficients | None = None, *, ns_steps: int = STEPS,
        adjust_lr_fn: str | None = None, bits: int = 32, group: dist.ProcessGroup | None = None,
        small: int = SMALL, compiled: bool | None = None,
    ) -> None:  # fmt: skip
        if bits not in (8, 16, 32):
            raise ThriftyError(f"momentum of {bits} bits", hint="valid choices: 32, 16, 8")
        if (adjust_lr_fn or "original") not in SCALES:
            raise ThriftyError(f"no scale {adjust_lr_fn!r}", hint=did_you_mean(str(adjust_lr_fn), list(SCALES)))
        defaults = {
            "lr": lr, "weight_decay": weight_decay, "momentum": momentum, "nesterov": nesterov,
            "ns_coefficients": ns_coefficients, "ns_steps": ns_steps, "adjust_lr_fn": adjust_lr_fn,
        }  # fmt: skip
        self.compiled, self.group = compiled, group
        formats = (FORMATS["int8"],) if bits == 8 else None
        dtype = torch.bfloat16 if bits == 16 else torch.float32
        super().__init__(params, defaults, {"momentum_buffer": False}, formats, small, dtype)

    def add_param_group(self, param_group: Group) -> None:
        """As of `torch.optim`, for matrices alone."""
        super().add_param_group(param_group)
        for p in self.param_groups[-1]["params"]:
            if p.ndim != 2:
                raise ThriftyError(
                    f"Muon takes matrices, not a tensor of shape {tuple(p.shape)}",
                    hint="give embeddings, norms, biases and convolutions to AdamW8bit or torch.optim.AdamW",
                )

    def _step(self, groups: list[tuple[Group, list[Tensor]]]) -> None:
        for group, params in groups:
            alike: dict[Any, list[Tensor]] = {}
            for p in params:
                alike.setdefault(_places(p), []).append(p)
            for some in alike.values():
                self._step_alike(group, some)

    def _step_alike(self, group: Group, params: list[Tensor]) -> None:
        """A step of matrices that are all whole, or split alike."""
        how = group["ns_steps"], group.get("ns_coefficients")
        updates = shared_out(
            [self._momentum(p, group) for p in params], params, self.group,
            lambda matrices: _batched(matrices, *how),
        )  # fmt: skip
        scale = SCALES[group["adjust_lr_fn"] or "original"]
        alike: dict[Any, list[int]] = {}
        for at, p in enumerate(params):
            alike.setdefault((scale(*p.shape), p.dtype, p.device), []).append(at)
        for (size, _, device), places in alike.items():
            step = int(self.state[params[places[0]]]["step"])
            some = [local(params[at]) for at in places]
            h = scalars(STEP, {**group, "scale": size}, step, some[0])
            step_floats(
                some, [updates[at] for at in places], [], dither(step, CHUNK, 1, device), h, STEP, self.compiled
            )

    def _momentum(self, p: Tensor, group: Group) -> Tensor:
        """This rank's piece of what is to be orthogonalised, in bfloat16."""
        state, g = self.begun(p), local_gradient(p, "Muon")
        forms = self.formats_of(p)
        step = int(state["step"])
        h = scalars(MOMENTUM, group, step, g)
        u = dither(step, forms[0].block if forms else CHUNK, 2, g.device)
        u[-1 if forms else slice(None)] = 0.5  # to the nearest: nothing is added up, and any layout agrees
        made = torch.empty(g.shape, dtype=torch.bfloat16, device=g.device)
        if forms is None:
            step_floats([made], [g], [[local(state["momentum_buffer"])]], u, h, MOMENTUM, self.compiled)
            return made
        kept = [state["momentum_buffer"], state["momentum_buffer_scale"]]
        step_flat(made.view(-1), g.reshape(-1), kept, u, h, MOMENTUM, forms, self.compiled)
        return made


def _places(p: Tensor) -> Any:
    return (p.device_mesh, p.placements) if isinstance(p, DTensor) else None


def _batched(matrices: list[Tensor], steps: int, coefficients: Coefficients | None) -> list[Tensor]:
    """Orthogonalised matrices, those of a shape (or its transpose) together."""
    alike: dict[tuple[int, ...], list[int]] = {}
    for place, x in enumerate(matrices):
        alike.setdefault(tuple(sorted(x.shape)), []).append(place)
    made: list[Tensor] = list(matrices)
    for (short, long), places in alike.items():
        at_most = BATCH_BYTES.get(matrices[places[0]].device.type, MUON_BATCH_BYTES)
        many = max(1, at_most // (2 * short * long))
        for start in range(0, len(places), many):
            some = places[start : start + many]
            wide = [m if m.shape[0] == short else m.mT for m in (matrices[place] for place in some)]
            x = torch.stack(wide) if len(wide) > 1 else wide[0][None]
            for place, update in zip(some, orthogonalised(x, steps, coefficients), strict=True):
                made[place] = update if matrices[place].shape[0] == short else update.mT
    return made
