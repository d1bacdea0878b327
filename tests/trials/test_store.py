"""The store: a record is there whole or not at all."""

import json
from pathlib import Path
from typing import Any

import pytest

from dollartune.errors import UserError
from dollartune.evaluate.evaluation import Prediction
from dollartune.trials.record import TrialRecord, record_of
from dollartune.trials.store import Store, find_study


def record(name: str, **more: Any) -> TrialRecord:
    trial = {"task": "t", "scale": 10, "group": "lora", "label": "lora(rank=2)", "seed": 0}
    cost = {"seconds": 1.5, "dollars": 0.0}
    return record_of({"id": name, "status": "done", "trial": trial, "score": 0.5, "cost": cost, **more})


@pytest.fixture
def store(tmp_path: Path) -> Store:
    made = Store(tmp_path / "studies" / "mine")
    made.create("asked: this", ["a", "b"])
    return made


def test_records_and_predictions_come_back(store: Store) -> None:
    prediction = Prediction("test/0", "yes", "no", False, {"yes": 0.75, "no": float("nan")}, references=("no",))
    assert not store.has("a")
    store.write("a", record("a", note=float("inf"), both=(1, 2)), [prediction])
    assert store.has("a")
    found = store.read("a")
    stored = found.to_json()
    assert stored["version"] == 2
    assert stored["note"] is None, "JSON has no infinity"
    assert stored["both"] == [1, 2]
    assert store.predictions("a")[0]["probabilities"] == {"yes": 0.75, "no": None}
    assert store.predictions("b") == []
    assert [r.id for r in store.records()] == ["a"]


def test_predictions_are_written_before_the_record(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    monkeypatch.setattr("dollartune.trials.store.write_atomically", lambda path, _: order.append(path.name))
    store.write("a", record("a"), [Prediction("test/0", "yes", "no")])
    assert order == ["predictions.jsonl.gz", "outcomes.npz", "record.json"]


def test_a_record_is_overwritten_and_forgotten(store: Store) -> None:
    store.write("a", record("a"))
    store.write("a", record("a", score=0.75))
    (only,) = store.records()
    assert only.test is not None
    assert only.test.score == 0.75
    store.forget("a")
    assert not store.has("a")


def test_clear_leaves_what_is_not_its_own(store: Store) -> None:
    store.write("a", record("a"))
    for name in ("ledger.jsonl", "index.sqlite", "study.previous.yaml"):  # 0.1 left the last two
        (store.root / name).write_text("")
    for name in ("my notes.txt", "study_of_mine.yaml"):
        (store.root / name).write_text("mine")
    store.clear()
    assert sorted(path.name for path in store.root.iterdir()) == ["my notes.txt", "study_of_mine.yaml"]
    assert store.planned() is None


def test_a_missing_trial(store: Store) -> None:
    with pytest.raises(UserError, match="there is no trial 'zz'"):
        store.read("zz")


def test_the_ways_to_name_a_study(store: Store, tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    study = {"backbone": "a", "task": "boolq", "methods": ["lora"], "output": str(store.root.parent)}
    file.write_text(json.dumps(study))
    for path in (store.root, store.root.parent, file, store.root / "study.yaml"):
        assert find_study(path).root == store.root
    Store(store.root.parent / "other").create("", [])
    with pytest.raises(UserError, match="several studies: mine, other"):
        find_study(store.root.parent)
    with pytest.raises(UserError, match="there is no study in"):
        find_study(tmp_path / "nowhere")


def test_a_trial_that_is_removed_meanwhile_is_passed_over(store: Store) -> None:
    for name in ("a", "b"):
        store.write(name, record(name))
    reading = store.records()
    assert next(reading).id == "a"
    store.remove("b")
    assert list(reading) == []
    assert not store.folder("b").exists()


def test_a_state_that_cannot_be_read_is_none(store: Store) -> None:
    store.write_state("race", {"told": 1})
    assert store.read_state("race") == {"told": 1}
    (store.root / "searches" / "race.json").write_text('{"told"')
    assert store.read_state("race") is None
    assert store.read_state("other") is None
