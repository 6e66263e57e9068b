"""Squared norms of the gradients of small batches, taken while the backward pass makes them: no pass of its own.

Three sources for `NoiseScale`, each in anybody's loop:

- `MicroSquares`: each microbatch's gradient, by one hook a parameter. What accumulates need not be copied,
  and under DDP and FSDP2 the hook sees this rank's gradient before it is reduced, so that ranks are small batches too.
- `NormSquares`: each sequence's gradient of norm layers alone (Gray et al. 2024, arXiv:2411.00999).
- `measuring_hook`: each rank's gradient, bucket by bucket, in a communication hook of DDP.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn


def square(values: Sequence[Tensor]) -> Tensor:
    """Sum of squares over tensors, in fp32 or wider, as a scalar tensor."""
    norms = [torch.linalg.vector_norm(v, dtype=torch.promote_types(v.dtype, torch.float32)) for v in values]
    return torch.stack(norms).square().sum()


class _Squares:
    """Collects squared norms while `on`; `take` gives their sum and starts anew."""

    def __init__(self) -> None:
        self.on = True
        self._found: list[Tensor] = []
        self._handles: list[Any] = []

    def take(self) -> float:
        """Sum of the squared norms since the last call; waits for the device."""
        found, self._found = self._found, []
        return float(torch.stack(found).sum()) if found else 0.0

    def remove(self) -> None:
        """Takes the hooks away."""
        for handle in self._handles:
            handle.remove()


class MicroSquares(_Squares):
    """Sum over backward passes of the squared norm of each one's own gradient.

    A tensor hook of a leaf gets what one backward pass adds, all uses of the parameter together. Under FSDP2, give it
    the parameters of `unsharded_parameters`.
    """

    def __init__(self, parameters: Iterable[Tensor]) -> None:
        super().__init__()
        self._handles = [p.register_hook(self._add) for p in parameters if p.requires_grad]

    def _add(self, gradient: Tensor) -> None:
        if self.on:
            self._found.append(square([gradient]))


class NormSquares(_Squares):
    """Sum over sequences of the squared norm of each one's gradient of the norm layers' weights and biases.

    The gradient of y = w x_hat + b for one sequence is the sum over its positions of dy x_hat, and of dy. The layer
    normalises anew without weights to have x_hat, which is cheap beside the matrix products.

    Args:
        norms: modules with `weight`, perhaps `bias`, and `eps`, of input (sequences, length, width); LayerNorm where
            they have `normalized_shape`, else RMSNorm.
    """

    def __init__(self, norms: Iterable[nn.Module]) -> None:
        super().__init__()
        self._handles = [norm.register_forward_hook(self._watch) for norm in norms]

    def _watch(self, norm: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        if not self.on or not output.requires_grad:
            return
        x = inputs[0].detach()

        def add(gradient: Tensor) -> None:
            dy, bias = gradient.detach().float(), getattr(norm, "bias", None)
            self._found.append((dy * _normalised(norm, x)).flatten(1, -2).sum(1).square().sum())
            if bias is not None:
                self._found.append(dy.flatten(1, -2).sum(1).square().sum())

        output.register_hook(add)


def _normalised(norm: Any, x: Tensor) -> Tensor:
    x = x.float()
    if hasattr(norm, "normalized_shape") and not isinstance(norm, nn.RMSNorm):
        x = x - x.mean(-1, keepdim=True)
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + (norm.eps or torch.finfo(x.dtype).eps))


def unsharded_parameters(model: nn.Module) -> list[Tensor]:
    """What the backward pass of a model differentiates by: under FSDP2 what each unit gathers, else its parameters.

    FSDP2 makes those when it first gathers, which this does, and keeps the same ones for good.
    """
    from torch.distributed.fsdp import FSDPModule  # takes half a second to import

    units: list[Any] = [module for module in model.modules() if isinstance(module, FSDPModule)]
    if not units:
        return [p for p in model.parameters() if p.requires_grad]
    found = []
    for unit in units:
        unit.unshard()
        for group in unit._get_fsdp_state()._fsdp_param_groups:
            found += [one.unsharded_param for one in group.fsdp_params]
    for unit in units:
        unit.reshard()
    return found


Hook = Callable[[Any, Any], torch.futures.Future[Tensor]]


def measuring_hook(inner: Hook, group: Any = None) -> tuple[Hook, Callable[[], tuple[float, float]]]:
    """A communication hook of DDP that measures, around another: `model.register_comm_hook(None, hook)`.

    Returns:
        The hook, and a function that gives |g_b|^2, the mean over ranks, and |g_B|^2 of the backward pass before it:
        one all-reduce of one number.
    """
    small: list[Tensor] = []
    big: list[Tensor] = []

    def hook(state: Any, bucket: Any) -> torch.futures.Future[Tensor]:
        small.append(square([bucket.buffer()]))

        def measured(done: torch.futures.Future[Tensor]) -> Tensor:
            value = done.value()[0] if isinstance(done.value(), list) else done.value()
            big.append(square([value]))
            return value

        return inner(state, bucket).then(measured)

    # DDP compares the annotations themselves, which are text in this module.
    hook.__annotations__ = {"bucket": dist.GradBucket, "return": torch.futures.Future[Tensor]}

    def take() -> tuple[float, float]:
        mean = torch.stack(small).sum()
        dist.all_reduce(mean, group=group)
        found = float(mean) / dist.get_world_size(group), float(torch.stack(big).sum())
        small.clear()
        big.clear()
        return found

    return hook, take
