"""Builds a layout of any number of ranks in this one process, and runs a step of some of its ranks without numbers.

The trainer's own code builds a rank's part on the meta device, whose tensors have shapes and no memory, in a process
group that only pretends (torch's `fake` backend: everything is received at once, and nothing is). So what a rank holds
is measured on the real sharding code, and collectives are counted as they are started, forward and backward. Beside
both stands what the planner says.

Activations, buffers and the peak cannot be seen without memory: those are the planner's. Nor can what islands send each
other encoded or after several steps: that is not run here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
import torch.distributed as dist
from torch.distributed.fsdp._fully_shard._fsdp_param_group import FSDPParamGroup
from torch.distributed.pipelining import PipelineStage
from torch.distributed.tensor.debug import _clear_sharding_prop_cache
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._python_dispatch import TorchDispatchMode

from thrifty.cost.memory import Memory, by_stage, capacity_bytes, memory, states_of, usable_bytes
from thrifty.cost.stages import even, messages, own_runs, placement
from thrifty.cost.traffic import collectives
from thrifty.parallel.count import TrafficCounter
from thrifty.parallel.mesh import AXES, coordinates, group, picture, rank_at
from thrifty.spec import legal
from thrifty.spec.errors import ThriftyError
from thrifty.spec.plan import Plan
from thrifty.spec.recipe import Batch, Layout, Recipe
from thrifty.trainer.build import Built, build, passes
from thrifty.trainer.checkpoint import allocate_state
from thrifty.trainer.clip import clip_gradients
from thrifty.trainer.memory import gradient_bytes, optimizer_bytes, parameter_bytes
from thrifty.trainer.world import World


class Sent(NamedTuple):
    """A kind of collective among the ranks of an axis; `payload_bytes` is the tensor that a rank hands in."""

    kind: str
    axis: str
    ranks: int
    payload_bytes: int


@dataclass(frozen=True)
class Difference:
    """What was built or sent, and what was planned instead."""

    what: str
    found: int
    planned: int


@dataclass(frozen=True)
class RankRun:
    """One rank of the layout.

    Attributes:
        place: on each axis.
        layers: of each part of the model that it holds.
        groups: its own ranks on each axis that has several.
        found: bytes of parameters, gradients and optimizer states, as the sharding code made them.
        planned: the same as the planner says, for this rank.
        modelled: of its stage's fullest rank, all terms and the peak.
        sent: collectives started in one optimizer step, and how often.
        planned_sent: the same as the planner says.
        microbatches: that were run, each in a step of its own: when two, the counts of all follow from them.
    """

    rank: int
    place: dict[str, int]
    layers: tuple[range, ...]
    groups: dict[str, list[int]]
    found: dict[str, int]
    planned: dict[str, int]
    modelled: Memory
    sent: dict[Sent, int]
    planned_sent: dict[Sent, int]
    microbatches: tuple[int, ...]

    @property
    def peak_bytes(self) -> float:
        """The modelled peak, with the terms that were found in place of the same terms as planned."""
        return self.modelled.peak + sum(self.found[name] - getattr(self.modelled, name) for name in self.found)

    @property
    def differences(self) -> tuple[Difference, ...]:
        """Where the planner is wrong about this rank."""
        pairs = [(f"bytes of {name}", self.found[name], self.planned[name]) for name in self.found]
        for one in sorted(self.sent.keys() | self.planned_sent.keys()):
            what = f"{one.kind} over {one.axis} ({one.ranks} ranks) of {one.payload_bytes} bytes"
            pairs.append((what, self.sent.get(one, 0), self.planned_sent.get(one, 0)))
        return tuple(Difference(*pair) for pair in pairs if pair[1] != pair[2])


@dataclass(frozen=True)
class DryRun:
    """Some ranks of a plan's layout.

    Attributes:
        stands_for: how many stages each of the runs stands for, by its rank.
        capacity_bytes: memory of one rank; a plan may fill `usable_bytes` of it.
    """

    plan: Plan
    picture: str
    runs: tuple[RankRun, ...]
    stands_for: dict[int, int]
    capacity_bytes: float
    usable_bytes: float

    @property
    def fits(self) -> bool:
        return all(run.peak_bytes <= self.usable_bytes for run in self.runs)

    @property
    def agrees(self) -> bool:
        """Whether everything that was found is what was planned."""
        return not any(run.differences for run in self.runs)


def dry_run(plan: Plan, rank: int | None = None) -> DryRun:
    """Builds ranks of a plan and runs one step of each, for which no accelerator is needed.

    Args:
        rank: the one to build; the first one of each kind of stage when left out.

    Raises:
        ThriftyError: what the trainer refuses, in the same words; a rank that the layout does not have.
    """
    legal.require_own(plan.job, plan.recipe)
    layout = plan.recipe.layout
    if rank is not None and not 0 <= rank < layout.ranks:
        raise ThriftyError(
            f"the plan has {layout.ranks} ranks, there is no rank {rank}", where="--rank",
            hint=f"use 0 to {layout.ranks - 1}",
        )  # fmt: skip
    if dist.is_initialized():
        raise ThriftyError("a dry run needs a process without a process group", hint="run it outside of torchrun")
    runs = own_runs(plan.job, plan.cluster, plan.recipe) or even(plan.job.model.layers, 1)
    kinds = _kinds(layout, runs)
    ranks = list(kinds) if rank is None else [rank]
    return DryRun(
        plan=plan,
        picture=picture(layout, most=8),
        runs=tuple(_run_rank(plan, one, runs) for one in ranks),
        stands_for=kinds if rank is None else {rank: 1},
        capacity_bytes=capacity_bytes(plan.cluster, layout.ranks),
        usable_bytes=usable_bytes(plan.cluster, layout.ranks),
    )


def _kinds(layout: Layout, runs: Sequence[range]) -> dict[int, int]:
    """The first rank of each kind of stage (embedding or head, number of layers, messages), and how many are of it.

    Of the ranks of one stage the first is the fullest, where parameters do not divide evenly.
    """
    found: dict[Any, list[int]] = {}
    for stage, mine in enumerate(placement(layout)):
        sizes = tuple(len(runs[part]) for part in mine)
        kind = (0 in mine, len(runs) - 1 in mine, sizes, messages(layout, stage))
        found.setdefault(kind, []).append(rank_at(layout, {"pipeline": stage}))
    return {ranks[0]: len(ranks) for ranks in found.values()}


def _run_rank(plan: Plan, rank: int, runs: tuple[range, ...]) -> RankRun:
    job, cluster, layout = plan.job, plan.cluster, plan.recipe.layout
    place = coordinates(layout, rank)
    # The compiler changes no collective and no state, and compiles for real devices only.
    recipe = plan.recipe.model_copy(update={"compile": False})
    numbers = _microbatches(layout, recipe.accumulation)
    steps = [_step(plan, recipe, rank, runs, number, number == numbers[-1]) for number in numbers]
    stage = place["pipeline"]
    alone = layout.pipeline * layout.context == 1
    modelled = memory(job, cluster, plan.recipe) if alone else by_stage(job, cluster, plan.recipe)[stage]
    at = place["tensor"], place["shard"] * layout.context + place["context"]
    states = states_of(job, cluster, plan.recipe, stage, at)
    return RankRun(
        rank=rank,
        place=place,
        layers=tuple(runs[part] for part in placement(layout)[stage]),
        groups={axis: group(layout, rank, axis) for axis in AXES if getattr(layout, axis) > 1},
        found=steps[-1].held,
        planned={name: int(getattr(states, name)) for name in steps[-1].held},
        modelled=modelled,
        sent=_extended([step.sent for step in steps], numbers, recipe.accumulation),
        planned_sent=_planned(plan, place),
        microbatches=numbers,
    )


def _planned(plan: Plan, place: Mapping[str, int]) -> dict[Sent, int]:
    found: Counter[Sent] = Counter()
    for one in collectives(plan.job, plan.cluster, plan.recipe, place):
        if one.axis == "island" and plan.recipe.exchange.between_islands:
            continue  # payloads are made of numbers, of which there are none here
        found[Sent(one.kind, one.axis, one.group, round(one.payload_bytes))] += round(one.count)
    return {one: count for one, count in found.items() if count and one.payload_bytes}


def _microbatches(layout: Layout, number: int) -> tuple[int, ...]:
    """How many to run: all, or so few, and a round more, that each further round can only repeat the last.

    What is sent for each microbatch is the same for all, and the rest once a step; schedules need a round of as many
    microbatches as there are stages (`zbv` two).
    """
    few = 2 if layout.pipeline == 1 else layout.pipeline * (2 if layout.schedule == "zbv" else 1)
    more = few + (1 if layout.pipeline == 1 else layout.pipeline)
    return (number,) if number <= more else (few, more)


def _extended(sent: Sequence[dict[Sent, int]], numbers: Sequence[int], wanted: int) -> dict[Sent, int]:
    """Counts of a step of `wanted` microbatches, from those of steps of fewer: what they add, they add again."""
    if len(sent) == 1:
        return sent[0]
    few, more = sent
    found = {}
    for one in few.keys() | more.keys():
        added = more.get(one, 0) - few.get(one, 0)
        found[one] = few.get(one, 0) + added * (wanted - numbers[0]) // (numbers[1] - numbers[0])
    return found


class _Step(NamedTuple):
    held: dict[str, int]
    sent: dict[Sent, int]


def _step(plan: Plan, recipe: Recipe, rank: int, runs: tuple[range, ...], microbatches: int, weigh: bool) -> _Step:
    """Builds a rank and takes one step of so many microbatches with it; `weigh` says whether what it holds is asked."""
    layout, micro = recipe.layout, recipe.batch.micro_sequences
    batch = Batch(sequences=microbatches * micro * layout.data_ranks, micro_sequences=micro)
    recipe = recipe.model_copy(update={"batch": batch})
    with _pretended(layout, rank) as world, TrafficCounter(lambda ranks: _axis_of(layout, rank, ranks)) as traffic:
        built = build(plan.job, recipe, world, runs if layout.pipeline > 1 else None)
        with _OnMeta():
            ids = torch.zeros(micro, plan.job.sequence_length // layout.context, dtype=torch.int64, device=world.device)
            passes(built, [(ids, ids)] * microbatches, 1.0)
            for finish in built.finish:
                finish()
            clip_gradients(
                list(built.model.parameters()), recipe.optimizer.clip_norm, built.norm_groups, built.counted_elsewhere
            )
            held = _held(built) if weigh else {}
        calls = {Sent(kind, axis, ranks, size): count for (kind, ranks, size, axis), count in traffic.calls.items()}
        return _Step(held, calls)


def _held(built: Built) -> dict[str, int]:
    gradients = gradient_bytes(built.model)
    allocate_state(built.optimizer)
    return {
        "parameters": parameter_bytes(built.model),
        "gradients": gradients,
        "optimizer": optimizer_bytes(built.optimizer),
    }


def _axis_of(layout: Layout, rank: int, ranks: Sequence[int]) -> str:
    """The axis along which the given ranks lie; those of a tied embedding are the ends of a pipeline."""
    moved = {axis for other in ranks for axis, at in coordinates(layout, other).items()
             if at != coordinates(layout, rank)[axis]}  # fmt: skip
    # Ranks of one sequence share parameters like those of samples.
    return "shard" if moved == {"shard", "context"} else "+".join(axis for axis in AXES if axis in moved)


@contextmanager
def _pretended(layout: Layout, rank: int) -> Iterator[World]:
    """This process as one rank among many that are not there, with tensors that have no memory."""
    if layout.ranks > 1:
        dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=layout.ranks)
    _clear_sharding_prop_cache()  # by shape it remembers parts of tensors, and would hand them to another rank
    try:
        with ExitStack() as stack:
            # FSDP2 asks that parameters have left the meta device before the first pass: here they never do.
            stack.enter_context(patch.object(FSDPParamGroup, "_validate_no_meta_params", lambda _: None))
            # Stages agree by messages that all know the shapes they hand on; ours do, and here nobody answers.
            for name in ("_warmup_forward_vote", "_warmup_backward_result"):
                if hasattr(PipelineStage, name):
                    stack.enter_context(patch.object(PipelineStage, name, _agreed))
            stack.enter_context(patch.object(dist, "batch_isend_irecv", _each))
            yield World(rank, layout.ranks, rank, layout.ranks, torch.device("meta"), layout=layout)
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()
        _clear_sharding_prop_cache()


def _each(messages: Sequence[dist.P2POp]) -> list[Any]:
    """Messages of one batch, one by one: the backend that would send them together is asked for by device."""
    ways = {True: "group_dst", False: "group_src"}
    return [
        one.op(one.tensor, group=one.group, tag=one.tag, **{ways[one.op is dist.isend]: one.group_peer})
        for one in messages
    ]


class _Yes:
    def item(self) -> int:
        return 1


def _agreed(*_: Any, **__: Any) -> _Yes:
    return _Yes()


class _OnMeta(TorchDispatchMode):
    """Puts what FSDP2 allocates, on the device of the process group, on the meta device."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if kwargs.get("device") is not None:
            kwargs["device"] = torch.device("meta")
        return func(*args, **kwargs)
