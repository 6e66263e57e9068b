"""Places of the k largest magnitudes: of every row, or of all values."""

from __future__ import annotations

import math
from functools import cache

import numpy as np
import torch
from torch import Tensor

from thrifty.quant.fuse import COMPILE_FROM, can_compile, fused
from thrifty.quant.rounding import row_keys, uniforms

GROUPS = 8  # values that share a maximum
TILE = 512  # rows searched at a time: what a call of a kernel costs is spread over them
SAMPLE = 1 << 16  # magnitudes that a threshold is estimated from
WIDE = 8  # a row with more than so many candidates for each place is sorted instead
INFINITY = 0x7F800000  # bits of it; nan lies above
FLOAT_BITS, COARSE_BITS = 31, 15  # of a magnitude; of one whose mantissa is cut to 7 bits


def largest(rows: Tensor, keep: int, *, compiled: bool | None = None) -> Tensor:
    """Places of the `keep` largest magnitudes of each row, ascending; exact. nan counts as infinite.

    Args:
        rows: of any float dtype.
        compiled: search by fused kernels; by default on CPUs, for tensors large enough, where a compiler is found.
    """
    columns = rows.shape[1]
    if compiled is None:
        compiled = rows.numel() >= COMPILE_FROM and rows.device.type == "cpu" and can_compile("cpu")
    grouped = columns % GROUPS == 0 and columns // GROUPS >= 2 * keep
    if not compiled or not grouped or rows.dtype == torch.float64:
        return sorted_places(rows, keep)
    tiles = rows.split(TILE)
    found = [_searched(tile, keep) if len(tile) > 1 else sorted_places(tile, keep) for tile in tiles]
    return found[0] if len(found) == 1 else torch.cat(found)  # (rows, keep)


def sorted_places(rows: Tensor, keep: int) -> Tensor:
    """The same by a partial sort of all magnitudes: the reference, and the way for small tensors and GPUs."""
    size = rows.abs()
    if size.dtype in (torch.bfloat16, torch.float16):
        size = size.float()
    return size.topk(keep, sorted=False).indices.sort(1).values


def largest_of_all(values: Tensor, keep: int, seed: int) -> Tensor:
    """Flat places of the `keep` largest magnitudes, ascending; exact. nan counts as infinite.

    A threshold from a sample leaves few candidates, among which the k-th decides: as in Deep Gradient Compression,
    arXiv:1712.01887, section 3.2. Should the sample mislead, all values are candidates.
    """
    if keep in (0, values.numel()):
        return torch.arange(keep, device=values.device)
    places, _ = one_of_each_run(values.numel(), math.ceil(values.numel() / SAMPLE), seed, values.device)
    sample = values[places].abs()
    hits = sample.numel() * keep / values.numel()
    rank = math.ceil(hits + 3 * math.sqrt(hits)) + 1  # three standard deviations more than needed
    found = None
    if rank < sample.numel():
        found = places_of(_not_below(values, sample.topk(rank).values[-1]))
    if found is None or found.numel() < keep:
        found = torch.arange(values.numel(), device=values.device)
    best = torch.zeros(found.numel(), dtype=torch.bool, device=values.device)
    best[values[found].abs().topk(keep, sorted=False).indices] = True
    return found[best]


def _not_below(values: Tensor, least: Tensor) -> Tensor:
    """uint8 ones where a magnitude is not below `least`; nan is not."""
    if values.numel() < COMPILE_FROM or not can_compile(values.device.type) or values.dtype == torch.float64:
        return (values.abs() < least).logical_not_().view(torch.uint8)
    torch._dynamo.mark_dynamic(values, 0)
    return _reaching()(values, least.float())


