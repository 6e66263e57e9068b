"""Bad input, one by one, as a user meets it: exit code 2, what and where, a way out, no traceback."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from thrifty.cli.main import main

Run = Callable[..., tuple[int, str, str]]

JOB = {
    "job": {
        "model": {"layers": 2, "hidden": 32, "heads": 2, "ffn": 64, "vocab_size": "auto", "max_positions": 32},
        "data": {"path": "words.txt"},
        "steps": 6,
        "sequence_length": 32,
    },
    "recipe": {
        "layout": {"shard": 1},
        "batch": {"sequences": 4, "micro_sequences": 2},
        "precision": "fp32",
        "evaluation": {"every_steps": 3, "sequences": 4},
        "checkpoint": {"every_steps": 2},
    },
}


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "words.txt").write_text("the cost of a run is paid in steps and tokens\n" * 200)
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(JOB, sort_keys=False))
    return tmp_path


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Run:
    """`run("plan", ...)` is `thrifty plan ...` in this process: exit code, standard output, standard error."""

    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["thrifty", *map(str, arguments)])
        code = 0
        try:
            main()
        except SystemExit as end:
            code = int(end.code or 0)
        out, errors = capfd.readouterr()
        return code, out, errors

    return call


def refused(result: tuple[int, str, str], *told: str) -> None:
    code, out, errors = result
    assert code == 2, out + errors
    assert "Traceback" not in errors
    for words in told:
        assert words in errors, errors


def job_with(change: str, old: str = "steps: 6") -> None:
    text = Path("job.yaml").read_text()
    assert old in text
    Path("job.yaml").write_text(text.replace(old, change))


def test_unknown_key(run: Run) -> None:
    job_with("stepz: 6")
    refused(run("plan", "job.yaml"), "job.yaml:", "unknown key 'stepz'", "'steps'")


def test_wrong_unit(run: Run) -> None:
    job_with("tokens: 5GiB")
    refused(run("plan", "job.yaml"), "job.yaml:", "job.tokens", "measures bytes, not tokens")


def test_missing_job_file(run: Run) -> None:
    refused(run("plan", "jop.yaml"), "jop.yaml", "'job.yaml'")


def test_unknown_model(run: Run) -> None:
    refused(run("plan", "lama-3-8b", "--on", "8xh100"), "lama-3-8b", "llama-3-8b")


def test_unknown_accelerator(run: Run) -> None:
    refused(run("plan", "llama-3-8b", "--on", "8xh10"), "h10", "'h100'")


def test_unknown_set_key(run: Run) -> None:
    refused(run("plan", "job.yaml", "--set", "recipe.optimizer.learning=3"), "learning", "lr")


def test_what_the_trainer_does_not_run(run: Run) -> None:
    refused(run("plan", "job.yaml", "--on", "2xa100", "--set", "recipe.precision=fp8"), "the trainer runs precision")


def test_what_does_not_fit(run: Run) -> None:
    refused(run("plan", "llama-3.1-405b", "--on", "8xh100"), "GiB")


def test_missing_data(run: Run) -> None:
    refused(run("train", "job.yaml", "--set", "job.data.path=wordz.txt"), "wordz.txt", "words.txt")


def test_empty_text(run: Run) -> None:
    Path("words.txt").write_text("")
    refused(run("train", "job.yaml"), "words.txt", "empty")


def test_text_that_is_not_utf8(run: Run) -> None:
    Path("words.txt").write_bytes(b"good so far \xff\xfe")
    refused(run("train", "job.yaml"), "words.txt", "UTF-8")


def test_truncated_shard(run: Run, here: Path) -> None:
    from thrifty.data.prepare import prepare
    from thrifty.spec.job import Data

    prepared = prepare(Data(path=str(here / "words.txt")), cache=here / "cache", notify=lambda _: None)
    shard = next(prepared.folder.glob("*.bin"))
    shard.write_bytes(shard.read_bytes()[:-100])
    refused(run("train", "job.yaml", "--set", f"job.data.path={prepared.folder}"), shard.name, "bytes")


def test_changed_plan(run: Run) -> None:
    assert run("plan", "job.yaml", "--out", "plan.yaml")[0] == 0
    text = Path("plan.yaml").read_text()
    assert "steps: 6\n" in text
    Path("plan.yaml").write_text(text.replace("steps: 6\n", "steps: 7\n"))
    refused(run("train", "plan.yaml"), "changed after planning", "--set")


def test_bad_budget_and_deadline(run: Run) -> None:
    refused(run("train", "job.yaml", "--budget", "5h"), "--budget", "measures seconds")
    refused(run("train", "job.yaml", "--deadline", "-3h"), "--deadline", "above zero")


def test_corrupt_checkpoints(run: Run) -> None:
    code, _, errors = run("train", "job.yaml", "--run-dir", "run")
    assert code == 0, errors
    newest, *older = sorted(Path("run/checkpoints").iterdir(), reverse=True)
    for file in newest.glob("*.distcp"):
        file.write_bytes(b"\0" * file.stat().st_size)
    code, _, errors = run("train", "run", "--resume")
    assert code == 0, errors
    assert "damaged checkpoint passed over" in errors
    assert f"resumed from step {int(older[0].name[5:])}" in errors
    for file in Path("run/checkpoints").glob("*/*.distcp"):
        file.write_bytes(b"")
    refused(run("train", "run", "--resume"), "every checkpoint is damaged")
    refused(run("generate", "run"), "every checkpoint is damaged")


def test_not_a_run_folder(run: Run, here: Path) -> None:
    for verb in ("report", "generate"):
        refused(run(verb, here), str(here))


def test_resuming_another_job(run: Run) -> None:
    assert run("train", "job.yaml", "--run-dir", "run")[0] == 0
    refused(run("train", "run", "--resume", "--set", "job.seed=5"), "must keep its job")


def test_an_option_that_does_not_exist(run: Run) -> None:
    refused(run("train", "job.yaml", "--nprok", "2"), "--nproc")
