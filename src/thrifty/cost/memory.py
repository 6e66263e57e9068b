"""Memory of the fullest rank by term, and the peak over the moments of a step.

    parameters, gradients, optimizer   `held.py`: by software, exact
    activations     what the blocks keep for the backward pass of the microbatches in flight, `activations.py`
    logits          this trainer: one chunk's, in the compute dtype and as fp32 log-probabilities; others: all copies
    communication   gathered parameters, gradients before they are reduced, buffers
    runtime         what a process holds before any tensor, and a library's workspaces

Terms do not all peak at once, so the peak is the largest of four moments: at the loss, in the first block's backward
pass, at the end of the backward pass, and in the optimizer step.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Literal, NamedTuple

from thrifty.cost import constants, memory_constants
from thrifty.cost.activations import (
    Split,
    activation_bytes_per_token,
    block,
    block_activation_bytes_per_token,
    ring_bytes_per_token,
    working_bytes_per_token,
)
from thrifty.cost.compute import ELEMENT_BYTES
from thrifty.cost.crossing import state_bytes
from thrifty.cost.habits import HABITS, Habits
from thrifty.cost.held import FSDP, Held, States, held, sharing_ranks, states
from thrifty.cost.optimizer import Kept, kept_of, working_bytes
from thrifty.cost.ramped import at_largest
from thrifty.cost.stages import own_runs
from thrifty.cost.work import chunk_rows
from thrifty.spec.cluster import Cluster
from thrifty.spec.job import Job, ModelShape
from thrifty.spec.recipe import Layout, Recipe


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes on the fullest rank by term (`spec.bill.MEMORY_TERMS`), and what the device must have.

    Attributes:
        peak: the most that is allocated at once, with `runtime`.
        reserved: what the device gives for it: the allocator keeps more than tensors need.
    """

    parameters: float
    gradients: float
    optimizer: float
    activations: float
    logits: float
    communication: float
    runtime: float
    peak: float
    reserved: float

    def terms(self) -> dict[str, float]:
        """The seven terms, without the totals."""
        return {name: getattr(self, name) for name in type(self).__slots__ if name not in ("peak", "reserved")}


def memory(job: Job, cluster: Cluster, recipe: Recipe) -> Memory:
    """Memory of the fullest rank in a step after the first (the optimizer's states exist), at the largest batch."""
    recipe = at_largest(recipe)
    if recipe.software == "thrifty" and recipe.layout.pipeline == 1:
        found = _own(job, cluster, recipe)
    else:
        found = _fullest(_asked(job, cluster, recipe), HABITS[recipe.software])
    if not recipe.exchange.between_islands or recipe.layout.island == 1:
        return found
    more = state_bytes(recipe.exchange, int(found.gradients / 4), recipe.layout.island)
    terms = {name: getattr(found, name) + more for name in ("communication", "peak", "reserved")}
    return replace(found, **terms)


def by_stage(job: Job, cluster: Cluster, recipe: Recipe, habits: Habits | None = None) -> list[Memory]:
    """Memory of the fullest rank of each stage.

    Args:
        habits: of an earlier release of the software, from `habits.HABITS`.
    """
    asked, how = _asked(job, cluster, recipe), habits or HABITS[recipe.software]
    pieces = _pieces(asked, how)
    return [_stage(asked, pieces[stage], stage, how) for stage in range(len(pieces))]


def states_of(job: Job, cluster: Cluster, recipe: Recipe, stage: int, at: tuple[int, int]) -> States:
    """Bytes that one rank holds from step to step.

    Args:
        at: its number among the tensor ranks, and among those that share (`held.held`).
    """
    piece = held(job.model, recipe.layout, recipe.software, own_runs(job, cluster, recipe), at)[stage]
    return states(piece, recipe.software, recipe.precision, recipe.layout.zero, kept_of(recipe.optimizer))


