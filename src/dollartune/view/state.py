"""What the page asks for, as plain data: how far a study is, score against money, rows with their predictions.

Nothing here imports PyTorch or altair, so that the first picture is there within a second or two.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, TypedDict

from dollartune import format as numbers
from dollartune.report.class_scores import calibration, calibration_error, class_scores
from dollartune.report.score_over_money import score_over_money
from dollartune.study.live_file import read_live
from dollartune.study.status import status_of
from dollartune.study.varying_settings import shown_labels

if TYPE_CHECKING:
    from dollartune.evaluate.evaluation import StoredPrediction
    from dollartune.study.live_file import Live
    from dollartune.trials.record import DoneRecord, TrialRecord
    from dollartune.trials.store import Store


class TrialRow(TypedDict):
    """A trial in a list."""

    trial: str
    label: str
    method: str
    seed: int
    status: str
    baseline: bool
    metric: str | None
    validation: float | None
    test: float | None
    seconds: float
    dollars: float | None
    error: str | None
    shown: dict[str, str]
    """Its numbers as people read them."""
    steps: int | None
    """That it has had, where it can be trained further."""


class BoardRow(TypedDict):
    """A task and number of training rows, with its trials."""

    key: str
    task: str
    rows: int | None
    trials: list[TrialRow]


class StudyState(TypedDict):
    """What stands at the top of the page."""

    name: str
    version: str
    status: dict[str, object]
    live: Live | None
    boards: list[BoardRow]


class Curve(TypedDict):
    """Whose a point of a chart is."""

    board: str
    label: str
    seed: int


class SpentPoint(Curve):
    """What had been booked when a trial ended, its score, the best until then."""

    seconds: float
    dollars: float
    score: float
    best: float


class LossPoint(Curve):
    """A validation loss."""

    trial: str
    epoch: float
    seconds: float
    loss: float


class PredictionRow(TypedDict):
    """A test row with what one or two trials say of it."""

    id: str
    input: str | None
    expected: str
    predicted: str | None
    sure: str | None
    correct: bool | None
    other: str | None
    other_sure: str | None
    other_correct: bool | None


class PredictionsPage(TypedDict):
    """Some of them."""

    rows: list[PredictionRow]
    page: int
    pages: int
    chosen: int
    all: int
    differ: int


class ClassesOf(TypedDict):
    """Scores per class and calibration of one trial, as people read them."""

    classes: list[dict[str, object]]
    calibration_error: str | None


SCORES_OF_CLASS = ("precision", "recall", "f1")
PAGE_ROWS = 25
"""Predictions at a time: what a screen or two hold."""


def study_state(store: Store) -> StudyState:
    """What stands at the top of the page, and which boards there are.

    `version` changes whenever a chart would: the page asks each second and draws anew only then.
    """
    records = list(store.records())
    status = status_of(store, records)
    live = read_live(store.root)
    shown = labels_of(records)
    boards: dict[str, BoardRow] = {}
    for record in _in_order(records, store.planned() or ()):
        trial = record.trial
        key = f"{trial.task}|{trial.scale or ''}"
        board = boards.setdefault(key, {"key": key, "task": trial.task, "rows": trial.scale, "trials": []})
        board["trials"].append(trial_row(store, record, shown))
    return {
        "name": store.root.name,
        # A search trial becomes a final one without a new record: so both numbers.
        "version": f"{len(records)}-{sum(r.status == 'done' for r in records)}",
        "status": status.to_json(),
        "live": live,
        "boards": list(boards.values()),
    }


def _in_order(records: Sequence[TrialRecord], planned: Sequence[str]) -> list[TrialRecord]:
    """As the study lists its trials; what a search tried besides behind them, by name."""
    place = {identifier: number for number, identifier in enumerate(planned)}
    return sorted(
        records,
        key=lambda r: (place.get(r.id, len(place)), r.trial.task, r.trial.scale or 0, r.trial.label, r.trial.seed),
    )


def labels_of(records: Sequence[TrialRecord]) -> dict[str, str]:
    """Stored label -> the one that the report shows too."""
    return shown_labels([record for record in records if record.status == "done"])


def trial_row(store: Store, record: TrialRecord, shown: Mapping[str, str]) -> TrialRow:
    """One trial in a list; under `shown` its numbers as people read them."""
    trial, cost = record.trial, record.cost
    test = record.test.score if record.test is not None else None
    return {
        "trial": record.id, "label": shown.get(trial.label, trial.label), "method": trial.group,
        "seed": trial.seed, "status": record.status, "baseline": trial.baseline, "metric": record.metric,
        "validation": record.validation_score,
        "test": test, "seconds": cost.seconds,
        "dollars": cost.known_dollars, "error": record.error.message if record.error is not None else None,
        "shown": {
            "validation": numbers.score(record.validation_score), "test": numbers.score(test),
            "seconds": numbers.seconds(cost.seconds), "dollars": numbers.dollars(cost.known_dollars),
        },
        "steps": steps_to_go_on(store, record),
    }  # fmt: skip


def steps_to_go_on(store: Store, record: TrialRecord) -> int | None:
    """How many steps a trial has had, where it can be trained further: its adapter was kept."""
    trained = record.training is not None and record.status == "done" and (store.folder(record.id) / "adapter").is_dir()
    return record.training.steps or None if trained and record.training is not None else None


def score_against_money(store: Store) -> list[SpentPoint]:
    """One point per record, in the order in which they ended: what had been booked for its board by then, its score, the best
    until then."""
    return [
        {"board": one.board, "label": one.label, "seed": one.seed, "seconds": round(one.seconds, 3),
         "dollars": round(one.dollars, 6), "score": round(one.score, 5), "best": round(one.best, 5)}
        for one in score_over_money(store, list(store.records()))
    ]  # fmt: skip


def curves(store: Store) -> list[LossPoint]:
    """Validation loss of every trial that was trained, and of those in training."""
    points: list[LossPoint] = []
    records = list(store.records())
    shown = labels_of(records)
    for record in records:
        training = getattr(record, "training", None)
        for point in training.history if training is not None else ():
            if point.validation_loss is not None:
                trial = record.trial
                points.append(
                    {
                        "board": f"{trial.task}|{trial.scale or ''}", "label": shown.get(trial.label, trial.label),
                        "seed": trial.seed, "trial": record.id, "epoch": point.epoch, "seconds": point.seconds,
                        "loss": point.validation_loss,
                    }
                )  # fmt: skip
    live = read_live(store.root)
    for running in live["trials"] if live is not None else ():
        board = f"{running['task']}|{running['rows'] or ''}"
        points += [
            {
                "board": board, "label": shown.get(running["label"], running["label"]), "seed": running["seed"],
                "trial": running["trial"], "epoch": p["epoch"], "seconds": p["seconds"], "loss": p["loss"],
            }
            for p in running["curve"]
        ]  # fmt: skip
    return points


def predictions_page(
    store: Store, first: str, second: str | None, only: str, page: int, inputs: Mapping[str, str]
) -> PredictionsPage:
    """Predictions row by row, with those of another trial beside them.

    Args:
        first: a trial's identifier.
        second: another's, on the same test rows; None for none.
        only: `all`, `wrong` (by the first), `differ` (the two disagree).
        page: from 0.
        inputs: example -> what was asked.

    Raises:
        UserError: there is no such trial.
    """
    rows = store.predictions(first)
    other = {row["example_id"]: row for row in store.predictions(second)} if second else {}
    joined = [(row, other.get(row["example_id"])) for row in rows]
    differ = [pair for pair in joined if pair[1] is not None and pair[0]["predicted"] != pair[1]["predicted"]]
    chosen = (
        differ
        if only == "differ"
        else [pair for pair in joined if pair[0]["correct"] is False]
        if only == "wrong"
        else joined
    )
    shown = chosen[page * PAGE_ROWS : (page + 1) * PAGE_ROWS]
    return {
        "rows": [
            {
                "id": row["example_id"], "input": inputs.get(row["example_id"]), "expected": row["expected"],
                "predicted": row["predicted"], "sure": _sure(row), "correct": row["correct"],
                "other": beside["predicted"] if beside is not None else None,
                "other_sure": _sure(beside) if beside is not None else None,
                "other_correct": beside["correct"] if beside is not None else None,
            }
            for row, beside in shown
        ],
        # Rounded up: the last page may be short.
        "page": page, "pages": -(-len(chosen) // PAGE_ROWS), "chosen": len(chosen), "all": len(joined), "differ": len(differ),
    }  # fmt: skip


def _sure(row: StoredPrediction) -> str | None:
    probability = (row.get("probabilities") or {}).get(row["predicted"] or "")
    return numbers.percent(float(probability)) if probability is not None else None


def classes_of(store: Store, record: DoneRecord) -> ClassesOf:
    """Scores per class and calibration of one trial, as people read them."""
    rows = store.predictions(record.id)
    error = calibration_error(calibration(rows))
    return {
        "classes": [
            {
                "label": one.label,
                "rows": one.rows,
                **{name: numbers.score(getattr(one, name)) for name in SCORES_OF_CLASS},
            }
            for one in (class_scores(rows, record.labels) if record.labels else ())
        ],
        "calibration_error": None if error is None else numbers.score(error),
    }
