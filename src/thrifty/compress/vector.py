"""Vector quantisation with a learned codebook. The fixed lattice, `e8`, is a block format: `thrifty.spec.formats`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from thrifty.compress.codec import Codec
from thrifty.compress.largest import one_of_each_run
from thrifty.compress.payload import WHERE
from thrifty.cost.payload import tail_block, vector_beside_bytes, vector_code_bytes
from thrifty.quant.kernels import guarded, marked, rms, stored
from thrifty.quant.packing import pack, unpack
from thrifty.spec.codec import VectorStage
from thrifty.spec.errors import ThriftyError

SAMPLE = 1 << 14  # vectors that a codebook is learned from
ROUNDS = 8  # of Lloyd's iteration
TILE = 1 << 12  # vectors compared with all entries together
MOST = 16.0  # entries are cut to so many rms of their block, so that no value overflows


@dataclass(frozen=True)
class KMeans(Codec):
    """Runs of `dimension` values, in units of their block's scale, as the nearest of `entries` learned vectors.

    256 entries of 4 values are 2 bits a value. A codebook is learned from the tensor by Lloyd's iteration on a sample
    (Linde, Buzo and Gray, IEEE Trans. COM-28, 1980), and goes with the payload: 2 KiB of it. `refresh` learns one
    to be shared instead: it returns a codec that holds it. Send its `codebook` to every rank, each of which makes
    `KMeans(..., codebook=codebook)` of it; a payload of another codebook is refused. No block comes back with more
    error than it had energy.

    Args:
        entries: a power of two up to 256.
        dimension: values of a vector.
        block: values a scale, a multiple of the dimension.
        codebook: entries in bf16, as bytes; empty if learned anew for every tensor.

    Raises:
        ThriftyError: none of that.
    """

    entries: int = 256
    dimension: int = 4
    block: int = 256
    codebook: bytes = b""
    gives_floats = False

    def __post_init__(self) -> None:
        if not 2 <= self.entries <= 256 or self.entries & (self.entries - 1):
            raise ThriftyError(f"a codebook of {self.entries}", hint="powers of two from 2 to 256")
        if self.dimension < 1 or self.block < 1 or self.block % self.dimension:
            raise ThriftyError(f"a block of {self.block} values is no multiple of vectors of {self.dimension}")
        if len(self.codebook) not in (0, self.entries * self.dimension * 2):
            raise ThriftyError(
                f"{len(self.codebook)} bytes are no codebook of {self.entries} x {self.dimension} in bf16"
            )

    def describe(self) -> VectorStage:
        return VectorStage(self.entries, self.dimension, self.block, bool(self.codebook))

    def stage_dtype(self, dtype: torch.dtype) -> torch.dtype:
        return torch.uint8

    def refresh(self, x: Tensor, *, seed: int = 0) -> KMeans:
        """The codec with a codebook learned from `x`, for tensors like it; `len(codec.codebook)` bytes to share."""
        book = self._learned(self._vectors(x.detach().reshape(-1))[0], seed)
        return replace(self, codebook=book.cpu().view(torch.uint8).numpy().tobytes())

    def forward(self, values: Tensor, shape: Sequence[int], seed: int) -> tuple[Tensor, tuple[Tensor, ...]]:
        vectors, scale, marks = self._vectors(values)
        if self.codebook:
            book = torch.frombuffer(bytearray(self.codebook), dtype=torch.bfloat16).to(values.device)
            book = book.view(self.entries, self.dimension)
        else:
            book = self._learned(vectors, seed)
        places = _nearest(vectors, book.float())
        point = book.float()[places].view(-1, self.block)
        rows = vectors.view(-1, self.block)
        fitted = (rows * point).sum(1, keepdim=True).clamp(min=0) / point.square().sum(1, keepdim=True).clamp(min=1e-6)
        scales = marked(stored(scale * fitted, MOST), marks)
        count = -(-values.numel() // self.dimension)
        codes = places.new_zeros(1, tail_block(count))
        codes[0, :count] = places[:count]
        beside = (scales.view(-1).view(torch.uint8), book.reshape(-1).view(torch.uint8))
        return pack(codes, self.entries.bit_length() - 1).view(-1), beside[: 1 if self.codebook else 2]

    def inverse(
        self, values: Tensor, beside: Sequence[Tensor], count: int, dtype: torch.dtype, shape: Sequence[int], seed: int
    ) -> Tensor:
        stage = self.describe()
        told = (vector_code_bytes(count, stage), *vector_beside_bytes(count, stage))
        if (values.numel(), *(part.numel() for part in beside)) != told:
            raise ThriftyError(f"bytes of codes, scales and codebook are not {told}, as expected", where=WHERE)
        book = torch.frombuffer(bytearray(self.codebook), dtype=torch.bfloat16) if self.codebook else _bf16(beside[1])
        book = book.to(values.device).float().view(self.entries, self.dimension)
        many = -(-count // self.dimension)
        places = unpack(values.view(1, -1), self.entries.bit_length() - 1, tail_block(many))[0, :many]
        found = book[places.long()].view(-1)
        scales = _bf16(beside[0]).float().repeat_interleave(self.block)[: found.numel()]
        if scales.numel() < found.numel():  # the last vector reaches beyond the last value
            scales = torch.cat([scales, scales.new_zeros(found.numel() - scales.numel())])
        return (found * scales)[:count].to(dtype)

    def _vectors(self, values: Tensor) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor]]:
        """Vectors in units of the rms of their block, filled up with zeros; the rms; and marks of the blocks."""
        rows = -(-values.numel() // self.block)
        padded = torch.zeros(rows * self.block, device=values.device)
        padded[: values.numel()] = values
        x, top, marks = guarded(padded.view(rows, self.block))
        scale = rms(x, top)
        scale = torch.where(scale > 0, scale, 1.0)
        return (x * (1 / scale)).view(-1, self.dimension), scale, marks

    def _learned(self, vectors: Tensor, seed: int) -> Tensor:
        """A codebook (entries, dimension) in bf16 for such vectors."""
        if not len(vectors):
            return torch.zeros(self.entries, self.dimension, dtype=torch.bfloat16, device=vectors.device)
        places, _ = one_of_each_run(len(vectors), -(-len(vectors) // SAMPLE), seed, vectors.device)
        sample = vectors[places]
        spread = torch.arange(self.entries, device=vectors.device) * len(sample) // self.entries
        book = sample[spread]
        for _ in range(ROUNDS):
            nearest = _nearest(sample, book)
            total = torch.zeros_like(book).index_add_(0, nearest, sample)
            many = torch.bincount(nearest, minlength=self.entries)[:, None]
            empty = (many == 0).view(-1)
            missed = (sample - book[nearest]).square().sum(1).topk(min(int(empty.sum()), len(sample))).indices
            book = total / many.clamp(min=1)
            book[empty.nonzero().view(-1)[: len(missed)]] = sample[missed]  # to where the others are furthest
        return book.clamp(-MOST, MOST).to(torch.bfloat16)


def _nearest(vectors: Tensor, book: Tensor) -> Tensor:
    """Places of the nearest entries: |v - c|^2 is least where v.c - |c|^2 / 2 is largest."""
    half = book.square().sum(1) / 2
    return torch.cat([torch.addmm(-half, tile, book.t()).argmax(1) for tile in vectors.split(TILE)])


def _bf16(data: Tensor) -> Tensor:
    return data.clone().view(torch.bfloat16)
