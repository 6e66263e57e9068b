"""Local steps: each island trains by itself, and every so often all move to a common point.

    local = LocalSteps(model, exchange, every=30)      # DiLoCo
    for batch in batches:
        loss(model(batch)).backward()
        optimizer.step()
        optimizer.zero_grad()
        local.after_step()
    local.finish()

Every island keeps an anchor, the global parameters, which are the same on all of them bit by bit. After `every` inner
steps the mean over islands of anchor - parameters is taken for a gradient of the anchor, an outer optimizer makes a
step with it, and training goes on from there. Inner optimizer and its state stay each island's own.

| | outer | exchange |
|---|---|---|
| post-local SGD (Lin et al. 2020, arXiv:1808.07217) | AVERAGE | any |
| DiLoCo (Douillard et al. 2023, arXiv:2311.08105) | DILOCO | any |
| SparseLoCo (Sarfi et al. 2025, arXiv:2508.15706) | AVERAGE | TopK(1/64), Blockwise(2), Feedback(decay=0.95) |
| Streaming DiLoCo (Douillard et al. 2025, arXiv:2501.18512) | DILOCO, fragments, delay, alpha | 4 bits |
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from thrifty.cost.crossing import due, fragments_of
from thrifty.spec.errors import ThriftyError

if TYPE_CHECKING:
    from thrifty.compress.exchange import Exchange, Pending

WHERE = "local steps"


@dataclass(frozen=True)
class Outer:
    """The optimizer of the anchor: SGD as torch has it, g being the mean of anchor - parameters.

    m = momentum m + g;    anchor -= lr (g + momentum m)    nesterov
                           anchor -= lr m                   sgd
    """

    kind: Literal["nesterov", "sgd"] = "nesterov"
    lr: float = 0.7
    momentum: float = 0.9

    def __post_init__(self) -> None:
        if self.kind not in ("nesterov", "sgd"):
            raise ThriftyError(f"no outer optimizer {self.kind!r}", where=WHERE, hint="valid choices: nesterov, sgd")
        if self.lr <= 0 or not 0 <= self.momentum < 1:
            raise ThriftyError(
                f"outer lr {self.lr:g}, momentum {self.momentum:g}", where=WHERE, hint="lr above 0, momentum in [0, 1)"
            )

    def step(self, anchor: Tensor, gradient: Tensor, momentum: Tensor | None) -> None:
        """Moves the anchor, in place, and the momentum where there is one."""
        if momentum is None:
            anchor.sub_(gradient, alpha=self.lr)
            return
        momentum.mul_(self.momentum).add_(gradient)
        if self.kind == "nesterov":
            anchor.sub_(gradient, alpha=self.lr).sub_(momentum, alpha=self.lr * self.momentum)
        else:
            anchor.sub_(momentum, alpha=self.lr)


DILOCO = Outer("nesterov", lr=0.7, momentum=0.9)
AVERAGE = Outer("sgd", lr=1.0, momentum=0.0)


@dataclass
class _UnderWay:
    """The mean of a fragment, needed after step `due`; none pending = it is there."""

    part: int
    due: int
    tensors: dict[str, Tensor]
    pending: Pending | None

    def get(self) -> dict[str, Tensor]:
        if self.pending is not None:
            self.pending.wait()
            self.pending = None
        return self.tensors


class LocalSteps:
    """Counts inner steps of one island and exchanges what they came to; see the module.

    Takes, beside the model: the anchor (a value of fp32, or of fp64 where a parameter is, for each parameter), as much
    again for the outer momentum if there is one, and while an exchange is under way its fragment once more. Residuals
    are the exchange's. Of parameters that are DTensors each rank handles its own shard: the exchange's group then joins
    the ranks that hold the same shard on every island.

    Args:
        model: a module, or names and parameters; those that require no gradient are left alone, and so are buffers.
        exchange: takes the mean over islands, named tensor by named tensor.
        every: inner steps between two exchanges of the same parameters.
        outer: moves the anchor.
        fragments: parts of the model that are exchanged one after the other, spread evenly over `every` steps. Tensors
            stay whole; the parts are as equal as that allows.
        delay: inner steps that an exchange may take, in the background; its result is applied after them.
        alpha: share of its own parameters that an island keeps when it takes the anchor's: alpha of the streaming
            paper. Above 0, islands agree on the anchor only.

    Raises:
        ThriftyError: a setting out of range, no parameters, or islands that start from different ones.
    """

    def __init__(
        self,
        model: nn.Module | Iterable[tuple[str, nn.Parameter]],
        exchange: Exchange,
        *,
        every: int,
        outer: Outer = DILOCO,
        fragments: int = 1,
        delay: int = 0,
        alpha: float = 0.0,
    ) -> None:
        named = model.named_parameters() if isinstance(model, nn.Module) else model
        self._parameters = {name: one for name, one in named if one.requires_grad and _local(one).numel()}
        if every < 1:
            raise ThriftyError(f"every {every} steps", where=WHERE, hint="at least 1")
        if not 1 <= fragments <= min(every, len(self._parameters)):
            most = min(every, len(self._parameters))
            raise ThriftyError(
                f"{fragments} fragments of {len(self._parameters)} tensors every {every} steps", where=WHERE,
                hint=f"each fragment has a tensor and a step of its own: 1 to {most}" if most else "no parameters",
            )  # fmt: skip
        if not 0 <= delay < every:
            hint = f"0 to {every - 1}: what is done while a mean is under way is replaced by it"
            raise ThriftyError(f"a delay of {delay} steps, every {every}", where=WHERE, hint=hint)
        if not 0 <= alpha < 1:
            raise ThriftyError(f"alpha {alpha:g}", where=WHERE, hint="the share that islands keep: 0 up to below 1")
        self.every, self.outer, self.delay, self.alpha = every, outer, delay, alpha
        self._exchange = exchange
        self.fragments = fragments_of({name: one.numel() for name, one in self._parameters.items()}, fragments)
        self._step = 0
        self._synchronised = [0] * fragments  # step after which each was last sent, or set to the anchor
        self._under_way: list[_UnderWay] = []
        self._anchor = {name: _wide(_local(one)) for name, one in self._parameters.items()}
        self._momentum = {name: torch.zeros_like(one) for name, one in self._anchor.items()} if outer.momentum else {}
        odd = exchange.odd_ranks(_checksum(self._anchor))
        if odd:
            hint = "seed them alike or load the same checkpoint, before LocalSteps"
            raise ThriftyError(f"islands {odd} start from other parameters than island 0", where=WHERE, hint=hint)

    @torch.no_grad()
    def after_step(self) -> bool:
        """To be called after each step of the inner optimizer, gradient accumulation not counted.

        Returns:
            whether parameters were synchronised, all or a fragment.
        """
        self._step += 1
        applied = self._apply(self._step)
        for part, names in enumerate(self.fragments):
            if self._step % self.every != due(part, len(self.fragments), self.every):
                continue
            moved = self._moved(names)
            self._synchronised[part] = self._step
            if self.delay:
                pending = self._exchange.submit(moved)
                self._under_way.append(_UnderWay(part, self._step + self.delay, moved, pending))
                continue
            self._exchange.mean(moved)
            self._take(moved, self.alpha)
            applied = True
        return applied

    @torch.no_grad()
    def finish(self) -> None:
        """At the end of training: waits for what is under way, exchanges the rest, and leaves all islands equal.

        What an island did while a mean was under way counts in the share `alpha`, as always.
        """
        if self._under_way:
            self._apply(max(one.due for one in self._under_way))
        left = [name for part, names in enumerate(self.fragments) if self._synchronised[part] < self._step
                for name in names]  # fmt: skip
        if left:
            moved = self._moved(left)
            self._exchange.mean(moved)
            self._take(moved, 0.0)
        self._synchronised = [self._step] * len(self.fragments)
        for name, parameter in self._parameters.items():
            _local(parameter).copy_(self._anchor[name])

    def settle(self) -> None:
        """Puts the anchor into the model for good, without an exchange: a run that ends at an evaluation of it."""
        self._put(self._anchor)

    @property
    def kept_bytes(self) -> int:
        """Memory of anchor and outer momentum on this rank."""
        return sum(one.nbytes for kept in (self._anchor, self._momentum) for one in kept.values())

    @contextmanager
    def global_weights(self) -> Iterator[None]:
        """Puts the anchor into the model for evaluation, and the island's own parameters back afterwards.

        The model after an exchange has these already, where alpha is 0; between exchanges it has not. Takes one more
        copy of the parameters meanwhile.
        """
        own = {name: _local(parameter).detach().clone() for name, parameter in self._parameters.items()}
        self._put(self._anchor)
        try:
            yield
        finally:
            self._put(own)

    def state_dict(self) -> dict[str, Any]:
        """Anchor, outer momentum, counters, and means that wait to be applied; an exchange under way is waited for.

        The island's parameters and the inner optimizer are the caller's to save, of every island; residuals are the
        exchange's, to be asked for after this. Tensors of sharded parameters are DTensors of the same layout.
        """
        return {
            "step": self._step,
            "synchronised": list(self._synchronised),
            "anchor": self._wrapped(self._anchor),
            "momentum": self._wrapped(self._momentum),
            "waiting": [
                {"part": one.part, "due": one.due, "mean": self._wrapped(one.get())} for one in self._under_way
            ],
        }

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes over what `state_dict` gave, of the same model, fragments and outer momentum.

        Raises:
            ThriftyError: of another model or other settings.
        """
        if len(state["synchronised"]) != len(self.fragments):
            told = f"{len(state['synchronised'])} fragments, this one has {len(self.fragments)}"
            raise ThriftyError(f"saved with {told}", where=WHERE, hint="change it after finish(), at the end of a run")
        for kind, mine in (("anchor", self._anchor), ("momentum", self._momentum)):
            found = {name: _local(one) for name, one in state[kind].items()}
            shapes = {name: tuple(one.shape) for name, one in found.items()}
            if shapes != {name: tuple(one.shape) for name, one in mine.items()}:
                raise ThriftyError(
                    f"the saved {kind} is of other parameters than this model's", where=WHERE,
                    hint="load what was saved with this model, outer optimizer and layout",
                )  # fmt: skip
            for name, one in found.items():
                mine[name].copy_(one)
        self._step, self._synchronised = int(state["step"]), [int(one) for one in state["synchronised"]]
        self._under_way = []
        for one in state["waiting"]:
            mean = {name: _wide(_local(mean)).to(self._anchor[name].device) for name, mean in one["mean"].items()}
            self._under_way.append(_UnderWay(int(one["part"]), int(one["due"]), mean, None))

    def _moved(self, names: Iterable[str]) -> dict[str, Tensor]:
        """How far the island has come from the anchor, the other way round: a gradient."""
        found = {}
        for name in names:
            mine, anchor = _local(self._parameters[name]), self._anchor[name]
            # From the anchor as the parameter's own dtype has it, so that who stood still has not moved.
            found[name] = anchor.to(mine.dtype).to(anchor.dtype) - mine
        return found

    def _apply(self, until: int) -> bool:
        """Takes over means that are due."""
        due = [one for one in self._under_way if one.due <= until]
        for one in due:
            self._take(one.get(), self.alpha)
            self._under_way.remove(one)
            if not self.alpha:
                self._synchronised[one.part] = self._step
        return bool(due)

    def _take(self, mean: Mapping[str, Tensor], alpha: float) -> None:
        """The outer step; then the parameters follow the anchor."""
        for name, gradient in mean.items():
            anchor = self._anchor[name]
            self.outer.step(anchor, gradient, self._momentum.get(name))
            mine = _local(self._parameters[name])
            mine.copy_(anchor.lerp(mine.to(anchor.dtype), alpha) if alpha else anchor)

    @torch.no_grad()
    def _put(self, values: Mapping[str, Tensor]) -> None:
        for name, parameter in self._parameters.items():
            _local(parameter).copy_(values[name])

    def _wrapped(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Copies, of the layout that the parameters have."""
        return {name: _as_laid_out(one.clone(), self._parameters[name]) for name, one in tensors.items()}


def _local(tensor: Tensor) -> Tensor:
    """What this rank holds of a tensor, itself and not a copy."""
    return tensor.detach().to_local() if isinstance(tensor, DTensor) else tensor.detach()


def _as_laid_out(shard: Tensor, like: Tensor) -> Tensor:
    if not isinstance(like, DTensor):
        return shard
    return DTensor.from_local(
        shard, like.device_mesh, like.placements, run_check=False, shape=like.shape, stride=like.stride()
    )


def _wide(tensor: Tensor) -> Tensor:
    """A copy in fp32, or in fp64 where it was."""
    return tensor.to(torch.float64 if tensor.dtype == torch.float64 else torch.float32, copy=True)


def _checksum(tensors: Mapping[str, Tensor]) -> int:
    total = 0
    for name, one in tensors.items():
        data = one.cpu().contiguous().view(-1).view(torch.uint8).numpy()
        total = zlib.crc32(data, zlib.crc32(name.encode(), total))
    return total
