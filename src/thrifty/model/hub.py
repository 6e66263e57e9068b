"""Hugging Face folders (config.json and safetensors, sharded ones too) in and out. Pickled weights are never read."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Literal

import torch
import torch.distributed as dist
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.distributed.tensor import DTensor

from thrifty.catalog.hf_config import config_from_shape, read_shape
from thrifty.model.hub_names import Stored, stored_tensors
from thrifty.model.initialise import held
from thrifty.model.transformer import Transformer
from thrifty.spec.errors import ThriftyError
from thrifty.spec.job import ModelShape
from thrifty.spec.load import read_json

INDEX = "model.safetensors.index.json"
WHOLE = "model.safetensors"
_BASE = {"gpt2": "transformer."}  # prefix of the trunk's tensors; "model." elsewhere
_NOT_WEIGHTS = (".attn.bias", ".attn.masked_bias", ".rotary_emb.inv_freq")  # buffers that old checkpoints carry


def load_pretrained(
    folder: str | Path,
    *,
    precision: Literal["fp32", "bf16"] = "fp32",
    recompute: Literal["none", "selective", "full"] = "none",
    dtype: torch.dtype = torch.float32,
) -> Transformer:
    """The model of a Hugging Face folder, on the host.

    Args:
        folder: with config.json and model.safetensors, or several safetensors files and their index.
        precision: as `Transformer`.
        recompute: as `Transformer`.
        dtype: of the parameters.

    Raises:
        ThriftyError: an unknown architecture or setting, no safetensors, or tensors missing, left over or mis-shaped.
    """
    folder = Path(folder)
    with torch.device("meta"):
        model = Transformer(read_shape(folder / "config.json"), precision=precision, recompute=recompute)
    model = model.to(dtype).to_empty(device="cpu")
    load_weights(model, folder)
    return model


@torch.no_grad()
def load_weights(model: Transformer, folder: str | Path) -> None:
    """Fills a model, sharded or not, from a Hugging Face folder, one tensor at a time; each rank keeps its part.

    Raises:
        ThriftyError: as `load_pretrained`.
    """
    folder = Path(folder)
    parameters = dict(model.named_parameters())
    stored = list(stored_tensors(model.shape))
    with ExitStack() as stack:
        files = _open_all(folder, stack)
        _check_names(folder, files, stored, model.shape)
        for tensor in stored:
            file, name = files[tensor.name]
            full = file.get_tensor(name)
            full = full.t() if tensor.transposed and full.dim() == 2 else full
            if tensor.parts[0] not in parameters:  # only a bias can be: see `hf_config.family_for`
                if full.any():
                    raise ThriftyError(f"tensor {name} is not zero, but the model has no biases", where=str(folder))
                continue
            targets = [parameters[part] for part in tensor.parts]
            wanted = (sum(t.shape[0] for t in targets), *targets[0].shape[1:])
            if tuple(full.shape) != wanted:
                has, needs = (list(reversed(s)) if tensor.transposed else list(s) for s in (full.shape, wanted))
                raise ThriftyError(f"tensor {name} has shape {has}; config.json makes it {needs}", where=str(folder))
            for target, part in zip(targets, full.split([t.shape[0] for t in targets]), strict=True):
                local = target.to_local() if isinstance(target, DTensor) else target
                local.copy_(part[held(target)])


def _open_all(folder: Path, stack: ExitStack) -> dict[str, tuple[Any, str]]:
    """Opens every safetensors file: name without prefix to (open file, name in it)."""
    if (folder / INDEX).is_file():
        weight_map = read_json(folder / INDEX).get("weight_map", {})
        paths = sorted({folder / Path(str(name)).name for name in weight_map.values()})
    else:
        paths = [folder / WHOLE]
    found: dict[str, tuple[Any, str]] = {}
    for path in paths:
        if not path.is_file():
            raise _no_weights(folder, path)
        try:
            file = stack.enter_context(safe_open(path, framework="pt"))
        except (SafetensorError, OSError) as error:
            hint = "it is truncated or damaged: fetch it again"
            raise ThriftyError(f"not a readable safetensors file ({error})", where=str(path), hint=hint) from None
        found |= {name.removeprefix("transformer.").removeprefix("model."): (file, name) for name in file.keys()}  # noqa: SIM118
    return found


def _no_weights(folder: Path, path: Path) -> ThriftyError:
    pickled = sorted(p.name for p in folder.glob("*.bin")) + sorted(p.name for p in folder.glob("*.pt*"))
    if not pickled:
        return ThriftyError(f"no {path.name}", where=str(folder), hint="is this the folder of a model?")
    hint = (
        'convert it once, where you trust it:\n  python -c "from transformers import AutoModelForCausalLM as M; '
        f"M.from_pretrained('{folder}').save_pretrained('{folder}')\""
    )
    what = f"holds {pickled[0]} but no {path.name}; pickled weights can run code when opened and are not read"
    return ThriftyError(what, where=str(folder), hint=hint)


def _check_names(folder: Path, files: Iterable[str], stored: list[Stored], shape: ModelShape) -> None:
    present = {name for name in files if not name.endswith(_NOT_WEIGHTS)}
    wanted = {tensor.name for tensor in stored}
    missing, extra = sorted(wanted - present), sorted(present - wanted)
    if shape.tied_embeddings and "lm_head.weight" in extra:
        extra.remove("lm_head.weight")
    for what, names in (("missing", missing), ("in the files but not in the model of config.json", extra)):
        if names:
            listed = ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")
            raise ThriftyError(f"{len(names)} tensors are {what}: {listed}", where=str(folder))


def save_pretrained(
    model: Transformer, folder: str | Path, *, dtype: torch.dtype | None = None, max_file_bytes: int = 5_000_000_000
) -> None:
    """Writes config.json and safetensors that `transformers` and `load_pretrained` read.

    Every rank of a sharded model must call this; rank 0 writes. The folder appears complete or not at all.

    Args:
        folder: must not exist, or be empty.
        dtype: of the written tensors; that of the parameters when left out.
        max_file_bytes: beyond, several files and an index are written.

    Raises:
        ThriftyError: no family holds this shape, the folder is not empty, or the disk refuses.
    """
    folder = Path(folder)
    config = config_from_shape(model.shape)
    dtype = dtype or model.embed.weight.dtype
    config["torch_dtype"] = str(dtype).removeprefix("torch.")
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir())):
        raise ThriftyError("is not empty", where=str(folder), hint="name a new folder")
    prefix = _BASE.get(config["model_type"], "model.")
    parameters = dict(model.named_parameters())
    groups = _files(list(stored_tensors(model.shape)), parameters, dtype.itemsize, max_file_bytes)
    writes = not dist.is_initialized() or dist.get_rank() == 0
    beside = folder.with_name(folder.name + ".partial")
    try:
        if writes:
            shutil.rmtree(beside, ignore_errors=True)
            beside.mkdir(parents=True)
        weight_map: dict[str, str] = {}
        for number, group in enumerate(groups, 1):
            file = WHOLE if len(groups) == 1 else f"model-{number:05d}-of-{len(groups):05d}.safetensors"
            content = {}
            for tensor in group:
                full = _gather(tensor, parameters, dtype)  # all ranks take part
                if writes:
                    content[tensor.name if tensor.name == "lm_head.weight" else prefix + tensor.name] = full
            if writes:
                save_file(content, beside / file, metadata={"format": "pt"})
                weight_map |= dict.fromkeys(content, file)
        if writes:
            _write_json(beside / "config.json", config)
            if len(groups) > 1:
                total = sum(_bytes(tensor, parameters, dtype.itemsize) for group in groups for tensor in group)
                _write_json(beside / INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map})
            beside.replace(folder)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(beside, ignore_errors=True)
        raise ThriftyError(f"cannot be written: {error}", where=str(folder)) from None


def _files(stored: list[Stored], parameters: Mapping[str, Tensor], itemsize: int, most: int) -> list[list[Stored]]:
    """Tensors grouped into files of at most `most` bytes; a larger tensor has a file of its own."""
    groups: list[list[Stored]] = [[]]
    filled = 0
    for tensor in stored:
        size = _bytes(tensor, parameters, itemsize)
        if groups[-1] and filled + size > most:
            groups.append([])
            filled = 0
        groups[-1].append(tensor)
        filled += size
    return groups


def _bytes(tensor: Stored, parameters: Mapping[str, Tensor], itemsize: int) -> int:
    return itemsize * sum(_shape(part, parameters).numel() for part in tensor.parts)


def _shape(name: str, parameters: Mapping[str, Tensor]) -> torch.Size:
    """Shape of a parameter; of a bias that the model does not have, the rows of its weight."""
    return parameters[name].shape if name in parameters else parameters[name.removesuffix("bias") + "weight"].shape[:1]


@torch.no_grad()
def _gather(tensor: Stored, parameters: Mapping[str, Tensor], dtype: torch.dtype) -> Tensor:
    """One stored tensor, whole, on the host. A bias that the model does not have is zero."""
    parts = []
    for name in tensor.parts:
        part = parameters[name] if name in parameters else torch.zeros(_shape(name, parameters))
        full = part.full_tensor() if isinstance(part, DTensor) else part
        parts.append(full.to(device="cpu", dtype=dtype))
    whole = torch.cat(parts)
    return (whole.t() if tensor.transposed else whole).contiguous()


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
