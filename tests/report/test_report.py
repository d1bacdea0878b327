"""The report's files from made-up studies of every shape: what they say, and what they must never do."""

from __future__ import annotations

import csv
import importlib.util
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from fabricate import METHODS, Made, MadeStudy, make_study

from dollartune.errors import UserError
from dollartune.report import write_report
from dollartune.report.contents import collect
from dollartune.report.elements import Html, tag

HOSTILE = '<script>document.title="broken in"</script><img src=x onerror=alert(1)> | `code` [a](http://b)'
ABLATED = Made(
    "lora(rank=8): drop self_attn", 0.6, 4_000, 30.0, "lora", {"of": "lora(rank=8)", "name": "drop self_attn"}
)
RICH = MadeStudy(
    methods=(*METHODS, ABLATED),
    scales=(100, 1000),
    failures=(("prefix(tokens=30)", "out_of_memory", "2 GB were not enough"),),
)
SHAPES = {
    "rich": RICH,
    "one in-context method": MadeStudy(methods=METHODS[:1], seeds=1, price=0.0, budget=None),
    "no predictions": MadeStudy(predictions=False, free_generation=False),
    "one seed, all rows": MadeStudy(seeds=1, scales=(None,), price=0.0, budget={"seconds": 600.0, "per": "study"}),
    "texts": MadeStudy(kind="generation", tasks=("e2e_nlg",), free_generation=False),
    "several tasks": MadeStudy(tasks=("ag_news", "sst2"), methods=METHODS[:3], rows=40),
    "many labels": MadeStudy(labels=tuple(f"label {i}" for i in range(20)), methods=METHODS[:3]),
    "only failures": MadeStudy(methods=(), failures=(("full", "not_finite", "the loss is nan at step 3"),)),
}


