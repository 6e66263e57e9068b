"""Sparsifiers: the largest values of each chunk or of the whole, or values drawn by seed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from thrifty.compress.codec import Codec
from thrifty.compress.largest import largest, largest_of_all, one_of_each_run, places_of
from thrifty.compress.payload import WHERE
from thrifty.cost.payload import index_bits, index_bytes, kept, tail_block
from thrifty.quant.packing import pack, packed_bytes, unpack
from thrifty.spec.codec import RandomKStage, ThresholdStage, TopKStage
from thrifty.spec.errors import ThriftyError


@dataclass(frozen=True)
class TopK(Codec):
    """The share `density` of largest magnitudes in every chunk of `chunk` values, and 0 for the rest.

    Indices are local to the chunk, in Elias-Fano code: 8 bits at 64 of 4096, where 12 would write them out and 7.4 is
    the least that any code needs. Chunked as in SparseLoCo, arXiv:2508.15706. nan counts as largest, so it is kept.

    Raises:
        ThriftyError: density outside (0, 1], or chunk below 1.
    """

    density: float
    chunk: int = 4096

    def __post_init__(self) -> None:
        if not 0 < self.density <= 1 or self.chunk < 1:
            raise ThriftyError(f"TopK keeps {self.density} of chunks of {self.chunk}", hint="e.g. TopK(1/64, 4096)")

    def describe(self) -> TopKStage:
        return TopKStage(self.density, self.chunk)

    def contraction(self, numel: int) -> float:
        """The kept share: the largest k of m hold at least k/m of the energy. Stich et al., arXiv:1809.07599."""
        return min(1.0, self.density)

    def forward(self, values: Tensor, shape: Sequence[int], seed: int) -> tuple[Tensor, tuple[Tensor, ...]]:
        picked, codes = [], []
        for rows, keep in self._rows(values):
            places = largest(rows, keep)
            picked.append(rows.gather(1, places).reshape(-1))
            codes.append(_write(places, rows.shape[1]))
        if not picked:
            return values, (torch.empty(0, dtype=torch.uint8, device=values.device),)
        return torch.cat(picked), (torch.cat(codes),)

    def inverse(
        self, values: Tensor, beside: Sequence[Tensor], count: int, dtype: torch.dtype, shape: Sequence[int], seed: int
    ) -> Tensor:
        out = torch.zeros(count, dtype=dtype, device=values.device)
        at, start = 0, 0
        for rows, keep in self._rows(out):
            many, chunk = rows.shape
            size = index_bytes(many, chunk, keep)
            places = _read(beside[0][start : start + size], many, chunk, keep)
            rows.scatter_(1, places, values[at : at + many * keep].view(many, keep).to(dtype))
            at, start = at + many * keep, start + size
        if start != beside[0].numel():
            raise ThriftyError(f"{beside[0].numel()} bytes of indices, {start} expected", where=WHERE)
        return out

    def _rows(self, values: Tensor) -> list[tuple[Tensor, int]]:
        """The whole chunks as rows, and the rest as one row, each with how many it keeps."""
        whole, rest = divmod(values.numel(), self.chunk)
        found = []
        if whole:
            found.append((values[: whole * self.chunk].view(whole, self.chunk), kept(self.chunk, self.density)))
        if rest:
            found.append((values[whole * self.chunk :].view(1, rest), kept(rest, self.density)))
        return found


@dataclass(frozen=True)
class Threshold(Codec):
    """The share `density` of largest magnitudes of the whole tensor, and 0 for the rest.

    A threshold from a sample leaves a few too many, and the exact share of those is kept: so the number of values and
    the bytes are known before it runs, and ranks need not tell each other sizes. Where energy lies in few places it
    keeps more of it than `TopK`, which takes as many from every chunk.

    Raises:
        ThriftyError: density outside (0, 1].
    """

    density: float

    def __post_init__(self) -> None:
        if not 0 < self.density <= 1:
            raise ThriftyError(f"Threshold keeps {self.density} of all values", hint="e.g. Threshold(1/64)")

    def describe(self) -> ThresholdStage:
        return ThresholdStage(self.density)

    def contraction(self, numel: int) -> float:
        """The kept share, as of `TopK`."""
        return min(1.0, self.density)

    def forward(self, values: Tensor, shape: Sequence[int], seed: int) -> tuple[Tensor, tuple[Tensor, ...]]:
        places = largest_of_all(values, kept(values.numel(), self.density), seed)
        if not values.numel():
            return values, (torch.empty(0, dtype=torch.uint8, device=values.device),)
        return values[places], (_write(places[None], values.numel()),)

    def inverse(
        self, values: Tensor, beside: Sequence[Tensor], count: int, dtype: torch.dtype, shape: Sequence[int], seed: int
    ) -> Tensor:
        out = torch.zeros(count, dtype=dtype, device=values.device)
        if count:
            out[_read(beside[0], 1, count, kept(count, self.density))[0]] = values.to(dtype)
        return out


def _write(places: Tensor, chunk: int) -> Tensor:
    """Ascending places (chunks, keep) in Elias-Fano code, as bytes."""
    chunks, keep = places.shape
    low, high = index_bits(chunk, keep)
    ends = (places >> low) + torch.arange(keep, device=places.device)
    bits = torch.zeros(chunks, tail_block(high), dtype=torch.uint8, device=places.device)
    bits.scatter_(1, ends, 1)
    parts = [pack(bits, 1).reshape(-1)]
    if low:
        flat = torch.zeros(1, tail_block(chunks * keep), dtype=torch.int32, device=places.device)
        flat[0, : chunks * keep] = places.reshape(-1) & (2**low - 1)
        parts.append(pack(flat, low).reshape(-1))
    return torch.cat(parts)


def _read(code: Tensor, chunks: int, chunk: int, keep: int) -> Tensor:
    """The places (chunks, keep) that `_write` wrote."""
    low, high = index_bits(chunk, keep)
    columns = tail_block(high)
    cut = chunks * packed_bytes(columns, 1)
    if code.numel() != index_bytes(chunks, chunk, keep):
        raise ThriftyError("cut off within the indices", where=WHERE)
    bits = unpack(code[:cut].view(chunks, -1), 1, columns)
    ends = places_of(bits)
    if ends.shape[0] != chunks * keep or not bool((bits.sum(1) == keep).all()):
        raise ThriftyError("broken: its indices are not as many as its values", where=WHERE)
    places = (ends.view(chunks, keep) % columns - torch.arange(keep, device=code.device)) << low
    if low:
        lows = unpack(code[cut:].view(1, -1), low, tail_block(chunks * keep), torch.int32)
        places = places | lows[0, : chunks * keep].view(chunks, keep)
    rising = bool((places[:, 1:] > places[:, :-1]).all())
    if not rising or int(places.max()) >= chunk:
        raise ThriftyError("broken: its indices do not rise within their chunks", where=WHERE)
    return places


@dataclass(frozen=True)
class RandomK(Codec):
    """One value of every run of `every`, drawn by seed: no indices are sent, and payloads of one seed may be summed.

    Unbiased it is multiplied by the length of its run; otherwise left as it is, for error feedback: it then contracts
    by 1/every on average over seeds, but not for every single seed.

    Raises:
        ThriftyError: `every` below 1.
    """

    every: int
    unbiased: bool = True
    linear = True

    def __post_init__(self) -> None:
        if self.every < 1:
            raise ThriftyError(f"RandomK of one in {self.every}", hint="e.g. RandomK(64)")

    def describe(self) -> RandomKStage:
        return RandomKStage(self.every)

    def contraction(self, numel: int) -> float:
        return 1.0 if self.every == 1 else 0.0

    def forward(self, values: Tensor, shape: Sequence[int], seed: int) -> tuple[Tensor, tuple[Tensor, ...]]:
        places, lengths = one_of_each_run(values.numel(), self.every, seed, values.device)
        picked = values[places]
        return (picked * lengths.to(values.dtype) if self.unbiased else picked), ()

    def inverse(
        self, values: Tensor, beside: Sequence[Tensor], count: int, dtype: torch.dtype, shape: Sequence[int], seed: int
    ) -> Tensor:
        places, _ = one_of_each_run(count, self.every, seed, values.device)
        out = torch.zeros(count, dtype=dtype, device=values.device)
        out[places] = values.to(dtype)
        return out
