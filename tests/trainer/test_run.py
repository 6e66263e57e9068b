"""Runs in this process, one rank: what is written, resumed, limited and refused."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from thrifty.spec import Plan, ThriftyError
from thrifty.spec.bill import MEMORY_TERMS, TIME_PARTS
from thrifty.trainer import launch
from thrifty.trainer.run_folder import RunFolder

Make = Callable[..., Plan]


def losses(root: Path, split: str = "train") -> list[tuple[int, float]]:
    return [(row["step"], row["loss"]) for row in RunFolder(root).read_metrics() if row["split"] == split]


def rows(root: Path) -> list[dict[str, Any]]:
    return list(RunFolder(root).read_metrics())


def train(plan: Plan, root: Path, **options: Any) -> launch.Outcome:
    outcome = launch.run(plan, root, launch.Options(**options))
    assert outcome is not None
    return outcome


@pytest.fixture
def stop_after(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Sends this process SIGTERM after a number of steps."""
    from thrifty.trainer import loop

    original = loop._step
    count = {"left": -1}

    def step(*args: Any) -> None:
        original(*args)
        count["left"] -= 1
        if count["left"] == 0:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(loop, "_step", step)
    return lambda steps: count.update(left=steps)


def test_a_run_leaves_its_folder(make_plan: Make, tmp_path: Path) -> None:
    plan = make_plan()
    outcome = train(plan, tmp_path / "run")
    folder = RunFolder(tmp_path / "run")
    assert outcome.stopped is None
    assert [step for step, _ in losses(folder.root)] == list(range(1, 31))
    assert [step for step, _ in losses(folder.root, "val")] == [10, 20, 30]
    assert losses(folder.root)[-1][1] < losses(folder.root)[0][1] - 1, "the model must learn"
    bills = folder.read_bill()
    assert bills["predicted"] == plan.predicted
    assert bills["measured"] == outcome.bill
    assert bills["measured"].loss is not None
    assert bills["measured"].loss.value == losses(folder.root, "val")[-1][1]
    manifest = json.loads(folder.manifest.read_text())
    assert manifest["plan"] == plan.hash
    assert manifest["data"]["sha256"]
    assert manifest["runs"][0]["packages"]["torch"]


def test_the_bill_adds_up(make_plan: Make, tmp_path: Path) -> None:
    plan = make_plan()
    bill = train(plan, tmp_path / "run").bill
    assert tuple(bill.seconds_by_part) == TIME_PARTS
    assert set(bill.memory) == set(MEMORY_TERMS)
    assert sum(part.value for part in bill.seconds_by_part.values()) == pytest.approx(bill.seconds.value)
    assert all(part.value >= 0 for part in bill.seconds_by_part.values())
    assert bill.tokens.value == 30 * 4 * 32
    assert bill.usd.value == pytest.approx(bill.seconds.value / 3600 * 3.6 * 2, rel=0.05)
    assert bill.co2.value == pytest.approx(bill.energy.value / 3.6e6 * 400)
    # Memory that is known to the byte: the planner's figures are the module's.
    for term in ("parameters", "gradients", "optimizer"):
        assert bill.memory[term].value == plan.predicted.memory[term].value, term


OPTIMIZERS: list[dict[str, Any]] = [
    {"name": "adamw"}, {"name": "adamw", "state_bits": 16, "stable": True}, {"name": "adamw", "state_bits": 8},
    {"name": "adamw", "state_bits": 4, "stable": True}, {"name": "muon", "state_bits": 8}, {"name": "lamb"},
]  # fmt: skip


@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=lambda o: f"{o['name']}{o.get('state_bits', 32)}")
def test_a_stopped_run_resumes_bit_identically(
    make_plan: Make, tmp_path: Path, stop_after: Callable[[int], None], optimizer: dict[str, Any]
) -> None:
    settings = {"lr": 3e-3, "clip_norm": 0.5} | optimizer
    plan = make_plan(recipe={"checkpoint": {"every_steps": 7, "keep": 2}, "optimizer": settings})
    train(plan, tmp_path / "whole")
    stop_after(12)
    outcome = train(plan, tmp_path / "parts")
    assert outcome.stopped == "SIGTERM"
    assert losses(tmp_path / "parts")[-1][0] == 12
    outcome = train(plan, tmp_path / "parts", resume=True)
    assert outcome.stopped is None
    assert losses(tmp_path / "parts") == losses(tmp_path / "whole")
    assert losses(tmp_path / "parts", "val") == losses(tmp_path / "whole", "val")


