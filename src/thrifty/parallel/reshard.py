"""Where the parts of one tensor lie, and the least that must be sent for them to lie elsewhere.

A layout gives each rank one box of the tensor. Ranks with the same box hold copies; ranks of different `term` hold
terms of a sum, as a product leaves them whose reduction dimension is split:

    lay_out((6, 4), {"shard": 2, "tensor": 2}, [("tensor", 0), ("shard", 0)])     FSDP over tensor parallelism: rows
                                                                                  over tensor, each part over shard
    product(x, w)             how x @ w lies when every rank multiplies what it holds: concatenate it, or add it up
    moves(source, target)     who sends which box to whom
    redistribute(...)         sends them

`trainer.export` builds files from live ranks with this, and docs/reshard.md explains parallel layers with it. Training
itself does not come through here: FSDP2 and `parallel.collectives` know their one pattern and overlap it with work.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch.distributed as dist
from torch import Tensor

from thrifty.spec.errors import ThriftyError

Box = tuple[range, ...]  # a range of each dimension


@dataclass(frozen=True)
class Part:
    """What one rank holds of a tensor.

    Attributes:
        box: where it lies in the whole.
        term: which term of a sum it is; 0 where there is but one.
    """

    rank: int
    box: Box
    term: int = 0


@dataclass(frozen=True)
class TensorLayout:
    """Where the parts of a tensor lie. Ranks that hold nothing of it may be left out, as those of other stages."""

    shape: tuple[int, ...]
    parts: tuple[Part, ...]

    def __post_init__(self) -> None:
        if len({part.rank for part in self.parts}) < len(self.parts):
            raise ThriftyError("a rank holds two parts of one tensor", hint="give each rank one box")

    @property
    def terms(self) -> int:
        """Whose sum the tensor is; 1 where values are values."""
        return 1 + max((part.term for part in self.parts), default=0)

    @property
    def transposed(self) -> TensorLayout:
        """Of the tensor with its last two dimensions swapped, which moves nothing."""
        swapped = (Part(part.rank, _swap(part.box), part.term) for part in self.parts)
        return TensorLayout(_swap(self.shape), tuple(swapped))

    def within(self, box: Box) -> TensorLayout:
        """Of the parts, what lies in a box."""
        parts = (Part(part.rank, overlap(part.box, box), part.term) for part in self.parts)
        return TensorLayout(self.shape, tuple(parts))

    def part_of(self, rank: int) -> Part | None:
        return next((part for part in self.parts if part.rank == rank), None)


def lay_out(
    shape: Sequence[int],
    axes: Mapping[str, int],
    splits: Sequence[tuple[str, int]] = (),
    *,
    sums: Sequence[str] = (),
    unit: int = 1,
    ranks: Sequence[int] | None = None,
) -> TensorLayout:
    """The layout on a grid of ranks. Along axes that are neither in `splits` nor in `sums` lie copies.

    Parts are as DTensor's `Shard` makes them: ceil(size / parts) each, the last ones shorter or empty.

    Args:
        axes: sizes of the grid, outermost axis first.
        splits: (axis, dimension); each cuts what those before it have left.
        sums: axes along which ranks hold terms of a sum.
        unit: indices that stay together, e.g. head_dim, so that no attention head is cut.
        ranks: in the order of the grid; 0, 1, 2, ... when left out.
    """
    places = [dict(zip(axes, place, strict=True)) for place in itertools.product(*map(range, axes.values()))]
    parts = []
    for rank, place in zip(ranks or range(len(places)), places, strict=True):
        box = [range(size) for size in shape]
        for axis, dim in splits:
            box[dim] = chunk(box[dim], axes[axis], place[axis], unit)
        term = 0
        for axis in sums:
            term = term * axes[axis] + place[axis]
        parts.append(Part(rank, tuple(box), term))
    return TensorLayout(tuple(shape), tuple(parts))


def chunk(whole: range, parts: int, index: int, unit: int = 1) -> range:
    """Part `index` of a range cut into parts of ceil(size / parts), in whole units."""
    size = -(-len(whole) // (parts * unit)) * unit
    return whole[index * size : (index + 1) * size]


def product(x: TensorLayout, w: TensorLayout) -> TensorLayout:
    """How x @ w lies, (..., k) @ (k, n), when every rank multiplies what it holds and nothing is sent.

    Where all hold the whole of k, the parts of the result are to be concatenated; where k is split, they are terms to
    be added up. The backward pass of y = x @ w is two more products, dx = dy @ w.T and dw = x.T @ dy.

    Raises:
        ThriftyError: a rank holds another part of k in x than in w, or an operand is a sum that was not taken.
    """
    if x.terms > 1 or w.terms > 1:
        raise ThriftyError("an operand lies as terms of a sum", hint="add it up first: redistribute it without `sums`")
    pairs = [(left, right) for left in x.parts if (right := w.part_of(left.rank)) is not None]
    for left, right in pairs:
        if left.box[-1] != right.box[0]:
            what = (
                f"rank {left.rank} holds {left.box[-1]} of the reduction dimension of one, {right.box[0]} of the other"
            )
            raise ThriftyError(what, hint="split both alike along it")
    reduced = sorted({left.box[-1] for left, _ in pairs if left.box[-1]}, key=lambda found: found.start)
    parts = (
        Part(left.rank, (*left.box[:-1], right.box[1]), reduced.index(left.box[-1]))
        for left, right in pairs
        if left.box[-1]
    )
    return TensorLayout((*x.shape[:-1], w.shape[1]), tuple(parts))


def split(whole: Tensor, layout: TensorLayout) -> dict[int, Tensor]:
    """Every rank's part of a tensor. Of terms there is no telling: only their sum is known.

    Raises:
        ThriftyError: the layout has terms of a sum.
    """
    if layout.terms > 1:
        raise ThriftyError("a value does not say of which terms it is the sum", hint="split it without `sums`")
    return {part.rank: whole[slices(part.box)] for part in layout.parts}


def rebuild(parts: Mapping[int, Tensor], layout: TensorLayout) -> Tensor:
    """The whole tensor: different boxes are concatenated, terms are added up, of copies one is taken."""
    whole = next(iter(parts.values())).new_zeros(layout.shape)
    for (term, box), ranks in sorted(_holders(layout).items(), key=lambda entry: entry[0][0]):
        _put(whole, slices(box), parts[ranks[0]], add=term > 0)
    return whole


@dataclass(frozen=True)
class Move:
    """One message: a box of the whole tensor, of one term."""

    source: int
    destination: int
    box: Box
    term: int = 0

    @property
    def elements(self) -> int:
        return volume(self.box)


def moves(source: TensorLayout, target: TensorLayout, node_of: Callable[[int], int] | None = None) -> tuple[Move, ...]:
    """The messages by which every rank gets what it is to hold and does not hold yet, each value once.

    Where several ranks hold copies, one on the same node sends, and of these the one that has least to send so far;
    large boxes are dealt first (Graham 1969, doi:10.1137/0117039).

    A sum is taken where it is to lie: each term goes to each destination. With copies as target that is up to
    ranks / 2 times what a ring all-reduce sends; go there in two steps, by a layout that is split: they are a
    reduce-scatter and an all-gather.

    Args:
        target: may leave out what no rank is to hold.
        node_of: the node that a rank is on; one for all when left out.

    Raises:
        ThriftyError: what a rank is to hold is held by none, or by ranks whose boxes overlap, or as other terms.
    """
    if source.shape != target.shape:
        raise ThriftyError(f"one layout is of shape {list(source.shape)}, the other of {list(target.shape)}")
    if target.terms not in (1, source.terms):
        raise ThriftyError(f"{source.terms} terms of a sum cannot become {target.terms}", hint="take the sum first")
    holders = _holders(source)
    wanted = []
    for part in target.parts:
        found: Counter[int] = Counter()
        terms = range(source.terms) if target.terms == 1 else (part.term,)
        for (term, box), ranks in holders.items():
            piece = overlap(box, part.box)
            if term not in terms or not volume(piece):
                continue
            found[term] += volume(piece)
            if part.rank not in ranks:
                wanted.append((piece, term, part.rank, ranks))
        for term in terms:
            if found[term] != volume(part.box):
                what = f"of {_words(part.box)} the ranks hold {found[term]} values in place of {volume(part.box)}"
                raise ThriftyError(what, hint="boxes of a layout must cover the tensor, and be equal or apart")
    return tuple(_assign(wanted, node_of or (lambda rank: 0)))


def bytes_to_send(source: TensorLayout, target: TensorLayout, itemsize: int) -> int:
    """Bytes of all messages together, for values of so many bytes: what the destinations lack."""
    return itemsize * sum(move.elements for move in moves(source, target))


@dataclass(frozen=True)
class Transfer:
    """One tensor on its way.

    Attributes:
        local: this rank's part; an empty tensor of the right dtype and device where it holds none.
    """

    local: Tensor
    source: TensorLayout
    target: TensorLayout


def redistribute(local: Tensor, source: TensorLayout, target: TensorLayout, group: Any = None) -> Tensor | None:
    """This rank's part of a tensor in another layout, None where it is to hold nothing; see `redistribute_all`."""
    return redistribute_all([Transfer(local, source, target)], group)[0]


