"""The routes of encoded values over a group: all_reduce, all_gather, and all_to_all with a second hop.

A payload that cannot be read is known to every rank: one that has met it answers with no payload in the next hop, and
in the last hop all read the same bytes. So either all ranks have a mean or none has.

With `subtract` a route leaves in `x` what its encoding lost, in place: large tensors are dear to allocate.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from thrifty.compress.codec import Codec
from thrifty.compress.payload import Payload
from thrifty.compress.wire import WHERE, Wire, fitted
from thrifty.spec.errors import ThriftyError

MASK = (1 << 64) - 1


@dataclass(frozen=True)
class Sent:
    """What came of it.

    Attributes:
        mean: of the decoded values, the same bits on every rank.
        server: what the second hop lost of the part that this rank summed.
    """

    mean: Tensor
    server: Tensor | None = None


def by_all_reduce(wire: Wire, codec: Codec, x: Tensor, seed: int, subtract: bool = False) -> Sent:
    """Encoded values are summed on their way; for linear codecs. Identity gives what a plain all_reduce gives."""
    payload = codec.encode(x * (1.0 / wire.size), seed=seed)
    if subtract:
        x.sub_(codec.decode(payload, like=x), alpha=wire.size)
    values = payload.parts[-1].view(_sent_dtype(codec, x.dtype))
    wire.all_reduce(values)
    summed = Payload((*payload.parts[:-1], values.view(torch.uint8)), payload.numel, payload.codec, payload.seed)
    return Sent(codec.decode(summed, like=x))


def by_all_gather(wire: Wire, codec: Codec, x: Tensor, seed: int, subtract: bool = False) -> Sent:
    """Every payload to every rank, which sums them in rank order in fp32."""
    size = _known_size(codec, x)
    buffer, failure = _encoded(codec, x, _seed(seed, wire.rank), size)
    buffers = wire.gather_bytes(buffer, None if size is None else [size] * wire.size)
    if failure is not None:
        raise failure
    return Sent(_summed(codec, buffers, x, wire.rank if subtract else None).mul_(1.0 / wire.size))


def by_all_to_all(
    wire: Wire, codec: Codec, parts: Sequence[Tensor], seed: int, subtract: bool = False, kept: Tensor | None = None
) -> Sent:
    """Part j of every rank to rank j, which sums them in fp32 and sends the mean to all.

    Args:
        kept: added to the mean before the second hop, whose error then comes back as `server`.
    """
    first = _first_hop(wire, codec, parts, seed)
    mine, failure, known = parts[wire.rank], first.failure, first.sizes
    size = known[wire.rank] if known else None
    second = torch.zeros(size or 1, dtype=torch.uint8)  # no payload: tells the others that there is none
    total = mine
    if first.total is not None:
        total = first.total if kept is None else first.total.add_(kept)
        if failure is None:
            second, failure = _encoded(codec, total, _seed(seed, wire.size + wire.rank), size)
    buffers = wire.gather_bytes(second, known)
    if failure is not None:
        raise failure
    means = [_decoded(codec, one, part, rank) for rank, (one, part) in enumerate(zip(buffers, parts, strict=True))]
    if subtract:
        _subtract(wire, codec, first, parts)
    server = total.sub_(means[wire.rank]) if kept is not None else None
    return Sent(torch.cat(means), server)


def scattered(wire: Wire, codec: Codec, parts: Sequence[Tensor], seed: int, subtract: bool = False) -> Sent:
    """The first hop alone: the mean of this rank's part. Others hear of a failure when the next collective fails."""
    first = _first_hop(wire, codec, parts, seed)
    if first.failure is not None or first.total is None:
        raise first.failure or ThriftyError("no payload could be read", where=WHERE)
    if subtract:
        _subtract(wire, codec, first, parts)
    return Sent(first.total)


@dataclass(frozen=True)
class _Hop:
    """Payloads of this rank, the mean of its part of everybody's, or what went wrong; payload bytes where known."""

    encoded: list[Tensor]
    total: Tensor | None
    failure: ThriftyError | None
    sizes: list[int] | None


def _first_hop(wire: Wire, codec: Codec, parts: Sequence[Tensor], seed: int) -> _Hop:
    sizes = [_known_size(codec, part) for part in parts]
    encoded = [_encoded(codec, part, _seed(seed, wire.rank), size) for part, size in zip(parts, sizes, strict=True)]
    failure = next((error for _, error in encoded if error is not None), None)
    buffers = [buffer for buffer, _ in encoded]
    received = wire.swap_bytes(buffers, sizes[wire.rank])
    total = None
    try:
        total = _summed(codec, received, parts[wire.rank], None).mul_(1.0 / wire.size)
    except ThriftyError as error:
        failure = failure or error
    known = [size for size in sizes if size is not None]
    return _Hop(buffers, total, failure, known if len(known) == len(sizes) else None)


def _subtract(wire: Wire, codec: Codec, first: _Hop, parts: Sequence[Tensor]) -> None:
    """Takes what this rank's payloads decode to off what was encoded."""
    for one, part in zip(first.encoded, parts, strict=True):
        part.sub_(_decoded(codec, one, part, wire.rank))


def _summed(codec: Codec, buffers: Sequence[Tensor], x: Tensor, own_rank: int | None) -> Tensor:
    """The sum of what all decode to; takes this rank's own off `x`, which is like all of them."""
    total: Tensor | None = None
    for rank, buffer in enumerate(buffers):
        values = _decoded(codec, buffer, x, rank)
        if rank == own_rank:
            x.sub_(values)
        total = values if total is None else total.add_(values)
    assert total is not None
    return total


def _sent_dtype(codec: Codec, dtype: torch.dtype) -> torch.dtype:
    for stage in codec.stages:
        dtype = stage.stage_dtype(dtype)
    return dtype


def _seed(seed: int, place: int) -> int:
    """Ranks and hops draw apart from each other."""
    return (seed + place * 0xD1B54A32D192ED03) & MASK


def _known_size(codec: Codec, x: Tensor) -> int | None:
    return codec.predicted_bytes(x.shape, x.dtype) if codec.exact_size else None


def _encoded(codec: Codec, x: Tensor, seed: int, size: int | None) -> tuple[Tensor, ThriftyError | None]:
    """The payload, or bytes that are none and why: the others wait for something, and are to hear of the failure."""
    try:
        buffer = codec.encode(x, seed=seed).to_buffer()
    except (ThriftyError, RuntimeError) as error:
        failure = error if isinstance(error, ThriftyError) else ThriftyError(f"cannot encode: {error}", where=WHERE)
        return torch.zeros(size or 1, dtype=torch.uint8), failure
    if size is not None and buffer.numel() != size:
        told = f"a payload of {buffer.numel()} bytes, {size} were announced"
        return fitted(buffer, size), ThriftyError(told, where=WHERE)
    return buffer, None


def _decoded(codec: Codec, buffer: Tensor, like: Tensor, rank: int) -> Tensor:
    try:
        return codec.decode(Payload.from_buffer(buffer), like=like)
    except ThriftyError as error:
        hint = "rank numbers are of the exchange's group; start again from the last checkpoint"
        raise ThriftyError(f"the payload from rank {rank}: {error.what}", where=WHERE, hint=hint) from error
