"""What a paper takes from a study: tables that LaTeX reads, a paragraph, figures as files."""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
from fabricate import METHODS, Made, MadeStudy, make_study

from dollartune.errors import UserError
from dollartune.report import write_report
from dollartune.report.paper import (
    FIGURES,
    _metric,
    citation,
    latex,
    latex_tables,
    methods_paragraph,
    plot,
    write_figures,
)
from dollartune.study.results import Results
from dollartune.study.varying_settings import varying_settings
from dollartune.trials.record import record_of


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    made = MadeStudy(methods=(*METHODS, Made("majority", 0.25, 0, 0.01, baseline=True)), scales=(100, 1000), rows=40)
    return make_study(tmp_path_factory.mktemp("paper") / "study", made)


def test_a_table_for_each_board_is_whole(results: Results) -> None:
    text = latex_tables(results)
    assert text.count(r"\begin{table}") == text.count(r"\end{table}") == 2
    assert text.count("{") == text.count("}")
    for table in text.split("\n\n"):
        columns = re.search(r"\\begin{tabular}{(\w+)}", table)
        assert columns is not None
        rows = [line for line in table.splitlines() if line.endswith(r"\\")]
        assert {line.count(" & ") + 1 for line in rows} == {len(columns[1])}
        assert r"\textbf{" in table
        assert r"$\pm$" in table
        assert "majority class" in table
        assert "family-wise" in table


def test_rates_that_nobody_searched_are_said_at_every_table(tmp_path: Path) -> None:
    results = make_study(tmp_path / "study", MadeStudy(methods=METHODS[:3], seeds=1, rows=40))
    assert "not searched" not in latex_tables(results)  # these records name no rate
    for record in results.records:
        values = record.to_json()
        values["trial"]["methods"] = [{**method, "lr": 0.001} for method in values["trial"]["methods"]]
        results.store.write(record.id, record_of(values), [])
    again = Results(results.store)
    report = write_report(again, tmp_path / "report")
    for written in (
        latex_tables(again),
        report.read_text(),
        report.with_suffix(".md").read_text(),
        again._repr_html_(),
    ):
        assert "rates were not searched" in written
    assert "were chosen for each method" not in methods_paragraph(again)


def test_special_letters_are_written_out() -> None:
    assert latex("50% of a_b & {c}") == r"50\% of a\_b \& \{c\}"


def test_a_label_in_a_metric_stays_as_it_is() -> None:
    assert _metric(SimpleNamespace(metric="f1:URGENT_a")) == "F1:URGENT_a"  # type: ignore[arg-type]
    assert _metric(SimpleNamespace(metric="macro_f1"), capital=False) == "macro f1"  # type: ignore[arg-type]


def test_a_caption_of_one_seed_says_so(tmp_path: Path) -> None:
    one = latex_tables(make_study(tmp_path / "one", MadeStudy(methods=METHODS[:3], seeds=1, rows=40)))
    assert "With one seed each, variation between seeds is not covered." in one
    three = latex_tables(make_study(tmp_path / "three", MadeStudy(methods=METHODS[:3], rows=40)))
    assert "One seed" not in three


def test_amounts_too_small_to_print_are_no_commands_of_latex(tmp_path: Path) -> None:
    """A dollar sign of ours would begin a formula, in which the rest of the table would be read."""
    text = latex_tables(make_study(tmp_path / "study", MadeStudy(methods=METHODS[:3], rows=40, price=1e-5)))
    assert r"& \textless{} 0.0001 \\" in text
    written = re.sub(r"\\\$|\$\\pm\$|\$\^\*\$", "", text)
    assert "$" not in written
    assert "Dollars: one trial, mean over seeds" in text
    free = latex_tables(make_study(tmp_path / "free", MadeStudy(methods=METHODS[:3], rows=40, seeds=1, price=0.0)))
    assert "Seconds: one trial, with" in free


def test_a_caption_says_where_nobody_is_above_chance(tmp_path: Path) -> None:
    methods = (Made("lora", 0.5), Made("full", 0.5), Made("majority", 0.5, 0, 0.01, baseline=True))
    text = latex_tables(make_study(tmp_path / "study", MadeStudy(methods=methods, rows=40)))
    assert "No method was shown to be above the majority class." in text


