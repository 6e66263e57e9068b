"""The screen and its data: complete, short, and plain where it must be."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path

import pytest
from rich.console import Console

from thrifty.catalog import lookup
from thrifty.planner import screen
from thrifty.planner.emit import read_plan, write_plan
from thrifty.planner.explain import Explanation, explain
from thrifty.planner.search import NEAR, search
from thrifty.spec import Cluster, Job, ModelShape, ThriftyError
from thrifty.spec.load import build
from thrifty.spec.plan import Plan

CASES = [("llama-3-8b", "64xh100"), ("gpt2-124m", "h100"), ("llama-3-70b", "512xh100"), ("tiny-1m", "8xa100")]


def told(model: str = "gpt2-124m", on: str = "8xa100") -> Explanation:
    shape = build(ModelShape, lookup.model(model), "")
    job = Job(name=model, model=shape, tokens=10**9, sequence_length=min(4096, shape.max_positions))
    return explain(search(job, build(Cluster, lookup.cluster(on), "")))


def drawn(one: Explanation, width: int = 100) -> str:
    out = io.StringIO()
    Console(file=out, width=width, no_color=True, highlight=False).print(screen.render(one, width))
    return out.getvalue()


@pytest.mark.parametrize(("model", "on"), CASES)
@pytest.mark.parametrize("width", [80, 100])
def test_the_screen_is_one_screen(model: str, on: str, width: int) -> None:
    lines = drawn(told(model, on), width).splitlines()
    assert len(lines) <= (43 if width == 100 else 55)  # the verb adds two
    assert max(map(len, lines)) <= width


def test_the_screen_says_what_it_costs_and_why() -> None:
    one = told()
    text, bill = drawn(one), one.plan.predicted
    assert text.startswith(f"gpt2-124m on 8xA100-SXM-80GB: {bill.usd} and {bill.seconds}\n")
    for term in bill.memory:
        assert term in text
    flat = " ".join(text.split())
    for reason in one.plan.reasons:
        assert " ".join(reason.split()) in flat
    assert "\x1b" not in text


def test_shares_of_a_step_add_up() -> None:
    one = told()
    assert sum(one.limits.values()) == pytest.approx(1)
    assert list(one.limits.values()) == sorted(one.limits.values(), reverse=True)


def test_every_published_or_assumed_figure_is_named_with_its_date() -> None:
    one = told()
    named = {assumption.key: assumption for assumption in one.assumptions}
    price = one.plan.cluster.price
    assert (named["price"].value, named["price"].date) == (price.value, price.date)
    assert named["price"].source == price.source
    assert "intra-node link" in named
    assert "inter-node link" not in named, "not used on one node"
    assert all(assumption.provenance in ("published", "assumed") for assumption in one.assumptions)


def test_measured_figures_are_no_assumptions() -> None:
    one = told()
    cluster = one.plan.cluster
    measured = cluster.price.model_copy(update={"provenance": "measured"})
    found = explain(search(one.plan.job, cluster.model_copy(update={"price": measured})))
    assert "price" not in {assumption.key for assumption in found.assumptions}


def test_the_bar_is_filled_in_proportion() -> None:
    one = told("llama-3-8b", "64xh100")
    bar = re.search(r"\[([A-Z.|]+)\]", drawn(one))
    assert bar is not None
    share = sum(letter.isalpha() for letter in bar[1]) / len(bar[1])
    assert share == pytest.approx(one.plan.predicted.peak_memory.value / one.capacity_bytes, abs=0.03)
    assert bar[1].count("|") == 1


def test_json_holds_all_of_it() -> None:
    one = told()
    content = json.loads(json.dumps(one.as_json()))
    assert Plan.model_validate(content["plan"]) == one.plan
    assert content["limits"] == one.limits
    assert len(content["assumptions"]) == len(one.assumptions)
    assert [way["usd"] for way in content["runners_up"]] == [way.usd for way in one.runners_up]


def test_the_page_needs_nothing_else() -> None:
    page = screen.html_page(told(), "a <b> & c")
    assert "<title>a &lt;b&gt; &amp; c</title>" in page
    assert not re.findall(r"(?:src|href)=|url\(|@import|<script", page)
    assert "gpt2-124m" in page


def test_a_plan_survives_its_file(tmp_path: Path) -> None:
    plan = told().plan
    write_plan(plan, tmp_path / "deep" / "plan.yaml")
    assert read_plan(tmp_path / "deep" / "plan.yaml") == plan


def test_a_changed_plan_says_how_to_plan_again(tmp_path: Path) -> None:
    path = tmp_path / "plan.yaml"
    write_plan(told().plan, path)
    path.write_text(path.read_text().replace("precision: bf16", "precision: fp32"))
    with pytest.raises(ThriftyError, match="changed after planning") as error:
        read_plan(path)
    assert "--set KEY=VALUE" in error.value.hint
    with pytest.raises(ThriftyError, match="not a plan"):
        read_plan(_job_file(tmp_path))


def _job_file(folder: Path) -> Path:
    path = folder / "job.yaml"
    path.write_text("job: {model: gpt2-124m, steps: 1, sequence_length: 8}\n")
    return path


@pytest.mark.parametrize(("model", "on"), CASES[:3])
def test_each_runner_up_says_what_it_costs_and_takes(model: str, on: str) -> None:
    one = told(model, on)
    usd, peak = one.plan.predicted.usd.value, one.plan.predicted.peak_memory.value
    assert one.runners_up
    for way in one.runners_up:
        more = way.usd / usd - 1
        assert way.why.startswith("costs ")
        assert f"{abs(more):.1%}" in way.why or (abs(more) <= NEAR and "the same within 1%" in way.why)
        assert f"{'more' if way.peak_bytes > peak else 'less'} memory" in way.why
