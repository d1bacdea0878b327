"""A recorded trial, trained again by its steps, gives the adapter that it left."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from dollartune.budget.ledger import Ledger
from dollartune.cli.app import app
from dollartune.engines import adapters
from dollartune.engines.adapters import keep_best
from dollartune.engines.base import Cohort, TimeLimit
from dollartune.engines.cohort_worker import CohortWorker
from dollartune.engines.display import Display
from dollartune.engines.trial_context import ContextCache
from dollartune.errors import UserError
from dollartune.methods.stored_adapter import WEIGHTS, read_info
from dollartune.study.again import run_again
from dollartune.study.api import Study
from dollartune.study.runner import StudyRunner
from dollartune.train.checkpoints import Checkpoints
from dollartune.trials.best import best_record
from dollartune.trials.store import Store
from dollartune.tuned import tune
from dollartune.untrusted_files import read_tensors

pytestmark = pytest.mark.usefixtures("one_thread")
TRAINING = {"epochs": 4, "batch_size": 8, "patience": 1, "cohort_size": 1}


def test_equal_and_not_equal(study_of: Any, tmp_path: Any) -> None:
    settings = study_of(methods=["zero_shot", "lora(rank=2, dropout=0.2)"], keep_adapters="all", training=TRAINING)
    study = Study(settings)
    study.run(display=Display())
    (record,) = [record for record in study.store.records() if record.training is not None]
    assert 0 < record.training.best_step <= record.training.steps
    found = study.again(record.id[:6])
    assert found.equal
    assert "all 12 tensors are equal, bit for bit" in found.sentence

    file = tmp_path / "moods.yaml"
    file.write_text(json.dumps(settings))
    shown = CliRunner().invoke(app, ["run", str(file), "--again", record.id, "--json"])
    assert shown.exit_code == 0
    assert json.loads(shown.stdout)["equal"] is True

    # the folder itself is enough: what `tune` leaves has no study file beside it
    shown = CliRunner().invoke(app, ["run", str(study.store.root), "--again", record.id, "--json"])
    assert shown.exit_code == 0, shown.output

    weights = study.store.folder(record.id) / "adapter" / "adapter.safetensors"
    tensors = load_file(weights)
    first = next(iter(tensors))
    save_file({**tensors, first: tensors[first] + 0.25}, weights)
    found = study.again(record.id)
    assert (found.equal, found.differing) == (False, 1)
    assert found.largest == pytest.approx(0.25, abs=1e-6)
    assert "1 of 12 tensors differ, by 0.25 at most" in found.sentence
    assert CliRunner().invoke(app, ["run", str(file), "--again", record.id]).exit_code == 1


def test_what_cannot_be_made_again(study_of: Any) -> None:
    study = Study(study_of(methods=["zero_shot", "bitfit"], keep_adapters="none"))
    study.run(display=Display())
    with pytest.raises(UserError, match="there is no trial 'nothing'"):
        study.again("nothing")
    trained, untrained = sorted(study.store.records(), key=lambda record: record.training is None)
    with pytest.raises(UserError, match="trained nothing"):
        study.again(untrained.id)
    with pytest.raises(UserError, match="was not kept") as caught:
        study.again(trained.id)
    assert caught.value.hint == "keep_adapters: all"


def test_settings_that_have_changed_are_said(study_of: Any) -> None:
    study = Study(study_of(methods=["bitfit"], keep_adapters="all"))
    study.run(display=Display())
    (record,) = study.store.records()
    changed = Study(study_of(methods=["bitfit"], data_seed=1))
    with pytest.raises(UserError, match="other settings, data or weights"):
        run_again(study.store, changed.settings, record.id)


class Driver:
    """Keeps what a worker leaves."""

    def __init__(self, study: Study, ledger: Ledger) -> None:
        self.folder, self.has, self.read = study.store.folder, study.store.has, study.store.read
        self.write, self.ledger = study.store.write, ledger

    def checkpoints(self, cohort: str) -> Checkpoints:
        return Checkpoints(self.folder(cohort) / "checkpoint")

    def leave(self, trial: Any, record: Any, predictions: Any = ()) -> None:
        self.write(trial.identifier, record, predictions)

    def time_limit(self, cohort: Cohort, costs: Any) -> TimeLimit:
        return TimeLimit(math.inf)

    def paying(self) -> str:
        return self.ledger.innermost()

    def prune(self, trial: Any, step: int, loss: float) -> bool:
        return False


def test_a_trial_whose_length_came_from_money(study_of: Any) -> None:
    study = Study(study_of(methods=["lora(rank=2)"], keep_adapters="all", training={"batch_size": 8, "patience": None}))
    runner = StudyRunner(study.settings, study.store)
    trial = replace(runner.trials[0], length="money", steps=30)
    driver = Driver(study, runner.ledger)
    worker = CohortWorker(study.settings, ContextCache(study.settings, runner.tasks, 0), driver)
    worker.run(Cohort((trial,)))
    record = study.store.read(trial.identifier)
    assert record.training is not None
    assert [(one.step, one.total_steps) for one in record.training.plan] == [(0, 30)]
    assert [point.step for point in record.training.history] == [20, 28, 30]
    assert trial.identifier != runner.trials[0].identifier
    assert study.again(trial.identifier).equal
    assert torch.get_num_threads() == record.environment.threads == 1


@pytest.mark.parametrize("method", ["bitfit", "lora(rank=2)"])
def test_an_average_of_two_runs(study_of: Any, method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second has the validation rows too; it is made again from what both trained."""
    settings = {"batch_size": 8, "patience": None, "class_offsets": "validation", "train_on_validation": True}
    study = Study(study_of(methods=[method], keep_adapters="all", training=settings))
    runner = StudyRunner(study.settings, study.store)
    one = replace(runner.trials[0], length="money", steps=12)
    both = replace(one, averaged_with=one.identifier, length="at_most", more=", average of two")
    driver = Driver(study, runner.ledger)
    worker = CohortWorker(study.settings, ContextCache(study.settings, runner.tasks, 0), driver)
    for trial in (one, both):
        worker.run(Cohort((trial,), "search"))
    first, second = (study.store.read(trial.identifier) for trial in (one, both))
    assert second.validation == first.validation, "of rows that it was not trained on"
    assert second.class_offsets == first.class_offsets
    assert first.training is not None
    assert second.training is not None
    assert (second.training.history, second.training.average) == ((), "decay")
    seen = [read_info(study.store.folder(trial.identifier) / "adapter")["rows_seen"] for trial in (one, both)]
    assert len(seen[1]["trained"]) > len(seen[0]["trained"])
    assert not seen[1]["chosen_by"]
    stored, mean = (read_tensors(study.store.folder(t.identifier) / "adapter", WEIGHTS) for t in (one, both))
    assert any(not torch.equal(stored[name], tensor) for name, tensor in mean.items())
    assert study.again(both.identifier).equal
    assert best_record([first, second]) is second
    solved = first.trial.model_copy(update={"methods": ({"method": "linear_probe"},)})
    probe = SimpleNamespace(id="probe", status="tried", validation_score=1.0, trial=solved)
    monkeypatch.setattr(Store, "with_adapter", lambda store: [probe, first])
    monkeypatch.setattr(adapters, "discard_folder", lambda _: pytest.fail("a better probe is no reason to lose it"))
    keep_best(study.store, [])
    monkeypatch.undo()
    keep_best(study.store, [])
    assert {record.id for record in study.store.with_adapter()} == {one.identifier, both.identifier}


def test_what_tune_leaves_is_made_again_from_its_folder(reviews: Any, tmp_path: Any) -> None:
    """The solved probe, with validation rows in the end, and a trained run: both of the anytime scheduler's own settings."""
    tuned = tune(
        str(reviews), "tiny-encoder", label="mood", budget="20 min", methods=["linear_probe", "full"], trials=1, seeds=1,
        rows=24, out=tmp_path / "tuned", metric="macro_f1", display=Display(),
    )  # fmt: skip
    records = list(tuned.results.store.with_adapter())
    assert records
    for record in records:
        shown = CliRunner().invoke(app, ["run", str(tmp_path / "tuned"), "--again", record.id, "--json"])
        assert shown.exit_code == 0, shown.output
        assert json.loads(shown.stdout)["equal"] is True
