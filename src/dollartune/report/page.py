"""The report as one HTML page that opens anywhere: style, charts and libraries are inside, and nothing is fetched.

The content security policy lets only our two scripts run, by their hashes. Whatever a model wrote could therefore do
nothing even if it were not escaped, which it is.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
from collections.abc import Mapping
from functools import lru_cache
from importlib.resources import files
from typing import TYPE_CHECKING

from dollartune.report.elements import Html, escape, raw, tag
from dollartune.report.figures import Figures
from dollartune.report.sections import Page

if TYPE_CHECKING:
    from dollartune.report.contents import Contents
    from dollartune.report.task_facts import TaskFacts


def render_page(contents: Contents, facts: Mapping[str, TaskFacts]) -> str:
    """The whole page."""
    from altair.utils.schemapi import debug_mode

    figures = Figures()
    with debug_mode(False):  # else each part of each chart is checked when it is made; the tests check all of them
        body = Page(contents, facts, figures).body()
    script = files("dollartune.report").joinpath("page.js").read_text("utf8")
    style = files("dollartune.report").joinpath("page.css").read_text("utf8")
    libraries = chart_libraries()
    # Nothing may be fetched (default-src none), so a report that is mailed tells nobody that it was opened. Inline styles are
    # the page's own and those that Vega sets on its marks.
    policy = (
        f"default-src 'none'; script-src {_hash(script)} {_hash(libraries)}; "
        "style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'"
    )
    # allow_nan=False: NaN is no JSON, and the browser would refuse the whole page's charts.
    charts = json.dumps({"specs": figures.specs, "datasets": figures.datasets}, allow_nan=False, separators=(",", ":"))
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=policy),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("title", f"{contents.name}: tuning methods compared"),
        tag("style", raw(style)),
    )
    # Libraries as text that the script unpacks: 0.9 MB of Vega becomes 0.4 MB.
    scripts: Html = escape(
        [
            tag("script", _packed(charts), type="text/plain", id="charts"),
            tag("script", _packed(libraries), type="text/plain", id="libraries"),
            tag("script", raw(script)),
        ]
    )
    return f"<!doctype html>\n{tag('html', head, tag('body', body, scripts), lang='en')}\n"


@lru_cache(maxsize=1)
def chart_libraries() -> str:
    """Vega, Vega-Lite and their embedding as one script; the version that altair writes for, where it is there."""
    import altair
    import vl_convert

    # Major and minor version; vl_convert names them so (`5.21`).
    wanted = ".".join(altair.SCHEMA_VERSION.lstrip("v").split(".")[:2])
    version = wanted if wanted in vl_convert.get_vegalite_versions() else None
    bundle: str = vl_convert.javascript_bundle("window.vegaEmbed=vegaEmbed;", vl_version=version)
    return bundle


def _packed(text: str) -> Html:
    """Compressed, in letters that mean nothing in HTML; the page's script unpacks it."""
    # mtime=0, or gzip would write the time into it and no two reports would be the same.
    return raw(base64.b64encode(gzip.compress(text.encode(), 9, mtime=0)).decode())


def _hash(script: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"
