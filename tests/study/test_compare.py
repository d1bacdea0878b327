"""The leaderboard: seeds of a variant together, best first, with intervals where predictions allow them."""

import json
from pathlib import Path
from statistics import stdev
from typing import Any

import pytest

from dollartune import stats
from dollartune.cli.results import show_results
from dollartune.errors import UserError
from dollartune.evaluate.evaluation import Prediction
from dollartune.methods.registry import build_method
from dollartune.report.contents import collect
from dollartune.report.paper import latex_tables, methods_paragraph
from dollartune.report.provenance import data_sizes
from dollartune.report.tables import leaderboard, overview
from dollartune.report.text import headline
from dollartune.study.compare import boards, comparisons, outcomes, standings
from dollartune.study.results import Results, trial_row
from dollartune.study.several import compare_studies
from dollartune.tasks.mixture import MEAN_OVER_TASKS
from dollartune.trials.record import record_of
from dollartune.trials.store import Store


def add(
    store: Store, label: str, seed: int, right: int, scale: int | None = 10, metric: str = "accuracy",
    tested: int = 40, there: int = 40, draw: int | None = None,
) -> None:  # fmt: skip
    """A trial with so many test rows, of those that there are, of which the first ones are right."""
    name = f"{label}-{seed}-{scale}"
    trial = {"task": "t", "scale": scale, "group": label, "label": label, "seed": seed, "draw": draw}
    rows = [
        Prediction(f"test/{n}", "yes" if n < right else "no", "yes", n < right, {"yes": 0.6, "no": 0.4})
        for n in range(tested)
    ]
    store.write(
        name,
        record_of({
            "id": name, "status": "done", "trial": trial, "metric": metric, "score": right / 40,
            "scores": {"accuracy": right / 40}, "validation": {"score": right / 40}, "training": None,
            "data": {"train": 10, "validation": 5, "test": there},
            "parameters": {"trainable": 100, "total": 1000}, "memory": {"peak_bytes": 5},
            "test": {"prompt_tokens": 7.0, "examples": tested},
            "cost": {"seconds": 2.0 + seed, "dollars": 0.5}, "generation": {"scores": {"accuracy": 0.1}},
        }),
        rows,
    )  # fmt: skip


@pytest.fixture
def store(tmp_path: Path) -> Store:
    made = Store(tmp_path / "study")
    made.create("", [])
    return made


def test_seeds_stand_together_and_the_best_first(store: Store) -> None:
    for seed, right in ((2, 30), (0, 34), (1, 32)):
        add(store, "good", seed, right)
        add(store, "bad", seed, right - 20)
    results = Results(store)
    ((board, variants),) = boards(results).items()
    assert board == ("t", 10)
    assert [r.trial.seed for r in variants["good"]] == [0, 1, 2]
    best, worst = standings(results)
    assert (best["label"], worst["label"]) == ("good", "bad")
    assert best["score"] == pytest.approx(32 / 40)
    assert best["low"] <= best["score"] <= best["high"]
    assert (best["seeds"], best["seconds"], best["dollars"], best["trainable"]) == (3, 3.0, 0.5, 100)
    assert best["may_be_best"]
    assert not worst["may_be_best"]
    assert worst["difference_high"] < 0 or worst["difference_low"] > 0


def test_equal_variants_may_both_be_the_best(store: Store) -> None:
    for seed in range(2):
        add(store, "one", seed, 30)
        add(store, "two", seed, 30)
    assert all(row["may_be_best"] for row in standings(Results(store)))


