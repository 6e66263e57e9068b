"""Time of one optimizer step: the slowest stage's computation, what of the traffic it waits for, the bubble, the rest.

exposed   max(0, traffic - the computation that it can hide behind), and the first and last unit
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from thrifty.cost import constants, muon
from thrifty.cost.adaptive import UNIT_SECONDS, coding_seconds
from thrifty.cost.compute import ELEMENT_BYTES, NOTHING, Parts, Rank, rank_of, unit_seconds
from thrifty.cost.crossing import by_block
from thrifty.cost.held import held, sharing_ranks
from thrifty.cost.optimizer import update_bytes
from thrifty.cost.params import Counts, counts
from thrifty.cost.pipeline import bubble_seconds, idle_seconds, least_idle_seconds, part_seconds
from thrifty.cost.share import Unit, units
from thrifty.cost.stages import UnitTimes, balanced, own_runs, placement, sends, unit_times
from thrifty.cost.timeline import PartSeconds
from thrifty.cost.traffic import Collective, collectives
from thrifty.cost.work import split_of
from thrifty.spec.cluster import Cluster
from thrifty.spec.job import Job
from thrifty.spec.recipe import Recipe

_MODEL_AXES = ("tensor", "context", "expert", "pipeline")


@dataclass(frozen=True, slots=True)
class StepSeconds:
    """One optimizer step.

    Attributes:
        communication: what computation does not hide, and the pipeline's bubble.
        forward_microbatch: one forward pass alone, of all stages, without data-parallel traffic.
        bubble: idle time of a stage while a pipeline fills and drains; part of `communication`.
        limits: what the step waits for, in seconds that add up to `total`.
    """

    compute: float
    communication: float
    optimizer: float
    data: float
    forward_microbatch: float
    bubble: float
    limits: dict[str, float]

    @property
    def total(self) -> float:
        return self.compute + self.communication + self.optimizer + self.data


def step_seconds(job: Job, cluster: Cluster, recipe: Recipe, *, at_least: bool = False) -> StepSeconds:
    """Time of one optimizer step, from the slowest rank's view.

    Args:
        at_least: spare the clock of this trainer's pipelines, and count what they idle at the least.

    Raises:
        ThriftyError: the accelerator has no rate for the recipe's precision.
    """
    layout, times = recipe.layout, recipe.accumulation
    rank = rank_of(cluster, recipe)
    stage = _stage(job, recipe, rank)
    everything = collectives(job, cluster, recipe)
    sent = tuple(one for one in everything if one.unit != "muon")
    found = units(job.model, layout, recipe.software, own_runs(job, cluster, recipe))
    around = _parameter_handling(job, recipe, rank, found)
    computed = Parts(*(times * (f + b) for f, b in zip(stage.forward, stage.backward, strict=True)))

    waits = dict.fromkeys(_MODEL_AXES, 0.0)
    for one in sent:
        if one.axis in waits and one.phase != "step":
            waits[one.axis] += one.seconds * one.count
    if rank.kind != "cpu":  # where nothing hides
        waits["context"] = max(0.0, waits["context"] - computed.attention)  # the ring turns while attention computes
    if layout.tensor_overlap:
        waits["tensor"] *= constants.ASYNC_TENSOR_EXPOSED
    if layout.pipeline > 1:
        waits["pipeline"] += 2 * rank.profile.pipeline_seconds * times * layout.interleave
    bubble, waits["pipeline"] = _bubble(job, recipe, rank, stage, waits, at_least)
    waiting = sum(waits.values())
    layers = max(1, -(-job.model.layers // layout.pipeline))
    gathered = times if layout.pipeline == 1 else 1  # a stage gathers and reduces once a step
    apart: list[Collective] = []
    near = sent
    if recipe.exchange.between_islands:
        apart = [one for one in sent if one.axis == "island"]
        near = tuple(one for one in sent if one.axis != "island")
    exposed = _exposed(near, stage.block_forward, stage.block_backward, layers, gathered, rank)
    exposed += _crossing(recipe, apart, stage.block_backward, layers, sum(computed))
    if apart and recipe.exchange.codec and rank.kind == "cpu":
        # Encoding takes the cores that compute; a GPU's share of its memory's bandwidth is not modelled.
        values = sum(unit.shard * unit.number for unit in found)
        number = sum({one.unit: one.count for one in apart}.values())
        exposed += coding_seconds(recipe.exchange.codec, int(values)) / recipe.exchange.local_steps
        exposed += number * UNIT_SECONDS
    exposed += sum(one.seconds * one.count for one in sent if one.axis == "pipeline" and one.phase == "step")

    owned = sum((unit.shard if layout.zero else unit.elements) * unit.number for unit in found)
    sharded = constants.SHARDED_UPDATE_SECONDS if rank.kind == "cpu" and recipe.ranks_together > 1 else 0.0
    tensors = counts(job.model, sharing_ranks(layout, recipe.software)).tensors / layout.pipeline
    blocks = sum(unit.shard * unit.number for unit in found if unit.name == "block") / owned
    updates = update_bytes(recipe.optimizer, rank.kind, blocks) * owned
    optimizer = rank.profile.update * (updates / rank.bandwidth + tensors * (2 * rank.op_seconds + sharded))
    if recipe.optimizer.name == "muon":
        optimizer += _orthogonal_seconds(job, cluster, recipe)
        exposed += sum(one.seconds * one.count for one in everything if one.unit == "muon")
    host = constants.STEP_HOST_SECONDS[rank.kind] + rank.profile.step_seconds
    limits = {
        "matrix products": computed.products,
        "attention": computed.attention,
        "elementwise operations": computed.elementwise,
        "dispatch": computed.dispatch,
        "casts and copies of parameters": times * around,
        "exposed communication": exposed,
        "tensor-parallel traffic": waits["tensor"],
        "context-parallel traffic": waits["context"],
        "expert-parallel traffic": waits["expert"],
        "pipeline traffic": waits["pipeline"],
        "pipeline bubble": bubble,
        "optimizer": optimizer,
        "host": host,
    }
    return StepSeconds(
        compute=sum(computed) + times * around,
        communication=exposed + waiting + bubble,
        optimizer=optimizer,
        data=host,
        forward_microbatch=_passed(recipe) * (stage.evaluated + around / 2),
        bubble=bubble,
        limits=limits,
    )


def _orthogonal_seconds(job: Job, cluster: Cluster, recipe: Recipe) -> float:
    """Muon's products on the busiest rank, in bfloat16 where the accelerator has a rate for it."""
    if "bf16" in cluster.accelerator.peak_flops:
        recipe = recipe.model_copy(update={"precision": "bf16"})
    layout = recipe.layout
    pieces = held(job.model, layout, recipe.software, own_runs(job, cluster, recipe))
    matrices = muon.matrices_of(job.model, max(pieces, key=lambda piece: len(piece.layers)))
    ranks = sharing_ranks(layout, recipe.software) if layout.tensor == 1 else 1
    return muon.seconds(matrices, ranks, rank_of(cluster, recipe))


