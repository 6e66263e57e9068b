"""The two seams of FSDP2: means over replicas of a shard, and the reduce-scatter inside the shard group."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from thrifty.compress.codec import Codec
from thrifty.compress.exchange import Exchange, feeds_back, finite
from thrifty.compress.feedback import Feedback, Kept
from thrifty.compress.routes import scattered
from thrifty.compress.unit import Unit
from thrifty.compress.wire import WHERE, Wire
from thrifty.spec.errors import ThriftyError


def fsdp_hook(exchange: Exchange, model: nn.Module) -> None:
    """After FSDP2's reduce-scatter, the mean over the replicas of a shard, with `exchange` of their group.

    For a mesh of one dimension: with two, FSDP2 has reduced over replicas before any hook is called. Each FSDP module
    waits for its exchange during backward; `overlap_hooks` does not, but wants a call in the loop. While gradients
    accumulate, `model.set_requires_gradient_sync(False)` until the last microbatch: one exchange a step.

    Raises:
        ThriftyError: no FSDP2 module in it, or one on a mesh of two dimensions.
    """
    for name, module in _units(model):
        if any(group._is_hsdp for group in module._get_fsdp_state()._fsdp_param_groups):
            hint = "shard over a mesh of one dimension, and give the other to the exchange's group"
            raise ThriftyError("FSDP2 reduces over replicas itself on a mesh of two dimensions", where=name, hint=hint)

        def reduce(values: Tensor, key: str = name) -> None:
            exchange.mean({key: values})

        module.set_all_reduce_hook(reduce)


class EncodedReduceScatter:
    """FSDP2's reduce-scatter with encoded values: each rank's part of the mean, summed in fp32.

    Of each FSDP module one, set by `fsdp_reduce_scatter`: it keeps errors of the whole, unsharded gradient of its
    module, in bf16 at 2 bytes a value. Only the reduce-scatter of gradients is encoded; parameters are gathered.
    """

    def __init__(self, wire: Wire, codec: Codec, feedback: Feedback | None, name: str, seed: int = 0) -> None:
        self._wire, self._codec, self._name, self._seed = wire, codec, name, seed
        self.feedback = feedback if feeds_back(codec) else None
        self._own = Kept(self.feedback.store if self.feedback else "fp32")
        self._rounds = 0

    def allocate(self, size: Sequence[int | torch.SymInt], *, dtype: torch.dtype, device: torch.device) -> Tensor:
        """What FSDP2 asks for buffers."""
        return torch.empty(*size, dtype=dtype, device=device)

    def __call__(
        self, output_tensor: Tensor, input_tensor: Tensor, group: Any, op: Any, async_op: bool = False
    ) -> None:
        """This rank's part of the mean (or sum, as `op` says) of all ranks' inputs."""
        known = {dist.ReduceOp.SUM: self._wire.size, dist.ReduceOp.AVG: 1}
        scale = next((many for kind, many in known.items() if op == kind), None)
        if scale is None:
            raise ThriftyError(f"FSDP2 asks for a reduction by {op}", where=WHERE, hint="sums and means are encoded")
        unit = Unit((self._name,), (input_tensor.numel(),))
        x = input_tensor.detach().float()
        if not finite(x):
            x = torch.full_like(x, float("nan"))
        if self.feedback:
            x = x.clone()
            self._own.add_to(unit, x, self.feedback.decay)
        seed = hashlib.blake2b(repr((self._seed, self._rounds, self._name)).encode(), digest_size=8).digest()
        sent = scattered(
            self._wire, self._codec, x.chunk(self._wire.size), int.from_bytes(seed, "little"), bool(self.feedback)
        )
        if self.feedback and finite(sent.mean):
            self._own.keep(unit, x)
        output_tensor.copy_(sent.mean * scale)
        self._rounds += 1

    def state_dict(self) -> dict[str, Tensor]:
        """What the next reduction depends on; each rank has its own."""
        return self._own.state_dict() | {f"{self._name}#rounds": torch.tensor(self._rounds)}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Goes on from a `state_dict` of the same rank."""
        self._rounds = int(state[f"{self._name}#rounds"])
        self._own.load_state_dict({key: one for key, one in state.items() if not key.endswith("#rounds")})


def fsdp_reduce_scatter(
    codec: Codec, model: nn.Module, group: Any = None, *, feedback: Feedback | None = None, seed: int = 0
) -> dict[str, EncodedReduceScatter]:
    """Encodes gradients inside the shard group of every FSDP2 module; returns what keeps the errors, by module.

    Args:
        group: the ranks of the shard dimension; all by default.
        feedback: errors take as many values as the whole model on every rank, which sharding was to avoid. None by
            default; int4 and wider do without.

    Raises:
        ThriftyError: no FSDP2 module in it, or two-sided feedback or ef21, which need the second hop.
    """
    if feedback is not None and (feedback.two_sided or feedback.kind != "classic"):
        hint = 'take Feedback(two_sided=False, store="int8")'
        raise ThriftyError("a reduce-scatter has one hop", where="feedback", hint=hint)
    wire = Wire(group)
    made = {}
    for name, module in _units(model):
        made[name] = EncodedReduceScatter(wire, codec, feedback, name, seed)
        module.set_custom_reduce_scatter(made[name])
    return made


def _units(model: nn.Module) -> Iterator[tuple[str, Any]]:
    from torch.distributed.fsdp import FSDPModule  # takes half a second to import

    found = [(name or "root", module) for name, module in model.named_modules() if isinstance(module, FSDPModule)]
    if not found:
        raise ThriftyError("no FSDP2 module in the model", where=WHERE, hint="fully_shard(model) first")
    return iter(found)
