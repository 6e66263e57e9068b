"""Block formats as a codec."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from thrifty.compress.codec import Codec
from thrifty.compress.payload import WHERE
from thrifty.cost.payload import block_bytes
from thrifty.quant import BlockFormat, Quantised, block_format, dequantise, quantise
from thrifty.quant.blockwise import Rounding
from thrifty.quant.kernels import SHRINK
from thrifty.spec.codec import BlocksStage
from thrifty.spec.errors import ThriftyError


@dataclass(frozen=True)
class Blockwise(Codec):
    """Values in blocks that share a scale.

    Args:
        format: bits (8 int8, 4 int4, 3 lloyd3, 2 means2, 1 sign), a name, or a format, e.g. `uniform(0.5)`.
        block: values a scale; the format's own by default.
        rounding: stochastic makes int8, int4 and uniform unbiased. Nearest has half the error, and is right with
            error feedback.
    """

    format: int | str | BlockFormat
    block: int | None = None
    rounding: Rounding = "nearest"
    gives_floats = False

    def __post_init__(self) -> None:
        # A mistake should show where it is made, not at the first gradient.
        quantise(torch.empty(0), self.format, block=self.block, rounding=self.rounding)

    @property
    def unbiased(self) -> bool:  # type: ignore[override]
        return self.rounding == "stochastic" and not block_format(self.format).step

    def describe(self) -> BlocksStage:
        form = block_format(self.format)
        return BlocksStage(form, self.block or form.block)

    def stage_dtype(self, dtype: torch.dtype) -> torch.dtype:
        return torch.uint8

    def contraction(self, numel: int) -> float:
        return 0.0 if self.rounding == "stochastic" else contraction_of(self.describe())

    def forward(self, values: Tensor, shape: Sequence[int], seed: int) -> tuple[Tensor, tuple[Tensor, ...]]:
        q = quantise(values, self.format, block=self.block, rounding=self.rounding, seed=seed)
        return q.codes, (q.scales.view(torch.uint8),)

    def inverse(
        self, values: Tensor, beside: Sequence[Tensor], count: int, dtype: torch.dtype, shape: Sequence[int], seed: int
    ) -> Tensor:
        stage = self.describe()
        codes, scales = block_bytes(count, stage.format, stage.block)
        if values.numel() != codes or beside[0].numel() != scales:
            told = f"{values.numel()} bytes of codes and {beside[0].numel()} of scales, {codes} and {scales} expected"
            raise ThriftyError(told, where=WHERE)
        parts = values.contiguous(), beside[0].clone().view(torch.bfloat16)
        return dequantise(Quantised(*parts, stage.format, stage.block, count), dtype)


def contraction_of(stage: BlocksStage) -> float:
    """The worst block of a format, rounded to nearest.

    uniform: the maximum is met; others err by at most half a step and at most themselves: 1 - B / (4 top^2 + B).
    uniform in steps of c rms: c^2/4 of the energy, and the clipped part of one value that holds all of it. lattice: the
    same, since no point is further than sqrt(2) from one of D8, which is c^2/4 a value.
    float: half the distance of floats, relative. levels, means, sign: the fit along one vector of signs and levels,
    which cannot be worse than the angle between a lone value and a block of level ones.
    Scales are rounded to 8 bits, which the margins hold.
    """
    form, block = stage.format, stage.block
    match form.kind:
        case "uniform" | "lattice" if form.step:
            reach = form.top - (form.kind == "lattice")  # the lowest code alone lies one further
            clipped = max(0.0, 1 - reach * form.step / math.sqrt(block) * (1 - 2**-8))
            return max(0.0, 1 - ((0.5 + SHRINK) * form.step) ** 2 * (1 + 2**-7) - clipped**2 - (2 * 2**-8) ** 2)
        case "uniform":
            return 1 - block / (4 * form.top**2 * (1 - 2**-6) + block)
        case "float":
            return 1 - 2.0 ** (-8 if form.name == "fp8_e4m3" else -6) * (1 + 2**-4)
        case "levels":
            return (form.levels[0] / form.levels[-1]) ** 2 / block * (1 - 2**-6)
        case _:
            return (1 - 2**-6) / block