def _bubble(
    job: Job, recipe: Recipe, rank: Rank, stage: _Stage, waits: dict[str, float], at_least: bool
) -> tuple[float, float]:
    """Idle time of a stage in one step, and what of the traffic between stages is waited for, in seconds."""
    layout, times = recipe.layout, recipe.accumulation
    if layout.pipeline == 1:
        return 0.0, 0.0
    if recipe.software == "thrifty":
        # Other traffic of a layer makes it longer.
        longer = 1 + (sum(waits.values()) - waits["pipeline"]) / (times * (sum(stage.forward) + sum(stage.backward)))
        units = unit_times(job, recipe, rank)
        parts = part_seconds(units, _split(job, recipe, units))
        parts = tuple(PartSeconds(*(longer * seconds for seconds in part)) for part in parts)
        if at_least:
            return least_idle_seconds(layout, times, parts), 0.0
        messages = times * sum(sends(layout))
        idle, waited = (idle_seconds(layout, times, parts, each) for each in (0.0, waits["pipeline"] / messages))
        return idle, waited - idle
    # The other stages have no head: a pipeline fills and drains at their pace.
    number = job.model.layers / layout.pipeline
    forward, backward = number * stage.block_forward, number * stage.block_backward
    crossing = sum(waits.values()) / times
    by_weight = stage.weight_share * (backward - stage.again)
    ahead = forward + stage.again + crossing * (forward + stage.again) / (forward + backward)
    back = backward - stage.again - by_weight + crossing * (backward - stage.again) / (forward + backward)
    idle = bubble_seconds(layout.pipeline, layout.schedule, layout.interleave, ahead, back, by_weight)
    return idle, waits["pipeline"]


