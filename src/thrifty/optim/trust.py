"""LAMB and LARS: steps as long, in each tensor, as the tensor itself is.

Both were made for large batches; well tuned AdamW and Nesterov momentum match them there (arXiv:2102.06356).
Norms are of whole tensors: of split ones they are summed over their pieces in one all-reduce a step.
"""

from __future__ import annotations

import torch
from torch import Tensor

from thrifty.optim.base import Base, Group, Params
from thrifty.optim.sharded import local, local_gradient, summed_over_shards


def squared_norms(tensors: list[Tensor]) -> Tensor:
    """Squares of norms (tensors,) in fp32 of this rank's pieces.

    By sums, which add in pairs: `torch.linalg.vector_norm` on CPUs adds one after the other, and is off by 1e-5 of a
    million values.
    """
    return torch.stack([t.square().sum() for t in tensors])


class Trusting(Base):
    """What LAMB and LARS share: moments in fp32, and the round over groups."""

    def _step(self, groups: list[tuple[Group, list[Tensor]]]) -> None:
        groups = [(group, params) for group, params in groups if params]
        gradients = [[local_gradient(p, type(self).__name__).float() for p in params] for _, params in groups]
        factor = self._clip([p for _, params in groups for p in params], [g for some in gradients for g in some])
        for (group, params), some in zip(groups, gradients, strict=True):
            clipped = some if factor is None else torch._foreach_mul(some, factor)
            self._step_group(group, params, clipped)

    def _clip(self, params: list[Tensor], gradients: list[Tensor]) -> Tensor | None:
        """What all gradients are multiplied by; none to leave them as they are."""
        return None

    def _step_group(self, group: Group, params: list[Tensor], gradients: list[Tensor]) -> None:
        raise NotImplementedError

    def _moments(self, params: list[Tensor]) -> tuple[list[int], list[list[Tensor]]]:
        """Step counts, this one included, and for each kind of moment its tensors."""
        states = [self.begun(p) for p in params]
        return [int(state["step"]) for state in states], [
            [local(state[name]) for state in states] for name in self.kind
        ]


def _moved(params: list[Tensor], updates: list[Tensor], rates: Tensor) -> None:
    """p -= rate u, with a rate (tensors,) for each."""
    torch._foreach_mul_(updates, list(rates.to(updates[0].device, torch.float32).unbind()))
    pieces = [local(p) for p in params]
    if all(piece.dtype == torch.float32 for piece in pieces):
        torch._foreach_sub_(pieces, updates)
    else:
        for piece, update in zip(pieces, updates, strict=True):
            piece.copy_(piece.float() - update)