class _Asked(NamedTuple):
    """All that memory depends on: a key for what was worked out before."""

    shape: ModelShape
    sequence_length: int
    micro_sequences: int
    microbatches: int
    layout: Layout
    software: str
    precision: Literal["fp32", "bf16", "fp8", "nvfp4"]
    recompute: str
    compiled: bool
    kept: Kept
    exchange: Literal["fp32", "bf16"]
    runs: tuple[range, ...] | None
    runtime: float
    room: float


def _asked(job: Job, cluster: Cluster, recipe: Recipe) -> _Asked:
    chip = cluster.accelerator
    runtime = chip.runtime_memory.value
    return _Asked(
        job.model, job.sequence_length, recipe.batch.micro_sequences, recipe.accumulation, recipe.layout,
        recipe.software, recipe.precision, recipe.recompute, recipe.compile, kept_of(recipe.optimizer),
        recipe.exchange.dtype, own_runs(job, cluster, recipe), runtime, chip.memory.value - runtime,
    )  # fmt: skip


@lru_cache(maxsize=65536)
def _fullest(asked: _Asked, how: Habits) -> Memory:
    pieces = _pieces(asked, how)
    # Earlier stages have more microbatches in flight, so of those that hold as much the first is the fullest.
    first = dict.fromkeys(((piece.whole, len(piece.layers)) for piece in pieces), 0)
    numbers = {next(n for n, p in enumerate(pieces) if (p.whole, len(p.layers)) == kind) for kind in first}
    stages = (_stage(asked, pieces[number], number, how) for number in sorted(numbers | {len(pieces) - 1}))
    return max(stages, key=lambda used: used.peak)


def _pieces(asked: _Asked, how: Habits) -> tuple[Held, ...]:
    return held(_padded(asked.shape, asked.layout.tensor, how), asked.layout, asked.software, asked.runs)