def test_the_paragraph_says_what_was_done(results: Results) -> None:
    text = methods_paragraph(results)
    assert "3 seeds" in text
    assert "40 held-out test rows" in text
    assert "family-wise" in text
    assert "@software{dollartune" in citation()


def test_figures_are_written_as_files(results: Results, tmp_path: Path) -> None:
    pytest.importorskip("vl_convert")
    written = write_figures(results, tmp_path, ("svg", "pdf"), ["pareto"])
    assert [path.name for path in written] == ["pareto.svg", "pareto.pdf"]
    assert written[0].read_text().startswith("<svg")
    assert written[1].read_bytes().startswith(b"%PDF")
    with pytest.raises(UserError, match="Did you mean 'pareto'"):
        write_figures(results, tmp_path, ("svg",), ["parto"])
    with pytest.raises(UserError, match="format of figures"):
        write_figures(results, tmp_path, ("gif",), ["pareto"])  # type: ignore[list-item]


def test_a_plot_is_drawn_here(results: Results, tmp_path: Path) -> None:
    pytest.importorskip("vl_convert")
    shown = results.plot("pareto", task="ag_news", scale=100)
    assert shown._repr_svg_().startswith("<svg")
    assert "http" not in shown._repr_svg_().replace("http://www.w3.org", "")
    shown.save(tmp_path / "x.svg")
    assert (tmp_path / "x.svg").is_file()
    with pytest.raises(UserError, match="unknown plot"):
        plot(results, "pie")
    assert set(FIGURES) >= {"pareto", "learning_curves"}


def test_settings_that_vary_are_columns(results: Results) -> None:
    found = varying_settings(results.done())
    assert found["full"] == {}
    frame = results.leaderboard()
    assert "sd" in frame
    assert (frame["sd"].notna() == (frame["seeds"] > 1)).all()


def test_what_a_notebook_shows_is_short(results: Results) -> None:
    html = results._repr_html_()
    assert html.count("<th>") <= 14
    assert "trials done" in repr(results)


def test_one_wrong_row_in_thousands_is_no_perfect_score_in_a_paper(tmp_path: Path) -> None:
    results = make_study(tmp_path, MadeStudy(methods=(Made("full", 0.9), Made("lora", 0.5)), predictions=False))
    for record in results.records:
        test = record.test.model_copy(update={"score": 0.9996 if record.trial.label == "full" else 0.0004})
        results.store.write(record.id, record.with_facts(test=test), ())
    text = latex_tables(Results(results.store))
    assert "0.9996 $" in text
    assert "0.0004 $" in text


def test_the_paragraph_claims_no_more_than_was_done(tmp_path: Path) -> None:
    none = make_study(tmp_path / "none", MadeStudy(methods=(), failures=(("lora", "error", "it broke"),)))
    assert methods_paragraph(none).startswith("No trial ended with a score.")
    alone = make_study(tmp_path / "alone", MadeStudy(methods=METHODS[1:2], rows=40))
    assert "95 % intervals" in methods_paragraph(alone)
    assert "held against the others" not in methods_paragraph(alone)
    assert "distinguishable" not in latex_tables(alone)
    assert "Bold: highest score." in latex_tables(alone)


@pytest.mark.parametrize(("per", "own"), [("method", True), ("study", False)])
def test_a_budget_of_the_study_is_no_methods_own(tmp_path: Path, per: str, own: bool) -> None:
    budget = {"dollars": 1.0, "per": per, "price": "2.9/h"}
    results = make_study(tmp_path, MadeStudy(methods=METHODS[1:3], rows=40, budget=budget))
    path = results.store.root / "study.yaml"
    asked = {**json.loads(path.read_text()), "search": {"trials": 3}}
    path.write_text(json.dumps(asked))
    text = methods_paragraph(Results(results.store))
    assert "Hyperparameters were chosen for each method" in text
    assert ("within its own budget" in text) == own
