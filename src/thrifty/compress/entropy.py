"""zstandard on packed codes, and on byte planes of floats: lossless."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from thrifty.compress.codec import Codec
from thrifty.compress.payload import WHERE
from thrifty.spec.codec import ZstdStage
from thrifty.spec.errors import ThriftyError

STORED, SQUEEZED = 0, 1


@dataclass(frozen=True)
class Zstd(Codec):
    """zstandard (RFC 8878), or the bytes as they are where it does not shorten them.

    Codes come within a few hundredths of a bit of their entropy at level 1, at about 1 GB/s a core. Floats are split
    into planes, one of each byte of a value: sign and exponent repeat, mantissas do not.

    Raises:
        ThriftyError: the package `zstandard` is not installed.
    """

    level: int = 1
    exact_size = False
    unbiased = True
    takes_floats = False
    gives_floats = False

    def __post_init__(self) -> None:
        _zstandard()

    def describe(self) -> ZstdStage:
        return ZstdStage(self.level)

    def contraction(self, numel: int) -> float:
        return 1.0

    def stage_dtype(self, dtype: torch.dtype) -> torch.dtype:
        return torch.uint8

    def forward(self, values: Tensor, shape: Sequence[int], seed: int) -> tuple[Tensor, tuple[Tensor, ...]]:
        data = values.contiguous().view(torch.uint8)
        width = values.dtype.itemsize
        if width > 1:
            data = data.view(-1, width).t().contiguous().view(-1)
        squeezed = _zstandard().ZstdCompressor(level=self.level).compress(memoryview(data.cpu().numpy()))
        if len(squeezed) < data.numel():
            body = torch.frombuffer(bytearray(squeezed), dtype=torch.uint8).to(values.device)
            return torch.cat([body.new_full((1,), SQUEEZED), body]), ()
        return torch.cat([data.new_full((1,), STORED), data]), ()

    def inverse(
        self, values: Tensor, beside: Sequence[Tensor], count: int, dtype: torch.dtype, shape: Sequence[int], seed: int
    ) -> Tensor:
        expected = count * dtype.itemsize
        data = self._bytes(values, expected)
        if data.numel() != expected:
            raise ThriftyError(f"{data.numel()} bytes behind zstandard, {expected} expected", where=WHERE)
        if dtype.itemsize > 1:
            data = data.view(dtype.itemsize, -1).t().contiguous().view(-1)
        return data.view(dtype)

    def _bytes(self, values: Tensor, expected: int) -> Tensor:
        if not values.numel() or values[0] not in (STORED, SQUEEZED):
            raise ThriftyError("broken where it should say how it is stored", where=WHERE)
        if values[0] == STORED:
            return values[1:].clone()
        zstandard = _zstandard()
        frame = memoryview(values[1:].cpu().contiguous().numpy())
        try:
            # Asked first: a broken length would be believed, and as much memory taken.
            if zstandard.frame_content_size(frame) != expected:
                raise ThriftyError(f"broken: its frame does not hold {expected} bytes", where=WHERE)
            data = zstandard.ZstdDecompressor().decompress(frame, allow_extra_data=False)
        except zstandard.ZstdError as error:
            raise ThriftyError(f"broken: {error}", where=WHERE) from error
        return torch.frombuffer(bytearray(data), dtype=torch.uint8).to(values.device) if data else values[:0]


def _zstandard():
    try:
        import zstandard
    except ImportError as error:
        raise ThriftyError("Zstd needs the package zstandard", hint="pip install 'thrifty[train]'") from error
    return zstandard
