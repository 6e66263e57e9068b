"""Optimizer states as checkpoints keep them: moments in fp32, whatever their width, so that any layout can read them.

Beside them go the scales of all blocks that a rank has, 0.8% more: encoded with its own scale a block comes back bit by
bit, so that a run that goes on where it was saved goes on in the same numbers. Where blocks are cut elsewhere, or have
another width, scales are made anew.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from thrifty.cost.payload import tail_block
from thrifty.optim.base import Base
from thrifty.optim.sharded import local
from thrifty.optim.together import Together
from thrifty.optim.travel import like_parameter, moment_of
from thrifty.quant import Quantised, dequantise, quantise
from thrifty.quant.states import inverse, state_codes
from thrifty.spec.formats import BlockFormat

State = dict[str, Any]


def stored_states(optimizer: torch.optim.Optimizer) -> Iterator[tuple[Tensor, State]]:
    """Each parameter with its state: moments in blocks are decoded, everything else are the tensors themselves."""
    for one, p, state in _states(optimizer):
        blocks = _blocks(one, p)
        if not blocks:
            yield p, state
            continue
        told = {name: value for name, value in state.items() if not name.endswith("_scale")}
        for name in blocks:
            assert isinstance(one, Base)
            told[name] = like_parameter(moment_of(state, name, one.kind[name], local(p)), p)
        yield p, told


def stored_scales(optimizer: torch.optim.Optimizer) -> Tensor | None:
    """Scales of all blocks on this rank, flat; none without blocks."""
    scales = [state[name + "_scale"] for one, p, state in _states(optimizer) for name in _blocks(one, p)]
    return torch.cat(scales) if scales else None


def take_states(optimizer: torch.optim.Optimizer, values: dict[Tensor, State], scales: Tensor | None) -> None:
    """Takes over what was stored, into states that exist already.

    Args:
        values: by parameter, as `stored_states` gives them, filled since.
        scales: as `stored_scales` gave them where they were stored; none where they are not to be had.
    """
    at = 0
    for one, p, state in _states(optimizer):
        for name, form in _blocks(one, p).items():
            moment = local(values[p][name])
            kept = state[name + "_scale"]
            old = None if scales is None else scales[at : at + kept.numel()]
            at += kept.numel()
            q = _encoded(moment.reshape(-1), form, old)
            state[name].copy_(q.codes)
            kept.copy_(q.scales)


def _states(optimizer: torch.optim.Optimizer) -> Iterator[tuple[torch.optim.Optimizer, Tensor, State]]:
    """Parameters that have a state, in the order of groups."""
    for one in optimizer.optimizers if isinstance(optimizer, Together) else (optimizer,):
        for group in one.param_groups:
            for p in group["params"]:
                if p in one.state:
                    yield one, p, one.state[p]


def _blocks(optimizer: torch.optim.Optimizer, p: Tensor) -> dict[str, BlockFormat]:
    """Moments of a parameter that are kept in blocks, and their formats."""
    forms = optimizer.formats_of(p) if isinstance(optimizer, Base) else None
    return dict(zip(optimizer.kind, forms, strict=True)) if forms else {}  # type: ignore[attr-defined]


def _encoded(x: Tensor, form: BlockFormat, scales: Tensor | None) -> Quantised:
    """Codes by the scales that the values had, if these are theirs; else by new ones."""
    if scales is not None:
        codes = _codes(x, form, scales)
        q = Quantised(codes, scales, form, form.block, x.numel())
        if torch.equal(dequantise(q), x):
            return q
    return quantise(x, form)


def _codes(x: Tensor, form: BlockFormat, scales: Tensor) -> Tensor:
    """The nearest codes of flat values, in blocks of given scales."""
    whole, rest = divmod(x.numel(), form.block)
    half, inverses = torch.tensor(0.5, device=x.device), inverse(scales.float())[:, None]
    parts = []
    if whole:
        parts.append(state_codes(x[: whole * form.block].view(whole, -1), inverses[:whole], half, form).reshape(-1))
    if rest:
        last = x.new_zeros(1, tail_block(rest))
        last[0, :rest] = x[whole * form.block :]
        parts.append(state_codes(last, inverses[whole:], half, form).reshape(-1))
    return torch.cat(parts)
