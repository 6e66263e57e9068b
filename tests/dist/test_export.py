"""A model on live ranks becomes one Hugging Face folder: every value, no rank with more than its share and a piece."""

from __future__ import annotations

import errno
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from live_bytes import LiveBytes
from parity import LLAMA, SHAPES, Case, build_case, gathered, one_step, update, whole
from safetensors.torch import load_file
from test_parity import named
from torch.distributed.tensor import DTensor

from thrifty.model import hub_write
from thrifty.model.hub import load_pretrained, save_pretrained
from thrifty.model.transformer import Transformer
from thrifty.spec.errors import ThriftyError
from thrifty.trainer.export import export_ranks

pytestmark = pytest.mark.dist

PIECE = 4096  # bytes; the largest tensors have sixteen times as many
ZBV = {"pipeline": 2, "schedule": "zbv", "interleave": 2}
# As Hugging Face has them; 131 is divided by no axis.
SHAPES["qwen2"] = LLAMA | {"bias": "qkv", "tied_embeddings": True}
SHAPES["qwen3"] = LLAMA | {"qk_norm": True, "tied_embeddings": True, "vocab_size": 131}
CASES = [
    ("llama", {"shard": 2}),
    ("qwen3", {"tensor": 2}),
    ("gpt", {"tensor": 2}),
    ("qwen2", {"pipeline": 2}),  # tied: the first and the last stage hold the embedding
    ("qwen2", ZBV),
    ("qwen3", {"shard": 2, "tensor": 2}),
    ("gpt", {"pipeline": 2, "shard": 2}),
    ("llama", {"island": 2, "shard": 2}),
]


def train_and_export(case: Case, folder: str, dtype: torch.dtype) -> tuple[dict[str, torch.Tensor], int, int]:
    """One step; what the ranks then hold, put together, and of this rank its share and what it held beside it."""
    torch.set_default_dtype(torch.float64)
    try:
        built, world = build_case(case)
        one_step(case, built, world, 0)
        update(built)
        expected = gathered({name: whole(p) for name, p in built.model.named_parameters()}, built)
        local = [p.to_local() if isinstance(p, DTensor) else p for p in built.model.parameters()]
        with LiveBytes(local) as live:
            export_ranks(built.model, case.job.model, Path(folder), world, dtype=dtype, piece_bytes=PIECE)
        return expected, sum(p.nbytes for p in local), live.peak
    finally:
        torch.set_default_dtype(torch.float32)


def one_process(case: Case, parameters: dict[str, torch.Tensor]) -> Transformer:
    model = Transformer(case.job.model).double()
    model.load_state_dict(parameters, strict=True)
    return model


@pytest.mark.parametrize(("shape", "layout"), CASES, ids=lambda one: named(one) if isinstance(one, dict) else one)
def test_every_layout_writes_the_whole_model(pool, tmp_path, shape, layout):
    case = Case(shape=shape, layout=layout)
    ranks = case.recipe.layout.ranks
    seen = pool(ranks).run(train_and_export, case, str(tmp_path / "out"), torch.float64)
    expected, *_ = seen[0]
    back = load_pretrained(tmp_path / "out", dtype=torch.float64)
    assert {name: tuple(p.shape) for name, p in back.named_parameters()} == {n: tuple(p.shape) for n, p in expected.items()}
    for name, parameter in back.named_parameters():
        assert torch.equal(parameter, expected[name]), name
    files = sorted(path.name for path in (tmp_path / "out").glob("*.safetensors"))
    assert files == [f"model-{number:05d}-of-{ranks:05d}.safetensors" for number in range(1, ranks + 1)]
    total = sum(p.numel() for p in expected.values()) * 8
    largest = max(p.numel() for p in expected.values()) * 8
    assert json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())["metadata"]["total_size"] == total
    for file in files:  # one a rank: all write, and nearly the same
        written = sum(tensor.nbytes for tensor in load_file(tmp_path / "out" / file).values())
        assert abs(written - total / ranks) <= largest
    for _, share, beside in seen:
        assert 0 < beside <= (ranks + 3) * PIECE < largest, "a rank held more than pieces beside its share"
        assert share < total


