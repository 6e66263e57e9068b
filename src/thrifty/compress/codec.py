"""Codecs: a tensor to a payload and back, in stages that compose.

    codec = chain(TopK(1 / 64), Blockwise(2), Zstd())
    payload = codec.encode(gradient)
    gradient_again = codec.decode(payload, like=gradient)

A stage is a codec of its own. What it promises of the error of x' = decode(encode(x)) is one of two:

- contraction: ||x' - x||^2 <= (1 - contraction) ||x||^2 for every x. Error feedback converges with it.
- unbiased: E[x'] = x over seeds.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from thrifty.compress.payload import WHERE, Payload
from thrifty.cost.payload import after, bits_per_value, payload_bytes
from thrifty.spec.codec import Stage
from thrifty.spec.errors import ThriftyError

FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


class Codec:
    """A codec of one stage, or of several. A new stage sets the fields and defines `describe`, `forward`, `inverse`."""

    exact_size: bool = True  # payload bytes are known before it runs; else `predicted_bytes` is an upper bound
    linear: bool = False  # payloads of one seed may be summed value by value: decode(sum) = sum of decoded
    unbiased: bool = False
    takes_floats: bool = True
    gives_floats: bool = True

    @property
    def stages(self) -> tuple[Codec, ...]:
        """The stages, first to last."""
        return (self,)

    def describe(self) -> Stage:
        """What the stage is, for the arithmetic of bytes."""
        raise NotImplementedError

    def forward(self, values: Tensor, shape: Sequence[int], seed: int) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Flat values to fewer or shorter ones, and flat uint8 tensors beside them."""
        raise NotImplementedError

    def inverse(
        self, values: Tensor, beside: Sequence[Tensor], count: int, dtype: torch.dtype, shape: Sequence[int], seed: int
    ) -> Tensor:
        """The `count` flat values of `dtype` that `forward` was given, as well as they can be had."""
        raise NotImplementedError

    def contraction(self, numel: int) -> float:
        """Of a tensor of `numel` values: 1 lossless, 0 no promise."""
        return 0.0

    def stage_dtype(self, dtype: torch.dtype) -> torch.dtype:
        """Type of the values that the stage gives, from those it takes."""
        return dtype

    # What a user calls.

    def descriptions(self) -> tuple[Stage, ...]:
        """The codec without torch; `thrifty.cost.payload` prices it."""
        return tuple(stage.describe() for stage in self.stages)

    def predicted_bytes(self, shape: Sequence[int], dtype: torch.dtype = torch.float32) -> int:
        """Bytes of the payload of such a tensor; an upper bound where `exact_size` is false."""
        return payload_bytes(self.descriptions(), shape, value_bits=dtype.itemsize * 8)

    def bits_per_value(self, shape: Sequence[int], dtype: torch.dtype = torch.float32) -> float:
        """Bits on the wire a value, header and all; an upper bound where `exact_size` is false."""
        return bits_per_value(self.descriptions(), shape, value_bits=dtype.itemsize * 8)

    def fingerprint(self) -> int:
        """Says which codec made a payload."""
        return zlib.crc32(repr((self.stages, self.descriptions())).encode())

    def encode(self, x: Tensor, *, seed: int = 0) -> Payload:
        """The payload of a float tensor of any shape. The same tensor and seed give the same bytes.

        Raises:
            ThriftyError: not a tensor of fp32, bf16, fp16 or fp64.
        """
        _check_float(x)
        values, parts = x.detach().reshape(-1), []
        for place, stage in enumerate(self.stages):
            values, beside = stage.forward(values, x.shape, _stage_seed(seed, place))
            parts += beside
        return Payload((*parts, values.contiguous().view(torch.uint8)), x.numel(), self.fingerprint(), seed)

    def decode(self, payload: Payload, like: Tensor) -> Tensor:
        """The tensor, with shape, dtype and device of `like`.

        Raises:
            ThriftyError: the payload is of another codec or tensor, or broken.
        """
        _check_float(like)
        if payload.codec != self.fingerprint():
            raise ThriftyError("made by another codec", where=WHERE, hint=f"this one is {self!r}, on both sides")
        if payload.numel != like.numel():
            raise ThriftyError(f"holds {payload.numel} values, asked for {like.numel()}", where=WHERE)
        counts, dtypes, shares = self._layout(like)
        if len(payload.parts) != sum(shares) + 1:
            raise ThriftyError(f"{len(payload.parts)} parts, {sum(shares) + 1} expected", where=WHERE)
        *beside, last = (part.to(like.device) for part in payload.parts)
        values = last if dtypes[-1] == torch.uint8 else _floats(last, counts[-1], dtypes[-1])
        for place in reversed(range(len(self.stages))):
            share = shares[place]
            mine, beside = beside[len(beside) - share :], beside[: len(beside) - share]
            seed = _stage_seed(payload.seed, place)
            values = self.stages[place].inverse(values, mine, counts[place], dtypes[place], like.shape, seed)
        return values.view(like.shape)

    def _layout(self, like: Tensor) -> tuple[list[int], list[torch.dtype], list[int]]:
        """Number and type of the values before each stage and after the last, and parts beside each stage."""
        counts, dtypes, shares = [like.numel()], [like.dtype], []
        for stage in self.stages:
            size = after(stage.describe(), counts[-1], dtypes[-1].itemsize * 8, like.shape)
            counts.append(size.values)
            dtypes.append(stage.stage_dtype(dtypes[-1]))
            shares.append(len(size.beside))
        return counts, dtypes, shares


