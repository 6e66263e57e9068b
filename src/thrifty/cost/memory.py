"""Memory of the fullest rank by term, and the peak over the moments of a step.

    parameters, gradients   4 bytes an element of the rank's shard, fp32
    optimizer               8 bytes an element (AdamW's two moments) and 4 a tensor (its step count)
    activations             what the blocks keep for the backward pass, counted tensor by tensor
    logits                  one chunk's, in the compute dtype and as fp32 log-probabilities
    communication           gathered parameters, gradients before they are reduced, and the reduction's buffers
    runtime                 what a process holds before any tensor

Terms do not all peak at once, so the peak is the largest of four moments: at the loss, in the first block's backward
pass, at the end of the backward pass, and in the optimizer step.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from thrifty.cost import constants
from thrifty.cost.compute import ELEMENT_BYTES
from thrifty.cost.params import Counts, counts
from thrifty.cost.work import chunk_rows
from thrifty.spec.cluster import Cluster
from thrifty.spec.job import Job, ModelShape
from thrifty.spec.recipe import Recipe


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes on the fullest rank by term (`spec.bill.MEMORY_TERMS`), and the peak of their sum."""

    parameters: float
    gradients: float
    optimizer: float
    activations: float
    logits: float
    communication: float
    runtime: float
    peak: float

    def terms(self) -> dict[str, float]:
        """The seven terms, without the peak."""
        return {name: getattr(self, name) for name in type(self).__slots__ if name != "peak"}


def memory(job: Job, cluster: Cluster, recipe: Recipe) -> Memory:
    """Memory of the fullest rank in a step after the first (the optimizer's states exist)."""
    held = counts(job.model, recipe.layout.shard)
    tokens = recipe.batch.micro_sequences * job.sequence_length
    element = ELEMENT_BYTES[recipe.precision]
    is_cpu = cluster.accelerator.kind == "cpu"
    kept = tokens * activation_bytes_per_token(job.model, job.sequence_length, element, recipe.recompute, is_cpu)
    # With recomputation one block at a time is there in full; in either case so are its own gradients.
    block = block_activation_bytes_per_token(job.model, job.sequence_length, element, is_cpu) * tokens
    in_block = kept + (block if recipe.recompute == "full" else 0) + _working_bytes(job.model, element) * tokens
    logits = logits_bytes(job.model, tokens, element, is_cpu)
    fixed = 4.0 * held.shard
    optimizer = 8.0 * held.shard + 4.0 * held.tensors
    moments = _moments(held, recipe, element)
    before = fixed if recipe.accumulation > 1 else 0.0  # gradients of the earlier microbatches
    peak = max(before + kept + logits + moments.loss, before + in_block + moments.block, fixed + moments.end)
    runtime = cluster.accelerator.runtime_memory.value
    return Memory(
        parameters=fixed,
        gradients=fixed,
        optimizer=optimizer,
        activations=kept,
        logits=logits,
        communication=moments.buffers,
        runtime=runtime,
        peak=fixed + optimizer + runtime + peak,
    )


def activation_bytes_per_token(
    shape: ModelShape, sequence_length: int, element: int, recompute: str, is_cpu: bool
) -> float:
    """Bytes that a forward pass keeps for the backward pass, for one token.

    Each block's own, or under recomputation its input alone; and of the root the token ids, the last norm's input and
    scale, and the gradient of the head's input, which the loss forms at once.
    """
    inputs = element * shape.hidden
    block = block_activation_bytes_per_token(shape, sequence_length, element, is_cpu) if recompute == "none" else inputs
    return shape.layers * block + 8 + 2 * inputs + _norm_scale_bytes(shape, element)


@lru_cache(maxsize=256)
def block_activation_bytes_per_token(shape: ModelShape, sequence_length: int, element: int, is_cpu: bool) -> float:
    """Bytes that one block keeps for its backward pass, for one token.

    The inputs and outputs of both norms with their scales; queries, keys and values as attention reads them, its
    output and log-sum-exp; the MLP's inner tensors: gate, up and what is made of them, or GELU's input and output.
    """
    query, kv = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    norms = 2 * (2 * element * shape.hidden + _norm_scale_bytes(shape, element))
    heads = element * (2 * query + 2 * kv) + shape.heads * _scores_bytes(shape, sequence_length, element, is_cpu)
    if shape.qk_norm:
        heads += element * (query + kv) + 4 * (shape.heads + shape.kv_heads)
    inner = element * shape.ffn * (3 if shape.mlp == "swiglu" else 2)
    return norms + heads + inner


