"""`thrifty fit-law` and `plan --law`, `--budget`, `--target-loss` from the command line; and the score of a law."""

from __future__ import annotations

import importlib.util
import json
import random
import sys
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from thrifty.cli import fit_law, plan
from thrifty.planner.emit import read_plan
from thrifty.spec.errors import ThriftyError

BENCHMARK = Path(__file__).resolve().parents[2] / "benchmarks" / "score_law.py"
HEADER = "# made up\nid,dataset,params,params_no_embed,tokens,global_batch_seq,c4_val_loss\n"


def run(command, *words: object) -> str:
    app = typer.Typer()
    app.command()(command)
    result = CliRunner().invoke(app, list(map(str, words)), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def table(path: Path, sizes=(2e7, 6e7, 2e8, 6e8), ratios=(5, 20, 80, 320), seed: int = 0) -> Path:
    """Runs of two datasets by a known law, with 0.4% of scatter."""
    generator = random.Random(seed)
    lines = []
    for dataset, floor in (("web", 1.8), ("code", 1.2)):
        for n in sizes:
            for ratio in ratios:
                loss = floor + 480 / n**0.35 + 2000 / (n * ratio) ** 0.37
                loss *= 1 + generator.gauss(0, 0.004)
                lines.append(f"{dataset}-{n:.0e}-{ratio},{dataset},{n:.0f},{n:.0f},{n * ratio:.0f},256,{loss:.5f}")
    path.write_text(HEADER + "\n".join(lines) + "\n")
    return path


@pytest.fixture(scope="module")
def law(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("law")
    run(fit_law.command, table(folder / "runs.csv"), "--out", folder / "law.json")
    return folder / "law.json"


def test_it_prints_constants_tests_and_reach(tmp_path: Path) -> None:
    output = run(fit_law.command, table(tmp_path / "runs.csv"), "--out", tmp_path / "law.json")
    for said in ("alpha", "E web", "taken:", "tested up to 3 times", "written:", "@code"):
        assert said in output
    assert max(map(len, output.splitlines()[:-1])) <= 100


def test_json_has_intervals_around_the_constants(tmp_path: Path) -> None:
    content = json.loads(run(fit_law.command, table(tmp_path / "runs.csv"), "--json"))
    low, high = content["intervals"]["alpha"]
    assert low < content["law"]["alpha"] < high
    assert low < 0.35 < high
    assert content["held_out"][0]["mape"] < 0.02


def test_rows_that_cannot_tell_stop_it(tmp_path: Path) -> None:
    with pytest.raises(ThriftyError, match="tokens go with parameters") as error:
        run(fit_law.command, table(tmp_path / "runs.csv", ratios=(20,)))
    assert "add runs" in error.value.hint
    with pytest.raises(ThriftyError, match="no run has") as error:
        run(fit_law.command, tmp_path)
    assert "left out" in error.value.hint


def test_a_plan_by_one_s_own_law(law: Path, tmp_path: Path) -> None:
    out = tmp_path / "plan.yaml"
    words = ("llama-3-8b", "--on", "64xh100", "--set", "job.tokens=10B")
    run(plan.command, *words, "--out", out)
    published = read_plan(out)
    run(plan.command, *words, "--out", out, "--law", f"{law}@code")
    own = read_plan(out)
    assert own.predicted.loss is not None
    assert published.predicted.loss is not None
    assert own.predicted.loss.value < published.predicted.loss.value - 0.3
    assert "runs.csv" in own.predicted.loss.source


def test_money_without_a_job(law: Path, tmp_path: Path) -> None:
    out = tmp_path / "plan.yaml"
    output = run(plan.command, "--budget", "2000usd", "--on", "8xh100", "--out", out, "--law", f"{law}@web")
    made = read_plan(out)
    assert made.predicted.usd.value <= 2000
    assert output.startswith("$2,000 on 8xH100-SXM-80GB: train")
    assert made.predicted.loss is not None
    page = tmp_path / "plan.html"
    words = ("--target-loss", "2.5", "--on", "8xh100", "--out", out, "--html", page, "--json")
    content = json.loads(run(plan.command, *words))
    assert content["target_loss"] == 2.5
    assert content["plan"]["hash"] == read_plan(out).hash
    assert "other sizes" in page.read_text()


def test_one_question_at_a_time(tmp_path: Path) -> None:
    with pytest.raises(ThriftyError, match="say what to train"):
        run(plan.command, "--on", "8xh100")
    with pytest.raises(ThriftyError, match="one question"):
        run(plan.command, "--on", "8xh100", "--budget", "10usd", "--target-loss", "2")


def test_a_job_within_money_or_to_a_loss(tmp_path: Path) -> None:
    out = tmp_path / "plan.yaml"
    run(plan.command, "llama-3-8b", "--on", "64xh100", "--target-loss", "2.3", "--budget", "1Musd", "--out", out)
    made = read_plan(out)
    assert made.job.target_loss == 2.3
    assert made.predicted.loss is not None
    assert made.predicted.loss.value == pytest.approx(2.3, abs=0.002)
    with pytest.raises(ThriftyError, match="budget"):
        run(plan.command, "llama-3-8b", "--on", "64xh100", "--budget", "10usd", "--out", out)


def test_the_score_names_what_it_leaves_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = importlib.util.spec_from_file_location("score_law", BENCHMARK)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "score_law", module)  # where its dataclasses look for their module
    spec.loader.exec_module(module)
    fit_table = table(tmp_path / "fit.csv")
    test_table = table(tmp_path / "test.csv", sizes=(2e9,), seed=9)
    with test_table.open("a") as file:
        file.write("broken,web,,,1e9,256,3.0\n")
        file.write("elsewhere,books,2e9,2e9,4e10,256,2.2\n")
    target = tmp_path / "score.json"
    assert module.main([str(fit_table), str(test_table), "--json", str(target)]) == 0
    score = json.loads(target.read_text())
    assert score["rows"] == 9
    assert score["mape"] < 0.03 < score["null_mape"]
    assert {"median", "worst", "bias", "coverage"} <= set(score)
    assert score["lacking"] == [{"id": "broken", "why": "no params"}]
    printed = capsys.readouterr().out
    assert "NOT SCORED broken: no params" in printed
    assert "books is not in the fit" in printed
    assert module.main([str(fit_table), str(tmp_path / "absent.csv")]) == 2
    assert module.main([str(fit_table), "--cuts"]) == 0