@lru_cache(maxsize=1024)
def _padded(shape: ModelShape, tensor: int, how: Habits) -> ModelShape:
    """The shape with the vocabulary as the software rounds it: Megatron-LM adds an end-of-document id first."""
    if how.round_vocabulary == 1:
        return shape
    multiple = how.round_vocabulary * tensor
    return shape.model_copy(update={"vocab_size": -(-(shape.vocab_size + 1) // multiple) * multiple})


def in_flight(layout: Layout, stage: int, microbatches: int) -> float:
    """Microbatches whose activations a stage holds at once, in those of all its layers.

    gpipe all of them; 1f1b one for each stage from here on; interleaved (Narayanan et al. 2021, arXiv:2104.04473) as
    many chunks as it has warmed up, 1 + (p - 1) / (p v) times as much on the first stage; ZB-H1 and ZB-V hold at most
    one for each stage (Qi et al. 2023, arXiv:2401.10241).
    """
    stages, chunks = layout.pipeline, layout.interleave
    if layout.schedule == "gpipe":
        return microbatches
    if stages == 1:
        return 1
    if layout.schedule == "interleaved":
        warm = 2 * (stages - stage - 1) + (chunks - 1) * stages + 1
        return min(microbatches * chunks, warm) / chunks
    return min(microbatches, stages if layout.schedule in ("zero_bubble", "zbv") else stages - stage)


def _stage(asked: _Asked, piece: Held, stage: int, how: Habits) -> Memory:
    """Memory of one stage of other software, or of a layout that this trainer does not run yet."""
    shape, layout, precision = asked.shape, asked.layout, asked.precision
    e = ELEMENT_BYTES[precision]
    fixed = states(piece, asked.software, precision, layout.zero, asked.kept)
    stream = layout.tensor if layout.sequence_parallel else 1
    ours = asked.software == "thrifty"
    split = Split(layout.tensor, stream, 1 if ours else layout.context)  # ours keeps what one rank would
    tokens = asked.micro_sequences * asked.sequence_length / layout.context
    dense = shape.layers if shape.experts is None else shape.experts.dense_layers
    way = (asked.sequence_length, precision, asked.recompute, asked.compiled, split, how)
    sparse = sum(layer >= dense for layer in piece.layers)
    kinds = [(number, block(shape, is_sparse, *way))
             for number, is_sparse in ((len(piece.layers) - sparse, False), (sparse, True)) if number]  # fmt: skip
    one = tokens * sum(number * kind.kept for number, kind in kinds)
    kept = in_flight(layout, stage, asked.microbatches) * one
    again = tokens * max((kind.full - kind.kept for _, kind in kinds), default=0.0)
    working = max((kind.working for _, kind in kinds), default=0.0)
    if ours and layout.context > 1:
        working = max(working, ring_bytes_per_token(shape, e) / layout.tensor)
    working *= tokens
    is_last = piece.head > 0
    vocab = piece.head / shape.hidden
    ending = tokens * e * shape.hidden * (1 / stream + (1.0 if how.gathered else 1 / stream)) if is_last else 0.0
    if asked.software == "thrifty":
        logits = logits_bytes(shape.vocab_size, int(tokens), e, False) * vocab / shape.vocab_size
        at_loss = logits + 4.0 * piece.head  # the head's gradient is summed in fp32 over the chunks
    else:
        logits = at_loss = tokens * vocab * _logit_bytes(how, layout.tensor, asked.compiled)
    moved = _buffers(asked, piece, fixed, how, e)
    crossing = tokens * e * shape.hidden * _crossing(layout, stage, asked.microbatches, how, stream)
    update = working_bytes(asked.kept, piece.pieces, sharing_ranks(layout, asked.software))
    at_head = 0.0
    if is_last and asked.software != "thrifty":
        at_head = moved.head + tokens * e * (vocab + 2 * shape.hidden / (1 if how.gathered else stream))
    allocated = (
        fixed.parameters
        + fixed.optimizer
        + crossing
        + max(
            moved.steady + kept + ending + max(at_loss, at_head),
            moved.steady + moved.block + kept + ending + again + working,
            moved.end,
            fixed.gradients + moved.step + update,
        )
        + how.fixed_bytes
    )
    return Memory(
        parameters=fixed.parameters,
        gradients=fixed.gradients,
        optimizer=fixed.optimizer,
        activations=kept + ending,
        logits=logits,
        communication=moved.shown + crossing,
        runtime=asked.runtime + how.fixed_bytes,
        peak=allocated + asked.runtime,
        reserved=_reserved(allocated, how.allocator[asked.compiled], asked.room) + asked.runtime,
    )


def _crossing(layout: Layout, stage: int, microbatches: int, how: Habits, stream: int) -> float:
    """Buffers of other axes' traffic, in copies of the residual stream of one microbatch.

    Gathers and reductions of tensor ranks need the whole stream twice, unless they go part by part beside the products
    (asynchronous tensor parallelism). torch's pipelines hold a buffer for each microbatch that a stage receives in
    either direction, and keep their outputs while its backward pass is to come.
    """
    found = 2.0 if layout.tensor > 1 and not layout.tensor_overlap and how.gathered else 0.0
    if how.kept_stages and layout.pipeline > 1:
        received = (stage > 0) + (stage < layout.pipeline - 1)
        found += (microbatches * received + in_flight(layout, stage, microbatches)) / stream
    return found


def _logit_bytes(how: Habits, tensor: int, compiled: bool) -> float:
    if compiled and how.logits_compiled is not None:
        return how.logits_compiled
    return how.logits_split if tensor > 1 else how.logits


@dataclass(frozen=True, slots=True)
class _Moved:
    """Copies of parameters, and gradients on their way, in bytes.

    Attributes:
        steady: there throughout the forward and backward passes, gradients that are kept included.
        head: more while the head's gradient is made.
        block: more inside a block's backward pass.
        end: all at the end of the backward pass.
        step: beside the gradients in the optimizer step.
        shown: the most of them but the kept gradients.
    """

    steady: float
    head: float
    block: float
    end: float
    step: float
    shown: float


def _buffers(asked: _Asked, piece: Held, fixed: States, how: Habits, e: int) -> _Moved:
    layout = asked.layout
    several = layout.data_ranks * layout.context > 1
    if asked.software in FSDP and layout.zero == 3:
        return _gathered(asked, piece, fixed, e)
    buckets = how.buckets * piece.whole * several + how.bucket_bytes * several
    made = e * piece.matrices if how.weight_gradients else 0.0
    steady = fixed.gradients + buckets + made
    head = float(e * piece.head)
    inside = 0.0 if how.weight_gradients else float(e * piece.block)
    # Plain autograd leaves a 16-bit gradient for every parameter; Megatron-LM's are added up as they are made.
    end = steady + (e * (piece.root - piece.head) if how.weight_gradients else e * piece.whole)
    if layout.zero == 3 and several:
        # Gathered parameters: as many as DeepSpeed prefetches, two blocks and the root at the least.
        gathered = float(e * (piece.root + 2 * piece.block))
        steady, end = steady + gathered, end - e * piece.whole + gathered
    return _Moved(steady, head, inside, end, 0.0, max(steady, end, steady + head) - fixed.gradients)


def _gathered(asked: _Asked, piece: Held, fixed: States, e: int) -> _Moved:
    """FSDP2: two blocks are gathered at a time, or all of the stage where it keeps them or is part of a pipeline.

    A pipeline reduces gradients after the last microbatch alone; until then a stage adds them up whole, in fp32.
    """
    layout, layers = asked.layout, len(piece.layers)
    exchange = ELEMENT_BYTES[asked.exchange]
    all_of_them = layout.pipeline > 1 or not layout.reshard_after_forward
    alive = piece.whole - piece.root if all_of_them else min(2, layers) * piece.block
    gathered = float(e * (piece.root + alive))
    if layout.pipeline > 1 and asked.microbatches > 1:
        whole = float(exchange * piece.whole)
        shown = gathered + whole
        end = shown + fixed.gradients
        return _Moved(gathered + whole, 0.0, float(e * piece.block), end, 0.0, shown)
    kept = fixed.gradients if asked.microbatches > 1 else 0.0
    inside = float((e + exchange) * piece.block)
    end = e * (2 * piece.root + piece.block) + exchange * (piece.root + piece.root_shard)
    # torch.optim's grouped update writes one temporary as large as the parameters.
    step = 0.0 if asked.compiled else fixed.parameters
    return _Moved(
        gathered + kept, float(e * piece.head), inside, fixed.gradients + end, step, max(gathered + inside, end)
    )


def _own(job: Job, cluster: Cluster, recipe: Recipe) -> Memory:
    """This trainer's fully sharded runs, term by term as its meter counts them."""
    layout = recipe.layout
    piece = held(job.model, layout, "thrifty")[0]
    tokens = recipe.batch.micro_sequences * job.sequence_length // layout.context
    element = ELEMENT_BYTES[recipe.precision]
    is_cpu = cluster.accelerator.kind == "cpu"
    keeps_scores = is_cpu and layout.context == 1
    split = (layout.tensor, layout.tensor if layout.sequence_parallel else 1)
    asked = (job.model, job.sequence_length, element)
    kept = tokens * activation_bytes_per_token(*asked, recipe.recompute, keeps_scores, *split)
    # With recomputation one block at a time is there in full; in either case so are its own gradients.
    inside = block_activation_bytes_per_token(*asked, keeps_scores, *split) * tokens
    ring = ring_bytes_per_token(job.model, element) if layout.context > 1 else 0
    working = max(working_bytes_per_token(job.model, element), ring) / layout.tensor * tokens
    in_block = kept + (0 if recipe.recompute == "none" else inside) + working
    logits = logits_bytes(-(-job.model.vocab_size // layout.tensor), tokens, element, is_cpu)
    fixed = 4.0 * piece.shard
    optimizer = states(piece, "thrifty", recipe.precision, 3, kept_of(recipe.optimizer)).optimizer
    moments = _moments(piece, recipe, element)
    before = fixed if recipe.accumulation > 1 else 0.0  # gradients of the earlier microbatches
    update = working_bytes(kept_of(recipe.optimizer), piece.pieces, sharing_ranks(layout, "thrifty"))
    most = max(
        before + kept + logits + moments.loss, before + in_block + moments.block, fixed + moments.end, fixed + update
    )
    runtime = cluster.accelerator.runtime_memory.value
    allocated = fixed + optimizer + most
    keeps = 1.0 if is_cpu else HABITS["thrifty"].allocator[recipe.compile]
    room = capacity_bytes(cluster, recipe.layout.ranks) - runtime
    return Memory(
        parameters=fixed,
        gradients=fixed,
        optimizer=optimizer,
        activations=kept,
        logits=logits,
        communication=moments.buffers,
        runtime=runtime,
        peak=allocated + runtime,
        reserved=_reserved(allocated, keeps, room) + runtime,
    )


def _reserved(allocated: float, keeps: float, room: float) -> float:
    """What the allocator takes: freed blocks that it keeps come on top, but are given back where there is no room."""
    return max(allocated, min(allocated * keeps, room))


def logits_bytes(vocabulary: int, tokens: int, element: int, is_cpu: bool) -> float:
    """One chunk's logits in the compute dtype and their fp32 log-probabilities, which become their gradient.

    A CPU widens 16-bit logits into a tensor of their own before the softmax.
    """
    extra = 4 if is_cpu and element == 2 else 0
    return float(chunk_rows(tokens, vocabulary) * vocabulary * (element + 4 + extra))


@dataclass(frozen=True, slots=True)
class _Moments:
    """Copies of parameters, and gradients on their way, at the three moments that can be the peak, in bytes.

    `buffers` is the most of them that sharding needs at once. One rank needs none: its casts are in the peak alone.
    """

    loss: float
    block: float
    end: float
    buffers: float


def _moments(piece: Held, recipe: Recipe, element: int) -> _Moments:
    """Gathered (or cast) parameters, and gradients before they are reduced.

    The root unit stays gathered from its forward to its backward pass. Of the blocks, two are gathered at once (one
    computes, the next is on its way), or all where they are not freed after the forward pass. The head's gradient is
    summed in fp32 beside the loss and waits for the root's reduction at the very end.
    """
    head = 4.0 * piece.head
    # A chunk's part of it, and on one rank the head cast to the compute dtype.
    chunk = float(element * piece.head)
    if recipe.ranks_together == 1:
        casts = float(element * len(piece.layers) * piece.matrices) if element == 2 else 0.0
        now = chunk if element == 2 else 0.0
        return _Moments(loss=casts + head + chunk + now, block=casts + head, end=0.0, buffers=0.0)
    exchange = ELEMENT_BYTES[recipe.exchange.dtype]
    alive = min(2, len(piece.layers)) if recipe.layout.reshard_after_forward else len(piece.layers)
    gathered = float(element * (piece.root + alive * piece.block))
    loss = gathered + head + chunk
    inside = gathered + chunk + (element + exchange) * piece.block
    end = float(element * (2 * piece.root + piece.block) + exchange * (piece.root + piece.root_shard))
    return _Moments(loss=loss, block=inside, end=end, buffers=max(loss, inside, end))


def interval(software: str) -> tuple[float, float]:
    """Factors that hold 80% of measured over predicted peaks, on model sizes that no constant has seen.

    Software without public measurements gets the widest that was found.
    """
    found = memory_constants.INTERVAL
    widest = (min(low for low, _ in found.values()), max(high for _, high in found.values()))
    return found.get(software, widest)


def capacity_bytes(cluster: Cluster, ranks: int) -> float:
    """Memory of one rank's devices."""
    devices = cluster.devices_per_rank(ranks) if ranks <= cluster.devices else cluster.devices / ranks
    return cluster.accelerator.memory.value * devices


def usable_bytes(cluster: Cluster, ranks: int) -> float:
    """The part of it that a plan may fill."""
    return capacity_bytes(cluster, ranks) * constants.USABLE_MEMORY[cluster.accelerator.kind]