def test_several_scales_have_one_summary_in_table_and_leaderboard(
    store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    for seed in range(2):
        add(store, "good", seed, 35 + seed, 100)
        add(store, "bad", seed, 20, 100)
        add(store, "alone", seed, 20, 100)
    assert "mean_rank" not in Results(store).leaderboard()
    for seed in range(2):
        add(store, "good", seed, 30, 10)
        add(store, "bad", seed, 20 + 10 * seed, 10)
    results = Results(store)
    rows = {(row["label"], row["scale"]): row for row in standings(results)}
    assert rows["good", 10]["mean_rank"] == rows["good", 100]["mean_rank"] == 1.0
    bad = rows["bad", 10]
    assert (bad["improved_by"], bad["improvement"]) == ("good", (1 + 3 / 4) / 2)
    assert bad["improvement_low"] < bad["improvement"] < bad["improvement_high"] <= 1
    assert "mean_rank" not in rows["alone", 100]  # it is on one board alone
    show_results(results)
    shown = capsys.readouterr().out
    assert "good improves on it" in shown
    assert "left out: alone" in shown
    assert "No difference, however large," in shown  # two seeds that differ by the whole range


@pytest.mark.parametrize("draws", [False, True])
def test_seeds_are_paired_where_each_has_training_rows_of_its_own(
    store: Store, monkeypatch: pytest.MonkeyPatch, draws: bool
) -> None:
    for seed in range(3):
        add(store, "one", seed, 30 + seed, draw=seed or None if draws else None)
        add(store, "two", seed, 33 - seed, draw=seed or None if draws else None)
    asked = []
    monkeypatch.setattr(stats, "compare", lambda *given, **named: asked.append(named["paired_seeds"]))
    comparisons(Results(store))
    assert asked == [draws]


def test_scales_are_boards_of_their_own_and_all_comes_last(store: Store) -> None:
    for scale in (None, 100, 10):
        add(store, "one", 0, 30, scale)
    assert list(boards(Results(store))) == [("t", 10), ("t", 100), ("t", None)]


def test_a_mean_over_tasks_has_no_intervals_but_is_shown(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    add(store, "one", 0, 30, metric=MEAN_OVER_TASKS)
    results = Results(store)
    assert comparisons(results) == {}
    (row,) = standings(results)
    assert (row["score"], row["low"]) == (0.75, None)
    show_results(results)
    shown = capsys.readouterr().out
    assert "t, 10 training rows" in shown
    assert f"no intervals: {MEAN_OVER_TASKS} has no value per test row." in shown


def test_without_predictions_there_are_no_outcomes(store: Store) -> None:
    add(store, "one", 0, 30)
    for name in ("predictions.jsonl.gz", "outcomes.npz"):
        (store.folder("one-0-10") / name).unlink()
    results = Results(store)
    assert outcomes(results, results.done()) is None
    assert standings(results)[0]["score"] == 0.75


def test_a_failed_trial_has_a_row_without_scores(store: Store) -> None:
    trial: dict[str, Any] = {"task": "t", "scale": 10, "group": "x", "label": "x", "seed": 0}
    failed = {"id": "x", "status": "failed", "trial": trial, "cost": {"seconds": 1.0, "dollars": 0.0}}
    store.write("x", record_of({**failed, "error": {"class": "out_of_memory", "message": "no"}}))
    add(store, "one", 0, 30)
    results = Results(store)
    assert [row["label"] for row in standings(results)] == ["one"]
    rows = {row["label"]: row for row in map(trial_row, results.records)}
    assert rows["x"]["error"] == "out_of_memory"
    assert rows["one"]["score_per_dollar"] == pytest.approx(1.5)
    assert rows["one"]["score_per_million_parameters"] == pytest.approx(7500)
    assert rows["one"]["generated_accuracy"] == 0.1
    assert len(results.frame()) == 2


def test_results_of_some_trials(store: Store) -> None:
    add(store, "one", 0, 30)
    add(store, "two", 0, 20)
    assert [r.id for r in Results(store, ["two-0-10"]).records] == ["two-0-10"]


def test_rates_that_nobody_searched_are_said_above_the_table(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    add(store, "one", 0, 30)
    add(store, "two", 0, 20)
    show_results(Results(store))
    assert "not searched" not in capsys.readouterr().out  # neither has a rate
    for name, method in (("one-0-10", "lora"), ("two-0-10", "zero_shot")):
        record = store.read(name).to_json()
        record["trial"]["methods"] = [build_method(method).describe()]
        store.write(name, record_of(record))
    show_results(Results(store))
    assert "not searched" not in capsys.readouterr().out, "a prompt has none, and one rate is compared with nothing"
    for name in ("one-0-10", "two-0-10"):
        record = store.read(name).to_json()
        record["trial"]["methods"] = [build_method("lora").describe()]
        store.write(name, record_of(record))
    show_results(Results(store))
    lines = capsys.readouterr().out.splitlines()
    said = next(n for n, line in enumerate(lines) if "rates were not searched" in line)
    assert said < next(n for n, line in enumerate(lines) if "one" in line)
    facts = {"tried": 3, "seeds": 1, "seeds_wanted": 1}
    for name in ("one-0-10", "two-0-10"):
        store.write(name, record_of({**store.read(name).to_json(), "search": facts}))
    show_results(Results(store))
    assert "rates of one and two were not searched" in capsys.readouterr().out  # the money paid for no tries
    for number, name in enumerate(("one", "two")):
        tried = store.read(f"{name}-0-10").to_json() | {"id": f"try-{name}", "status": "tried", "test": None}
        tried["trial"]["methods"] = [build_method("lora(lr=0.5)").describe()]
        store.write(f"try-{name}", record_of(tried))
        show_results(Results(store, ["one-0-10", "two-0-10"]))
        assert ("rate of two was not searched" in capsys.readouterr().out) == (number == 0)


def test_where_money_cut_test_rows_off_the_comparison_is_over_those_of_all(store: Store) -> None:
    add(store, "whole", 0, 30)
    add(store, "cut", 0, 10, tested=25)
    (comparison,) = comparisons(Results(store)).values()
    assert [(one.method, one.score.value) for one in comparison.standings] == [("whole", 1.0), ("cut", 10 / 25)]
    assert "first 25 test rows" in comparison.warnings[0]


def test_rows_of_two_test_sets_are_not_paired(store: Store) -> None:
    add(store, "one", 0, 30)
    add(store, "other", 0, 10, tested=25, there=25)
    with pytest.raises(UserError, match="different numbers of examples"):
        comparisons(Results(store))


def test_seeds_that_money_cut_unlike_are_compared_on_the_rows_of_all(
    store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    """A first run's record stays when a larger budget pays for more rows of the other seeds."""
    for seed in range(3):
        add(store, "lora", seed, 30 if seed else 20, tested=40 if seed else 25)
        add(store, "bitfit", seed, 10)
    results = Results(store)
    (comparison,) = results.comparisons.values()
    scores = {
        one.method: (round(one.score.value, 9), one.score.examples, one.score.seeds) for one in comparison.standings
    }
    assert scores == {"lora": (round(2.8 / 3, 9), 25, 3), "bitfit": (10 / 25, 25, 3)}
    assert "first 25 test rows" in comparison.warnings[0]
    (board,) = collect(results).boards
    assert board.test_rows == (25, 25)
    assert board.best.scores == pytest.approx((0.8, 1.0, 1.0)), "of each seed on the same rows"
    assert standings(results)[0]["sd"] == pytest.approx(stdev(board.best.scores))
    assert "25 test rows, 3 seeds" in headline(board)
    assert "Intervals cover 25 test rows" in leaderboard(board).notes[0]
    assert "on 25 test rows" in latex_tables(results)
    assert "scored on 25 held-out test rows" in methods_paragraph(results)
    assert "40 test rows, of which the first 25 were scored" in data_sizes(board)
    show_results(results)
    assert "no intervals" not in capsys.readouterr().out


def test_what_cannot_be_compared_leads_no_table_and_the_reason_is_said(
    store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    for seed in range(2):
        add(store, "lora", seed, 39, tested=40 - seed, there=40 - seed)  # of two test sets
        add(store, "bitfit", seed, 10)
    results = Results(store)
    (comparison,) = results.comparisons.values()
    assert comparison.winner is None
    assert comparison.sentence == "There is nothing that bitfit can be compared with."
    assert comparison.warnings[0] == "lora is in no comparison: its seeds were tested on different rows."
    assert [row["label"] for row in standings(results)] == ["bitfit", "lora"]
    (board,) = collect(results).boards
    assert headline(board).startswith("bitfit reached")
    assert headline(board).endswith("nothing else can be compared with it. lora is in no comparison.")
    assert overview(collect(results)).rows[0][4] == "compared with nothing"
    (store.folder("bitfit-1-10") / "outcomes.npz").unlink()
    (store.folder("bitfit-1-10") / "predictions.jsonl.gz").unlink()
    show_results(Results(store))
    assert "no intervals: the predictions of seed 1 are not stored" in capsys.readouterr().out


def test_two_studies_are_compared_on_the_rows_of_all_their_trials(tmp_path: Path) -> None:
    sides = []
    for name in ("first", "second"):
        made = Store(tmp_path / name)
        made.create("", [])
        add(made, "bitfit", 0, 10, tested=25)
        add(made, "lora", 0, 30)
        sides.append(Results(made))
    (beside,) = compare_studies(*sides)
    assert beside.comparison is not None
    assert {one.score.examples for one in beside.comparison.standings} == {25}


def test_the_best_adapter_is_of_the_settings_that_tables_tell_apart(store: Store) -> None:
    """A variant called lora is shown as lora(rank=8) beside lora(rank=2): the comparison knows it by that name alone."""
    for rank, label, validated in ((8, "lora", 0.9), (2, "lora(rank=2)", 0.8)):
        for seed in range(3):
            add(store, label, seed, 30)
            name = next(r.id for r in store.records() if r.trial.label == label and r.trial.seed == seed)
            path = store.folder(name) / "record.json"
            record = json.loads(path.read_text())
            record["trial"] |= {"group": "lora", "methods": [{"method": "lora", "rank": rank}]}
            record["validation"]["score"] = validated
            path.write_text(json.dumps(record))
            (store.folder(name) / "adapter").mkdir()
    results = Results(store)
    assert {row["label"] for row in standings(results)} == {"lora(rank=8)", "lora(rank=2)"}
    best = results.best()
    assert best is not None
    assert best.trial.label == "lora"
