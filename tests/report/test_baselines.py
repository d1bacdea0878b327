"""What methods are held against stands in every table, wins nothing, and marks whoever is not above it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from dollartune import format as numbers
from dollartune.report.baselines import at_chance, marks, nobody_above_chance, sentences
from dollartune.report.charts.pareto import pareto_chart
from dollartune.report.contents import Board, collect
from dollartune.report.serving_cost import why_not
from dollartune.report.spending import by_method
from dollartune.report.tables import leaderboard, spent_by
from dollartune.report.text import headline
from dollartune.report.write import write_report
from dollartune.study.compare import standings
from dollartune.study.results import Results
from dollartune.study.status import status_of
from dollartune.trials.record import ForgettingFacts, Parameters, RequestFacts
from tests.report.fabricate import Made, MadeStudy, make_study

BESIDE = (
    Made("majority", 0.25, 0, 0.05, baseline=True),
    Made("tfidf", 0.82, 0, 0.1, baseline=True),
    Made("zero_shot", 0.30, 0, 4.0, baseline=True),
)


def study(folder: Path, *methods: Made, rows: int = 300) -> tuple[Results, Board]:
    results = make_study(folder, MadeStudy(methods=(*BESIDE, *methods), rows=rows))
    (board,) = collect(results).boards
    return results, board


def test_a_baseline_is_never_called_the_best(tmp_path: Path) -> None:
    results, board = study(tmp_path, Made("lora", 0.60), Made("bitfit", 0.40))
    assert board.best.label == "lora"
    assert "tfidf" not in headline(board)
    assert [entry.label for entry in board.candidates] == ["lora"]
    assert "tfidf" not in {entry.label for entry in board.front}
    rows = {row["label"]: row for row in standings(results)}
    assert rows["tfidf"]["baseline"]
    assert rows["tfidf"]["may_be_best"] is None
    assert not rows["lora"]["baseline"]
    assert rows["tfidf"]["difference"] > 0  # against the best method


def test_who_is_below_or_level_is_said_and_marked(tmp_path: Path) -> None:
    _, board = study(tmp_path, Made("lora", 0.82), Made("bitfit", 0.45), Made("prompt", 0.25))
    by_label = {entry.label: entry for entry in board.entries}
    assert marks(board, by_label["prompt"]) == [
        "below tf-idf",
        "not above the untuned model",
        "not above the majority class",
    ]
    assert marks(board, by_label["lora"]) == ["not above tf-idf"]
    assert [entry.label for entry in at_chance(board)] == ["prompt"]
    said = " ".join(sentences(board))
    assert "may do as well here as lora for less than a hundredth of the money" in said
    assert "Below tf-idf" in said
    assert "Not shown to be above the majority class" in said


def test_where_nobody_is_above_chance_there_is_no_finding(tmp_path: Path) -> None:
    _, board = study(tmp_path, Made("lora", 0.26), Made("bitfit", 0.25))
    assert nobody_above_chance(board)
    assert headline(board).startswith("No finding: no method was shown to be above the majority class")


def test_the_table_lists_them_last_with_their_cost(tmp_path: Path) -> None:
    _, board = study(tmp_path, Made("lora", 0.60), Made("bitfit", 0.80))
    table = leaderboard(board)
    names = [row[0] for row in table.rows]
    assert names[:2] == ["bitfit", "lora"]
    assert set(names[2:]) == {"tfidf (baseline)", "zero_shot (baseline)", "majority (baseline)"}
    column = table.headings.index("Against baselines")
    assert dict(zip(names, (row[column] for row in table.rows), strict=True))["lora"] == "below tf-idf"
    dollars = table.headings.index("Dollars")
    assert all(row[dollars].removeprefix("< ").startswith("$") for row in table.rows)
    assert table.strong <= {0, 1}


def test_they_are_drawn_apart(tmp_path: Path) -> None:
    _, board = study(tmp_path, Made("lora", 0.60))
    chart = pareto_chart(board, ("lora",)).to_dict()

    def rows(layer: dict[str, Any]) -> list[dict[str, Any]]:
        data = layer["data"]
        return data["values"] if "values" in data else chart["datasets"][data["name"]]

    crosses = [one for one in chart["layer"] if isinstance(one["mark"], dict) and one["mark"].get("shape") == "cross"]
    assert {row["label"] for row in rows(crosses[0])} == {"majority", "tfidf", "zero_shot"}
    colored = [layer for layer in chart["layer"] if "color" in layer.get("encoding", {})]
    assert colored
    assert {row["label"] for layer in colored for row in rows(layer)} == {"lora"}


def test_every_form_of_the_report_is_written_with_baselines(tmp_path: Path) -> None:
    results, board = study(tmp_path / "study", Made("lora", 0.60), Made("bitfit", 0.40))
    page = write_report(results, tmp_path / "report").read_text(encoding="utf8")
    listed = len(board.entries) + len(board.baselines)
    assert listed == 5
    assert page.count('<svg class="range"') == listed
    for name in ("report.html", "report.md", "leaderboard.csv"):
        text = (tmp_path / "report" / name).read_text(encoding="utf8")
        assert "tfidf" in text, name
        assert "majority" in text, name


def test_the_interval_in_the_table_is_the_one_that_says_who_is_above(tmp_path: Path) -> None:
    """Two intervals of different widths for one difference contradicted each other: one held 0 and the other did not."""
    _, board = study(tmp_path, Made("lora", 0.42), Made("bitfit", 0.40), Made("prompt", 0.25))
    assert board.comparison is not None
    best = board.comparison.standings[0].method
    for baseline in board.comparison.baselines:
        (held,) = (one for one in board.comparison.held_against(baseline.method) if one.method == best)
        assert (baseline.difference, baseline.low, baseline.high) == (-held.difference, -held.high, -held.low)
        assert -1 <= baseline.low <= baseline.high <= 1


def test_a_reason_with_other_figures_for_each_method_is_said_once(tmp_path: Path) -> None:
    _, board = study(tmp_path, Made("lora", 0.42), Made("bitfit", 0.40))
    for entry, seconds in zip(board.entries, ("0.6", "1.8"), strict=True):
        reason = f"it takes about {seconds} s, and 0.4 s of its trial's money were for that"
        records = tuple(
            record.model_copy(update={"forgetting": ForgettingFacts.model_validate({"reason": reason})})
            for record in entry.records
        )
        object.__setattr__(entry, "records", records)
    assert (
        why_not(board)
        == "Forgetting was not measured: it takes about 0.6 s, and 0.4 s of its trial's money were for that."
    )


def test_what_a_method_spent_is_called_a_share_of_its_budget(tmp_path: Path) -> None:
    results, _ = study(tmp_path, Made("lora", 0.42), Made("bitfit", 0.40))
    table = spent_by(collect(results))
    assert table is not None
    assert table.headings[-1] == "Share of its budget"
    marks_of = dict(zip((row[0] for row in table.rows), table.methods, strict=True))
    assert marks_of["lora"] == "lora"
    assert marks_of["majority"] is None


def test_status_and_report_say_the_same_of_what_was_spent(tmp_path: Path) -> None:
    """Baselines have no budget: what is shared was divided among them too in one of the two."""
    results, _ = study(tmp_path, Made("lora", 0.42), Made("bitfit", 0.40))
    contents = collect(results)
    in_status = {one.account: one.share_of_budget for one in status_of(results.store).spent_of_budget}
    in_report = {one.account: one.share_of_budget for one in by_method(contents)}
    assert in_status == pytest.approx({name: share for name, share in in_report.items() if share is not None})
    assert in_report["majority"] is None


def test_the_command_line_finds_no_winner_where_the_report_finds_none(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from dollartune.cli.results import show_results

    results, board = study(tmp_path, Made("lora", 0.26), Made("bitfit", 0.25))
    show_results(results)
    said = " ".join(capsys.readouterr().out.split())
    assert headline(board) in said
    assert "is the best of" not in said


def test_a_share_of_the_money_holds_for_each_method_that_is_named(tmp_path: Path) -> None:
    """Of the dearest alone it was false for the others."""

    def told(seconds: float, folder: str) -> str:
        made = (
            Made("tfidf", 0.82, 0, seconds, baseline=True),
            Made("lora", 0.82, seconds=100.0),
            Made("bitfit", 0.82, seconds=40.0),
        )
        board = collect(make_study(tmp_path / folder, MadeStudy(methods=made, rows=300))).boards[0]
        costs = [board.cost(entry) for entry in board.entries]
        own = board.cost(board.baselines[0])
        shares = [numbers.percent(own / max(costs)), numbers.percent(own / min(costs))]
        (said,) = sentences(board)
        assert said.endswith(f" for {shares[0]} to {shares[1]} of the money.") == (
            own / max(costs) > 0.01 and own < min(costs)
        )
        return said

    told(20.0, "cheap")
    assert "of the money" not in told(60.0, "dear")
    assert "for at most 1" in told(0.6, "next to nothing")


def test_a_baseline_without_a_backbone_has_no_share_of_it(tmp_path: Path) -> None:
    results, _ = study(tmp_path, Made("lora", 0.60))
    words = next(record for record in results.records if record.trial.label == "tfidf")
    facts = words.with_facts(parameters=Parameters(trainable=10_336, total=0))
    results.store.write(words.id, facts, ())
    table = leaderboard(collect(Results(results.store)).boards[0])
    column = table.headings.index("Trained parameters")
    assert {row[0]: row[column] for row in table.rows}["tfidf (baseline)"] == "10,336"


def test_whose_request_was_not_measured_is_said(tmp_path: Path) -> None:
    results, _ = study(tmp_path, Made("lora", 0.60), Made("bitfit", 0.80))
    for record in results.records:
        of_bitfit = record.trial.label == "bitfit"
        facts = RequestFacts(reason="it takes about 2 s, and 1 s was for that") if of_bitfit else record.inference
        results.store.write(record.id, record.with_facts(inference=facts), ())
    (board,) = collect(Results(results.store)).boards
    told = why_not(board)
    assert told == "The cost of a request was not measured of bitfit: it takes about 2 s, and 1 s was for that."
