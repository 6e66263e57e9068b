"""One step of an elementwise rule over tensors: in plain C on CPUs, fused on GPUs, or as it is written.

The functions here are what is meant; native.c does the same to the bit, but for numbers below 2^-126, which it takes
for zeros.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor

from thrifty.cost.payload import tail_block
from thrifty.optim import native
from thrifty.optim.native import CHUNK
from thrifty.optim.rules import Rule
from thrifty.quant.fuse import COMPILE_FROM, can_compile, fused
from thrifty.quant.kernels import decode_rows
from thrifty.quant.rounding import dithered_bfloat16
from thrifty.quant.states import inverse, state_codes, state_scales
from thrifty.spec.formats import BlockFormat

Formats = tuple[BlockFormat, ...]
# Moments are computed again for each of their readers: less work than to write them to memory and read them back.
OPTIONS = {"realize_opcount_threshold": 2000, "realize_reads_threshold": 1000}


def _moments(p: Tensor, g: Tensor, kept: list[Tensor], h: Tensor, rule: Rule, forms: Formats) -> tuple:
    """Parameter and gradient in fp32, old moments and new ones, of rows."""
    p, g = p.float(), g.float()
    pairs = zip(kept[::2], kept[1::2], forms, strict=True)
    old = [decode_rows(scales, codes, form, p.shape[1], torch.float32) for codes, scales, form in pairs]
    return p, g, old, rule.advance(p, g, old, h)


def new_scales(
    p: Tensor, g: Tensor, kept: list[Tensor], h: Tensor, rule: Rule, forms: Formats
) -> tuple[list[Tensor], list[Tensor]]:
    """Scales (rows, 1) of the moments after this step, and their inverses."""
    new = _moments(p, g, kept, h, rule, forms)[3]
    scales = [state_scales(moment, form) for moment, form in zip(new, forms, strict=True)]
    return scales, [inverse(scale) for scale in scales]


def move_rows(
    p: Tensor, g: Tensor, kept: list[Tensor], inverses: list[Tensor], u: Tensor, h: Tensor, rule: Rule, forms: Formats
) -> None:
    """Moves the parameter and writes the new codes, in place."""
    rows, g, old, new = _moments(p, g, kept, h, rule, forms)
    write(p, rule.move(rows, g, old, new, h), u[-1])
    for codes, moment, inv, draw, form in zip(kept[::2], new, inverses, u[:-1], forms, strict=True):
        codes.copy_(state_codes(moment, inv, draw, form))


def write(p: Tensor, moved: Tensor, u: Tensor) -> None:
    """Stores a parameter. In bfloat16 by chance: nearest, a step below 2^-9 of a weight would never move it."""
    p.copy_(dithered_bfloat16(moved, u) if p.dtype == torch.bfloat16 else moved)


@cache
def _fused_kernels(rule: Rule, forms: Formats, p: torch.dtype, g: torch.dtype):
    name = f"{rule.name}_{'_'.join(form.name for form in forms)}_{p}_{g}"
    return (
        fused(lambda p, g, kept, h: new_scales(p, g, kept, h, rule, forms), f"scales_{name}", OPTIONS),
        fused(lambda p, g, kept, inv, u, h: move_rows(p, g, kept, inv, u, h, rule, forms), f"move_{name}", OPTIONS),
    )


def step_rows(
    p: Tensor, g: Tensor, kept: list[Tensor], u: Tensor, h: Tensor, rule: Rule, forms: Formats, compiled: bool
) -> None:
    """A step of rows (rows, block), in place. `kept` are codes and scales of each moment, by rows."""
    if not compiled:
        scales, inverses = new_scales(p, g, kept, h, rule, forms)
        move_rows(p, g, kept, inverses, u, h, rule, forms)
    else:
        measure, move = _fused_kernels(rule, forms, p.dtype, g.dtype)
        for tensor in (p, g, *kept):
            torch._dynamo.mark_dynamic(tensor, 0)  # else every number of rows would be compiled anew
        scales, inverses = measure(p, g, kept, h)
        for tensor in inverses:
            torch._dynamo.mark_dynamic(tensor, 0)
        move(p, g, kept, inverses, u, h)
    for old, scale in zip(kept[1::2], scales, strict=True):
        old.copy_(scale)


def step_flat(
    p: Tensor, g: Tensor, kept: list[Tensor], u: Tensor, h: Tensor, rule: Rule, forms: Formats, compiled: bool | None
) -> None:
    """A step of a flat tensor, in place: whole blocks, then what is left, as `thrifty.quant.quantise` cuts them.

    Args:
        kept: codes and scales of each moment.
        u: (moments + 1, block), what codes and bfloat16 are rounded by.
        compiled: in C on CPUs, fused elsewhere; by default where that is possible, and the tensor large enough.
    """
    if compiled is not False and native.takes(p, g):
        native.step(rule, [(p, g, kept)], forms, u, h)
        return
    block = forms[0].block
    whole, rest = divmod(p.numel(), block)
    compiled = p.device.type == "cuda" and compiled is not False and p.numel() >= COMPILE_FROM and can_compile("cuda")
    ways = [form.bits for form in forms]
    if whole:
        views = [
            view
            for codes, scales, bits in zip(kept[::2], kept[1::2], ways, strict=True)
            for view in (codes[: whole * block * bits // 8].view(whole, -1), scales[:whole].view(whole, 1))
        ]
        cut = whole * block
        step_rows(
            p[:cut].view(whole, block), g[:cut].view(whole, block), views, u, h, rule, forms, compiled and whole > 1
        )
    if rest:
        size = tail_block(rest)
        last_p, last_g = p.new_zeros(1, size), g.new_zeros(1, size)
        last_p[0, :rest], last_g[0, :rest] = p[whole * block :], g[whole * block :]
        views = [
            view
            for codes, scales, bits in zip(kept[::2], kept[1::2], ways, strict=True)
            for view in (codes[whole * block * bits // 8 :].view(1, -1), scales[whole:].view(1, 1))
        ]
        step_rows(last_p, last_g, views, u[:, :size], h, rule, forms, False)
        p[whole * block :] = last_p[0, :rest]


def step_floats(
    params: Sequence[Tensor], gradients: Sequence[Tensor], moments: Sequence[Sequence[Tensor]], u: Tensor, h: Tensor,
    rule: Rule, compiled: bool | None,
) -> None:  # fmt: skip
    """A step, in place, of tensors of one dtype whose moments are floats of one dtype: all in one call, or as one.

    Args:
        moments: for each moment of the rule its tensors.
        u: (moments + 1, CHUNK), by which what is bfloat16 is rounded, again and again along each tensor.
        compiled: in C, which is the default on CPUs.
    """
    every = list(zip(params, gradients, *moments, strict=True))
    if compiled is not False and native.takes(params[0], gradients[0]):
        flats = [[t.detach().reshape(-1) for t in some] for some in every]
        native.step(rule, [(flat[0], flat[1], flat[2:]) for flat in flats], None, u, h)
        for some, flat in zip(every, flats, strict=True):
            for tensor, done in zip((some[0], *some[2:]), (flat[0], *flat[2:]), strict=True):
                if done.data_ptr() != tensor.data_ptr():  # not contiguous: that was a copy
                    tensor.copy_(done.view(tensor.shape))
        return
    sizes = [p.numel() for p in params]
    p, g, *old = (torch.cat([t.reshape(-1) for t in some]).float() for some in (params, gradients, *moments))
    new = rule.advance(p, g, old, h)
    moved = rule.move(p, g, old, new, h)
    for draws, targets, values in zip((u[-1], *u), (params, *moments), (moved, *new), strict=False):
        if targets[0].dtype == torch.bfloat16:
            many = -(-max(sizes) // CHUNK)
            values = dithered_bfloat16(values, torch.cat([draws.repeat(many)[:size] for size in sizes]))
        pieces = [piece.view(t.shape) for piece, t in zip(values.split(sizes), targets, strict=True)]
        torch._foreach_copy_(list(targets), pieces)