@pytest.mark.parametrize("name", sorted({"adam", "sgd", "adagrad", "rmsprop", "adafactor", "lion", "lars", "muon"}))
def test_every_optimizer_learns(make_plan: Make, tmp_path: Path, name: str) -> None:
    lr = {"sgd": 0.05, "lars": 5.0, "adafactor": 0.03, "adagrad": 0.03}.get(name, 3e-3)
    train(make_plan(recipe={"optimizer": {"name": name, "lr": lr}}), tmp_path / "run")
    assert losses(tmp_path / "run")[-1][1] < losses(tmp_path / "run")[0][1] - 1


def test_groups_are_printed(make_plan: Make, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    train(make_plan(recipe={"optimizer": {"name": "muon", "lr": 3e-3}}), tmp_path / "run")
    said = capfd.readouterr()
    told = said.out + said.err
    assert "muon, decay: 2 x blocks.*.attention.query.weight" in told
    assert "adamw, decay: embed.weight" in told
    assert "adamw, no decay:" in told


def test_time_and_money_add_up_across_resumes(
    make_plan: Make, tmp_path: Path, stop_after: Callable[[int], None]
) -> None:
    plan = make_plan()
    root = tmp_path / "run"
    stop_after(14)
    first = train(plan, root).bill
    # What a kill would leave: rows beyond the last checkpoint, whose work is lost and whose time was paid.
    lost = rows(root)[-1] | {"step": 15, "seconds": first.seconds.value + 100}
    with (root / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(lost) + "\n" + '{"step": 16, "spl')
    second = train(plan, root, resume=True).bill
    seconds = [row["seconds"] for row in rows(root)]
    assert seconds == sorted(seconds)
    assert second.seconds.value > first.seconds.value + 100
    assert second.seconds_by_part["other"].value >= 99
    assert second.seconds_by_part["startup"].value > first.seconds_by_part["startup"].value
    assert second.steps.value == 30
    assert [step for step, _ in losses(root)] == list(range(1, 31))
    assert len(json.loads((root / "manifest.json").read_text())["runs"]) == 2


def test_the_budget_stops_before_it_is_spent(make_plan: Make, tmp_path: Path) -> None:
    plan = make_plan(steps=100_000)
    outcome = train(plan, tmp_path / "run", budget_usd=0.016)  # 8 s at 2 x 3.6 usd/h, start-up included
    assert outcome.stopped is not None
    assert "budget" in outcome.stopped
    assert 0 < outcome.bill.usd.value <= 0.016
    assert RunFolder(tmp_path / "run").checkpoints.is_dir()
    step = int(outcome.bill.steps.value)
    assert launch.finished_steps(tmp_path / "run" / "checkpoints")[-1] == step
    again = train(plan, tmp_path / "run", resume=True, budget_usd=0.016)
    assert again.bill.steps.value == step, "a resumed run has spent its budget already"


def test_the_deadline_stops(make_plan: Make, tmp_path: Path) -> None:
    outcome = train(make_plan(steps=100_000), tmp_path / "run", deadline_seconds=5.0)
    assert outcome.stopped is not None
    assert "deadline" in outcome.stopped
    assert outcome.bill.seconds.value < 8


def test_the_target_loss_ends_the_run(make_plan: Make, tmp_path: Path) -> None:
    outcome = train(make_plan(steps=500, target_loss=5.0), tmp_path / "run")
    assert outcome.stopped == "target loss 5.0 reached"
    assert outcome.bill.loss is not None
    assert outcome.bill.loss.value <= 5.0
    assert outcome.bill.steps.value < 500


def test_a_loss_that_is_not_finite_stops_with_its_place(
    make_plan: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from thrifty.trainer import loop

    original = loop._forward

    def forward(run: Any, tokens: Any, targets: Any) -> Any:
        loss = original(run, tokens, targets)
        return loss * float("nan") if run.step == 12 else loss

    monkeypatch.setattr(loop, "_forward", forward)
    with pytest.raises(
        ThriftyError, match="not finite at step 13, in the microbatch that begins at sequence 48"
    ) as caught:
        train(make_plan(), tmp_path / "run")
    assert "last good checkpoint is step 10" in caught.value.hint
    monkeypatch.setattr(loop, "_forward", original)
    assert train(make_plan(), tmp_path / "run", resume=True).bill.steps.value == 30


def test_a_used_folder_is_not_overwritten(make_plan: Make, tmp_path: Path) -> None:
    plan = make_plan(steps=3)
    train(plan, tmp_path / "run")
    with pytest.raises(ThriftyError, match="already holds a run"):
        train(plan, tmp_path / "run")
    with pytest.raises(ThriftyError, match="no run to resume"):
        train(plan, tmp_path / "nowhere", resume=True)


def test_more_sequences_than_data(make_plan: Make, tmp_path: Path) -> None:
    (tmp_path / "short.txt").write_text("a few words " * 20)
    with pytest.raises(ThriftyError, match="sequences"):
        train(
            make_plan(
                data={"path": str(tmp_path / "short.txt")}, recipe={"batch": {"sequences": 64, "micro_sequences": 2}}
            ),
            tmp_path / "run",
        )


def test_a_vocabulary_larger_than_the_model(make_plan: Make, tmp_path: Path) -> None:
    with pytest.raises(ThriftyError, match="257 ids"):
        train(make_plan(model={"vocab_size": 200}), tmp_path / "run")


@pytest.mark.parametrize(
    "recipe",
    [{"recompute": "full"}, {"precision": "bf16"}, {"checkpoint": {"every_steps": 5, "asynchronous": True, "keep": 2}}],
    ids=["recompute", "bf16", "asynchronous"],
)
def test_each_switch_changes_how_and_not_what(make_plan: Make, tmp_path: Path, recipe: dict[str, Any]) -> None:
    train(make_plan(), tmp_path / "plain")
    train(make_plan(recipe=recipe), tmp_path / "switched")
    plain, switched = losses(tmp_path / "plain")[-1][1], losses(tmp_path / "switched")[-1][1]
    assert switched == pytest.approx(plain, rel=0.05)
    if "recompute" in recipe or "checkpoint" in recipe:
        assert losses(tmp_path / "switched") == losses(tmp_path / "plain")


def test_documents_of_unequal_length(make_plan: Make, tmp_path: Path) -> None:
    folder = tmp_path / "documents"
    folder.mkdir()
    for i in range(80):
        (folder / f"{i:03}.txt").write_text("the cost of a run " * (i % 7) + "end")
    outcome = train(make_plan(data={"path": str(folder), "packing": "documents"}, steps=20), tmp_path / "run")
    assert losses(tmp_path / "run")[-1][1] < losses(tmp_path / "run")[0][1]
    assert outcome.bill.loss is not None


def test_metrics_go_on_to_another_tool(make_plan: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """W&B and trackio share an interface; a stand-in module sees what they would."""
    import sys
    import types

    seen: list[tuple[dict[str, float], int]] = []
    module = types.ModuleType("trackio")
    module.init = lambda **settings: seen.append((settings, 0))  # type: ignore[attr-defined]
    module.log = lambda values, step: seen.append((values, step))  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "trackio", module)
    train(make_plan(steps=3), tmp_path / "run", follow="trackio")
    assert seen[0][0]["name"] == "run"
    assert [step for _, step in seen[1:]] == [1, 2, 3, 3]
    assert "train/loss" in seen[1][0]
    with pytest.raises(ThriftyError, match="trackoi"):
        train(make_plan(steps=3), tmp_path / "other", follow="trackoi")