def _split(job: Job, recipe: Recipe, units: UnitTimes) -> tuple[range, ...]:
    return balanced(job.model.layers, placement(recipe.layout), units.block, units.embedding, sum(units.head))


@dataclass(frozen=True, slots=True)
class _Stage:
    """Computation of one microbatch on the slowest stage.

    Attributes:
        backward: recomputation included.
        again: what is computed again, in seconds.
        weight_share: of the backward pass without recomputation, that makes gradients of weights.
        block_forward: the mean block's; likewise backward, recomputation included.
        evaluated: a forward pass without gradients.
    """

    forward: Parts
    backward: Parts
    again: float
    weight_share: float
    block_forward: float
    block_backward: float
    evaluated: float


def _stage(job: Job, recipe: Recipe, rank: Rank) -> _Stage:
    """The busiest stage: the last, which has the head, where layers are spread evenly."""
    shape, layout = job.model, recipe.layout
    split = split_of(layout)
    number, ends = _share(job, recipe, rank)
    dense = shape.layers if shape.experts is None else shape.experts.dense_layers
    forward = backward = NOTHING
    again = 0.0
    root = root_forward_only = NOTHING
    for sparse, layers in ((False, number * dense / shape.layers), (True, number * (1 - dense / shape.layers))):
        if not layers:
            continue
        unit = unit_seconds(
            shape, recipe.batch.micro_sequences, job.sequence_length, rank, recipe.precision, recipe.compile,
            recipe.recompute, split, sparse, recipe.software == "thrifty",
        )  # fmt: skip
        forward = _add(forward, unit.block_forward, layers)
        backward = _add(_add(backward, unit.block_backward, layers), unit.block_again, layers)
        again += layers * sum(unit.block_again)
        root, root_forward_only = unit.root, unit.root_forward_only
    evaluated = sum(forward) + sum(root_forward_only) / layout.pipeline
    block_forward, block_backward = sum(forward) / number, sum(backward) / number
    ends = (
        ends
        if ends is not None
        else Parts(*(part / (layout.pipeline if rank.profile.balanced else 1) for part in root))
    )
    forward, backward = _add(forward, ends, 1 / 3), _add(backward, ends, 2 / 3)  # a third is the forward pass
    products = backward.products / max(1e-30, sum(backward))
    return _Stage(forward, backward, again, products / 2, block_forward, block_backward, evaluated)


