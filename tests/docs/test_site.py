"""The site: it builds without a warning, nothing is fetched from elsewhere, and it fits a phone."""

from __future__ import annotations

import functools
import http.server
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from blocks import ROOT

from dollartune.methods.registry import methods
from dollartune.pages import write_pages

pytestmark = pytest.mark.xdist_group("docs")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built in a copy."""
    for library in ("zensical", "mkdocstrings"):
        pytest.importorskip(library, reason="the docs extra is not installed")
    folder = tmp_path_factory.mktemp("site")
    shutil.copytree(ROOT / "docs", folder / "docs")
    shutil.copy(ROOT / "mkdocs.yml", folder)
    (folder / "src").symlink_to(ROOT / "src")  # whose docstrings the page of the API shows
    write_pages(folder / "docs")
    command = [str(Path(sys.executable).parent / "zensical"), "build", "--clean", "--strict"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "site"


def test_every_method_has_its_page(site: Path) -> None:
    assert {path.stem for path in (site / "methods").glob("*.html")} == {"index", *methods()}


def test_defaults_and_ranges_are_written_as_in_a_study_file(site: Path) -> None:
    settings = (site / "study-file.html").read_text(encoding="utf8")
    assert "<code>[0, 1, 2]</code>" in settings
    assert "<code>true</code>" in settings
    assert "<code>True</code>" not in settings
    assert "LogUniform(" not in (site / "methods" / "lora.html").read_text(encoding="utf8")


def test_the_api_page_has_docstrings_and_leaves_out_what_is_private(site: Path) -> None:
    page = (site / "api.html").read_text(encoding="utf8")
    for name in ("dollartune.study.api.Study.run", "dollartune.attachment.attached.attach", "dollartune.stats.size"):
        assert f'id="{name}"' in page, name
    assert "Runs what has no record yet, and returns the results." in page
    assert "Study._default_name" not in page


class Quiet(http.server.SimpleHTTPRequestHandler):
    """A file server without a log."""

    def log_message(self, format: str, *args: Any) -> None:
        return


@pytest.fixture(scope="module")
def address(site: Path) -> Iterator[str]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(site)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()


PAGES = ("index", "methods/index", "methods/lora", "findings", "study-file", "api", "results/per_dollar")


@pytest.mark.browser
@pytest.mark.parametrize(("width", "scheme"), [(390, "dark"), (1400, "light")])
def test_pages_fit_fetch_nothing_and_axe_finds_nothing(browser: Any, address: str, width: int, scheme: str) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright")
    page = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme).new_page()
    elsewhere: list[str] = []
    page.on("request", lambda r: elsewhere.append(r.url) if not r.url.startswith((address, "data:")) else None)
    problems: list[str] = []
    page.on("pageerror", lambda error: problems.append(str(error)))
    for name in PAGES:
        answer = page.goto(f"{address}{name}.html", timeout=120_000)
        assert answer.ok, name
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), f"{name} is too wide"
        page.wait_for_timeout(300)  # the theme adds its buttons and wraps tables after loading
        result = axe.Axe().run(page)
        assert result.violations_count == 0, f"{name}\n{result.generate_report()}"
    page.context.close()
    assert not elsewhere
    assert not problems