@pytest.mark.parametrize(("shape", "layout"), [CASES[0], CASES[2], CASES[4], CASES[5]])
def test_transformers_computes_the_same_from_it(pool, tmp_path, shape, layout):
    transformers = pytest.importorskip("transformers", reason="needs the extra [hf]: transformers is not installed")
    case = Case(shape=shape, layout=layout)
    ((expected, *_), *_) = pool(case.recipe.layout.ranks).run(
        train_and_export, case, str(tmp_path / "out"), torch.float64
    )
    theirs, info = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    tokens = torch.randint(128, (2, 24), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        want, got = theirs.double().eval()(tokens).logits, one_process(case, expected)(tokens)
    # transformers takes rotary angles in fp32: see tests/model/test_hub.py.
    assert float((got - want).norm() / want.norm()) < 2 * case.job.model.layers * 25 * 2.0**-24


def test_ranks_write_what_one_process_writes_in_another_dtype_too(pool, tmp_path):
    case = Case(shape="gpt", layout={"shard": 2})
    ((expected, *_), *_) = pool(2).run(train_and_export, case, str(tmp_path / "ranks"), torch.bfloat16)
    save_pretrained(one_process(case, expected), tmp_path / "alone", dtype=torch.bfloat16)
    mine = load_file(tmp_path / "alone" / "model.safetensors")
    theirs: dict[str, torch.Tensor] = {}
    for path in (tmp_path / "ranks").glob("*.safetensors"):
        theirs |= load_file(path)
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(tensor, theirs[name]) and theirs[name].dtype == torch.bfloat16 for name, tensor in mine.items())
    for name in ("config.json",):
        assert (tmp_path / "ranks" / name).read_text() == (tmp_path / "alone" / name).read_text()


def export_with_a_full_disk(case: Case, folder: str, broken: int) -> tuple[str, str]:
    """What every rank is told when the disk of one is full."""
    built, world = build_case(case)
    header = hub_write._header

    def full(*_: Any) -> bytes:
        raise OSError(errno.ENOSPC, "No space left on device")

    if dist.get_rank() == broken:
        hub_write._header = full
    try:
        export_ranks(built.model, case.job.model, Path(folder), world)
    except ThriftyError as error:
        return error.what, error.where
    finally:
        hub_write._header = header
    return "", ""


def test_when_the_disk_of_one_rank_is_full_all_say_so_and_nothing_is_left(pool, tmp_path):
    seen = pool(2).run(export_with_a_full_disk, Case(layout={"shard": 2}), str(tmp_path / "out"), 1)
    assert seen == [("cannot be written: [Errno 28] No space left on device", str(tmp_path / "out"))] * 2
    assert list(tmp_path.iterdir()) == []


def export_into(case: Case, folder: str) -> str:
    built, world = build_case(case)
    with pytest.raises(ThriftyError) as refusal:
        export_ranks(built.model, case.job.model, Path(folder), world)
    return refusal.value.what


def test_nothing_is_overwritten_and_all_ranks_are_told(pool, tmp_path):
    (tmp_path / "note").write_text("mine")
    assert pool(2).run(export_into, Case(layout={"shard": 2}), str(tmp_path)) == ["is not empty"] * 2
    assert (tmp_path / "note").read_text() == "mine"


def save_split(case: Case, folder: str) -> str:
    built, _ = build_case(case)
    with pytest.raises(ThriftyError, match="split over ranks") as refusal:
        save_pretrained(built.model, folder)
    return refusal.value.hint


def test_a_split_model_is_not_gathered(pool, tmp_path):
    hints = pool(2).run(save_split, Case(layout={"shard": 2}), str(tmp_path / "out"))
    assert all("export_ranks" in hint for hint in hints)
