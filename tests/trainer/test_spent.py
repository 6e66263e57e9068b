"""What attempts have cost adds up, whichever of them were killed and whatever metrics rows were dropped."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from thrifty.spec import Plan
from thrifty.trainer import launch, spent
from thrifty.trainer.spent import Spent, SpentFile, idle

Make = Callable[..., Plan]


@pytest.fixture
def attempt(make_plan: Make, tmp_path: Path) -> Callable[..., SpentFile]:
    """Opens spent.json as an attempt that was started some seconds ago; each one is known by its own start."""
    cluster = make_plan().cluster
    now = time.time()

    def start(age_seconds: float, *rows: dict[str, Any], resume: bool = True) -> SpentFile:
        began = now - age_seconds
        return SpentFile(tmp_path / "spent.json", cluster, began, resume=resume, rows=lambda: rows)

    return start


def test_attempts_that_never_reached_a_step_count(attempt: Callable[..., SpentFile]) -> None:
    assert attempt(30, resume=False).before == Spent()
    assert attempt(20).before.seconds == pytest.approx(30, abs=1)
    third = attempt(10)
    assert third.before.seconds == pytest.approx(50, abs=2)
    assert third.now().seconds == pytest.approx(60, abs=3)
    assert third.now().usd == pytest.approx(third.now().seconds * 2 * 3.6 / 3600)
    assert third.now().energy_joules == pytest.approx(third.now().seconds * 5.0), "idle watts, hosts and PUE"


def test_rank_0_takes_over_from_its_launcher(attempt: Callable[..., SpentFile]) -> None:
    attempt(30, resume=False)
    launcher = attempt(20)
    assert attempt(20).before == launcher.before, "the same attempt is counted once"


def test_rows_younger_than_the_file_count(attempt: Callable[..., SpentFile]) -> None:
    attempt(30, resume=False)
    row = {"seconds": 45.0, "usd": 7.0, "energy_joules": 1.0}
    opened = attempt(20, row, {"seconds": 40.0, "usd": 6.0, "energy_joules": 0.5})
    assert (opened.before.seconds, opened.before.usd) == (45.0, 7.0)
    assert opened.before.energy_joules > 100, "each figure by itself: the file's own was larger here"


def test_a_new_run_starts_at_zero_and_a_torn_file_is_passed_over(
    attempt: Callable[..., SpentFile], tmp_path: Path
) -> None:
    attempt(30, resume=False)
    assert attempt(20, resume=False).before == Spent()
    (tmp_path / "spent.json").write_text('{"began": 1')
    assert attempt(10, {"seconds": 3.0}).before == Spent(seconds=3.0)


def test_it_writes_by_itself_while_a_run_is_busy(
    attempt: Callable[..., SpentFile], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spent, "INTERVAL_SECONDS", 0.01)
    with attempt(0, resume=False) as running:
        running.now = lambda: Spent(123.0, 4.0, 5.0)
        deadline = time.monotonic() + 30
        while json.loads((tmp_path / "spent.json").read_text())["seconds"] != 123.0:
            assert time.monotonic() < deadline
            time.sleep(0.01)


def test_a_resumed_run_pays_for_what_was_killed(make_plan: Make, tmp_path: Path) -> None:
    """An attempt that was killed after rows had been dropped, before it wrote one: only the file knows of it."""
    plan, root = make_plan(), tmp_path / "run"
    first = launch.run(plan, root, launch.Options())
    assert first is not None
    killed = json.loads((root / "spent.json").read_text())
    killed |= {
        "seconds": killed["seconds"] + 500,
        "usd": killed["usd"] + 9,
        "energy_joules": killed["energy_joules"] + 7e4,
    }
    (root / "spent.json").write_text(json.dumps(killed))
    second = launch.run(plan, root, launch.Options(resume=True))
    assert second is not None
    assert second.bill.seconds.value > first.bill.seconds.value + 500
    assert second.bill.usd.value > first.bill.usd.value + 9, "also when it was paid at another price"
    assert second.bill.energy.value > first.bill.energy.value + 7e4
    assert second.bill.seconds_by_part["other"].value >= 499
    parts = sum(part.value for part in second.bill.seconds_by_part.values())
    assert parts == pytest.approx(second.bill.seconds.value)


def test_idle_is_priced_for_the_whole_cluster(make_plan: Make) -> None:
    assert idle(make_plan().cluster, 3600.0) == pytest.approx((3600.0, 7.2, 3600 * 2 * (1 + 1) * 1.25))
