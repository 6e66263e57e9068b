"""Checkpoints: exact round trips, damage seen and survived, a full disk told."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from thrifty.spec import ThriftyError
from thrifty.trainer import checkpoint
from thrifty.trainer.checkpoint import Checkpoints, allocate_state, check, state
from thrifty.trainer.world import World

ALONE = World(0, 1, 0, 1, torch.device("cpu"))


def trained(seed: int, steps: int = 3) -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(seed)
    model = torch.nn.Sequential(torch.nn.Linear(7, 5), torch.nn.Tanh(), torch.nn.Linear(5, 3))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, fused=True)
    for _ in range(steps):
        model(torch.randn(4, 7)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    return model, optimizer


@pytest.mark.parametrize("asynchronous", [False, True])
def test_round_trip_is_exact(tmp_path: Path, asynchronous: bool) -> None:
    model, optimizer = trained(1)
    expected = {name: tensor.clone() for name, tensor in state(model, optimizer).items()}
    saved = Checkpoints(tmp_path, ALONE, keep=2)
    saved.save(12, state(model, optimizer), {"step": 12}, asynchronous=asynchronous)
    with torch.no_grad():  # what is trained on while an asynchronous write goes on must not reach the disk
        for parameter in model.parameters():
            parameter.zero_()
    saved.finish()
    other, its_optimizer = trained(2, steps=0)
    allocate_state(its_optimizer)
    found = Checkpoints(tmp_path, ALONE, keep=2).latest(print)
    assert found is not None
    assert found[0] == 12
    assert found[1] == {"step": 12}
    saved.load(12, state(other, its_optimizer))
    loaded = state(other, its_optimizer)
    assert loaded.keys() == expected.keys()
    assert all(torch.equal(loaded[name], expected[name]) for name in expected)
    assert any(name.startswith("optimizer.0.weight.exp_avg") for name in expected)


def test_allocating_state_changes_no_parameter() -> None:
    model, _ = trained(3)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.5, fused=True)
    before = [p.clone() for p in model.parameters()]
    allocate_state(optimizer)
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    assert optimizer.param_groups[0]["lr"] == 0.1


def test_only_the_latest_are_kept(tmp_path: Path) -> None:
    model, optimizer = trained(1)
    saved = Checkpoints(tmp_path, ALONE, keep=2)
    for step in (10, 20, 30):
        saved.save(step, state(model, optimizer), {})
    assert saved.steps() == [20, 30]


def test_an_unfinished_write_does_not_count(tmp_path: Path) -> None:
    (tmp_path / "step-00000010.part").mkdir()
    (tmp_path / "step-00000020").mkdir()  # renamed by hand, without files.json
    assert Checkpoints(tmp_path, ALONE, keep=2).latest(print) is None


def damage(path: Path) -> None:
    file = path / "__0_0.distcp"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(bytes(content))


def test_a_flipped_bit_is_seen_and_the_older_one_is_used(tmp_path: Path) -> None:
    model, optimizer = trained(1)
    saved = Checkpoints(tmp_path, ALONE, keep=3)
    for step in (10, 20):
        saved.save(step, state(model, optimizer), {"step": step})
    damage(tmp_path / "step-00000020")
    said: list[str] = []
    found = saved.latest(said.append)
    assert found is not None
    assert found[0] == 10
    assert "step-00000020" in said[0]
    assert "sha256" in said[0]
    damage(tmp_path / "step-00000010")
    with pytest.raises(ThriftyError, match="every checkpoint is damaged"):
        saved.latest(said.append)


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (lambda p: (p / ".metadata").unlink(), "is missing"),
        (lambda p: (p / "__0_0.distcp").write_bytes(b"short"), "5 bytes"),
        (lambda p: (p / "files.json").write_text("{"), "cannot be read"),
    ],
)
def test_each_kind_of_damage_is_named(tmp_path: Path, spoil: object, told: str) -> None:
    model, optimizer = trained(1)
    Checkpoints(tmp_path, ALONE, keep=1).save(1, state(model, optimizer), {})
    path = tmp_path / "step-00000001"
    assert check(path) is None
    spoil(path)  # type: ignore[operator]
    assert told in str(check(path))


def test_another_model_is_refused(tmp_path: Path) -> None:
    model, optimizer = trained(1)
    saved = Checkpoints(tmp_path, ALONE, keep=1)
    saved.save(1, state(model, optimizer), {})
    wider = torch.nn.Sequential(torch.nn.Linear(7, 6))
    with pytest.raises(ThriftyError, match="does not fit this plan"):
        saved.load(1, state(wider, torch.optim.AdamW(wider.parameters())))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 KiB."""
    folder = tmp_path / "small"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("needs the right to mount a small tmpfs")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_full_disk_is_told_and_loses_nothing(small_disk: Path, asynchronous: bool) -> None:
    model, optimizer = trained(1)
    saved = Checkpoints(small_disk, ALONE, keep=5)
    saved.save(10, state(model, optimizer), {"step": 10})
    large = torch.nn.Linear(300, 300)

    def save_and_finish() -> None:
        saved.save(20, state(large, torch.optim.AdamW(large.parameters())), {}, asynchronous=asynchronous)
        saved.finish()

    with pytest.raises(ThriftyError, match="disk is full") as caught:
        save_and_finish()
    assert "the last good checkpoint is step 10" in caught.value.hint
    assert check(small_disk / "step-00000010") is None
    assert not list(small_disk.glob("*.part"))


def test_the_hash_list_covers_every_file(tmp_path: Path) -> None:
    model, optimizer = trained(1)
    Checkpoints(tmp_path, ALONE, keep=1).save(1, state(model, optimizer), {})
    folder = tmp_path / "step-00000001"
    listed = json.loads((folder / "files.json").read_text())
    assert set(listed) == {p.name for p in folder.iterdir()} - {"files.json"}
    assert checkpoint.check(folder) is None
