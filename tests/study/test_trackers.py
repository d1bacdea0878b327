"""Trackers are told of validations and results, and are not needed unless named."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from dollartune.engines.display import CohortWatcher, Display
from dollartune.errors import UserError
from dollartune.study import trackers
from dollartune.study.trackers import TrackedDisplay, tracked
from dollartune.trials.record import Cost, DoneRecord, TestResult, TrialFacts


class Recorder:
    """A tracker that remembers what it was told."""

    def __init__(self) -> None:
        self.told: list[Any] = []

    def measure(self, trial: Any, step: int, values: Any) -> None:
        self.told.append((trial.identifier, step, dict(values)))

    def finish(self, trial: Any, facts: Any, scores: Any) -> None:
        self.told.append((trial.identifier, facts["status"], dict(scores)))

    def close(self) -> None:
        self.told.append("closed")


def trial() -> Any:
    return SimpleNamespace(identifier="abc", label="lora", task="t", seed=0)


def test_results_and_the_end_are_told() -> None:
    recorder = Recorder()
    display = TrackedDisplay(Display(), [recorder])
    facts = TrialFacts(group="lora", label="lora", task="t", seed=0)
    test = TestResult(score=0.5, scores={"accuracy": 0.5})
    record = DoneRecord(id="abc", trial=facts, status="done", cost=Cost(seconds=1.0), test=test)
    with display.study([], [], None):  # type: ignore[arg-type]
        display.recorded(trial(), record)
    assert recorder.told == [("abc", "done", {"accuracy": 0.5}), "closed"]


def test_validations_are_told() -> None:
    recorder = Recorder()
    display = TrackedDisplay(Display(), [recorder])
    last = SimpleNamespace(step=7, train_loss=1.5, validation_loss=1.25)
    progress = SimpleNamespace(history=[last])
    state = SimpleNamespace(name="abc", progress=progress, done=False, total_steps=9, epoch=1.0)
    watcher = CohortWatcher(display, [trial()], [state], None, lambda *_: False)  # type: ignore[arg-type, list-item]
    watcher.validated(state)  # type: ignore[arg-type]
    assert recorder.told == [("abc", 7, {"loss/train": 1.5, "loss/validation": 1.25})]


def test_no_tracker_changes_nothing(tmp_path: Path) -> None:
    display = Display()
    assert tracked(display, [], tmp_path) is display


def test_a_library_that_is_not_there_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> Any:
        raise ImportError(name)

    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(UserError, match="'mlflow' is not installed"):
        tracked(Display(), ["mlflow"], tmp_path)


def test_an_unknown_tracker_is_refused_with_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="Did you mean 'mlflow'"):
        tracked(Display(), ["mlflw"], tmp_path)
    assert set(trackers.TRACKERS) == {"tensorboard", "wandb", "mlflow"}