@dataclass(frozen=True)
class Chain(Codec):
    """Several stages as one codec; made by `chain`."""

    links: tuple[Codec, ...]

    @property
    def stages(self) -> tuple[Codec, ...]:
        return self.links

    @property
    def exact_size(self) -> bool:  # type: ignore[override]
        return all(stage.exact_size for stage in self.links)

    @property
    def linear(self) -> bool:  # type: ignore[override]
        return all(stage.linear for stage in self.links)

    @property
    def unbiased(self) -> bool:  # type: ignore[override]
        return all(stage.unbiased for stage in self.links)

    def contraction(self, numel: int) -> float:
        """Product over stages: an error of a later stage adds to what an earlier one dropped, never to more."""
        product, values = 1.0, numel
        for stage in self.links:
            product *= stage.contraction(values)
            values = after(stage.describe(), values, 32).values
        return product


@dataclass(frozen=True)
class Identity(Codec):
    """The values as they are, bit for bit."""

    linear = True
    unbiased = True

    @property
    def stages(self) -> tuple[Codec, ...]:
        return ()

    def contraction(self, numel: int) -> float:
        return 1.0


def chain(*codecs: Codec) -> Codec:
    """The codecs one after the other: each encodes what the one before it hands on.

    Raises:
        ThriftyError: a codec that works on floats behind one that gives bytes, or one that needs the matrix behind
            another.
    """
    links = tuple(stage for codec in codecs for stage in codec.stages)
    for before, behind in pairwise(links):
        if behind.takes_floats and not before.gives_floats:
            raise ThriftyError(
                f"{type(behind).__name__} cannot follow {type(before).__name__}, which leaves bytes",
                hint="the order is: what leaves values out, then what shortens them, then Zstd",
            )
        if getattr(behind, "needs_matrix", False):
            raise ThriftyError(f"{type(behind).__name__} can only be the first of a chain: it needs the tensor's shape")
    if len(links) == 1:
        return links[0]
    return Chain(links) if links else Identity()


def _stage_seed(seed: int, place: int) -> int:
    """Stages draw independently of each other, and a stage alone as the first of a chain."""
    return (seed + place * 0x9E3779B97F4A7C15) & 0xFFFFFFFFFFFFFFFF


def _check_float(x: Tensor) -> None:
    if x.dtype not in FLOATS:
        raise ThriftyError(f"only float tensors are encoded, not {x.dtype}", hint="convert it first: x.float()")


def _floats(data: Tensor, count: int, dtype: torch.dtype) -> Tensor:
    if data.numel() != count * dtype.itemsize:
        raise ThriftyError(f"{data.numel()} bytes of values, {count * dtype.itemsize} expected", where=WHERE)
    # A piece of a buffer need not begin where a float may; a copy does, and does not keep the buffer alive.
    return data.clone().view(dtype)
