"""`thrifty train --export` and `thrifty export`: what a run has trained, in the hands of `transformers`."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from test_ranks import run

import thrifty
from live_bytes import LiveBytes
from thrifty.model.hub import load_pretrained
from thrifty.planner.emit import write_plan
from thrifty.spec import Plan
from thrifty.spec.errors import ThriftyError
from thrifty.trainer import launch
from thrifty.trainer.export import export_checkpoint
from thrifty.trainer.run_folder import RunFolder
from thrifty.trainer.trained import load_trained

Make = Callable[..., Plan]
SHORT = {"steps": 4, "recipe": {"batch": {"sequences": 4, "micro_sequences": 1}, "checkpoint": {"every_steps": 2}}}
BPE = {"data": {"tokenizer": {"kind": "bpe", "vocab_size": 270}}, "model": {"vocab_size": 270, "layers": 4}}


def in_folder(folder: Path) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = {}
    for path in folder.glob("*.safetensors"):
        found |= load_file(path)
    return found


def trained(plan: Plan, root: Path, **options: Any) -> launch.Outcome:
    outcome = launch.run(plan, root, launch.Options(**options))
    assert outcome is not None
    return outcome


@pytest.fixture
def finished(make_plan: Make, tmp_path: Path) -> Path:
    """The folder of a short run in one process; it is in `live` too, as written at the end."""
    thrifty.train(make_plan(**SHORT, **BPE), tmp_path / "run", export=tmp_path / "live")
    return tmp_path / "run"


def test_a_run_and_its_checkpoint_export_the_same_model(finished, tmp_path):
    written = export_checkpoint(finished, tmp_path / "later", print)
    assert written.step == 4
    live, later = in_folder(tmp_path / "live"), in_folder(tmp_path / "later")
    assert live.keys() == later.keys()
    assert all(torch.equal(tensor, later[name]) for name, tensor in live.items())
    model, tokenizer, _ = load_trained(finished, print)
    tokens = torch.from_numpy(tokenizer.encode("the cost of a run")).long()[None]
    assert torch.equal(load_pretrained(tmp_path / "live")(tokens), model(tokens))


def test_transformers_reads_model_and_tokenizer(finished, tmp_path):
    transformers = pytest.importorskip("transformers", reason="needs the extra [hf]: transformers is not installed")
    model, tokenizer, _ = load_trained(finished, print)
    text = "the cost of a run is paid in steps"
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "live")
    assert theirs(text)["input_ids"] == tokenizer.encode(text).tolist()
    assert theirs.eos_token_id == tokenizer.end_id
    tokens = torch.from_numpy(tokenizer.encode(text)).long()[None]
    other = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "live", dtype=torch.float32).eval()
    assert other.config.eos_token_id == tokenizer.end_id
    with torch.no_grad():
        got, want = other(tokens).logits, model(tokens)
    # Both compute in fp32: sums of some hundred products in another order, through four layers.
    assert float((got - want).norm() / want.norm()) < 1e3 * torch.finfo(torch.float32).eps


@pytest.mark.dist
@pytest.mark.parametrize("layout", [{"shard": 2}, {"pipeline": 2, "schedule": "zbv", "interleave": 2}])
def test_two_ranks_export_at_the_end_of_a_run(make_plan, tmp_path, layout):
    content = SHORT | {"recipe": SHORT["recipe"] | {"layout": layout}}
    plan = make_plan(**content, model={"layers": 4})
    write_plan(plan, tmp_path / "plan.yaml")
    root, live, later = (tmp_path / name for name in ("run", "live", "later"))
    done = run("train", tmp_path / "plan.yaml", "--run-dir", root, "--export", live)
    assert done.returncode == 0, done.stderr
    assert (live / "model-00002-of-00002.safetensors").exists()
    done = run("export", root, later, "--max-file", "20kB", "--json")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["step"] == 4
    assert len(told["files"]) > 2
    assert all((later / name).stat().st_size < 40_000 for name in told["files"])
    first, second = in_folder(live), in_folder(later)
    assert told["bytes"] == sum(tensor.nbytes for tensor in second.values())
    assert first.keys() == second.keys()
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())


def test_from_a_checkpoint_one_tensor_is_in_memory_at_a_time(make_plan, tmp_path):
    plan = make_plan(**SHORT, model={"layers": 12, "tied_embeddings": False})
    trained(plan, tmp_path / "run")
    with LiveBytes() as live:
        written = export_checkpoint(tmp_path / "run", tmp_path / "out", print)
    largest = max(tensor.nbytes for tensor in in_folder(tmp_path / "out").values())
    # As read, as it stands in the checkpoint, and as written.
    assert 0 < live.peak <= 3 * largest < written.elements * 4 / 3


def test_a_step_and_a_dtype_can_be_chosen(finished, tmp_path):
    written = export_checkpoint(finished, tmp_path / "two", print, step=2, dtype=torch.bfloat16)
    assert written.step == 2
    two, four = in_folder(tmp_path / "two"), in_folder(tmp_path / "live")
    assert all(tensor.dtype == torch.bfloat16 for tensor in two.values())
    assert not all(torch.equal(tensor, four[name].bfloat16()) for name, tensor in two.items())


# --- refusals ---------------------------------------------------------------------------------------------------------


def test_a_missing_and_a_damaged_checkpoint_are_named(finished, tmp_path):
    with pytest.raises(ThriftyError, match="no checkpoint of step 3") as refusal:
        export_checkpoint(finished, tmp_path / "out", print, step=3)
    assert refusal.value.hint == "there are 2, 4"
    (part,) = (finished / "checkpoints" / "step-00000002").glob("*.distcp")
    part.write_bytes(part.read_bytes()[:-1])
    with pytest.raises(ThriftyError, match="step 2 is damaged"):
        export_checkpoint(finished, tmp_path / "out", print, step=2)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["export", "nowhere", "out"], "not a run folder"),
        (["export", "nowhere", "out", "--max-file", "5 apples"], "--max-file 5 apples"),
    ],
)
def test_bad_input_of_the_command(tmp_path, monkeypatch, arguments, told):
    monkeypatch.chdir(tmp_path)
    done = run(*arguments)
    assert done.returncode == 2
    assert told in done.stderr
    assert "Traceback" not in done.stderr


def test_what_cannot_be_exported_is_refused_before_anything_is_trained(make_plan, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "note").write_text("mine")
    with pytest.raises(ThriftyError, match="not empty"):
        trained(make_plan(**SHORT), tmp_path / "run", export=str(tmp_path / "full"))
    odd = make_plan(**SHORT, model={"norm": "layernorm"})
    with pytest.raises(ThriftyError, match="no Hugging Face architecture here holds this shape"):
        trained(odd, tmp_path / "run", export=str(tmp_path / "new"))
    assert not RunFolder(tmp_path / "run").metrics.exists()


def test_a_run_that_stops_early_is_not_exported_and_says_how_to(make_plan, tmp_path, capfd):
    outcome = trained(make_plan(**SHORT), tmp_path / "run", export=str(tmp_path / "out"), deadline_seconds=1e-3)
    assert outcome.stopped is not None
    assert not (tmp_path / "out").exists()
    assert f"thrifty export {tmp_path / 'run'} {tmp_path / 'out'}" in capfd.readouterr().err


def test_a_run_that_reaches_its_target_loss_is_exported(make_plan, tmp_path):
    content = SHORT | {"steps": 20, "recipe": SHORT["recipe"] | {"evaluation": {"every_steps": 2, "sequences": 4}}}
    outcome = trained(make_plan(**content, target_loss=50.0), tmp_path / "run", export=str(tmp_path / "out"))
    assert outcome.stopped == "target loss 50.0 reached"
    assert (tmp_path / "out" / "config.json").exists()


def test_a_failed_export_leaves_the_bill_and_the_checkpoint(make_plan, tmp_path):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(ThriftyError, match="cannot be written") as refusal:
        trained(make_plan(**SHORT), tmp_path / "run", export=str(tmp_path / "file" / "out"))
    assert "thrifty export RUN DIR" in refusal.value.hint
    measured = RunFolder(tmp_path / "run").read_bill()["measured"]
    assert math.isfinite(measured.seconds.value)
    assert export_checkpoint(tmp_path / "run", tmp_path / "out", print).step == 4
