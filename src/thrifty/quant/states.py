"""Values that are decoded, moved a little and encoded again thousands of times: what optimizers keep.

Rounded to the nearest code, a value that should move by less than half a step stays where it is: the mean of squares
under a decay of 0.999 would never fall. So a code is floor(x / scale + u), with u equally spread in [0, 1) over time:
on the average nothing is lost. Between levels of unequal distance it is the share of the way to the next one that u is
added to. Scales are rounded up, so that the largest value of a block is not clipped.

Two kernels, for a scale must be known before codes are made: `state_scales` reads a row, `state_codes` writes it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from thrifty.quant.kernels import SMALLEST, square_codes, stored_above
from thrifty.quant.packing import pack
from thrifty.spec.formats import BlockFormat

# Steps of u over time, columns and states: quadratic irrationals, so that multiples of each fill [0, 1) evenly.
OVER_TIME, OVER_COLUMNS, OVER_STATES = 0.6180339887498949, 0.7320508075688772, 0.4142135623730951


def dither(step: int, columns: int, states: int, device: torch.device | str = "cpu") -> Tensor:
    """u (states, columns) of a step, in [0, 1 - 2^-12]: of step and column alone, so that any layout agrees."""
    column = torch.arange(columns, dtype=torch.float64)
    state = torch.arange(states, dtype=torch.float64)[:, None]
    u = (step * OVER_TIME + column * OVER_COLUMNS + state * OVER_STATES) % 1.0
    # A little below 1, else the largest value plus u could round to the code above the last.
    return (u * (1 - 2.0**-12)).float().to(device)  # (states, columns)


def state_scales(x: Tensor, form: BlockFormat) -> Tensor:
    """Scales (rows, 1) of fp32 rows, as bfloat16 will hold them: 0 of rows without use, nan of broken ones."""
    top = x.abs().amax(1, keepdim=True)
    top = top.sqrt() if form.kind == "root" else top
    sound = top < float("inf")
    scale = stored_above(torch.where(sound, top, 1.0) * (1 / form.top), form.top)
    return torch.where(sound, torch.where(top >= SMALLEST, scale, 0.0), float("nan"))


def inverse(scales: Tensor) -> Tensor:
    """What rows are multiplied by to become codes."""
    return 1 / torch.where(scales > 0, scales, 1.0)


def state_codes(x: Tensor, inverses: Tensor, u: Tensor, form: BlockFormat) -> Tensor:
    """Packed codes of fp32 rows (rows, columns), in a format of kind `uniform`, `root` or `square`."""
    if form.kind == "square":
        return pack(square_codes(x, inverses, u, form), form.bits)
    # Roots begin at level 1: a code above -1 is the lowest one without the fraction that bytes drop.
    codes = x.sqrt() * inverses + (u - 1) if form.kind == "root" else x * inverses + (u + (form.top + 1))
    return pack(codes.trunc() if form.bits < 8 else codes, form.bits)
