"""What each rank of a layout holds of a model: which layers, which part of each tensor, and the bytes of its states.

A stage of the pipeline holds a run of layers; the first also the embedding, the last the norm and the head (a tied
embedding is on both). Tensor ranks split each matrix by its name, expert ranks the experts of a layer, and the ranks
that share data split what ZeRO names: FSDP2 tensor by tensor along the first dimension, everyone else one flat buffer.

Bytes of an element, for the usual 32-bit moments (2 x `optimizer.state_bits` / 8):

    thrifty, torchtitan, accelerate   4 fp32 parameter + 4 gradient + 8 moments, all sharded under zero 3
    megatron, nanotron                2 bf16 parameter + 4 fp32 gradient, whole; 4 master + 8 moments over zero
    deepspeed                         2 parameter + 2 gradient, whole; 4 master + 4 gradient + 8 moments over zero

FSDP2: pytorch torch/distributed/fsdp/_fully_shard/_fsdp_param.py. Megatron-LM docs, distributed optimizer. nanotron
src/nanotron/optim/gradient_accumulator.py. DeepSpeed docs, memory requirements (4 P + 16 P / n; zero 3: 18 P / n).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate, pairwise

from thrifty.cost.optimizer import Kept, Piece, state_bytes
from thrifty.cost.params import Named, block_shapes, parameter_shapes
from thrifty.spec.job import ModelShape
from thrifty.spec.recipe import Layout

# Keeps fp32 parameters and casts them as it computes; the others keep 16-bit ones and fp32 masters.
FSDP = ("thrifty", "torchtitan", "accelerate")
# Splits each tensor along its first dimension; the others split one flat buffer evenly.
_BY_TENSOR = ("thrifty", "torchtitan")
_COLUMN = ("query", "key", "value", "query_up", "kv_up", "gate", "up")
_ROW = ("output", "down")
SCALE_BYTES = 4 / 256  # of low-bit moments: one fp32 scale for a block of 256 (bitsandbytes)


Stages = tuple[tuple[int, ...], ...]  # numbers of the layers of each stage


@dataclass(frozen=True, slots=True)
class Held:
    """Elements of one stage on one of its ranks.

    Attributes:
        layers: numbers of its layers, in order.
        whole: after the tensor and expert splits; what a rank computes with.
        shard: of that, on the fullest of the ranks that share it, without `copied`.
        block: the largest block of it, whole.
        root: embedding, last norm and head, where they are here, whole.
        root_shard: of that, on the fullest rank.
        roots: (whole, shard) of the first and of the last part of the model, if here; one entry where they are one.
        copied: of `root_shard`, a tied head beside its embedding (`zbv`): no gradient and no state is kept for it.
        head: the matrix that makes logits, whole; 0 where it is not here.
        matrices: elements of one block's matrices, of all its experts' one.
        tensors: number of parameter tensors.
        pieces: of this project's trainer, what the rank keeps of each tensor; empty for the others.
    """

    layers: tuple[int, ...]
    whole: int
    shard: int
    block: int
    root: int
    root_shard: int
    roots: tuple[tuple[int, int], ...]
    copied: int
    head: int
    matrices: int
    tensors: int
    pieces: tuple[Piece, ...] = ()


@dataclass(frozen=True, slots=True)
class States:
    """Bytes that a rank holds from step to step."""

    parameters: float
    gradients: float
    optimizer: float


def sharing_ranks(layout: Layout, software: str) -> int:
    """Ranks that one copy of the sharded states is spread over; ranks of one sequence share like ranks of samples."""
    return layout.shard if software == "nanotron" else layout.shard * layout.context


def held(
    shape: ModelShape,
    layout: Layout,
    software: str,
    runs: tuple[range, ...] | None = None,
    at: tuple[int, int] = (0, 0),
) -> tuple[Held, ...]:
    """What the fullest rank of each stage holds, or another one, first stage first.

    Args:
        runs: layers of each part of a pipeline, from `cost.stages`; as the software spreads them when left out.
        at: the rank's number among the tensor ranks and among those that share; the first of each is the fullest.
    """
    ranks = sharing_ranks(layout, software)
    if runs is None:
        stages = stage_layers(shape, layout.pipeline, layout.interleave, layout.schedule, software)
    else:
        stages = _dealt(runs, layout.pipeline, layout.schedule)
    return _held(shape, stages, layout.tensor, layout.expert, ranks, max(1, ranks // layout.expert), software, at)


def states(piece: Held, software: str, precision: str, zero: int, kept: Kept) -> States:
    """Bytes of parameters, gradients and optimizer states of one rank.

    Args:
        zero: 1 divides the optimizer states, 2 also gradients, 3 also parameters, 0 nothing.
        kept: what decides the size of the optimizer's state; other software than this project's trainer is priced with
            the two moments of Adam.
    """
    state_bits = kept.state_bits
    moments = 2 * (state_bits / 8 + (SCALE_BYTES if state_bits < 16 else 0))
    parameter, gradient, beside = 4.0, 4.0, 0.0
    if software not in FSDP and precision != "fp32":
        # DeepSpeed below zero 3 keeps 16-bit gradients whole, and adds them up in an fp32 shard.
        parameter, gradient, beside = (2.0, 2.0, 8.0) if software == "deepspeed" and zero < 3 else (2.0, 4.0, 4.0)
    whole_gradients = zero < (3 if software == "deepspeed" else 2)
    optimizer = (beside + moments) * (piece.shard if zero else piece.whole) + 4.0 * piece.tensors
    if software == "thrifty":
        optimizer = float(state_bytes(kept, piece.pieces))
    return States(
        parameters=parameter * (piece.shard + piece.copied if zero == 3 else piece.whole),
        gradients=gradient * (piece.whole if whole_gradients else piece.shard),
        optimizer=optimizer,
    )


def part_of(size: int, ranks: int, at: int) -> int:
    """Of a dimension that is dealt in equal parts to ranks, the last of which may have less, the part of one."""
    part = -(-size // ranks)
    return max(0, min(part, size - part * at))


def local_size(
    name: str, size: tuple[int, ...], shape: ModelShape, tensor: int, expert: int, at: int = 0
) -> tuple[int, ...]:
    """The part of a parameter that one tensor rank computes with, the fullest or the one with number `at`.

    Column-parallel matrices are split by their outputs, row-parallel ones by their inputs, embedding and head by the
    vocabulary, stacked experts by expert; norms, routers and the low-rank projections of latent attention are whole on
    every rank. Where there are fewer key/value heads than tensor ranks, ranks repeat them.
    """
    part, _, kind = name.rpartition(".")
    layer = part.rpartition(".")[2]
    if name in ("embed.weight", "head.weight"):
        return (part_of(size[0], tensor, at), *size[1:])
    if part.startswith("experts"):
        wide = 1 if layer in _COLUMN else 2
        split = [-(-size[0] // expert), *size[1:]]
        if wide < len(split):
            split[wide] = -(-split[wide] // tensor)
        return tuple(split)
    if layer in ("key", "value") and shape.kv_heads < tensor:
        return (shape.head_dim, *size[1:])
    if layer in _COLUMN:
        return (-(-size[0] // tensor), *size[1:])
    if layer in _ROW and kind == "weight":
        return (size[0], -(-size[1] // tensor))
    return size


@lru_cache(maxsize=4096)
def stage_layers(shape: ModelShape, pipeline: int, chunks: int, schedule: str, software: str) -> Stages:
    """Layers of each stage, by the rule of a software that does not weigh them by their time.

    As `part_sizes` has them; nanotron weighs the head by its size. Chunks go round the stages, for `zbv` there and
    back again.
    """
    if software == "nanotron" and pipeline > 1:
        return _by_weight(shape, pipeline)
    ends = list(accumulate(part_sizes(shape.layers, pipeline * chunks, software), initial=0))
    return _dealt([range(begin, end) for begin, end in pairwise(ends)], pipeline, schedule)


def _dealt(parts: Sequence[range], pipeline: int, schedule: str) -> Stages:
    """The layers of each stage, from those of each part of the model."""
    stages: list[list[int]] = [[] for _ in range(pipeline)]
    for part, layers in enumerate(parts):
        turn = part % pipeline
        back = schedule == "zbv" and part >= pipeline
        stages[pipeline - 1 - turn if back else turn] += layers
    return tuple(map(tuple, stages))


def part_sizes(layers: int, parts: int, software: str) -> list[int]:
    """Layers of each part that a pipeline cuts a model into, in the order of the model.

    As equal as can be, the first parts taking what is left over; torchtitan counts embedding and head as a layer each,
    where that leaves every part one.
    """
    ends = 1 if software == "torchtitan" and parts > 1 and (layers + 2) // parts > 1 else 0
    each, over = divmod(layers + 2 * ends, parts)
    sizes = [each + (part < over) for part in range(parts)]
    sizes[0] -= ends
    sizes[-1] -= ends
    return sizes


def _by_weight(shape: ModelShape, pipeline: int) -> Stages:
    """Stages of equal cost, the head counted as so many layers as it has the parameters of, to the nearest layer."""
    layer = sum(math.prod(size) for _, size in block_shapes(shape) if len(size) > 1)
    head = shape.vocab_size * shape.hidden / layer
    each = (shape.layers + head) / pipeline
    cuts = [min(shape.layers, round(each * stage)) for stage in range(pipeline)] + [shape.layers]
    return tuple(tuple(range(cuts[stage], cuts[stage + 1])) for stage in range(pipeline))


@lru_cache(maxsize=65536)
def _held(
    shape: ModelShape, stages: Stages, tensor: int, expert: int, ranks: int, expert_ranks: int, software: str,
    at: tuple[int, int],
) -> tuple[Held, ...]:  # fmt: skip
    first, last = ends_of(shape)
    spread = (tensor, expert, ranks, expert_ranks, software, at)
    pipeline = len(stages)
    copies = tuple(item for item in first if item[0] == "embed.weight" and shape.tied_embeddings and pipeline > 1)
    named = "embed.weight" if shape.tied_embeddings else "head.weight"
    found = []
    for stage, layers in enumerate(stages):
        is_last = stage == _last_stage(stages)
        ends = [first if stage == 0 else (), last + copies if is_last else ()]
        copied = sum(_measure(item, shape, *spread)[1] for item in copies) if is_last and stage == 0 else 0
        root = ends[0] + ends[1]
        blocks = [_sizes(shape, layer in _dense(shape), *spread) for layer in layers]
        tops = [[_measure(item, shape, *spread) for item in end] for end in (ends if pipeline > 1 else [root]) if end]
        roots = tuple((sum(whole for whole, _ in top), sum(shard for _, shard in top)) for top in tops)
        heads = [math.prod(local_size(*item, shape, tensor, expert, at[0])) for item in root if item[0] == named]
        found.append(
            Held(
                layers=tuple(layers),
                whole=sum(b.whole for b in blocks) + sum(whole for whole, _ in roots),
                shard=sum(b.shard for b in blocks) + sum(shard for _, shard in roots) - copied,
                block=max((b.whole for b in blocks), default=0),
                root=sum(whole for whole, _ in roots),
                root_shard=sum(shard for _, shard in roots),
                roots=roots,
                copied=copied,
                head=heads[0] if heads and is_last else 0,
                matrices=max((b.matrices for b in blocks), default=0),
                tensors=sum(b.tensors for b in blocks) + len(root) - (len(copies) if copied else 0),
                pieces=_pieces(shape, layers, root[: len(root) - (len(copies) if copied else 0)], *spread),
            )
        )
    return tuple(found)


def _last_stage(stages: Stages) -> int:
    """The stage with the last layer, which also has the head: the first one in a V."""
    final = max((layer for stage in stages for layer in stage), default=0)
    return next((number for number, stage in enumerate(stages) if final in stage), len(stages) - 1)


def _dense(shape: ModelShape) -> range:
    return range(shape.layers if shape.experts is None else shape.experts.dense_layers)


@lru_cache(maxsize=256)
def ends_of(shape: ModelShape) -> tuple[tuple[Named, ...], tuple[Named, ...]]:
    """Parameters of no block, before and after the blocks."""
    found = parameter_shapes(shape)
    inside = [place for place, (name, _) in enumerate(found) if name.startswith("blocks.")]
    return tuple(found[: inside[0]]), tuple(found[inside[-1] + 1 :])


@dataclass(frozen=True, slots=True)
class _Block:
    whole: int
    shard: int
    matrices: int
    tensors: int


@lru_cache(maxsize=65536)
def _sizes(
    shape: ModelShape, dense: bool, tensor: int, expert: int, ranks: int, expert_ranks: int, software: str,
    at: tuple[int, int],
) -> _Block:  # fmt: skip
    items = block_shapes(shape, 0 if dense else shape.layers - 1)
    parts = [_measure(item, shape, tensor, expert, ranks, expert_ranks, software, at) for item in items]
    if software not in _BY_TENSOR:
        # One flat buffer: the tensors' own ends do not matter.
        flat = [(whole, whole / (expert_ranks if name.startswith("experts") else ranks))
                for (name, _), (whole, _) in zip(items, parts, strict=True)]  # fmt: skip
        shard = math.ceil(sum(part for _, part in flat))
    else:
        shard = sum(part for _, part in parts)
    # Of the experts' grouped products one matrix stands for all.
    matrices = sum(math.prod(local_size(*item, shape, tensor, expert)[-2:]) for item in items if len(item[1]) > 1)
    return _Block(sum(whole for whole, _ in parts), shard, matrices, len(items))


def kept_shapes(
    named: Sequence[Named], shape: ModelShape, tensor: int, sharing: int, at: tuple[int, int]
) -> tuple[tuple[int, ...], ...]:
    """Shape of what one rank of this project's trainer keeps of each tensor of a dense model.

    Args:
        sharing: ranks that share states.
        at: the rank's number among the tensor ranks and among those that share.
    """
    found = []
    for item in named:
        rows, *columns = local_size(*item, shape, tensor, 1, at[0])
        found.append((part_of(rows, sharing, at[1]), *columns))
    return tuple(found)


def _measure(
    item: Named, shape: ModelShape, tensor: int, expert: int, ranks: int, expert_ranks: int, software: str,
    at: tuple[int, int],
) -> tuple[int, int]:  # fmt: skip
    """Elements of one tensor on a rank: to compute with, and its part of them, shared with other ranks."""
    name, size = item
    local = local_size(name, size, shape, tensor, expert, at[0])
    whole = math.prod(local)
    if software not in _BY_TENSOR:
        return whole, math.ceil(whole / (expert_ranks if name.startswith("experts") else ranks))
    return whole, math.prod(_kept_shape(name, local, ranks, expert_ranks, at[1]))


def _kept_shape(name: str, local: tuple[int, ...], ranks: int, expert_ranks: int, at: int) -> tuple[int, ...]:
    """Of a tensor that is split along its first dimension, the part of one of the ranks that share it."""
    sharing = expert_ranks if name.startswith("experts") else ranks
    # Experts that are fewer than the ranks that share them are split along their rows.
    by = 1 if name.startswith("experts") and local[0] < sharing and len(local) > 2 else 0
    return (*local[:by], part_of(local[by], sharing, at), *local[by + 1 :])


def _pieces(
    shape: ModelShape, layers: Sequence[int], root: Sequence[Named], tensor: int, expert: int, ranks: int,
    expert_ranks: int, software: str, at: tuple[int, int],
) -> tuple[Piece, ...]:  # fmt: skip
    """What this project's trainer keeps of each tensor on one rank, those of a shape together."""
    found: Counter[tuple[bool, tuple[int, ...]]] = Counter()
    if software != "thrifty":
        return ()
    dense = sum(layer in _dense(shape) for layer in layers)
    for inside, number, named in (
        (True, dense, block_shapes(shape, 0)), (True, len(layers) - dense, block_shapes(shape, shape.layers - 1)),
        (False, 1, root),
    ):  # fmt: skip
        for name, size in named if number else ():
            local = local_size(name, size, shape, tensor, expert, at[0])
            found[inside, _kept_shape(name, local, ranks, expert_ranks, at[1])] += number
    return tuple((inside, size, number) for (inside, size), number in found.items())
