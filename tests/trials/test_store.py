"""The store: a record is there whole or not at all, and the index can be made anew."""

import json
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from dollartune.errors import UserError
from dollartune.evaluate.evaluation import Prediction
from dollartune.trials.store import Store, find_study


def record(name: str, **more: Any) -> dict[str, Any]:
    trial = {"task": "t", "scale": 10, "group": "lora", "label": "lora(rank=2)", "seed": 0}
    cost = {"seconds": 1.5, "dollars": 0.0}
    return {"id": name, "status": "done", "trial": trial, "score": 0.5, "cost": cost, **more}


def rows(store: Store) -> list[tuple[Any, ...]]:
    with sqlite3.connect(store.root / "index.sqlite") as database:
        found = database.execute("SELECT trial, status, score FROM trials ORDER BY trial").fetchall()
    database.close()
    return found


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
    assert found["version"] == 1
    assert found["note"] is None
    assert found["both"] == [1, 2]
    assert store.predictions("a")[0]["probabilities"] == {"yes": 0.75, "no": None}
    assert store.predictions("b") == []
    assert [r["id"] for r in store.records()] == ["a"]


def test_predictions_are_written_before_the_record(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    monkeypatch.setattr("dollartune.trials.store.write_atomically", lambda path, _: order.append(path.name))
    store.write("a", record("a"), [Prediction("test/0", "yes", "no")])
    assert order == ["predictions.jsonl.gz", "record.json"]


def test_the_index_is_made_anew_from_the_records(store: Store) -> None:
    store.write("a", record("a"))
    store.write("b", record("b", status="failed", score=None))
    assert rows(store) == [("a", "done", 0.5), ("b", "failed", None)]
    (store.root / "index.sqlite").write_bytes(b"rubbish")
    store.rebuild_index()
    assert rows(store) == [("a", "done", 0.5), ("b", "failed", None)]
    (store.root / "index.sqlite").unlink()
    store.create("asked: this", ["a", "b"])  # what a run begins with
    assert len(rows(store)) == 2


def test_the_same_trial_has_one_row(store: Store) -> None:
    store.write("a", record("a"))
    store.write("a", record("a", score=0.75))
    assert rows(store) == [("a", "done", 0.75)]
    store.forget("a")
    assert not store.has("a")


def test_clear_leaves_what_is_not_its_own(store: Store) -> None:
    store.write("a", record("a"))
    (store.root / "ledger.jsonl").write_text("")
    (store.root / "my notes.txt").write_text("mine")
    store.clear()
    assert [path.name for path in store.root.iterdir()] == ["my notes.txt"]
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
