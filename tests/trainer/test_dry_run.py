"""A dry run builds any layout in this one process; what it finds is what the planner says, to the byte."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist

from thrifty.cli.main import main
from thrifty.planner.emit import write_plan
from thrifty.spec import Plan, legal
from thrifty.spec.errors import ThriftyError
from thrifty.trainer.dry_run import Sent, dry_run

Make = Callable[..., Plan]
LLAMA: dict[str, Any] = {
    "layers": 5, "hidden": 64, "heads": 4, "kv_heads": 4, "ffn": 96, "vocab_size": 128, "max_positions": 32,
    "tied_embeddings": False,
}  # fmt: skip
# Rows that no axis divides, an embedding on two stages, norms that tensor ranks use on their heads.
ODD = LLAMA | {"vocab_size": 259, "tied_embeddings": True, "qk_norm": True, "bias": "qkv", "hidden": 72, "heads": 4}
GPT = LLAMA | {"positions": "learned", "norm": "layernorm", "mlp": "gelu", "bias": "all", "tied_embeddings": True}
SHAPES = {"llama": LLAMA, "odd": ODD, "gpt": GPT}
LAYOUTS: list[dict[str, Any]] = [
    {},
    {"shard": 8},
    {"island": 4},
    {"island": 2, "shard": 4, "reshard_after_forward": False},
    {"tensor": 4},
    {"shard": 4, "tensor": 2, "sequence_parallel": False},
    {"pipeline": 4},
    {"pipeline": 4, "schedule": "gpipe", "island": 2},
    {"pipeline": 2, "schedule": "zbv", "interleave": 2, "shard": 5},
    {"pipeline": 2, "schedule": "interleaved", "interleave": 4, "shard": 3},
    {"pipeline": 2, "schedule": "zero_bubble", "tensor": 2, "shard": 4},
    {"pipeline": 3, "tensor": 2, "shard": 2, "sequence_parallel": False},
    {"island": 2, "pipeline": 2, "shard": 4, "tensor": 4},
]


def named(layout: dict[str, Any]) -> str:
    return "-".join(f"{axis}{size}" for axis, size in layout.items()) or "alone"


@pytest.fixture
def plan_of(make_plan: Make) -> Callable[..., Plan]:
    def make(layout: dict[str, Any], shape: str = "llama", microbatches: int = 12, **recipe: Any) -> Plan:
        data = layout.get("island", 1) * layout.get("shard", 1)
        batch = {"sequences": microbatches * data, "micro_sequences": 1}
        layers = {"layers": 9} if layout.get("interleave", 1) > 2 else {}
        return make_plan(recipe={"layout": layout, "batch": batch, **recipe}, model=SHAPES[shape] | layers)

    return make


@pytest.mark.parametrize(
    ("layout", "shape"),
    [(layout, "odd") for layout in LAYOUTS]
    + [(layout, shape) for layout in (LAYOUTS[1], LAYOUTS[8], LAYOUTS[10]) for shape in ("llama", "gpt")],
    ids=lambda value: value if isinstance(value, str) else named(value),
)
def test_what_is_built_and_sent_is_what_was_planned(plan_of, layout, shape):
    """Of each kind of stage its first rank, which is the fullest, and the very last rank, which is the emptiest."""
    plan = plan_of(layout, shape)
    found = dry_run(plan)
    runs = [*found.runs, *dry_run(plan, plan.recipe.layout.ranks - 1).runs]
    assert [run.differences for run in runs] == [()] * len(runs)
    assert all(min(run.found.values()) > 0 for run in runs)
    assert all(bool(run.sent) == (plan.recipe.layout.ranks > 1) for run in runs)
    stages = sum(found.stands_for.values())
    assert stages == plan.recipe.layout.pipeline
    held = {layer for run in found.runs for part in run.layers for layer in part}
    layers = plan.job.model.layers
    assert len(held) == layers if len(found.runs) == stages else len(held) < layers
    assert not dist.is_initialized(), "the next one can pretend again"


@pytest.mark.parametrize(
    "levers", [{"recompute": "full"}, {"precision": "bf16"}, {"exchange": {"dtype": "bf16"}}], ids=str
)
@pytest.mark.parametrize("layout", [{"shard": 4}, {"shard": 2, "tensor": 2}, {"pipeline": 2, "shard": 2}], ids=named)
def test_under_other_levers_too(plan_of, layout, levers):
    assert dry_run(plan_of(layout, **levers)).agrees


@pytest.mark.parametrize(
    "layout", [{"shard": 2, "tensor": 2}, {"pipeline": 2, "tensor": 2}, {"pipeline": 2, "schedule": "gpipe"}], ids=named
)
def test_few_microbatches_say_what_many_send(plan_of, layout):
    """Those of a long step are not all run; a step that is run in full sends what two shorter ones say."""
    many, all_of_them = plan_of(layout, microbatches=12), plan_of(layout, microbatches=3)
    assert len(dry_run(many).runs[0].microbatches) == 2
    counted = dry_run(all_of_them).runs[0]
    assert counted.microbatches == (3,)
    for one, count in dry_run(many).runs[0].sent.items():
        assert count in (counted.sent[one], 4 * counted.sent[one])


def test_a_wrong_planner_is_told(plan_of, monkeypatch):
    from thrifty.trainer import dry_run as module

    right = module.collectives
    monkeypatch.setattr(module, "collectives", lambda *asked: right(*asked)[1:])
    found = dry_run(plan_of({"shard": 4}))
    assert not found.agrees
    (one,) = found.runs[0].differences
    assert "all_gather over shard (4 ranks)" in one.what
    assert one.found > one.planned


def test_hundreds_of_ranks(plan_of):
    """Groups and counts of one rank in a layout that no test machine could start."""
    plan = plan_of({"island": 4, "pipeline": 2, "shard": 32, "tensor": 4})
    found = dry_run(plan, 1023)
    (run,) = found.runs
    assert found.agrees
    assert run.groups == {
        "island": [255, 511, 767, 1023],
        "pipeline": [895, 1023],
        "shard": list(range(899, 1024, 4)),
        "tensor": [1020, 1021, 1022, 1023],
    }
    assert run.sent[Sent("send", "pipeline", 2, 32 // 4 * 64 * 4)] == 12
    assert "shard 31  " in found.picture
    assert "shard 15" not in found.picture


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path):
    """`run(plan, ...)` is `thrifty train PLAN --dry-run ...` in this process: exit code, output, errors."""

    def call(plan: Plan, *options: object) -> tuple[int, str, str]:
        write_plan(plan, tmp_path / "plan.yaml")
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", ["thrifty", "train", "plan.yaml", "--dry-run", *map(str, options)])
        code = 0
        try:
            main()
        except SystemExit as end:
            code = int(end.code or 0)
        return code, *capfd.readouterr()

    return call


def test_the_screen_has_the_figures(plan_of, run, tmp_path):
    plan = plan_of({"pipeline": 2, "shard": 4})
    code, out, errors = run(plan)
    assert code == 0, errors
    found = dry_run(plan)
    for one in found.runs:
        assert f"rank {one.rank}: stage {one.place['pipeline']} of 2, layers " in out
        for term, size in one.found.items():
            assert any(line.split()[:2] == [term, f"{size:,}"] for line in out.splitlines())
    assert "fits: rank" in out
    assert "are those planned" in out
    assert max(map(len, out.splitlines())) <= 110
    assert not (tmp_path / "runs").exists(), "no run folder"


def test_json_has_every_figure(plan_of, run):
    plan = plan_of({"shard": 2, "tensor": 2})
    code, out, errors = run(plan, "--json", "--rank", 3)
    assert code == 0, errors
    told = json.loads(out)
    (one,) = told["ranks_built"]
    found = dry_run(plan, 3).runs[0]
    assert one["place"] == {"island": 0, "pipeline": 0, "shard": 1, "context": 0, "tensor": 1}
    assert one["memory_built_bytes"] == found.found
    assert {(c["kind"], c["axis"], c["payload_bytes"]): c["started"] for c in one["collectives"]} == {
        (sent.kind, sent.axis, sent.payload_bytes): count for sent, count in found.sent.items()
    }
    assert told["as_planned"]
    assert told["fits"]


def test_a_plan_for_gpus_needs_none_here(plan_of, run):
    plan = plan_of({"shard": 2})
    chip = plan.cluster.accelerator.model_copy(update={"kind": "gpu", "name": "a GPU"})
    gpus = plan.model_copy(update={"cluster": plan.cluster.model_copy(update={"accelerator": chip})})
    assert dry_run(gpus).agrees


@pytest.mark.parametrize(
    "layout", [{"tensor": 3}, {"pipeline": 2, "schedule": "interleaved"}, {"pipeline": 16}], ids=named
)
def test_it_refuses_what_train_refuses_in_the_same_words(plan_of, run, layout):
    plan = plan_of({})
    illegal = plan.recipe.model_copy(update={"layout": plan.recipe.layout.model_copy(update=layout)})
    reason = legal.illegal(plan.job, illegal)
    assert reason is not None
    with pytest.raises(ThriftyError) as refused:
        dry_run(plan.model_copy(update={"recipe": illegal}))
    assert (refused.value.where, refused.value.what, refused.value.hint) == (reason.key, reason.what, reason.hint)
    code, _, errors = run(plan, *(f"--set=recipe.layout.{key}={value}" for key, value in layout.items()))
    assert code == 2
    assert reason.what in errors


def test_it_refuses_a_plan_for_other_software_as_train_does(plan_of, run):
    plan = plan_of({})
    other = plan.model_copy(update={"recipe": plan.recipe.model_copy(update={"software": "megatron"})})
    with pytest.raises(ThriftyError, match="Megatron-LM"):
        dry_run(other)
    with pytest.raises(ThriftyError, match="Megatron-LM"):
        legal.require_own(other.job, other.recipe)


def test_a_rank_that_is_not_there(plan_of, run):
    code, _, errors = run(plan_of({"shard": 2}), "--rank", 2)
    assert code == 2
    assert "there is no rank 2" in errors
