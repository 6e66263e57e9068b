"""Time of one optimizer step: computation, what of the communication it does not hide, the optimizer, the host.

exposed   max(0, communication - the computation that it can hide behind), and the first and last unit
"""

from __future__ import annotations

from dataclasses import dataclass

from thrifty.cost import constants
from thrifty.cost.compute import ELEMENT_BYTES, Parts, Rank, rank_of, unit_seconds
from thrifty.cost.params import Counts, counts
from thrifty.cost.traffic import Collective, collectives
from thrifty.spec.cluster import Cluster
from thrifty.spec.job import Job
from thrifty.spec.recipe import Recipe


@dataclass(frozen=True, slots=True)
class StepSeconds:
    """One optimizer step.

    Attributes:
        communication: what computation does not hide.
        forward_microbatch: one forward pass alone, without communication.
        limits: what the step waits for, in seconds that add up to `total`.
    """

    compute: float
    communication: float
    optimizer: float
    data: float
    forward_microbatch: float
    limits: dict[str, float]

    @property
    def total(self) -> float:
        return self.compute + self.communication + self.optimizer + self.data


def step_seconds(job: Job, cluster: Cluster, recipe: Recipe) -> StepSeconds:
    """Time of one optimizer step, from the slowest rank's view."""
    layout, shape = recipe.layout, job.model
    rank = rank_of(cluster, layout.ranks, recipe.precision)
    unit = unit_seconds(
        shape, recipe.batch.micro_sequences, job.sequence_length, rank, recipe.precision, recipe.compile
    )
    held = counts(shape, layout.shard)
    again = 1 if recipe.recompute == "full" else 0
    around = _parameter_handling(held, recipe, rank)
    computed = Parts(
        *(
            recipe.accumulation * (shape.layers * ((1 + again) * ahead + back) + root)
            for ahead, back, root in zip(unit.block_forward, unit.block_backward, unit.root, strict=True)
        )
    )
    block_forward, block_backward = sum(unit.block_forward), sum(unit.block_backward) + again * sum(unit.block_forward)
    sent = collectives(shape, cluster, recipe)
    exposed = _exposed(sent, block_forward, block_backward, shape.layers, recipe.accumulation, rank.kind)
    updates = 40.0 * held.shard  # AdamW reads 4 and writes 3 words of 4 bytes, clipping reads 2 and writes 1
    sharded = constants.SHARDED_UPDATE_SECONDS if rank.kind == "cpu" and layout.ranks > 1 else 0.0
    optimizer = updates / rank.bandwidth + held.tensors * (2 * rank.op_seconds + sharded)
    limits = {
        "matrix products": computed.products,
        "attention": computed.attention,
        "elementwise operations": computed.elementwise,
        "dispatch": computed.dispatch,
        "casts and copies of parameters": recipe.accumulation * around,
        "exposed communication": exposed,
        "optimizer": optimizer,
        "host": constants.STEP_HOST_SECONDS[rank.kind],
    }
    return StepSeconds(
        compute=sum(computed) + recipe.accumulation * around,
        communication=exposed,
        optimizer=optimizer,
        data=constants.STEP_HOST_SECONDS[rank.kind],
        forward_microbatch=shape.layers * block_forward + sum(unit.root_forward_only) + around / 2,
        limits=limits,
    )


def _parameter_handling(held: Counts, recipe: Recipe, rank: Rank) -> float:
    """Casting, gathering and accumulating parameters and gradients around one microbatch, by bytes moved."""
    element = ELEMENT_BYTES[recipe.precision]
    if recipe.layout.ranks == 1:
        cast = 2 * 6 * held.in_matmuls if element == 2 else 0  # weights to bf16, their gradients back
        added = 12 * held.total if recipe.accumulation > 1 else 0
        return (cast + added) / rank.bandwidth
    gathers = 2 if recipe.layout.reshard_after_forward else 1
    copied = gathers * 2 * element * held.total + (element + 2 * ELEMENT_BYTES[recipe.exchange.dtype]) * held.total
    host = constants.SHARDING_HOST_SECONDS * (gathers + 1) * (held.layers + 1) if rank.kind == "cpu" else 0.0
    return (copied + 12 * held.shard) / rank.bandwidth + host


def _exposed(
    sent: tuple[Collective, ...], block_forward: float, block_backward: float, layers: int, accumulation: int, kind: str
) -> float:
    """Communication that the step waits for.

    Forward: each block's gather hides behind the block before it. Backward: a block's gather and the reduction of the
    one before it share the link and hide behind its computation. What the first gather and the last reduction take is
    always waited for. On a CPU nothing hides.
    """
    seconds = {(c.kind, c.unit, c.phase): c.seconds for c in sent}
    if not sent:
        return 0.0
    steering = constants.STEERING_MESSAGES * max(c.latency for c in sent)
    if kind == "cpu":
        times = {"reduce_scatter": constants.GLOO_REDUCE_SCATTER}
        return sum(c.seconds * times.get(c.kind, 1.0) * c.count for c in sent) + steering
    gather, again = (seconds.get(("all_gather", "block", phase), 0.0) for phase in ("forward", "backward"))
    reduce = seconds.get(("reduce_scatter", "block", "backward"), 0.0)
    root = seconds.get(("all_gather", "root", "forward"), 0.0)
    root_reduce = seconds.get(("reduce_scatter", "root", "backward"), 0.0)
    slow = constants.OVERLAP_SLOWDOWN

    def waited(traffic: float, behind: float) -> float:
        # Hidden traffic still slows the computation it hides behind.
        hidden = min(traffic, behind)
        return traffic - hidden + (slow - 1) * hidden

    forward = root + gather + (layers - 1) * waited(gather, block_forward)
    backward = (layers - 1) * waited(again + reduce, block_backward) + again + reduce + root_reduce
    crossing = sum(c.seconds * c.count for c in sent if c.kind == "all_reduce" and c.unit != "norm")
    norm = sum(c.seconds for c in sent if c.unit == "norm")
    # All-reduces across islands start as gradients appear in the last microbatch's backward pass.
    last = min(crossing, max(0.0, layers * block_backward - layers * (again + reduce)))
    return accumulation * (forward + backward) + crossing - last + (slow - 1) * last + norm + steering