class Lamb(Trusting):
    """Adam's step, in each tensor stretched to the tensor's own norm: You et al. 2020, arXiv:1904.00962.

        g = g min(1, max_grad_norm / |g of all tensors|)
        m = b1 m + (1 - b1) g;  v = b2 v + (1 - b2) g^2
        u = m / (1 - b1^t) / (sqrt(v / (1 - b2^t)) + eps) + weight_decay p
        p = p - lr |p| / |u| u                 the ratio is 1 where a norm is 0, or weight_decay is

    As NVIDIA apex has it. Groups without weight decay (norms, biases) take Adam's steps as they are.

    Args:
        bias_correction: the divisions by 1 - b^t.
        grad_averaging: the factor 1 - b1 of the gradient.
        max_grad_norm: of all tensors together; none to leave gradients as they are.
        always_adapt: the ratio also where there is no weight decay.
    """

    def __init__(
        self, params: Params, lr: float | Tensor = 1e-3, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-6,
        weight_decay: float = 0.01, *, bias_correction: bool = True, grad_averaging: bool = True,
        max_grad_norm: float | None = 1.0, always_adapt: bool = False,
    ) -> None:  # fmt: skip
        defaults = {
            "lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "bias_correction": bias_correction,
            "grad_averaging": grad_averaging, "always_adapt": always_adapt,
        }  # fmt: skip
        self.max_grad_norm = max_grad_norm
        super().__init__(params, defaults, {"exp_avg": False, "exp_avg_sq": True})

    def _clip(self, params: list[Tensor], gradients: list[Tensor]) -> Tensor | None:
        if self.max_grad_norm is None or not params:
            return None
        norm = summed_over_shards(squared_norms(gradients), params).sum().sqrt()
        return (self.max_grad_norm / norm).clamp(max=1.0)

    def _step_group(self, group: Group, params: list[Tensor], gradients: list[Tensor]) -> None:
        counts, (m, v) = self._moments(params)
        beta1, beta2 = group["betas"]
        torch._foreach_mul_(m, beta1)
        torch._foreach_add_(m, gradients, alpha=1 - beta1 if group["grad_averaging"] else 1.0)
        torch._foreach_mul_(v, beta2)
        torch._foreach_addcmul_(v, gradients, gradients, 1 - beta2)
        under = torch._foreach_sqrt(v)
        if group["bias_correction"]:
            torch._foreach_div_(under, [(1 - beta2**t) ** 0.5 for t in counts])
            torch._foreach_add_(under, group["eps"])
            torch._foreach_mul_(under, [1 - beta1**t for t in counts])
        else:
            torch._foreach_add_(under, group["eps"])
        updates = torch._foreach_div(m, under)
        weights = [local(p).float() for p in params]
        if group["weight_decay"]:
            torch._foreach_add_(updates, weights, alpha=group["weight_decay"])
        rates = torch.ones(len(params), device=updates[0].device)
        if group["weight_decay"] or group["always_adapt"]:
            squares = torch.stack([squared_norms(weights), squared_norms(updates)])
            size, length = summed_over_shards(squares, params).sqrt()  # (tensors,) each
            rates = torch.where((size > 0) & (length > 0), size / length, 1.0)
        _moved(params, updates, rates * group["lr"])


class Lars(Trusting):
    """SGD with momentum; gradients of matrices are stretched to their parameter's norm: You et al. 2017, 1708.03888.

        ratio = trust_coefficient |p| / (|g| + weight_decay |p|)    of tensors with two dimensions or more;
                                                                    of others 1, and they do not decay
        g = ratio (g + weight_decay p)
        b = momentum b + (1 - dampening) g;  p = p - lr b

    Args:
        nesterov: p = p - lr (g + momentum b).
    """

    def __init__(
        self, params: Params, lr: float | Tensor = 1e-3, momentum: float = 0.9, weight_decay: float = 0.0, *,
        dampening: float = 0.0, nesterov: bool = False, trust_coefficient: float = 1e-3,
    ) -> None:  # fmt: skip
        defaults = {
            "lr": lr, "momentum": momentum, "weight_decay": weight_decay, "dampening": dampening,
            "nesterov": nesterov, "trust_coefficient": trust_coefficient,
        }  # fmt: skip
        super().__init__(params, defaults, {"momentum_buffer": False})

    def _step_group(self, group: Group, params: list[Tensor], gradients: list[Tensor]) -> None:
        counts, (buffers,) = self._moments(params)
        weights, decay = [local(p).float() for p in params], group["weight_decay"]
        squares = torch.stack([squared_norms(weights), squared_norms(gradients)])
        size, slope = summed_over_shards(squares, params).sqrt()  # (tensors,) each
        ratios = group["trust_coefficient"] * size / (slope + decay * size)
        ratios = torch.where((size > 0) & (slope > 0), ratios, 1.0).unbind()
        scaled = [
            (g + decay * p) * ratio if p.ndim > 1 else g for p, g, ratio in zip(weights, gradients, ratios, strict=True)
        ]
        first = [1.0 if t == 1 else 1 - group["dampening"] for t in counts]
        torch._foreach_mul_(buffers, group["momentum"])
        torch._foreach_add_(buffers, torch._foreach_mul(scaled, first))
        if group["nesterov"]:
            updates = torch._foreach_add(scaled, buffers, alpha=group["momentum"])
        else:
            updates = [buffer.clone() for buffer in buffers]
        _moved(params, updates, group["lr"] * torch.ones(len(params), device=updates[0].device))
