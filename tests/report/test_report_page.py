"""The page as text: self-contained, escaped, complete; how it looks is tested in a browser."""

import json
import re
from html.parser import HTMLParser

import pytest

from thrifty.report import words
from thrifty.report.compare import bill_lines, compare_runs
from thrifty.report.ledger import read_ledger
from thrifty.report.markup import data_script, table, tag

pytest.importorskip("altair")
pytest.importorskip("vl_convert")
from thrifty.report.page import comparison_page, report_page

VOID = {"meta", "input", "br"}


class Balance(HTMLParser):
    """Checks that elements nest, and collects what would be fetched."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.fetched: list[str] = []
        self.ids: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in VOID:
            self.open.append(tag)
        named = dict(attrs)
        self.fetched += [f"{tag} {key}" for key in ("src", "href", "srcset", "data", "action") if key in named]
        if named.get("id"):
            self.ids.append(named["id"])
        if tag in ("link", "iframe", "object", "embed", "img"):
            self.fetched.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def parsed(page: str) -> Balance:
    balance = Balance()
    balance.feed(page)
    balance.close()
    return balance


@pytest.fixture(params=["whole", "killed", "compared"])
def page(request, make_run) -> str:
    if request.param == "compared":
        return comparison_page(compare_runs(read_ledger(make_run("a")), read_ledger(make_run("b", speed=1.5))))
    return report_page(
        read_ledger(make_run(billed=request.param == "whole", run_steps=None if request.param == "whole" else 120))
    )


def test_it_nests_names_each_id_once_and_refers_to_nothing(page: str) -> None:
    balance = parsed(page)
    assert balance.open == []
    assert balance.fetched == []
    assert len(balance.ids) == len(set(balance.ids))
    assert "@import" not in page
    assert "url(" not in re.sub(r"<script.*?</script>", "", page, flags=re.S)


def test_it_is_of_modest_size(page: str) -> None:
    assert len(page.encode()) < 800_000


def test_what_a_plan_says_is_escaped(make_run) -> None:
    page = report_page(read_ledger(make_run("<b>run")))
    assert "<b>run" not in page
    assert "&lt;b&gt;run" in page
    assert "a price list &lt;of&gt; somebody &amp; co" in page


def test_every_term_assumption_and_reason_is_there(make_run) -> None:
    ledger = read_ledger(make_run())
    page = report_page(ledger)
    for line in bill_lines(ledger.predicted, ledger.measured):
        assert f"<td>{words.label(line.term)}</td>" in page
    assert "cluster.price" in page
    assert "2026-10-01" in page
    assert "the processor has no bf16 matrix unit" in page
    assert "runs.1.processor" in page


def test_figures_are_thinned_in_a_long_run(make_run) -> None:
    ledger = read_ledger(make_run(steps=6000, every=100))
    figures = re.search(r'<script type="application/json" id="figures">(.*?)</script>', report_page(ledger), re.S)
    rows = json.loads(figures[1])["loss"]["rows"]
    assert sum(row["split"] == "train" for row in rows) == 400
    assert rows[-1]["loss"] == pytest.approx(ledger.final_loss, rel=1e-5)


def test_a_free_run_has_no_money_axis(make_run) -> None:
    root = make_run()
    rows = [json.loads(line) | {"usd": 0.0} for line in (root / "metrics.jsonl").read_text().splitlines()]
    (root / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    page = report_page(read_ledger(root))
    assert 'value="time"' in page
    assert 'value="money"' not in page


def test_a_run_that_has_not_begun_still_has_a_page(make_run) -> None:
    root = make_run(billed=False)
    (root / "metrics.jsonl").unlink()
    page = report_page(read_ledger(root))
    assert "Nothing trained yet." in page
    assert 'id="figure-loss"' not in page


def test_markup() -> None:
    assert tag("p", "a < b", class_="x", hidden=True, title=None) == '<p class="x" hidden>a &lt; b</p>'
    assert tag("p", ["a", tag("b", "&")], 1, None) == "<p>a<b>&amp;</b>1</p>"
    assert data_script("d", {"x": "</script>"}).count("</script>") == 1
    assert '<td class="figure">2</td>' in table(("a", "b"), [("x", 2)], caption="c")
