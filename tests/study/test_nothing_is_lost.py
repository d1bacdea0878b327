"""What was paid for stays: whatever breaks after a record, however a run ends, whatever is asked for next."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pretend import Pretended, PretendEngine, learning_rate

from dollartune.budget.deadline import BudgetSpent
from dollartune.budget.journal import held
from dollartune.engines.display import Display
from dollartune.engines.extra_metrics import SPENT, ExtraMetrics
from dollartune.errors import UserError
from dollartune.study.api import Study
from dollartune.study.live_file import ask_to_extend, ask_to_stop, asked_extensions
from dollartune.study.several import remove_trials
from dollartune.train.loop import CohortTrainer
from dollartune.trials.build_record import failed_record
from dollartune.trials.record import Cost, TrialRecord
from dollartune.trials.trial import Trial


class Notes(Display):
    """Keeps what is said."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


def records(study: Study) -> dict[str, TrialRecord]:
    """By label."""
    return {record.trial.label: record for record in study.results().records}


def test_what_breaks_after_a_record_is_not_its_trials(study_of: Any) -> None:
    study = Study(study_of(methods=["zero_shot"]))

    class Broken(Display):
        def recorded(self, trial: Trial, record: TrialRecord) -> None:
            raise RuntimeError("the display broke")

    with pytest.raises(RuntimeError, match="the display broke"):
        study.run(display=Broken())
    assert records(study)["zero_shot"].status == "done"


def test_an_adapter_that_cannot_be_handed_over_yet_is_kept_and_handed_over_later(study_of: Any) -> None:
    study, display, calls = Study(study_of(methods=["bitfit"])), Notes(), []

    def full() -> None:
        calls.append(1)
        raise OSError(28, "No space left on device")

    study.run(display=display, improved=full)
    assert records(study)["bitfit"].status == "done"
    assert len(calls) > 1, "tried again"
    assert len([note for note in display.notes if "could not be handed over" in note]) == 1
    study.run(display=Display(), improved=lambda: calls.append(2))
    assert calls[-1] == 2