class Tags(HTMLParser):
    """Every element of a page with its attributes, and its visible text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data

    def all(self, name: str) -> list[dict[str, str | None]]:
        return [attributes for tag, attributes in self.found if tag == name]


@pytest.fixture(scope="module")
def rich(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rich")
    return write_report(make_study(folder / "study", RICH), folder / "report").parent


@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape_of_study_makes_a_report(shape: str, tmp_path: Path) -> None:
    page = write_report(make_study(tmp_path / "study", SHAPES[shape]), tmp_path / "out")
    assert page == tmp_path / "out" / "report.html"
    assert {path.name for path in page.parent.iterdir()} == {
        "report.html",
        "report.md",
        "results.csv",
        "leaderboard.csv",
    }
    assert 300_000 < page.stat().st_size < 1_000_000
    text = Tags(page.read_text("utf8")).text
    assert not re.search(r"\b(nan|None|inf)\b(?! at step)", text.split("How it was run")[0]), (
        "a missing value came through"
    )


def test_the_page_says_who_is_best_and_for_how_much(rich: Path) -> None:
    contents = collect(make_study(rich / "again", RICH))
    board = contents.boards[0]
    text = Tags((rich / "report.html").read_text("utf8")).text
    assert board.best.label in text
    assert board.comparison is not None
    assert f"How sure: {board.comparison.explanation}" in text
    assert all(f"Beware: {warning}" in text for warning in board.comparison.warnings)
    assert "For the money" in text
    for entry in board.entries:
        assert f"{entry.score:.3f}" in text
    for words in ("Spent of the budget", "Trials that failed", "2 GB were not enough", "What each part is worth"):
        assert words in text


def test_the_page_fetches_nothing_and_runs_only_our_scripts(rich: Path) -> None:
    page = Tags((rich / "report.html").read_text("utf8"))
    for _, attributes in page.found:
        for name in ("src", "href", "srcset", "action", "data"):
            assert (attributes.get(name) or "#").startswith("#"), attributes
        assert not any(name.startswith("on") for name in attributes)
    policy = next(a["content"] for a in page.all("meta") if a.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None
    assert "default-src 'none'" in policy
    assert re.search(r"script-src 'sha256-\S+' 'sha256-\S+';", policy), "scripts are allowed by hash only"
    assert not page.all("link")


@pytest.mark.parametrize("kind", ["classification", "generation"])
def test_texts_of_models_stay_text(kind: str, tmp_path: Path) -> None:
    made = MadeStudy(
        methods=METHODS[:3], kind=kind, rows=30, hostile=HOSTILE, free_generation=kind == "classification",
        failures=((HOSTILE, "error", HOSTILE),), labels=("yes", "<b>no</b>"),
    )  # fmt: skip
    page = write_report(make_study(tmp_path / "study", made), tmp_path)
    parsed = Tags(page.read_text("utf8"))
    assert len(parsed.all("script")) == 3
    assert not parsed.all("img")
    assert not parsed.all("b")
    assert 'document.title="broken in"' in parsed.text
    markdown = (tmp_path / "report.md").read_text("utf8")
    assert "<script" not in markdown.replace("\\<script", "")
    rows = [line for line in markdown.splitlines() if line.startswith("|")]
    assert all(len(re.findall(r"(?<!\\)\|", row)) >= 3 for row in rows)


def test_tables_have_headings_and_charts_have_words(rich: Path) -> None:
    page = Tags((rich / "report.html").read_text("utf8"))
    assert len(page.all("h1")) == 1
    assert len(page.all("caption")) == len(page.all("table")) > 5
    assert all(th.get("scope") in ("col", "row") for th in page.all("th"))
    plots = [div for div in page.all("div") if div.get("class") == "plot"]
    assert len(plots) >= 12
    assert all(div["role"] == "img" and len(div["aria-label"] or "") > 30 for div in plots)
    scrolling = [div for div in page.all("div") if div.get("class") == "scroll"]
    assert all(div.get("tabindex") == "0" and div.get("aria-label") for div in scrolling), "reachable by keyboard"
    names = [a["id"] for _, a in page.found if a.get("id")]
    assert len(names) == len(set(names))
    assert {(a["href"] or "")[1:] for a in page.all("a")} <= set(names)


def test_csv_has_a_row_per_trial_and_a_row_per_variant(rich: Path) -> None:
    with (rich / "results.csv").open() as file:
        trials = list(csv.DictReader(file))
    with (rich / "leaderboard.csv").open() as file:
        leaders = list(csv.DictReader(file))
    assert len(trials) == 2 * (1 + 3 * 6) + 1
    assert len(leaders) == 2 * 7
    assert sum(row["status"] == "failed" for row in trials) == 1
    first = leaders[0]
    assert float(first["low"]) <= float(first["score"]) <= float(first["high"])


def test_the_same_results_make_the_same_page(tmp_path: Path) -> None:
    first = write_report(make_study(tmp_path / "a" / "study", SHAPES["texts"]), tmp_path / "one")
    again = write_report(make_study(tmp_path / "b" / "study", SHAPES["texts"]), tmp_path / "two")
    for name in ("report.md", "results.csv", "leaderboard.csv"):
        assert (first.parent / name).read_bytes().replace(b"/a/", b"/b/") == (again.parent / name).read_bytes()


def test_without_the_extra_the_other_files_are_written_and_the_error_names_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = importlib.util.find_spec

    def without(name: str, *rest: Any) -> Any:
        return None if name in ("altair", "vl_convert") else real(name, *rest)

    monkeypatch.setattr(importlib.util, "find_spec", without)
    with pytest.raises(UserError, match=r"altair and vl-convert-python") as caught:
        write_report(make_study(tmp_path / "study", MadeStudy(methods=METHODS[:2])), tmp_path)
    assert caught.value.hint == "pip install 'dollartune[report]'"
    assert {path.name for path in tmp_path.iterdir()} == {"study", "report.md", "results.csv", "leaderboard.csv"}


def test_a_study_without_records_says_what_to_run(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no finished trial") as caught:
        write_report(make_study(tmp_path / "study", MadeStudy(methods=())), tmp_path)
    assert caught.value.hint == "dollartune run STUDY.yaml"


def test_results_of_two_test_sets_are_reported_without_a_verdict(tmp_path: Path) -> None:
    make_study(tmp_path / "study", MadeStudy(methods=METHODS[:2], rows=40))
    results = make_study(tmp_path / "study", MadeStudy(methods=METHODS[2:4], rows=50))
    page = write_report(results, tmp_path / "out")
    text = Tags(page.read_text("utf8")).text
    assert "cannot be compared" in text
    assert "different numbers of examples" in text


def test_large_studies_stay_below_a_megabyte(tmp_path: Path) -> None:
    methods = tuple(Made(f"lora(rank={i})", 0.5 + 0.02 * i, 1000 * i) for i in range(1, 16))
    made = MadeStudy(methods=methods, scales=(100, 1000), rows=24, history=200)
    page = write_report(make_study(tmp_path / "study", made), tmp_path)
    assert page.stat().st_size < 1_000_000


def test_elements_escape_everything_that_is_not_markup() -> None:
    assert tag("p", "1 < 2 & 3", title='a "b"') == '<p title="a &quot;b&quot;">1 &lt; 2 &amp; 3</p>'
    assert tag("p", Html("<b>x</b>"), None, ["<", 3]) == "<p><b>x</b>&lt;3</p>"
    assert tag("input", type="radio", checked=True, disabled=False) == '<input type="radio" checked>'