def one_of_each_run(numel: int, every: int, seed: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """A place drawn in each run of `every`, and the runs' lengths: `every`, or what is left for the last."""
    runs = math.ceil(numel / every)
    starts = torch.arange(runs, device=device) * every
    lengths = (numel - starts).clamp(max=every)
    drawn = (uniforms(row_keys(runs, 0, seed, device), 1)[:, 0].double() * lengths).long()
    return starts + drawn, lengths


def places_of(mask: Tensor) -> Tensor:
    """Flat places of the ones among uint8 zeros and ones, ascending."""
    flat = mask.reshape(-1).view(torch.bool)
    if flat.device.type != "cpu":
        return flat.nonzero().view(-1)
    return torch.from_numpy(np.flatnonzero(flat.numpy()))  # three times as fast as torch's


def _searched(rows: Tensor, keep: int) -> Tensor:
    """By bisection, bit by bit from the highest, which compares and counts whole vectors where a sort moves values.

    The k-th largest of the maxima of groups is reached by at least k values, and by few more. It is found to its first
    bits alone; among those that reach it, the exact k-th is, and of equal ones the first are kept.
    """
    many, columns = rows.shape
    torch._dynamo.mark_dynamic(rows, 0)
    tops = _group_maxima()(rows)
    torch._dynamo.mark_dynamic(tops, 0)
    mask, counts = _counted()(rows, _kth(keep, COARSE_BITS)(tops))
    flat = places_of(mask)
    wide = counts > WIDE * keep  # almost all zeros, or all the same
    if not bool(wide.any()):
        return _best(rows, flat, counts, keep)
    places = torch.empty(many, keep, dtype=torch.int64)
    places[wide] = sorted_places(rows[wide], keep)
    if not bool(wide.all()):
        places[~wide] = _best(rows, flat[~wide[flat // columns]], counts.masked_fill(wide, 0), keep)
    return places


def _best(rows: Tensor, flat: Tensor, counts: Tensor, keep: int) -> Tensor:
    """The places in their rows, of `keep` candidates of each row that has any; `flat` are their places in all rows."""
    many, columns = rows.shape
    width = -(-int(counts.max()) // 16) * 16  # few widths, so that few kernels are compiled
    firsts = torch.arange(many) * width - (counts.cumsum(0) - counts)
    slots = torch.arange(flat.numel()) + torch.repeat_interleave(firsts, counts)
    table = torch.full((many, width), -1.0)
    infinity = float("inf")
    sizes = rows.reshape(-1).index_select(0, flat).float().abs_().nan_to_num_(nan=infinity, posinf=infinity)
    table.view(-1).scatter_(0, slots, sizes)
    torch._dynamo.mark_dynamic(table, 0)
    torch._dynamo.mark_dynamic(table, 1)
    least = _kth(keep, FLOAT_BITS)(table)
    chosen = (table >= least).logical_and_(table >= 0)
    over = table > least
    spare = keep - over.sum(1, keepdim=True)
    chosen = over | (chosen & ((chosen & ~over).cumsum(1) <= spare))
    return (flat.masked_select(chosen.view(-1).index_select(0, slots)) % columns).view(-1, keep)


@cache
def _group_maxima():
    # Group j is every width-th value from j on, so that the maximum runs over whole vectors.
    return fused(lambda rows: rows.float().abs().view(rows.shape[0], GROUPS, -1).amax(1), "group_maxima")


@cache
def _reaching():
    return fused(lambda values, least: torch.where(values.float().abs() < least, 0.0, 1.0).to(torch.uint8), "reaching")


@cache
def _counted():
    """Mask of what is not below a row's threshold, and how many those are."""

    def counted(rows: Tensor, least: Tensor) -> tuple[Tensor, Tensor]:
        reached = torch.where(rows.float().abs() < least, 0.0, 1.0)
        return reached.to(torch.uint8), reached.sum(1).to(torch.int64)

    return fused(counted, "counted")


@cache
def _kth(keep: int, bits: int):
    """The largest number, of so many leading bits of a magnitude, that `keep` of a row are not below."""

    def kth(rows: Tensor) -> Tensor:
        found = torch.zeros(rows.shape[0], 1, dtype=torch.int32, device=rows.device)
        for place in range(FLOAT_BITS - 1, FLOAT_BITS - 1 - bits, -1):
            tried = found | (1 << place)
            reached = torch.where(rows < tried.view(torch.float32), 0.0, 1.0).sum(1, keepdim=True)
            found = torch.where((reached >= keep) & (tried <= INFINITY), tried, found)
        return found.view(torch.float32)

    return fused(kth, f"kth_{keep}_{bits}")
