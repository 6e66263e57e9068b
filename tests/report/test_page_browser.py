"""The page in headless Chromium: drawn whole, from the file alone, at any width, light and dark."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from synthetic_runs import write_run

from thrifty.report.compare import compare_runs
from thrifty.report.ledger import read_ledger

pytest.importorskip("altair")
pytest.importorskip("vl_convert")
playwright = pytest.importorskip("playwright.sync_api")
pytestmark = pytest.mark.browser

CHROMIUM = Path("/usr/bin/chromium")
DRAWN = "() => [...document.querySelectorAll('.chart')].every((chart) => chart.dataset.drawn)"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    if not CHROMIUM.exists():
        pytest.skip(f"no browser: {CHROMIUM} is missing (Debian: apt-get install chromium)")
    with playwright.sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=str(CHROMIUM), args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture
def show(browser: Any) -> Iterator[Callable[..., Any]]:
    """Opens a page; at the end asserts that nothing was fetched and nothing complained."""
    contexts: list[Any] = []
    trouble: list[str] = []

    def watch(request: Any) -> None:
        if not request.url.startswith(("file:", "data:", "blob:")):
            trouble.append(f"request to {request.url}")

    def open_page(path: Path, *, width: int = 1280, scheme: str = "light", script: bool = True) -> Any:
        size = {"width": width, "height": 900}
        context = browser.new_context(viewport=size, color_scheme=scheme, java_script_enabled=script, offline=True)
        contexts.append(context)
        page = context.new_page()
        page.on("request", watch)
        page.on("console", lambda message: trouble.append(f"{message.type}: {message.text}"))
        page.on("pageerror", lambda error: trouble.append(f"error: {error}"))
        page.goto(path.as_uri())
        if script:
            page.wait_for_function(DRAWN, timeout=30_000)
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert trouble == []


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    from thrifty.report.page import comparison_page, report_page, write_page

    folder = tmp_path_factory.mktemp("pages")
    runs = {
        "whole": write_run(folder, "whole", target_loss=1.9),
        "killed": write_run(folder, "killed", run_steps=120, billed=False),
        "faster": write_run(folder, "faster", speed=1.5, step_seconds=0.3, lr=2e-3),
    }
    ledgers = {name: read_ledger(root) for name, root in runs.items()}
    texts = {name: report_page(ledgers[name]) for name in ("whole", "killed")}
    texts["compared"] = comparison_page(compare_runs(ledgers["whole"], ledgers["faster"]))
    for name, text in texts.items():
        write_page(text, folder / f"{name}.html")
    return {name: folder / f"{name}.html" for name in texts}


FIGURES = {
    "whole": {"loss", "ratios", "time", "memory"},
    "killed": {"loss", "time", "memory"},
    "compared": {"loss", "ratios", "time", "memory"},
}


@pytest.mark.parametrize("width", [1280, 375])
@pytest.mark.parametrize("name", list(FIGURES))
def test_every_chart_is_drawn_with_a_name_and_nothing_overflows(show, pages, name: str, width: int) -> None:
    page = show(pages[name], width=width)
    charts = page.locator(".chart[role=img]").all()
    assert {chart.get_attribute("id").removeprefix("chart-") for chart in charts} == FIGURES[name]
    for chart in charts:
        assert chart.get_attribute("aria-label")
        box = chart.locator("svg").bounding_box()
        assert box["width"] > 200
        assert box["height"] > 60
        assert box["x"] + box["width"] <= width
        assert chart.locator("svg path").count() > 3
    for figure in page.get_by_role("figure").all():
        assert figure.evaluate("(e) => document.getElementById(e.getAttribute('aria-labelledby')).textContent")
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_marks_stand_where_the_data_are(show, pages) -> None:
    page = show(pages["whole"])
    points = page.locator("#chart-loss .mark-symbol path").evaluate_all(
        "(marks) => marks.map((m) => m.getBoundingClientRect().x)"
    )
    assert len(points) == 8
    assert points == sorted(points)
    assert page.locator("#chart-loss", has_text="target 1.9").count() == 1
    assert page.locator("#chart-memory .mark-rect path").count() == 14 + 2  # terms and peaks


def test_the_switch_redraws_the_loss_by_mouse_and_keyboard(show, pages) -> None:
    page = show(pages["whole"])
    titles = {}
    for name in ("tokens", "time", "money", "energy", "FLOPs"):
        page.get_by_role("radio", name=name).check()
        page.wait_for_function(f"document.getElementById('chart-loss').dataset.drawn === '{name}'")
        titles[name] = page.get_by_role("img", name=f"loss against {name}").locator("svg").text_content()
    assert "time (min)" in titles["time"]
    assert "(USD)" in titles["money"]
    assert len(set(titles.values())) == 5
    page.keyboard.press("ArrowLeft")
    page.wait_for_function("document.getElementById('chart-loss').dataset.drawn === 'energy'")
    assert page.get_by_role("radio", name="energy").is_checked()


def test_dark_and_light_differ_and_both_are_readable(show, pages) -> None:
    def colours(scheme: str) -> tuple[list[int], list[int], str]:
        page = show(pages["whole"], scheme=scheme)
        paper = page.locator("body").evaluate("(e) => getComputedStyle(e).backgroundColor")
        ink = page.locator("h1").evaluate("(e) => getComputedStyle(e).color")
        line = page.locator("#chart-loss .mark-line path").last.evaluate("(e) => getComputedStyle(e).stroke")
        return channels(paper), channels(ink), line

    light, dark = colours("light"), colours("dark")
    assert contrast(light[0], light[1]) > 7
    assert contrast(dark[0], dark[1]) > 7
    assert sum(dark[0]) < sum(light[0])
    assert light[2] != dark[2]


def test_data_and_download_of_each_figure(show, pages) -> None:
    page = show(pages["whole"])
    for name in FIGURES["whole"]:
        figure = page.locator(f"#figure-{name}")
        figure.locator("summary").click()
        assert figure.locator("tbody tr").count() > 2
        with page.expect_download() as download:
            figure.get_by_role("link", name="Download JSON").click()
        assert download.value.suggested_filename == f"{name}.json"
        assert download.value.path().stat().st_size > 50


def test_without_scripts_the_figures_are_tables(show, pages) -> None:
    page = show(pages["whole"], script=False)
    assert page.get_by_text("A script draws this figure").count() == len(FIGURES["whole"])
    page.locator("#figure-time summary").click()
    assert page.locator("#figure-time tbody tr").count() == 16


def test_a_narrower_window_draws_narrower(show, pages) -> None:
    page = show(pages["whole"], width=1280)
    before = page.locator("#chart-loss svg").bounding_box()["width"]
    page.set_viewport_size({"width": 375, "height": 800})
    page.wait_for_function("document.querySelector('#chart-loss svg').getBoundingClientRect().width < 375")
    assert page.evaluate("document.documentElement.scrollWidth") <= 375
    assert before > 900


def test_paper_is_white_even_where_screens_are_dark(show, pages) -> None:
    page = show(pages["whole"], scheme="dark")
    page.emulate_media(media="print", color_scheme="dark")
    assert sum(channels(page.locator("body").evaluate("(e) => getComputedStyle(e).backgroundColor"))) > 720
    assert not page.locator(".switch").is_visible()


def channels(colour: str) -> list[int]:
    return [int(part) for part in colour.removeprefix("rgb(").rstrip(")").split(",")]


def contrast(one: list[int], other: list[int]) -> float:
    """WCAG 2 contrast ratio of two sRGB colours."""

    def luminance(colour: list[int]) -> float:
        linear = [c / 255 / 12.92 if c / 255 <= 0.04045 else ((c / 255 + 0.055) / 1.055) ** 2.4 for c in colour]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)