def _scores_bytes(shape: ModelShape, sequence_length: int, element: int, is_cpu: bool) -> float:
    """What attention keeps of one query's scores in a head: a log-sum-exp, or on a CPU, if short, probabilities."""
    windowed = shape.sliding_window is not None and sequence_length > shape.sliding_window
    longest = constants.SHORT_ATTENTION_LONGEST if element == 2 else constants.SHORT_ATTENTION_BLOCK
    if not is_cpu or windowed or sequence_length > longest:
        return 4.0
    size = constants.SHORT_ATTENTION_BLOCK
    ends = [min(begin + size, sequence_length) for begin in range(0, sequence_length, size)]
    area = sum((end - begin) * end for begin, end in zip([0, *ends], ends, strict=False))
    return element * area / sequence_length


def _norm_scale_bytes(shape: ModelShape, element: int) -> int:
    """What a norm keeps of one token beside its input: one fp32 scale, or mean and scale in the compute dtype."""
    return 2 * element if shape.norm == "layernorm" else 4


def _working_bytes(shape: ModelShape, element: int) -> int:
    """Gradients alive inside one block's backward pass, for one token: of the widest inner tensors and the stream."""
    return element * (3 if shape.mlp == "swiglu" else 2) * shape.ffn + 2 * element * shape.hidden


def logits_bytes(shape: ModelShape, tokens: int, element: int, is_cpu: bool) -> float:
    """One chunk's logits in the compute dtype and their fp32 log-probabilities, which become their gradient.

    A CPU widens 16-bit logits into a tensor of their own before the softmax.
    """
    extra = 4 if is_cpu and element == 2 else 0
    return float(chunk_rows(tokens, shape.vocab_size) * shape.vocab_size * (element + 4 + extra))


@dataclass(frozen=True, slots=True)
class _Moments:
    """Copies of parameters, and gradients on their way, at the three moments that can be the peak, in bytes.

    `buffers` is the most of them that sharding needs at once. One rank needs none: its casts are in the peak alone.
    """

    loss: float
    block: float
    end: float
    buffers: float


def _moments(held: Counts, recipe: Recipe, element: int) -> _Moments:
    """Gathered (or cast) parameters, and gradients before they are reduced.

    The root unit stays gathered from its forward to its backward pass. Of the blocks, two are gathered at once (one
    computes, the next is on its way), or all where they are not freed after the forward pass. The head's gradient is
    summed in fp32 beside the loss and waits for the root's reduction at the very end.
    """
    head = 4.0 * held.head
    # A chunk's part of it, and on one rank the head cast to the compute dtype.
    chunk = float(element * held.head)
    if recipe.layout.ranks == 1:
        casts = float(element * held.layers * held.matrices) if element == 2 else 0.0
        now = chunk if element == 2 else 0.0
        return _Moments(loss=casts + head + chunk + now, block=casts + head, end=0.0, buffers=0.0)
    exchange = ELEMENT_BYTES[recipe.exchange.dtype]
    alive = min(2, held.layers) if recipe.layout.reshard_after_forward else held.layers
    gathered = float(element * (held.root + alive * held.block))
    loss = gathered + head + chunk
    block = gathered + chunk + (element + exchange) * held.block
    end = float(element * (2 * held.root + held.block) + exchange * (held.root + held.root_shard))
    return _Moments(loss=loss, block=block, end=end, buffers=max(loss, block, end))


def capacity_bytes(cluster: Cluster, ranks: int) -> float:
    """Memory of one rank's devices."""
    devices = cluster.devices_per_rank(ranks) if ranks <= cluster.devices else cluster.devices / ranks
    return cluster.accelerator.memory.value * devices


def usable_bytes(cluster: Cluster, ranks: int) -> float:
    """The part of it that a plan may fill."""
    return capacity_bytes(cluster, ranks) * constants.USABLE_MEMORY[cluster.accelerator.kind]