def redistribute_all(
    transfers: Sequence[Transfer], group: Any = None, node_of: Callable[[int], int] | None = None
) -> list[Tensor | None]:
    """Moves several tensors in one batch of messages. Every rank of the group must call this with the same layouts.

    Terms are added in the order of their numbers, so that copies of a sum agree to the bit.

    Args:
        group: a process group that holds all ranks of the layouts, which are numbered globally; the default one when
            left out. The first messages of an NCCL group must be of all its ranks: open it with a barrier.
    """
    operations: list[dist.P2POp] = []
    arriving: list[_Arrival] = []
    results: list[Tensor | None] = []
    for one in transfers:
        messages = moves(one.source, one.target, node_of)
        mine = one.target.part_of(dist.get_rank())
        result = None if mine is None else one.local.new_empty([len(side) for side in mine.box])
        results.append(result)
        operations += _sends(one, messages, group)
        if mine is not None and result is not None:
            received, added = _receives(one, messages, mine, result, group)
            operations += received
            arriving += added
    for work in dist.batch_isend_irecv(operations) if operations else ():
        work.wait()
    for term, result, where, piece in sorted(arriving, key=lambda arrival: arrival[0]):
        _put(result, where, piece, add=term > 0)
    return results


_Arrival = tuple[int, Tensor, tuple[slice, ...], Tensor]  # term of the sum, into what, where in it, what


