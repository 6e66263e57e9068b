"""16-bit floats on the wire: the baseline that every other codec has to beat."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from thrifty.compress.codec import Codec
from thrifty.spec.codec import CAST_FORMATS, CastStage
from thrifty.spec.errors import ThriftyError, did_you_mean

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Cast(Codec):
    """Values rounded to the nearest bf16 or fp16. What is finite stays finite: it saturates; inf and nan stay.

    A sum of payloads taken in 16 bits rounds once an addition, so that it is near the sum of the decoded values and not
    equal to it: `linear` is false. With an all-to-all, decode first and add in fp32. fp16 has no numbers below 6e-8,
    and promises nothing of tiny gradients without a loss scale. Zstd may follow, and takes byte planes.

    Raises:
        ThriftyError: no such format.
    """

    format: str

    def __post_init__(self) -> None:
        if self.format not in CAST_FORMATS:
            raise ThriftyError(f"no 16-bit format {self.format!r}", hint=did_you_mean(self.format, list(CAST_FORMATS)))

    def describe(self) -> CastStage:
        return CastStage(self.format)

    def stage_dtype(self, dtype: torch.dtype) -> torch.dtype:
        return DTYPES[self.format]

    def contraction(self, numel: int) -> float:
        """bf16 has 8 significant bits: an error of at most 2^-9 of a value, or twice that where the last saturate."""
        return 1 - 2.0**-16 if self.format == "bf16" else 0.0

    def forward(self, values: Tensor, shape: Sequence[int], seed: int) -> tuple[Tensor, tuple[Tensor, ...]]:
        dtype = DTYPES[self.format]
        most = torch.finfo(dtype).max
        low, high = values.aminmax() if values.numel() else (0.0, 0.0)
        if -most <= low and high <= most:  # false for nan
            return values.to(dtype), ()
        short = torch.where(values.isfinite(), values.clamp(-most, most), values).to(dtype)
        return short, ()

    def inverse(
        self, values: Tensor, beside: Sequence[Tensor], count: int, dtype: torch.dtype, shape: Sequence[int], seed: int
    ) -> Tensor:
        return values.to(dtype)
