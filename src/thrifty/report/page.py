"""The report as one HTML file that fetches nothing: Vega, data and figures are all inside it."""

from __future__ import annotations

import base64
import gzip
from collections.abc import Iterable, Sequence
from functools import lru_cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import altair as alt
import vl_convert

from thrifty.cost.params import total_parameters
from thrifty.report import drawings, sections, summary, words
from thrifty.report.compare import Comparison, bill_lines
from thrifty.report.drawings import Drawing
from thrifty.report.ledger import Ledger
from thrifty.report.markup import Markup, data_script, table, tag
from thrifty.spec.errors import ThriftyError

# The page may load nothing from anywhere. Vega compiles its expressions with Function, hence unsafe-eval.
POLICY = "default-src 'none'; script-src 'unsafe-inline' 'unsafe-eval'; style-src 'unsafe-inline'; img-src data: blob:"


def report_page(ledger: Ledger) -> str:
    """The page of one run: headline, figures, every term of both bills, assumptions, plan and manifest."""
    lines = bill_lines(ledger.predicted, ledger.measured)
    job, recipe = ledger.plan.job, ledger.plan.recipe
    size = words.value(total_parameters(job.model), "token")
    kicker = [
        job.name,
        f"{job.model.name}, {size} parameters",
        f"{recipe.layout.ranks} x {ledger.plan.cluster.accelerator.name}",
        recipe.precision,
    ]
    body = [
        _header(
            kicker, summary.headline(ledger), summary.subline(ledger), summary.notes(ledger), sections.tiles(lines)
        ),
        tag(
            "main",
            _drawn(drawn := list(drawings.report_drawings(ledger))),
            sections.terms(lines),
            sections.assumptions(ledger),
            sections.plan(ledger),
            sections.manifest(ledger),
        ),
    ]
    return _document(f"{ledger.name} · thrifty report", body, drawn, ledger)


def comparison_page(comparison: Comparison) -> str:
    """The page of two runs: cost to the same loss, both bills, and what differs between the plans."""
    drawn = list(drawings.comparison_drawings(comparison))
    a, b = comparison.a, comparison.b
    head = _header(
        [f"A: {a.name}", f"B: {b.name}"],
        summary.compare_headline(comparison),
        summary.compare_subline(comparison),
        comparison.warnings,
        sections.cost_tiles(comparison),
    )
    main = tag("main", _drawn(drawn), sections.differences(comparison), sections.both_bills(comparison.lines))
    return _document(f"{a.name} and {b.name} · thrifty compare", [head, main], drawn, a)


def write_page(text: str, path: Path) -> None:
    """Writes the page.

    Raises:
        ThriftyError: the file cannot be written.
    """
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        hint = "name another file with --html"
        raise ThriftyError(f"the page cannot be written: {error.strerror}", where=str(path), hint=hint) from None


@lru_cache(maxsize=1)
def _vega() -> Markup:
    """Vega, Vega-Lite and Vega-Embed as base64 of gzip, less than half their size; `page.js` unpacks them."""
    version = ".".join(alt.SCHEMA_VERSION.removeprefix("v").split(".")[:2])
    source = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;", vl_version=version)
    packed = base64.b64encode(gzip.compress(source.encode(), mtime=0)).decode()
    return Markup(f'<script type="text/plain" id="vega">{packed}</script>')


def _document(title: str, body: Sequence[Markup], drawn: Sequence[Drawing], ledger: Ledger) -> str:
    here = files("thrifty.report")
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", http_equiv="Content-Security-Policy", content=POLICY),
        tag("meta", name="color-scheme", content="light dark"),
        tag("title", title),
        tag("style", Markup(here.joinpath("page.css").read_text(encoding="utf-8"))),
    )
    foot = tag(
        "footer", f"Plan made with {ledger.plan.made_with or 'thrifty'}. This page is one file and loads nothing else."
    )
    data = {drawing.id: {"rows": drawing.rows, "specs": drawing.specs} for drawing in drawn}
    script = tag("script", Markup(here.joinpath("page.js").read_text(encoding="utf-8")))
    content = tag("body", *body, foot, data_script("figures", data), _vega(), script)
    return f"<!doctype html>\n{tag('html', head, content, lang='en')}\n"


def _header(kicker: Sequence[str], headline: str, lead: str, notes: Iterable[str], tiles: Markup) -> Markup:
    return tag(
        "header",
        tag("p", tag("b", "thrifty"), *(tag("span", text) for text in kicker), class_="kicker"),
        tag("h1", headline),
        tag("p", lead, class_="lead"),
        [tag("p", note, class_="note") for note in notes],
        tiles,
    )


def _drawn(drawn: Sequence[Drawing]) -> list[Markup]:
    """The figures; time and memory stand side by side where there is room."""
    shown = {drawing.id: _figure(drawing) for drawing in drawn}
    pair = tag("div", shown.pop("time"), shown.pop("memory"), class_="pair")
    loss = shown.pop("loss", None)
    return [part for part in (loss, *shown.values(), pair) if part is not None]


def _figure(drawing: Drawing) -> Markup:
    legend = tag(
        "ul",
        [tag("li", tag("i", style=f"background:{colour}"), name) for name, colour in drawing.legend],
        class_="legend",
    )
    rows = drawing.rows if drawing.table is None else drawing.table
    cells = [[_cell(row.get(key)) for key, _ in drawing.columns] for row in rows]
    text = [
        i for i, (key, _) in enumerate(drawing.columns) if rows and isinstance(rows[0].get(key), str) and key != "text"
    ]
    data = table([heading for _, heading in drawing.columns], cells, text=text, caption=f"{drawing.title}: data")
    waiting = tag("div", "A script draws this figure; its data are below.")
    chart = tag("div", waiting, id=f"chart-{drawing.id}", class_="chart", role="img", aria_label=drawing.title)
    link = tag("a", "Download JSON", id=f"download-{drawing.id}", download=f"{drawing.id}.json", hidden=True)
    return tag(
        "figure",
        tag("h2", drawing.title, id=f"title-{drawing.id}"),
        tag("p", drawing.caption),
        tag("div", legend if drawing.legend else tag("span"), _switch(drawing), class_="bar")
        if drawing.legend or len(drawing.specs) > 1
        else None,
        chart,
        tag("div", tag("details", tag("summary", "Data"), data), link, class_="below"),
        aria_labelledby=f"title-{drawing.id}",
        id=f"figure-{drawing.id}",
    )


def _switch(drawing: Drawing) -> Markup | None:
    if len(drawing.specs) < 2:
        return None
    choices = [
        tag(
            "label",
            tag("input", type="radio", name=f"switch-{drawing.id}", value=name, checked=i == 0),
            tag("span", name),
        )
        for i, name in enumerate(drawing.specs)
    ]
    return tag("fieldset", tag("legend", "against"), choices, class_="switch")


def _cell(value: Any) -> str:
    if value is None:
        return "–"
    return f"{value:,.6g}" if isinstance(value, int | float) else str(value)
