"""`thrifty report` and `thrifty compare` as a user calls them."""

import json
import sys
from importlib.util import find_spec

import pytest
import typer
from typer.testing import CliRunner

from thrifty.cli import compare, report
from thrifty.report import output
from thrifty.spec import ThriftyError

app = typer.Typer()
app.command("report")(report.command)
app.command("compare")(compare.command)
charting = pytest.mark.skipif(
    find_spec("altair") is None or find_spec("vl_convert") is None, reason="needs the [report] extra"
)


def call(*arguments: object) -> str:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.stdout


def widest(text: str) -> int:
    return max(len(line) for line in text.splitlines())


def test_report_prints_every_term_plain_and_narrow(make_run) -> None:
    text = call("report", make_run(), "--no-html")
    for word in (
        "wall time",
        "time: compute",
        "memory: optimizer",
        "money",
        "CO2",
        "validation loss",
        "inside",
        "outside",
    ):
        assert word in text
    assert "\x1b" not in text
    assert widest(text) <= 100


@charting
def test_report_writes_the_page_into_the_run_folder_and_says_where(make_run) -> None:
    root = make_run()
    text = call("report", root)
    assert str(root / "report.html") in text
    assert (root / "report.html").read_text().startswith("<!doctype html>")


@charting
def test_report_writes_the_page_where_it_is_told(make_run, tmp_path) -> None:
    root = make_run()
    call("report", root, "--html", tmp_path / "page.html")
    assert (tmp_path / "page.html").exists()
    assert not (root / "report.html").exists()


def test_report_as_json(make_run) -> None:
    content = json.loads(call("report", make_run(), "--json", "--no-html"))
    terms = {term["term"]: term for term in content["terms"]}
    assert terms["usd"]["predicted"]["provenance"] == "modelled"
    assert terms["usd"]["measured"]["provenance"] == "measured"
    assert terms["usd"]["inside_interval"] is True
    assert content["validation_loss"] == pytest.approx(terms["loss"]["measured"]["value"])
    assert content["page"] is None


def test_report_of_a_killed_run(make_run) -> None:
    root = make_run(run_steps=120, billed=False)
    text = call("report", root, "--no-html")
    assert "so far" in text
    assert "no measured bill" in " ".join(text.split())
    content = json.loads(call("report", root, "--no-html", "--json"))
    assert content["billed"] is False
    assert content["last"]["step"] == 120


def test_without_the_extra_the_tables_stay_and_one_line_says_what_to_install(make_run, monkeypatch) -> None:
    for name in ("altair", "vl_convert"):
        monkeypatch.setitem(sys.modules, name, None)
    root = make_run()
    text = call("report", root)
    assert "wall time" in text
    assert text.splitlines()[-1] == "no page: altair and vl_convert not installed; pip install 'thrifty[report]'"
    assert not (root / "report.html").exists()
    with pytest.raises(ThriftyError, match="the page needs altair"):
        call("report", root, "--html", root / "page.html")
    with pytest.raises(ThriftyError, match="the page needs altair"):
        call("compare", root, root, "--html", root / "page.html")


def test_report_does_not_import_torch_or_altair_for_the_tables(make_run) -> None:
    import subprocess

    code = (
        "import sys; from pathlib import Path; from thrifty.cli.report import command; "
        "command(Path(sys.argv[1]), no_html=True); "
        "sys.exit(any(name in sys.modules for name in ('torch', 'altair', 'numpy')))"
    )
    done = subprocess.run([sys.executable, "-c", code, str(make_run())], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_contradicting_options(make_run) -> None:
    with pytest.raises(ThriftyError, match="contradict"):
        call("report", make_run(), "--html", "x.html", "--no-html")


@charting
def test_a_page_that_cannot_be_written(make_run, tmp_path) -> None:
    with pytest.raises(ThriftyError, match="cannot be written"):
        call("report", make_run(), "--html", tmp_path / "nowhere" / "page.html")


def test_compare_prints_costs_bills_and_differences(make_run, tmp_path) -> None:
    text = call("compare", make_run("a"), make_run("b", speed=1.5, lr=2e-3))
    for word in ("FLOPs", "energy", "B/A", "plans differ in", "recipe.optimizer.lr", "the worse of the two final"):
        assert word in text
    assert widest(text.replace(str(tmp_path), "")) <= 100


def test_compare_as_json(make_run) -> None:
    content = json.loads(
        call("compare", make_run("a"), make_run("b", step_seconds=0.86), "--target-loss", "2.0", "--json")
    )
    assert content["target_loss"] == 2.0
    cost = content["cost_to_target"]
    assert cost["b_over_a"]["seconds"] == pytest.approx(2.0)
    assert cost["b_over_a"]["tokens"] == pytest.approx(1.0)
    assert cost["a"]["kwh"] == pytest.approx(cost["a"]["joules"] / 3.6e6)


@charting
def test_compare_writes_a_page_when_asked(make_run, tmp_path) -> None:
    text = call("compare", make_run("a"), make_run("b"), "--html", tmp_path / "ab.html")
    assert str(tmp_path / "ab.html") in text
    assert "Cost to the same loss" in (tmp_path / "ab.html").read_text()


@pytest.mark.parametrize("target", ["0", "-1", "nan", "inf"])
def test_a_target_that_is_no_loss(make_run, target: str) -> None:
    root = make_run()
    with pytest.raises(ThriftyError, match="a loss above 0"):
        call("compare", root, root, "--target-loss", target)


def test_missing_packages_are_named(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "vl_convert", None)
    assert "vl_convert" in output.missing_packages()