def _sends(one: Transfer, messages: Sequence[Move], group: Any) -> list[dist.P2POp]:
    held = one.source.part_of(dist.get_rank())
    if held is None:
        return []
    mine = [move for move in messages if move.source == held.rank]
    pieces = [one.local[slices(move.box, held.box)].contiguous() for move in mine]
    return [dist.P2POp(dist.isend, p, move.destination, group) for move, p in zip(mine, pieces, strict=True)]


def _receives(
    one: Transfer, messages: Sequence[Move], mine: Part, result: Tensor, group: Any
) -> tuple[list[dist.P2POp], list[_Arrival]]:
    """What comes from others, and with it what this rank has already."""
    summed = one.target.terms == 1  # else terms stay terms, and there is one
    operations: list[dist.P2POp] = []
    arriving: list[_Arrival] = []
    held = one.source.part_of(mine.rank)
    if held is not None and (summed or held.term == mine.term) and volume(kept := overlap(held.box, mine.box)):
        arriving.append((held.term * summed, result, slices(kept, mine.box), one.local[slices(kept, held.box)]))
    for move in messages:
        if move.destination == mine.rank:
            piece = one.local.new_empty([len(side) for side in move.box])
            operations.append(dist.P2POp(dist.irecv, piece, move.source, group))
            arriving.append((move.term * summed, result, slices(move.box, mine.box), piece))
    return operations, arriving


def volume(box: Box) -> int:
    """Values in a box."""
    return math.prod(map(len, box))


def overlap(one: Box, other: Box) -> Box:
    """What two boxes share; of no volume where they are apart."""
    return tuple(range(max(a.start, b.start), min(a.stop, b.stop)) for a, b in zip(one, other, strict=True))


def slices(box: Box, within: Box | None = None) -> tuple[slice, ...]:
    """Indices of a box in the whole tensor, or in the part of it that lies at `within`."""
    starts = [side.start for side in within] if within is not None else [0] * len(box)
    return tuple(slice(side.start - start, side.stop - start) for side, start in zip(box, starts, strict=True))


def _assign(wanted: list[tuple[Box, int, int, list[int]]], node_of: Callable[[int], int]) -> list[Move]:
    load: Counter[int] = Counter()
    found = []
    for piece, term, destination, ranks in sorted(wanted, key=lambda one: -volume(one[0])):
        here = [rank for rank in ranks if node_of(rank) == node_of(destination)]
        # Of equals the next one after the destination: several destinations then ask several ranks.
        source = min(here or ranks, key=lambda rank: (load[rank], rank < destination, rank))
        load[source] += volume(piece)
        found.append(Move(source, destination, piece, term))
    return found


def _holders(layout: TensorLayout) -> dict[tuple[int, Box], list[int]]:
    """Ranks that hold the same values, by term and box; empty boxes left out."""
    found: dict[tuple[int, Box], list[int]] = {}
    for part in layout.parts:
        if volume(part.box):
            found.setdefault((part.term, part.box), []).append(part.rank)
    return found


def _put(out: Tensor, where: tuple[slice, ...], piece: Tensor, *, add: bool) -> None:
    # The first term is not added to zeros, which would lose the sign of a zero.
    if add:
        out[where] += piece
    else:
        out[where] = piece


def _swap(sides: tuple[Any, ...]) -> tuple[Any, ...]:
    return (*sides[:-2], sides[-1], sides[-2])


def _words(box: Box) -> str:
    return "[" + ", ".join(f"{side.start}:{side.stop}" for side in box) + "]"
