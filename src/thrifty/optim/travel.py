"""Moments on their way between widths and layouts: into a state dict, and out of any other."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor

from thrifty.cost.payload import block_bytes
from thrifty.quant import Quantised, dequantise, quantise
from thrifty.spec.errors import ThriftyError
from thrifty.spec.formats import FORMATS, ROOT4, ROOT8, SQUARE4, BlockFormat

Kind = dict[str, bool]  # moments, and whether each is a mean of squares
Formats = tuple[BlockFormat, ...]
HIDDEN_BY_BITSANDBYTES = "__bnb_optimizer_quant_state__"  # where it keeps codes out of the sight of FSDP
SIGNED, SQUARES = (FORMATS["int8"], SQUARE4), (ROOT8, ROOT4)


def saved_states(state: dict[str, Any], p: Tensor, kind: Kind) -> dict[str, Any]:
    """What a state dict holds of a parameter: its state as it is, or of a split parameter fp32 DTensors like it."""
    if not isinstance(p, DTensor):
        return state
    told = {name: value for name, value in state.items() if not name.endswith("_scale")}
    for name, square in kind.items():
        if name + "_scale" in state:
            told[name] = _like(moment_of(state, name, square, p.to_local()), p)
    return told


def _like(piece: Tensor, p: DTensor) -> DTensor:
    """This rank's piece as one of a tensor that is split as `p` is."""
    return DTensor.from_local(piece, p.device_mesh, p.placements, shape=p.shape, stride=p.stride(), run_check=False)


def moment_of(state: dict[str, Any], name: str, square: bool, like: Tensor) -> Tensor:
    """A moment in fp32, in the shape of `like`, from codes and scales or as it is.

    Raises:
        ThriftyError: it is missing, or its codes are of no known format.
    """
    if name not in state:
        raise ThriftyError(f"a state without {name}", hint=f"it has {', '.join(state)}: of another optimizer?")
    kept = state[name]
    if name + "_scale" not in state:
        return kept.float()
    scales = state[name + "_scale"]
    form = _form_of(kept, scales, square, like.numel())
    return dequantise(Quantised(kept, scales, form, form.block, like.numel())).view(like.shape)


def _form_of(codes: Tensor, scales: Tensor, square: bool, numel: int) -> BlockFormat:
    for form in SQUARES if square else SIGNED:
        if block_bytes(numel, form, form.block) == (codes.nbytes, scales.nbytes):
            return form
    raise ThriftyError(
        f"{codes.nbytes} bytes of codes and {scales.nbytes} of scales are no moment of {numel} values",
        hint="load the state dict of the same parameters, or of fp32 moments",
    )


def of_bitsandbytes(saved: dict[str, Any], kind: Kind) -> dict[str, Any]:
    """A state of bitsandbytes' blockwise 8-bit optimizers, with fp32 moments by our names; any other as it is.

    A value is the code's entry in a map of 256, times the largest magnitude of its block: arXiv:2110.02861.
    """
    saved = {**saved, **saved.get(HIDDEN_BY_BITSANDBYTES, {})}
    if "state1" not in saved:
        return saved
    read: dict[str, Any] = {"step": saved["step"]}
    for at, name in enumerate(kind, 1):
        codes, tops = saved[f"state{at}"], saved.get(f"absmax{at}")
        if codes.dtype == torch.uint8 and tops is not None:
            flat = saved[f"qmap{at}"][codes.reshape(-1).long()]
            block = next(size for size in (256, 2048, 4096, flat.numel()) if -(-flat.numel() // size) == tops.numel())
            codes = (flat * tops.repeat_interleave(block)[: flat.numel()]).view(codes.shape)
        read[name] = codes
    return read


def load_states(
    saved: dict[str, Any], p: Tensor, kind: Kind, forms: Formats | None, dtype: torch.dtype
) -> dict[str, Any]:  # fmt: skip
    """The state of a parameter in the formats that its optimizer keeps; bit for bit where they are the saved ones."""
    place = p.to_local() if isinstance(p, DTensor) else p
    saved = of_bitsandbytes(saved, kind)
    loaded: dict[str, Any] = {"step": torch.as_tensor(float(saved["step"]))}
    for at, (name, square) in enumerate(kind.items()):
        scales = saved.get(name + "_scale")
        if forms and scales is not None and _form_of(saved[name], scales, square, place.numel()) == forms[at]:
            loaded[name], loaded[name + "_scale"] = (t.to(place.device, copy=True) for t in (saved[name], scales))
            continue
        whole = _piece(moment_of(saved, name, square, place), p).to(place.device)
        if whole.shape != place.shape:
            raise ThriftyError(
                f"{name} of shape {tuple(whole.shape)} for a parameter of shape {tuple(place.shape)}",
                hint="load the state dict of the same parameters, in the same order",
            )
        if forms is None:
            whole = whole.to(dtype, copy=True)
            loaded[name] = _like(whole, p) if isinstance(p, DTensor) else whole
        else:
            q = quantise(whole, forms[at])
            loaded[name], loaded[name + "_scale"] = q.codes, q.scales
    return loaded


def _piece(whole: Tensor, p: Tensor) -> Tensor:
    """This rank's part of a moment that was saved whole, or split in any way."""
    if not isinstance(p, DTensor):
        return whole.full_tensor() if isinstance(whole, DTensor) else whole
    if isinstance(whole, DTensor):
        return whole.redistribute(p.device_mesh, p.placements).to_local()
    if whole.shape == p.shape:
        return distribute_tensor(whole, p.device_mesh, p.placements).to_local()
    return whole
