"""Hugging Face folders (config.json and safetensors, sharded ones too) in and out. Pickled weights are never read."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch.distributed.tensor import DTensor

from thrifty.catalog.hf_config import read_shape
from thrifty.model.hub_files import INDEX, MAX_FILE_BYTES, WHOLE
from thrifty.model.hub_names import Stored, stored_tensors
from thrifty.model.hub_write import Round, write_folder
from thrifty.model.initialise import held
from thrifty.model.transformer import Transformer
from thrifty.spec.errors import ThriftyError
from thrifty.spec.job import ModelShape
from thrifty.spec.load import read_json

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
    model: Transformer,
    folder: str | Path,
    *,
    dtype: torch.dtype | None = None,
    max_file_bytes: int = MAX_FILE_BYTES,
) -> None:
    """Writes a model that this process holds whole as config.json and safetensors that `transformers` reads.

    The folder appears complete or not at all. A model that is split over ranks is for `trainer.export.export_ranks`,
    the checkpoint of one for `trainer.export.export_checkpoint`.

    Args:
        folder: must not exist, or be empty.
        dtype: of the written tensors; that of the parameters when left out.
        max_file_bytes: beyond, several files and an index are written.

    Raises:
        ThriftyError: no family holds this shape, the folder is not empty, the disk refuses, or the model is split.
    """
    parameters = {name: parameter.detach() for name, parameter in model.named_parameters()}
    if any(isinstance(parameter, DTensor) for parameter in parameters.values()):
        hint = "thrifty.trainer.export.export_ranks writes it from all of them"
        raise ThriftyError("the model is split over ranks", where=str(folder), hint=hint)

    def assemble(current: Round) -> list[Tensor]:
        (piece,) = current
        boxes = () if piece is None else piece.boxes
        return [parameters[name][tuple(slice(side.start, side.stop) for side in box)] for name, box in boxes]

    write_folder(
        Path(folder),
        model.shape,
        {name: parameter.shape for name, parameter in parameters.items()},
        assemble,
        dtype=dtype or model.embed.weight.dtype,
        max_file_bytes=max_file_bytes,
    )
