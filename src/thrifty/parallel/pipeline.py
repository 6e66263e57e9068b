"""A model in stages: each rank of a pipeline computes its parts for one microbatch after the other.

torch.distributed.pipelining holds the schedules and sends what stages hand on; here is what ties them to a model:

    parts_of        which layers this rank holds, as parts of the whole
    Pipeline        the parts of one rank, and the schedule that runs them
    Tied            the embedding that is the head too: two copies, on the first and the last part, kept equal

Parts are modules that take hidden states and return hidden states; the first takes token ids, and the last takes
targets too and returns the sum of the loss. Losses are not scaled by the number of microbatches.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.pipelining import (
    PipelineStage,
    Schedule1F1B,
    ScheduleGPipe,
    ScheduleInterleaved1F1B,
    ScheduleInterleavedZeroBubble,
    ScheduleZBVZeroBubble,
)

from thrifty.cost.stages import even, placement
from thrifty.cost.timeline import Span
from thrifty.parallel.mesh import coordinates, rank_at
from thrifty.spec.recipe import Layout

# torch builds the first two for one stage a rank, the others for a list of them.
_SINGLE: dict[str, Any] = {"gpipe": ScheduleGPipe, "1f1b": Schedule1F1B}
_LISTED: dict[str, Any] = {
    "interleaved": ScheduleInterleaved1F1B,
    "zero_bubble": ScheduleInterleavedZeroBubble,
    "zbv": ScheduleZBVZeroBubble,
}


@dataclass(frozen=True)
class Part:
    """A run of layers, one of `of` in the whole model."""

    index: int
    of: int
    layers: range

    @property
    def first(self) -> bool:
        return self.index == 0

    @property
    def last(self) -> bool:
        return self.index == self.of - 1


def parts_of(layers: int, layout: Layout, rank: int, split: Sequence[range] | None = None) -> tuple[Part, ...]:
    """What a rank holds; `split` says which layers each part of the model has, else they are spread evenly."""
    split = split or even(layers, layout.pipeline * layout.interleave)
    mine = placement(layout)[coordinates(layout, rank)["pipeline"]]
    return tuple(Part(index, len(split), split[index]) for index in mine)


class Chunks(nn.Module):
    """Several parts on one rank as one module; its parameters have the names of the whole model.

    Where first and last part share a rank, the last one's copy of a tied embedding is left out: see `Tied`.
    """

    def __init__(self, parts: Sequence[nn.Module]) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)

    def named_parameters(self, *args: Any, **kwargs: Any) -> Iterator[tuple[str, nn.Parameter]]:
        found = {}
        for part in reversed(self.parts):
            found |= dict(part.named_parameters(*args, **kwargs))
        return iter(found.items())


Around = Callable[[nn.Module], AbstractContextManager[Any]]


class Pipeline:
    """The parts of one rank and their schedule.

    Attributes:
        events: what the last step computed and when, in seconds since the epoch.
        first_passes: by part, what entering `around` gave; empty where the last step had none.
    """

    def __init__(
        self,
        parts: Sequence[tuple[Part, nn.Module]],
        layout: Layout,
        *,
        microbatches: int,
        tokens: tuple[int, int],
        handed: tuple[int, int, int],
        dtype: torch.dtype,
        group: dist.ProcessGroup,
        device: torch.device,
    ) -> None:
        """Sets up stages and schedule; nothing is sent yet.

        Args:
            tokens: of a microbatch, (sequences, length).
            handed: shape of what a rank hands on for a microbatch, (sequences, length, hidden).
            dtype: of it.
            group: the ranks of this pipeline, in its order.
        """
        self.parts = parts
        self.device, self.group = device, group
        self.events: list[Span] = []
        self.first_passes: dict[int, Any] = {}
        self._around: Around | None = None
        self._scale = 1.0
        self._losses: list[Tensor] = []
        self._ranks = {part: rank for rank, held in enumerate(placement(layout)) for part in held}
        self._handed = torch.empty(handed, dtype=dtype, device="meta")
        ids = torch.empty(tokens, dtype=torch.int64, device="meta")
        loss = torch.empty((), dtype=torch.promote_types(dtype, torch.float32), device="meta")
        stages = []
        for part, model in parts:
            stage = PipelineStage(
                model, part.index, part.of, device, group=group,
                input_args=ids if part.first else self._handed.clone().requires_grad_(),
                output_args=(loss if part.last else self._handed.clone()).requires_grad_(),
            )  # fmt: skip
            self._watch(stage, part.index, model)
            stages.append(stage)
        if layout.schedule in _SINGLE:
            build, held = _SINGLE[layout.schedule], stages[0]
        else:
            build, held = _LISTED[layout.schedule], stages
        self._schedule = build(held, microbatches, loss_fn=self._weigh, scale_grads=False)
        if layout.schedule in _LISTED:
            _keep_gathered(self._schedule)

    @property
    def has_first(self) -> bool:
        return any(part.first for part, _ in self.parts)

    @property
    def has_last(self) -> bool:
        return any(part.last for part, _ in self.parts)

    def _weigh(self, loss: Tensor, _: Tensor) -> Tensor:
        """The last part has formed the loss itself, with the head inside: here it is kept and scaled."""
        self._losses.append(loss.detach())
        return loss * self._scale

    def step(self, tokens: Tensor, targets: Tensor, scale: float, around: Around | None = None) -> list[Tensor]:
        """Forward and backward passes of all microbatches; gradients of scale x the sum of their losses are added up.

        Args:
            tokens: ids of all microbatches, one below the other, (sequences, length); likewise targets.
            around: a context to wrap the first forward pass of each part in, given its module.

        Returns:
            The loss of each microbatch, a sum over targets, on the rank of the last part; elsewhere nothing.
        """
        self.events, self.first_passes, self._losses = [], {}, []
        self._scale, self._around = scale, around
        last = {"target": targets, "targets": targets} if self.has_last else {}
        self._schedule.step(*([tokens] if self.has_first else []), **last, return_outputs=False)
        return self._losses

    @torch.no_grad()
    def evaluate(self, tokens: Tensor, targets: Tensor) -> Tensor | None:
        """The loss of one microbatch, a sum over targets, on the rank of the last part; elsewhere None.

        Messages are sent in the model's order, so that each rank's sends meet the other's receives in one order. A
        rank with one part starts the next microbatch while the ones behind it still compute this one.
        """
        result, x, sent = None, tokens, []
        here = [part.index for part, _ in self.parts]
        for part, model in self.parts:
            if not part.first and part.index - 1 not in here:
                x = torch.empty_like(self._handed, device=self.device)
                dist.irecv(x, group=self.group, group_src=self._ranks[part.index - 1]).wait()
            x = model(x, targets)
            if part.last:
                result = x
            elif part.index + 1 not in here:
                sent.append((dist.isend(x, group=self.group, group_dst=self._ranks[part.index + 1]), x))
        for work, _ in sent:
            work.wait()
        return result

    def _watch(self, stage: PipelineStage, part: int, model: nn.Module) -> None:
        """Notes when each computation of a stage begins and ends. Of a GPU this is when it was asked for."""

        def timed(compute: Callable[..., Any], kind: Callable[[dict[str, Any]], str]) -> Callable[..., Any]:
            def run(microbatch: int, *args: Any, **kwargs: Any) -> Any:
                begin = time.time()
                result = compute(microbatch, *args, **kwargs)
                self.events.append(Span(kind(kwargs), part, microbatch, begin, time.time()))
                return result

            return run

        forward = stage.forward_one_chunk

        def first_forward(microbatch: int, *args: Any, **kwargs: Any) -> Any:
            if self._around is None or microbatch:
                return forward(microbatch, *args, **kwargs)
            with self._around(model) as found:
                self.first_passes[part] = found
                return forward(microbatch, *args, **kwargs)

        stage.forward_one_chunk = timed(first_forward, lambda _: "F")
        stage.backward_one_chunk = timed(
            stage.backward_one_chunk, lambda asked: "B" if asked.get("full_backward", True) else "I"
        )
        stage.backward_weight_one_chunk = timed(stage.backward_weight_one_chunk, lambda _: "W")


def _keep_gathered(schedule: Any) -> None:
    """Gathers the parameters of each part once a step.

    torch keeps those of the three parts that are needed next, and would gather the others anew several times a step.
    Their gradients, larger than what that frees, are whole meanwhile all the same.
    """
    for rank, actions in schedule.pipeline_order_with_comms.items():
        kinds = [(action.computation_type.name, action.stage_index) for action in actions]
        first = {kind: at for at, kind in reversed(list(enumerate(kinds))) if kind[0] == "UNSHARD"}
        last = {kind: at for at, kind in enumerate(kinds) if kind[0] == "RESHARD"}
        kept = {*first.values(), *last.values()}
        schedule.pipeline_order_with_comms[rank] = [
            action for at, action in enumerate(actions) if at in kept or kinds[at][0] not in ("UNSHARD", "RESHARD")
        ]


@dataclass(frozen=True)
class Tied:
    """The embedding's matrix where it is the head too: the first and the last part each hold a copy.

    On two ranks both copies take the same step with the same sum of gradients. On one rank (`zbv`) the head's copy
    follows: it has no optimizer state, hands its gradient over, and is overwritten after each step.

    Attributes:
        group: of the two ranks; None where they are one.
        counted_elsewhere: whether another rank counts this gradient in the global norm.
    """

    copies: tuple[nn.Parameter, ...]
    group: dist.ProcessGroup | None
    counted_elsewhere: bool

    def sum_gradients(self) -> None:
        """After the backward passes: what comes from lookups and what comes from the head, together."""
        if self.group is not None:
            dist.all_reduce(_local(self.copies[0].grad), group=self.group)
            return
        ours, theirs = self.copies
        _local(ours.grad).add_(_local(theirs.grad))
        theirs.grad = None

    @torch.no_grad()
    def follow(self) -> None:
        """After whatever changes the parameters."""
        if self.group is None:
            _local(self.copies[1]).copy_(_local(self.copies[0]))


def tie(parts: Sequence[tuple[Part, nn.Module]], layout: Layout, rank: int) -> Tied | None:
    """The copies that this rank holds of a tied embedding, or None. Every rank of the run must call this."""
    ours: dist.ProcessGroup | None = None
    apart = layout.schedule != "zbv"
    for first in range(layout.ranks if apart else 0):
        place = coordinates(layout, first)
        if place["pipeline"] == 0:
            both = [first, rank_at(layout, place | {"pipeline": layout.pipeline - 1})]
            made = dist.new_group(both)
            if rank in both:
                ours = made
    copies = tuple(model.embed.weight for part, model in parts if part.first or part.last)
    if not copies:
        return None
    return Tied(copies, ours, counted_elsewhere=apart and not parts[0][0].first)


def _local(tensor: Any) -> Tensor:
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor
