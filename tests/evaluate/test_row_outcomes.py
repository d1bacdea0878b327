"""Columns of predictions: they say what the predictions say, and 0.1's are made into them once."""

import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import binomtest

from dollartune import metrics
from dollartune.evaluate.evaluation import Prediction
from dollartune.evaluate.row_outcomes import packed, row_outcomes, unpacked
from dollartune.evaluate.seed_outcomes import interval_of, label_statistics, seed_outcomes, text_statistics
from dollartune.stats import compare
from dollartune.tasks.mixture import MEAN_OVER_TASKS
from dollartune.trials.record import record_of
from dollartune.trials.store import Store

LABELS = ("yes", "no", "perhaps")


def labelled(seed: int, count: int = 60) -> list[dict[str, Any]]:
    """Predictions of a label task as they are stored; every ninth answer is none of the labels."""
    chance = np.random.default_rng(seed)
    rows = []
    for number in range(count):
        predicted = None if number % 9 == 8 else LABELS[chance.integers(3)]
        expected = LABELS[number % 3]
        rows.append(asdict(Prediction(f"test/{number}", predicted, expected, predicted == expected)))
    return rows


def written() -> list[dict[str, Any]]:
    """Predictions of a task that asks for text."""
    texts = ("a pub by the river", "a river by the pub", "nothing", "a cheap pub by the old river")
    return [
        asdict(Prediction(f"test/{n}", text, texts[0], generated=text, references=(texts[0], "the pub")))
        for n, text in enumerate(texts)
    ]


@pytest.mark.parametrize("name", ["accuracy", "balanced_accuracy", "f1", "f1:yes", "matthews"])
def test_a_measure_of_labels_is_the_same_from_columns(name: str) -> None:
    metric, seeds = metrics.get(name), [labelled(seed) for seed in range(3)]
    columns = [unpacked(packed(row_outcomes(rows, name))) for rows in seeds]
    statistics = label_statistics(metric, columns)
    assert statistics is not None
    expected = [metric.score([r["predicted"] for r in rows], [r["expected"] for r in rows]) for rows in seeds]
    assert statistics.score(statistics.values.sum(axis=1)) == pytest.approx(expected)
    assert columns[0].expected_labels() == [row["expected"] for row in seeds[0]]


def test_seeds_that_never_say_a_label_are_still_compared() -> None:
    rows = labelled(0)
    never = [{**row, "predicted": "yes", "expected": "yes"} for row in rows]
    mixed = [{**row, "predicted": "no", "expected": "yes"} for row in rows]
    columns = [row_outcomes(some, "f1") for some in (never, mixed)]
    assert columns[0].labels != columns[1].labels
    statistics = label_statistics(metrics.get("f1"), columns)
    assert statistics is not None
    assert statistics.score(statistics.values.sum(axis=1)) == pytest.approx([1.0, 0.0])


def test_seeds_with_other_test_rows_are_not_compared() -> None:
    rows = labelled(0)
    others = [*rows[1:], rows[0]]
    columns = [row_outcomes(some, "accuracy") for some in (rows, others)]
    assert label_statistics(metrics.get("accuracy"), columns) is None
    assert (
        label_statistics(metrics.get("accuracy"), [row_outcomes(rows, "accuracy"), row_outcomes(rows[:9], "accuracy")])
        is None
    )


@pytest.mark.parametrize("name", ["rougeL", "bleu", "chrf", "exact_match"])
def test_a_measure_of_texts_is_the_same_from_columns(name: str) -> None:
    metric, rows = metrics.get(name), written()
    column = unpacked(packed(row_outcomes(rows, name)))
    assert column.predicted is None
    statistics = text_statistics(metric, [column])
    assert statistics is not None
    score = metric.score([row["predicted"] for row in rows], [row["references"] for row in rows])
    assert statistics.score(statistics.values.sum(axis=1)) == pytest.approx([score])


def test_a_share_of_texts_is_a_share_to_the_statistics() -> None:
    """Four rows won by none lost are tosses of a coin, whatever the measure is called."""
    rows = [asdict(Prediction(f"test/{n}", "a", "a", generated="a", references=("a",))) for n in range(300)]
    missed = [{**row, "predicted": "b", "generated": "b"} if n < 4 else row for n, row in enumerate(rows)]
    metric = metrics.get("exact_match")
    made = [seed_outcomes(metric, [row_outcomes(some, "exact_match")] * 3) for some in (rows, missed)]
    assert made[0] is not None
    assert made[1] is not None
    assert made[0].binary
    result = compare({"a": made[0], "b": made[1]})
    assert result.winner is None
    assert result.rows_that_differ is not None
    assert (result.rows_that_differ.won, result.rows_that_differ.lost) == (4, 0)


def test_an_interval_knows_the_groups_and_classes_of_its_rows() -> None:
    rows = [
        {**row, "predicted": row["expected"] if n % 10 < 7 else "no", "group": f"page {n // 6}"}
        for n, row in enumerate(labelled(0, 60))
    ]
    alone = [{**row, "group": None} for row in rows]
    metric = metrics.get("accuracy")
    aware, unaware = (interval_of(metric, row_outcomes(some, "accuracy")) for some in (rows, alone))
    assert aware is not None
    assert unaware is not None
    assert (aware.low, aware.high) != (unaware.low, unaware.high)
    assert interval_of(metric, row_outcomes(rows[:1], "accuracy")) is None
    assert interval_of(metric, row_outcomes(rows[:6], "accuracy")) is None  # one group
    right = [{**row, "predicted": row["expected"]} for row in alone]
    perfect = interval_of(metrics.get("recall:no"), row_outcomes(right, "recall:no"))
    assert perfect is not None
    assert perfect.low == pytest.approx(binomtest(20, 20).proportion_ci(0.95, "wilson").low)  # of 60 rows 20 are "no"


def test_probabilities_and_what_is_no_number() -> None:
    rows = labelled(0, 3)
    rows[0]["probabilities"] = {"yes": 0.75, "no": 0.25, "perhaps": None}
    rows[1]["probabilities"] = {"no": 1.0, "yes": 0.0, "perhaps": 0.0}
    rows[2]["probabilities"] = {"perhaps": 0.5, "yes": 0.25, "no": 0.25}
    column = unpacked(packed(row_outcomes(rows, "accuracy")))
    assert column.probabilities is not None
    first = dict(zip(column.labels, column.probabilities[0].tolist(), strict=True))
    assert (first["yes"], first["no"]) == (0.75, 0.25)
    assert math.isnan(first["perhaps"])
    assert dict(zip(column.labels, column.probabilities[2].tolist(), strict=True)) == {
        "perhaps": 0.5,
        "yes": 0.25,
        "no": 0.25,
    }


def test_a_mean_over_tasks_has_no_statistics() -> None:
    rows = [*labelled(0, 4), *written()]
    column = row_outcomes(rows, MEAN_OVER_TASKS)
    assert (column.statistics, column.predicted) == (None, None)


def test_predictions_of_0_1_are_made_into_columns_once(tmp_path: Path) -> None:
    store = Store(tmp_path / "study")
    store.create("", ["a"])
    trial = {"group": "lora", "label": "lora", "task": "t", "seed": 0}
    record = record_of(
        {"id": "a", "trial": trial, "status": "done", "metric": "accuracy", "test": {"score": 0.5}, "version": 2}
    )
    store.write("a", record, [Prediction(**row) for row in labelled(0)])
    columns = store.folder("a") / "outcomes.npz"
    at_once = columns.read_bytes()
    columns.unlink()  # as 0.1 left it
    made = store.outcomes(record)
    assert made is not None
    assert columns.read_bytes() == at_once
    (store.folder("a") / "predictions.jsonl.gz").unlink()
    again = store.outcomes(record)
    assert again is not None, "the second time nothing but the columns is read"
    assert (again.predicted == made.predicted).all()
    columns.unlink()
    assert store.outcomes(record) is None