def test_a_score_is_not_lost_for_figures_beside_it(study_of: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def spent(*_: Any) -> None:
        raise BudgetSpent("the budget was used up")

    monkeypatch.setattr(ExtraMetrics, "take", spent)
    study = Study(study_of(methods=["bitfit"], evaluation={"rows": 8}, budget={"seconds": 600.0, "per": "method"}))
    study.run(display=Display())
    record = records(study)["bitfit"]
    assert record.status == "done"
    assert record.inference is not None
    assert record.inference.reason == SPENT


# A budget that is raised


class Unpaid(PretendEngine):
    """Whose every trial is ended by the budget before it has a score."""

    def run(self, cohorts: Any) -> None:
        for cohort in cohorts:
            self.cohorts.append(cohort)
            for trial in cohort.trials:
                self.driver.leave(trial, failed_record(trial, "budget", "it was used up", Cost()))


@pytest.fixture
def budgets(study_of: Any) -> Any:
    """A study of one training that takes ten seconds, with so many for it."""
    return lambda seconds: study_of(
        methods=["lora"], budget={"seconds": float(seconds), "per": "method"}, keep_adapters="none"
    )


def test_a_raised_budget_takes_no_result_away_before_there_is_another(budgets: Any) -> None:
    (cut,) = Pretended(budgets(6), learning_rate).study.results().done()
    assert cut.stopped == "budget"
    killed = Pretended(budgets(8), learning_rate, break_after=0)
    assert killed.killed
    assert killed.study.results().done() == [cut]
    again = Pretended(budgets(6), learning_rate)
    assert not again.engine.cohorts, "with the first budget nothing is left to do"
    (longer,) = Pretended(budgets(30), learning_rate).study.results().done()
    assert longer.stopped == "finished"


def test_a_failure_that_nobody_asks_for_again_goes_with_the_budget_that_made_it(budgets: Any) -> None:
    poor = Pretended(budgets(6), learning_rate, engine=Unpaid)
    (failed,) = poor.study.results().failed()
    settings = {**budgets(30), "methods": ["bitfit"]}
    assert [record.trial.label for record in Pretended(settings, learning_rate).study.store.records()] == ["bitfit"]
    assert not poor.study.store.has(failed.id)


def test_a_result_stays_where_the_raised_budget_buys_none(budgets: Any) -> None:
    (cut,) = Pretended(budgets(6), learning_rate).study.results().done()
    raised = Pretended(budgets(7), learning_rate, engine=Unpaid)
    assert len(raised.engine.cohorts) == 1
    (kept,) = raised.study.results().done()
    assert kept.test == cut.test
    assert any("its earlier result stays" in note for note in raised.notes)
    assert not Pretended(budgets(7), learning_rate, engine=Unpaid).engine.cohorts, "once for each budget"


def test_an_extension_that_the_budget_ended_is_made_with_more(study_of: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    study = Study(study_of(methods=["bitfit"], budget={"seconds": 300.0, "per": "method"}))
    study.run(display=Display())
    first = records(study)["bitfit"]

    def spent(self: CohortTrainer) -> None:
        raise BudgetSpent("it was used up")

    with monkeypatch.context() as patched:
        patched.setattr(CohortTrainer, "run", spent)
        study.extend(first.id, steps=1, display=Display())
    assert records(study)["bitfit, +1 steps"].status == "failed"
    Study(study.settings, budget={"seconds": 600.0, "per": "method"}).extend(first.id, steps=1, display=Display())
    assert records(study)["bitfit, +1 steps"].status == "done"


# What was asked for


def test_an_interruption_loses_no_request(tmp_path: Path) -> None:
    for trial in ("a", "b"):
        ask_to_extend(tmp_path, trial, 1)
    asked = asked_extensions(tmp_path)
    assert next(asked) == ("a", 1)
    asked.close()  # the process ends while it is trained
    assert [trial for trial, _ in asked_extensions(tmp_path)] == ["a", "b"]
    assert not list(asked_extensions(tmp_path))


def test_a_request_that_came_too_late_stops_no_later_training(study_of: Any) -> None:
    study = Study(study_of(methods=["zero_shot"]))
    ask_to_stop(study.store.root, study.trials()[0].identifier)
    study.run(display=Display())
    assert not list((study.store.root / "requests").iterdir())


# What is deleted


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"budget": "$1"}, "need the price of this machine"),
        ({"training": {"epochs": 1, "optimizer": "paged_adamw"}}, "paged_adamw"),
    ],
)
def test_fresh_deletes_nothing_where_the_study_is_refused(study_of: Any, changes: dict[str, Any], why: str) -> None:
    study = Study(study_of(methods=["zero_shot"]))
    study.run(display=Display())
    for fresh in (True, False):
        with pytest.raises(UserError, match=why) as refused:
            Study(study_of(methods=["zero_shot"], **changes)).run(fresh=fresh, display=Display())
        assert records(study)["zero_shot"].status == "done"
        study.run(display=Display())
        assert refused.value.hint is not None, "a notebook keeps it, but no lock with it"


def test_fresh_begins_anew_where_the_account_cannot_be_read(study_of: Any) -> None:
    study = Study(study_of(methods=["zero_shot"]))
    study.run(display=Display())
    study.store.ledger.write_text("damaged\n")
    with pytest.raises(UserError, match="--fresh"):
        study.run(display=Display())
    study.run(fresh=True, display=Display())
    assert records(study)["zero_shot"].status == "done"


def test_nothing_is_removed_from_a_study_that_runs(study_of: Any) -> None:
    study = Study(study_of(methods=["zero_shot"]))
    study.run(display=Display())
    trial = records(study)["zero_shot"].id
    with held(study.store.ledger), pytest.raises(UserError, match="already running"):
        remove_trials(study.store, [trial])
    assert study.store.has(trial)
    assert remove_trials(study.store, [trial]) == [trial]


def test_a_removal_that_is_killed_leaves_no_half_of_a_result(study_of: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    study = Study(study_of(methods=["zero_shot"]))
    study.run(display=Display())
    trial = records(study)["zero_shot"].id

    def killed(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("shutil.rmtree", killed)
    with pytest.raises(KeyboardInterrupt):
        remove_trials(study.store, [trial])
    assert not study.store.has(trial)
