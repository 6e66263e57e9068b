"""Quantise and dequantise tensors of any shape, in blocks that share a scale."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from thrifty.cost.payload import block_bytes, tail_block
from thrifty.quant.fuse import COMPILE_FROM, can_compile
from thrifty.quant.kernels import compiled_decode, compiled_encode, decode_rows, encode_rows
from thrifty.quant.rounding import row_keys
from thrifty.spec.errors import ThriftyError
from thrifty.spec.formats import BlockFormat, block_format

TILE = 1 << 16  # values that go through uncompiled kernels together: they stay in a core's cache
Rounding = Literal["nearest", "stochastic"]


@dataclass(frozen=True)
class Quantised:
    """Codes and scales of a tensor; `numel` values, flattened."""

    codes: Tensor  # uint8, flat
    scales: Tensor  # bfloat16, flat
    format: BlockFormat
    block: int
    numel: int

    @property
    def nbytes(self) -> int:
        """Bytes of codes and scales."""
        return self.codes.nbytes + self.scales.nbytes


def quantise(
    x: Tensor,
    form: int | str | BlockFormat,
    *,
    block: int | None = None,
    rounding: Rounding = "nearest",
    seed: int = 0,
    first_block: int = 0,
    compiled: bool | None = None,
) -> Quantised:
    """Blocks of `x`, read in its own order, as codes and scales. The last block holds what is left, filled up to 8.

    Args:
        form: a format, its name, or bits (8 int8, 4 int4, 3 lloyd3, 2 means2, 1 sign).
        block: values that share scales, a multiple of 8; the format's own by default.
        rounding: stochastic is unbiased, and only for formats with equal steps; its draws depend on `seed` and on the
            place of a value in the tensor alone.
        first_block: place of the first block of `x` in the whole tensor, where `x` is a piece of one.
        compiled: fused kernels; by default for tensors large enough, where a compiler is found. Formats scaled by the
            maximum give the same bits either way; means may differ in the last bit of a scale.

    Raises:
        ThriftyError: not a float tensor, no such format, a block that is no multiple of 8, a rounding that the format
            does not have.
    """
    form = block_format(form)
    block = block or form.block
    _check(x, form, block, rounding)
    flat = x.detach().reshape(-1)
    if flat.dtype == torch.float64:
        flat = flat.float()
    whole, rest = divmod(flat.numel(), block)
    keys = row_keys(whole + 1, first_block, seed, x.device) if rounding == "stochastic" else None
    parts = []
    if whole:
        rows = flat[: whole * block].view(whole, block)
        parts.append(_encode(rows, form, None if keys is None else keys[:whole], compiled))
    if rest:
        row = flat.new_zeros(1, tail_block(rest))
        row[0, :rest] = flat[whole * block :]
        parts.append(encode_rows(row, form, None if keys is None else keys[whole:]))
    if not parts:
        empty = torch.empty(0, device=x.device)
        return Quantised(empty.to(torch.uint8), empty.to(torch.bfloat16), form, block, 0)
    scales, codes = (_joined([part[side] for part in parts]) for side in (0, 1))
    return Quantised(codes, scales, form, block, flat.numel())


def dequantise(q: Quantised, dtype: torch.dtype = torch.float32, *, compiled: bool | None = None) -> Tensor:
    """The `numel` values that the codes stand for, flat.

    Raises:
        ThriftyError: codes or scales that are not as many as so many values have.
    """
    form, block = q.format, q.block
    code_bytes, scale_bytes = block_bytes(q.numel, form, block)
    if q.codes.numel() != code_bytes or q.scales.numel() * 2 != scale_bytes:
        raise ThriftyError(
            f"{q.numel} values in {form.name} blocks of {block} have {code_bytes} bytes of codes and {scale_bytes} of "
            f"scales, not {q.codes.numel()} and {q.scales.numel() * 2}",
        )
    whole, rest = divmod(q.numel, block)
    inner = dtype if dtype != torch.float64 else torch.float32
    cut = whole * block * form.bits // 8
    parts = []
    if whole:
        scales = q.scales[: whole * form.scales].view(whole, form.scales)
        parts.append(_decode(scales, q.codes[:cut].view(whole, -1), form, block, inner, compiled).reshape(-1))
    if rest:
        scales = q.scales[whole * form.scales :].view(1, form.scales)
        last = decode_rows(scales, q.codes[cut:].view(1, -1), form, tail_block(rest), inner)
        parts.append(last.reshape(-1)[:rest])
    return (_joined(parts) if parts else torch.empty(0, dtype=inner, device=q.codes.device)).to(dtype)


def _joined(parts: list[Tensor]) -> Tensor:
    return parts[0].reshape(-1) if len(parts) == 1 else torch.cat([part.reshape(-1) for part in parts])


def _fused(rows: Tensor, values: int, form: BlockFormat, compiled: bool | None) -> bool:
    if form.kind == "lattice":
        return False  # its inner loops are; the whole takes a minute to compile, and computes everything eight times
    if compiled is None:
        compiled = values >= COMPILE_FROM and rows.device.type in ("cpu", "cuda") and can_compile(rows.device.type)
    return compiled and rows.shape[0] > 1


def _encode(rows: Tensor, form: BlockFormat, keys: Tensor | None, compiled: bool | None) -> tuple[Tensor, Tensor]:
    if not _fused(rows, rows.numel(), form, compiled):
        many = max(1, TILE // rows.shape[1])
        pieces = zip(
            rows.split(many), [None] * -(-len(rows) // many) if keys is None else keys.split(many), strict=True
        )
        scales, codes = zip(*(encode_rows(piece, form, some) for piece, some in pieces), strict=True)
        return torch.cat(scales), torch.cat(codes)
    torch._dynamo.mark_dynamic(rows, 0)  # else every number of rows would be compiled anew
    if keys is None:
        return compiled_encode(form, False)(rows)
    torch._dynamo.mark_dynamic(keys, 0)
    return compiled_encode(form, True)(rows, keys)


def _decode(
    scales: Tensor, codes: Tensor, form: BlockFormat, block: int, dtype: torch.dtype, compiled: bool | None
) -> Tensor:
    if not _fused(codes, scales.shape[0] * block, form, compiled):
        return decode_rows(scales, codes, form, block, dtype)
    torch._dynamo.mark_dynamic(scales, 0)
    torch._dynamo.mark_dynamic(codes, 0)
    return compiled_decode(form, block, dtype)(scales, codes)


def _check(x: Tensor, form: BlockFormat, block: int, rounding: str) -> None:
    if not x.dtype.is_floating_point:
        raise ThriftyError(f"only float tensors are quantised, not {x.dtype}", hint="convert it first: x.float()")
    if block < 8 or block % 8:
        raise ThriftyError(f"a block of {block} values", hint=f"blocks are multiples of 8, e.g. {form.block}")
    if rounding not in ("nearest", "stochastic"):
        raise ThriftyError(f"no rounding {rounding!r}", hint="valid choices: nearest, stochastic")
    if rounding == "stochastic" and form.kind != "uniform":
        raise ThriftyError(
            f"{form.name} has no stochastic rounding: its steps are unequal",
            hint="use int8, int4 or uniform, or round to nearest",
        )