def _passed(recipe: Recipe) -> float:
    """Stages that a forward pass without gradients waits for: all of them in turn, unless the next pass follows at
    once, as this project's trainer does where each rank has one part."""
    layout = recipe.layout
    if recipe.software != "thrifty" or layout.interleave > 1:
        return layout.pipeline
    passes = -(-recipe.evaluation.sequences // (recipe.batch.micro_sequences * layout.data_ranks))
    return 1 + (layout.pipeline - 1) / passes


def _share(job: Job, recipe: Recipe, rank: Rank) -> tuple[float, Parts | None]:
    """Layers of the busiest stage, and what it has of embedding and head where that is known."""
    layout = recipe.layout
    if layout.pipeline == 1 or recipe.software != "thrifty":
        return job.model.layers / layout.pipeline, None
    units = unit_times(job, recipe, rank)
    split = _split(job, recipe, units)
    found = []
    for mine in placement(layout):
        ends = NOTHING._replace(elementwise=units.embedding if 0 in mine else 0.0)
        ends = _add(ends, units.head, 1.0 if len(split) - 1 in mine else 0.0)
        found.append((sum(len(split[part]) for part in mine), ends))
    return max(found, key=lambda one: one[0] * units.block + sum(one[1]))


def _add(one: Parts, other: Parts, times: float) -> Parts:
    return Parts(*(a + b * times for a, b in zip(one, other, strict=True)))


def _parameter_handling(job: Job, recipe: Recipe, rank: Rank, found: tuple[Unit, ...]) -> float:
    """Casting, gathering and accumulating parameters and gradients around one microbatch, by bytes moved."""
    layout, element = recipe.layout, ELEMENT_BYTES[recipe.precision]
    sharing = sharing_ranks(layout, recipe.software)
    held: Counts = counts(job.model, sharing)
    if recipe.ranks_together == 1:
        cast = 2 * 6 * held.in_matmuls if element == 2 else 0  # weights to bf16, their gradients back
        added = 12 * held.total if recipe.accumulation > 1 else 0
        return (cast + added) / rank.bandwidth
    size = sum(unit.elements * unit.number for unit in found)
    if layout.zero < 3 or sharing == 1:
        # 16-bit weights are there as the products read them; gradients are added up in place.
        return (element + 2 * ELEMENT_BYTES[recipe.exchange.dtype]) * size / rank.bandwidth
    shard = sum(unit.shard * unit.number for unit in found)
    gathers = 2 if layout.reshard_after_forward and layout.pipeline == 1 else 1
    copied = gathers * 2 * element * size + (element + 2 * ELEMENT_BYTES[recipe.exchange.dtype]) * size
    host = constants.SHARDING_HOST_SECONDS * (gathers + 1) * (held.layers + 1) if rank.kind == "cpu" else 0.0
    return (copied + 12 * shard) / rank.bandwidth + host


def _crossing(recipe: Recipe, sent: Sequence[Collective], block_backward: float, layers: int, computed: float) -> float:
    """Seconds that a step waits for islands that exchange in a way of their own.

    Gradients of a block cross as soon as they are there, one block after the other, behind the backward pass of the
    last microbatch; the root's come last. Parameters that moved in several local steps are waited for, but for what
    goes on behind the steps of the delay.
    """
    if not sent:
        return 0.0
    steering = constants.STEERING_MESSAGES * max(one.latency for one in sent) / recipe.exchange.local_steps
    if not by_block(recipe.layout, recipe.exchange.local_steps):
        behind = recipe.exchange.delay_steps * computed
        total = sum(one.seconds * one.count for one in sent)
        return max(0.0, total - behind / recipe.exchange.local_steps) + steering
    seconds = {unit: sum(one.seconds for one in sent if one.unit == unit) for unit in ("block", "root")}
    units = max((round(one.count) for one in sent if one.unit == "block"), default=0)
    end = 0.0
    for done in range(1, units + 1):
        end = max(end, done / units * layers * block_backward) + seconds["block"]
    return max(end, layers * block_backward) + seconds["root"] - layers * block_backward + steering


def _exposed(
    sent: tuple[Collective, ...], block_forward: float, block_backward: float, layers: int, accumulation: int,
    rank: Rank,
) -> float:  # fmt: skip
    """Data-parallel communication that the step waits for.

    Forward: each block's gather hides behind the block before it. Backward: a block's gather and the reduction of the
    one before it share the link and hide behind its computation. What the first gather and the last reduction take is
    always waited for. On a CPU nothing hides.
    """
    ours = tuple(c for c in sent if c.axis in ("shard", "island"))
    if not ours:
        return 0.0
    seconds: dict[tuple[str, str, str], float] = {}
    for c in ours:
        key = (c.kind, c.unit, c.phase)
        seconds[key] = max(seconds.get(key, 0.0), c.seconds)
    steering = constants.STEERING_MESSAGES * max(c.latency for c in ours)
    if rank.kind == "cpu":
        times = {"reduce_scatter": rank.profile.reduce_scatter, "all_reduce": rank.profile.all_reduce}
        return sum(c.seconds * times.get(c.kind, 1.0) * c.count for c in ours) + steering
    gather, again = (seconds.get(("all_gather", "block", phase), 0.0) for phase in ("forward", "backward"))
    reduce = seconds.get(("reduce_scatter", "block", "backward"), 0.0)
    root = seconds.get(("all_gather", "root", "forward"), 0.0)
    root_reduce = seconds.get(("reduce_scatter", "root", "backward"), 0.0)
    slow, least = constants.OVERLAP_SLOWDOWN, rank.profile.data_exposed

    def waited(traffic: float, behind: float) -> float:
        # Hidden traffic still slows the computation it hides behind.
        hidden = min(traffic, behind) * (1 - least)
        return traffic - hidden + (slow - 1) * hidden

    forward = root + gather + (layers - 1) * waited(gather, block_forward)
    backward = (layers - 1) * waited(again + reduce, block_backward) + again + reduce + root_reduce
    crossing = sum(c.seconds * c.count for c in ours if c.phase == "step" and c.unit != "norm")
    norm = sum(c.seconds for c in ours if c.unit == "norm")
    # What happens once a step starts as gradients appear in the last microbatch's backward pass; updated parameters
    # that are gathered come as the first forward pass needs them.
    behind = max(0.0, layers * block_backward - layers * (again + reduce))
    if any(c.kind == "all_gather" and c.phase == "step" for c in ours):
        behind += layers * block_forward
    return accumulation * (forward + backward) + waited(crossing, behind) + norm + steering
