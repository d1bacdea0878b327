"""The page in a real browser: charts are drawn, nothing is fetched, nothing a model wrote comes alive."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
from fabricate import METHODS, MadeStudy, make_study

from dollartune.report import write_report

pytestmark = pytest.mark.browser

HOSTILE = '<script>document.title="broken in"</script><img src="http://127.0.0.1:9/x.png" onerror="document.title=1">'


@pytest.fixture(scope="module")
def page_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    made = MadeStudy(
        methods=METHODS[:4], scales=(100, 1000), rows=40, hostile=HOSTILE, failures=(("vera", "error", HOSTILE),)
    )
    return write_report(make_study(folder / "study", made), folder)


def _until(page: Any, expression: str, seconds: float = 120) -> None:
    """Waits for something on the page. Playwright's own waiting evaluates strings there, which the policy forbids."""
    end = time.monotonic() + seconds
    while not page.evaluate(expression):
        assert time.monotonic() < end, f"still not so after {seconds:.0f} s: {expression}"
        page.wait_for_timeout(50)


def _open(browser: Any, path: Path, width: int, scheme: str = "light") -> tuple[Any, list[str]]:
    """The page scrolled to its end, and everything that went wrong or over the network."""
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
    page = context.new_page()
    trouble: list[str] = []
    page.on("console", lambda message: trouble.append(f"{message.type}: {message.text}"))
    page.on("pageerror", lambda error: trouble.append(f"error: {error}"))
    page.on("request", lambda request: trouble.append(request.url) if request.url != path.as_uri() else None)
    page.goto(path.as_uri())
    _until(page, "document.documentElement.dataset.ready === 'yes'")
    page.evaluate("document.querySelectorAll('.plot').forEach((plot) => plot.scrollIntoView())")
    page.evaluate("window.dispatchEvent(new Event('beforeprint'))")
    shown = "[...document.querySelectorAll('.plot')].filter((plot) => plot.clientWidth)"
    _until(page, f"{shown}.every((plot) => plot.dataset.drawn)")
    page.evaluate("window.dispatchEvent(new Event('afterprint'))")
    return page, trouble


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (390, "dark")])
def test_charts_are_drawn_without_errors_or_requests(browser: Any, page_path: Path, width: int, scheme: str) -> None:
    page, trouble = _open(browser, page_path, width, scheme)
    assert trouble == []
    drawn = page.locator(".plot svg").count()
    assert drawn >= 11
    marks = page.evaluate(
        "[...document.querySelectorAll('.plot svg')].map((svg) => svg.querySelectorAll('path').length)"
    )
    assert min(marks) > 3
    assert page.evaluate("document.documentElement.scrollWidth") <= width, "the page itself must not scroll sideways"
    inked = page.evaluate(
        "getComputedStyle(document.querySelector('.plot svg .role-axis-label text')).fill !== 'rgb(0, 0, 0)'"
    )
    assert inked, "axis labels take the page's color"
    page.context.close()


def test_a_script_that_a_model_wrote_stays_text(browser: Any, page_path: Path) -> None:
    page, trouble = _open(browser, page_path, 1280)
    assert page.title() == "study: tuning methods compared"
    assert page.evaluate("document.querySelectorAll('main img, main script').length") == 0
    assert 'document.title="broken in"' in page.locator("main").inner_text()
    assert trouble == []
    page.context.close()


def test_an_inserted_script_is_refused_by_the_policy(browser: Any, page_path: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.html"
    broken.write_text(page_path.read_text("utf8").replace("</main>", f"{HOSTILE}</main>"), "utf8")
    context = browser.new_context()
    page = context.new_page()
    page.goto(broken.as_uri())
    assert page.title() == "study: tuning methods compared"
    context.close()


def test_learning_curves_change_by_keyboard(browser: Any, page_path: Path) -> None:
    page, trouble = _open(browser, page_path, 1280)
    tabs = page.locator(".tabs").first
    figures = tabs.locator("figure")
    assert figures.nth(0).is_visible()
    assert not figures.nth(1).is_visible()
    tabs.locator("input").first.focus()
    page.keyboard.press("ArrowRight")
    assert figures.nth(1).is_visible()
    _until(page, "document.querySelector('.tabs figure:nth-of-type(2) .plot svg') !== null")
    assert trouble == []
    page.context.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing(browser: Any, page_path: Path, scheme: str) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright")
    # axe is a script of its own, which the page's policy would not let in
    context = browser.new_context(viewport={"width": 1400, "height": 900}, color_scheme=scheme, bypass_csp=True)
    page = context.new_page()
    page.goto(page_path.as_uri())
    _until(page, "document.documentElement.dataset.ready === 'yes'")
    page.evaluate("window.dispatchEvent(new Event('beforeprint'))")
    shown = "[...document.querySelectorAll('.plot')].filter((plot) => plot.clientWidth)"
    _until(page, f"{shown}.every((plot) => plot.dataset.drawn)")
    page.evaluate("window.dispatchEvent(new Event('afterprint'))")
    found = axe.Axe().run(page)
    assert found.violations_count == 0, found.generate_report()


def test_paper_shows_every_chart_whole(browser: Any, page_path: Path) -> None:
    """Drawn for a wide screen, of which paper has half, and what a tab hides as well."""
    page = browser.new_context(viewport={"width": 1400, "height": 900}).new_page()
    page.goto(page_path.as_uri())
    _until(page, "document.documentElement.dataset.ready === 'yes'")
    page.evaluate("window.dispatchEvent(new Event('beforeprint'))")
    _until(page, "[...document.querySelectorAll('.plot')].every((plot) => plot.dataset.drawn)")
    page.emulate_media(media="print")
    page.set_viewport_size({"width": 700, "height": 1000})
    wide = "[...document.querySelectorAll('.plot svg, table')].filter((one) => one.getBoundingClientRect().right > 702).length"
    assert page.evaluate(wide) == 0
    page.evaluate("window.dispatchEvent(new Event('afterprint'))")
    assert page.evaluate("document.documentElement.className") == ""
    page.context.close()
