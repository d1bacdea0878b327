"""The runner: what fails is recorded and the study goes on; what is recorded is never done again."""

import io
import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from dollartune.attachment.attached import Attached
from dollartune.budget.ledger import Ledger
from dollartune.budget.study_budget import ledger_for
from dollartune.engines.display import Display
from dollartune.errors import UserError
from dollartune.schedule.fixed import FixedScheduler
from dollartune.study import runner as module
from dollartune.study.api import Study, open_study
from dollartune.study.progress import Lines, LiveView
from dollartune.study.runner import StudyRunner
from dollartune.study_file import load_study
from dollartune.train.forward_backward import ForwardBackward
from dollartune.train.loop import CohortTrainer
from dollartune.train.trial import TrialState
from dollartune.trials.expand import plan
from dollartune.trials.record import DataFacts


def status(study: Study) -> dict[str, str]:
    """label -> done, or the class of its failure."""
    found = study.results().records
    return {r.trial.label: r.error.kind if r.error is not None else r.status for r in found}


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Methods of every cohort that is trained from here on."""
    seen: list[list[str]] = []
    run = CohortTrainer.run

    def noted(self: CohortTrainer) -> None:
        seen.append([trial.adapter.methods[0].name for trial in self.trials if not trial.done])
        run(self)

    monkeypatch.setattr(CohortTrainer, "run", noted)
    return seen


def test_a_study_is_run_once(study_of: Any, trained: list[list[str]]) -> None:
    study = Study(study_of(evaluation={"rows": 8}))
    first = study.run(display=Display())
    assert status(study) == {"zero_shot": "done", "bitfit": "done"}
    record = next(r for r in first.done() if r.trial.group == "bitfit")
    assert record.data == DataFacts(train=16, validation=8, test=8, shortened=0)
    assert record.training.steps == 2
    assert record.parameters.trainable == sum(record.parameters.modules.values()) > 0
    assert record.cost.seconds > 0
    assert record.forgetting.tokens > 0
    assert record.inference.alone_seconds > 0
    assert len(study.store.predictions(record.id)) == 8
    assert trained == [["bitfit"]]
    second = study.run(display=Display())
    assert trained == [["bitfit"]]
    assert second.records == first.records
    study.run(fresh=True, display=Display())
    assert trained == [["bitfit"]] * 2
    for old in first.records:
        new = study.store.read(old.id)
        assert (new.test.scores, new.test.breakdown) == (old.test.scores, old.test.breakdown)


def test_a_changed_study_shows_its_own_trials_only(study_of: Any) -> None:
    Study(study_of(methods=["bitfit"])).run(display=Display())
    changed = Study(study_of(methods=["bitfit"], training={"epochs": 2, "batch_size": 8}))
    changed.run(display=Display())
    assert len(list(changed.store.records())) == 2
    assert len(changed.results().records) == 1
    assert open_study(changed.store.root).leaderboard()["seeds"].tolist() == [1]


def test_fresh_deletes_nothing_while_the_study_is_wrong(study_of: Any) -> None:
    study = Study(study_of(methods=["zero_shot"]))
    study.run(display=Display())
    with pytest.raises(UserError, match="lorra"):
        Study(study_of(methods=["lorra"])).run(fresh=True)
    assert len(study.results().records) == 1


def test_a_trial_that_breaks_is_recorded_and_the_study_goes_on(study_of: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    step = TrialState.step

    def breaks(self: TrialState, loss: float) -> None:
        if self.adapter.methods[0].name == "ia3":
            raise ValueError("a bug")
        if self.adapter.methods[0].name == "lora":
            raise FloatingPointError("the gradient is nan at step 1")
        step(self, loss)

    monkeypatch.setattr(TrialState, "step", breaks)
    study = Study(study_of(methods=["ia3", "lora", "bitfit"]))
    study.run(display=Display())
    assert status(study) == {"ia3": "error", "lora": "not_finite", "bitfit": "done"}
    failed = next(r for r in study.results().records if r.trial.group == "ia3")
    assert failed.error.message == "ValueError: a bug"
    assert "Traceback" in failed.error.traceback
    assert failed.cost.seconds > 0


def test_a_cohort_with_a_bug_in_one_trial_runs_the_others_alone(
    study_of: Any, monkeypatch: pytest.MonkeyPatch, trained: list[list[str]]
) -> None:
    add = Attached.add

    def breaks(self: Attached, name: str, methods: Sequence[Any], seed: int = 0) -> Any:
        if methods[0].name == "ia3":
            raise ValueError("a bug")
        return add(self, name, methods, seed)

    monkeypatch.setattr(Attached, "add", breaks)
    training = {"epochs": 1, "batch_size": 8, "cohort_size": 3}
    study = Study(study_of(methods=["bitfit", "ia3", "lora"], training=training))
    study.run(display=Display())
    assert status(study) == {"bitfit": "done", "ia3": "error", "lora": "done"}
    assert trained == [["bitfit"], ["lora"]]


def test_out_of_memory_tries_again_with_smaller_passes(
    study_of: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    gradients = ForwardBackward.gradients
    sizes: list[int | None] = []

    def full(self: ForwardBackward, running: Sequence[TrialState]) -> list[float]:
        sizes.append(running[0].settings.micro_batch_size)
        if (sizes[-1] or 8) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return gradients(self, running)

    monkeypatch.setattr(ForwardBackward, "gradients", full)
    study = Study(study_of(methods=["bitfit"]))
    with caplog.at_level(logging.WARNING, "dollartune"):
        study.run(display=Display())
    assert status(study) == {"bitfit": "done"}
    assert sizes == [None, 4, 2, 2]
    assert "trying again with 4 rows" in caplog.text
    assert study.results().done()[0].training.steps == 2  # the same effective batch


def test_memory_that_never_suffices_is_a_failure(study_of: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes")

    monkeypatch.setattr(ForwardBackward, "gradients", full)
    study = Study(study_of(methods=["bitfit", "zero_shot"]))
    study.run(display=Display())
    assert status(study) == {"bitfit": "out_of_memory", "zero_shot": "done"}


def test_a_budget_of_memory_refuses_what_needs_more_and_with_more_it_is_tried_again(study_of: Any) -> None:
    def run(memory: str) -> Study:
        study = Study(study_of(methods=["bitfit"], search=False, budget={"seconds": 600, "memory": memory}))
        study.run(display=Display())
        return study

    small = run("20 MB")
    (failed,) = small.results().failed()
    assert failed.error.kind == "out_of_memory"
    assert failed.error.message.endswith("before anything is trained, and the budget allows 20 MB.")
    assert status(run("10 MB")) == {"bitfit": "out_of_memory"}
    assert status(run("64 GB")) == {"bitfit": "done"}


def test_a_spent_budget_fails_by_name_and_more_money_tries_again(study_of: Any) -> None:
    poor = Study(study_of(methods=["bitfit"], budget={"seconds": 0.001, "per": "method"}))
    poor.run(display=Display())
    assert status(poor) == {"bitfit": "budget"}
    rich = Study(study_of(methods=["bitfit"], budget={"seconds": 600.0, "per": "method"}))
    rich.run(display=Display())
    assert status(rich) == {"bitfit": "done"}


def test_a_price_without_a_limit_limits_nothing(study_of: Any) -> None:
    study = Study(study_of(methods=["bitfit"], budget={"price": "2/h"}))
    (record,) = study.run(display=Display()).done()
    assert record.training.stopped == "finished"
    assert record.cost.dollars == pytest.approx(record.cost.seconds * 2 / 3600)


def test_every_second_is_booked(study_of: Any) -> None:
    study = Study(study_of(methods=["bitfit"]))
    study.run(display=Display())
    lines = [json.loads(line) for line in study.store.ledger.read_text().splitlines()]
    assert {line["category"] for line in lines if "category" in line} >= {"load", "tune", "evaluate", "export", "other"}


@pytest.mark.parametrize(
    ("text", "per", "dollars", "seconds"),
    [("$1", "method", 1.0, None), ("20 min", "method", None, 1200.0), ("$5 per study", "study", 5.0, None),
     ("90 s each", "method", None, 90.0)],
)  # fmt: skip
def test_a_budget_as_a_text(text: str, per: str, dollars: float | None, seconds: float | None) -> None:
    settings = load_study({"backbone": "a", "task": "boolq", "methods": ["lora"], "budget": text})
    found = settings.budget
    assert found is not None
    assert (found.per, found.dollars, found.seconds) == (per, dollars, seconds)
    if dollars:
        with pytest.raises(UserError, match="need the price of this machine"):
            ledger_for(settings, [], None)


def test_per_trial_each_gets_the_same_whatever_the_others_leave(study_of: Any) -> None:
    settings = load_study(study_of(methods=["bitfit"], seeds=3, budget={"seconds": 10.0, "per": "trial"}))
    trials = plan(settings)[0]
    now = [0.0]
    ledger = Ledger(limit_seconds=30.0, clock=lambda: now[0])
    scheduler = FixedScheduler(settings, ledger, trials)
    with ledger.book("tune", trial=trials[0].identifier, method="bitfit"):
        now[0] += 4
    assert ledger.remaining() == 26.0
    assert scheduler.seconds_for(trials[:1]) == (6.0, None)  # it has used 4 of its 10, before an interruption
    assert scheduler.seconds_for(trials[1:2]) == (10.0, None)


def test_per_trial_all_bear_what_is_shared(study_of: Any) -> None:
    settings = load_study(study_of(methods=["bitfit"], seeds=3, budget={"seconds": 10.0, "per": "trial"}))
    trials = plan(settings)[0]
    now = [0.0]
    ledger = Ledger(limit_seconds=30.0, clock=lambda: now[0])
    with ledger.book("load"):
        now[0] += 6
    scheduler = FixedScheduler(settings, ledger, trials)
    assert [scheduler.seconds_for([trial])[0] for trial in trials] == [8.0] * 3


def test_an_interrupted_trial_gets_no_more_than_its_share(study_of: Any) -> None:
    settings = load_study(study_of(methods=["bitfit"], seeds=3, budget={"seconds": 30.0, "per": "method"}))
    trials = plan(settings)[0]
    now = [0.0]
    ledger = Ledger(limit_seconds=30.0, per="method", methods=("bitfit",), clock=lambda: now[0])
    scheduler = FixedScheduler(settings, ledger, trials)
    with ledger.book("tune", trial=trials[0].identifier, method="bitfit"):
        now[0] += 4
    assert scheduler.seconds_for(trials[:1]) == (pytest.approx(6.0), "bitfit")


def test_only_the_best_adapter_of_each_task_and_scale_is_kept(study_of: Any) -> None:
    study = Study(study_of(methods=["bitfit", "ia3", "lora(rank=2)"], scales=[8, 16]))
    found = study.run(display=Display())
    kept = [r for r in found.done() if (study.store.folder(r.id) / "adapter").is_dir()]
    assert sorted(r.trial.scale for r in kept) == [8, 16]
    for record in kept:
        rivals = [r.validation.score for r in found.done() if r.trial.scale == record.trial.scale]
        assert record.validation.score == max(rivals)
    assert found.best().id in {r.id for r in kept}  # type: ignore[union-attr]


def test_adapters_left_over_by_a_kill_are_dropped_by_the_next_run(
    study_of: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = Study(study_of(methods=["bitfit", "ia3"]))
    with monkeypatch.context() as patched:
        patched.setattr(module, "keep_best", lambda *_: None)
        study.run(display=Display())
    assert len(list(study.store.root.glob("trials/*/adapter"))) == 2
    study.run(display=Display())
    assert len(list(study.store.root.glob("trials/*/adapter"))) == 1


def test_misspelt_roles_are_found_before_anything_is_run(study_of: Any) -> None:
    with pytest.raises(UserError, match=r"unknown role 'self_atn\.q'\. Did you mean 'self_attn\.q'"):
        plan(load_study(study_of(methods=[{"lora": {"where": "self_atn.q"}}])))
    with pytest.raises(UserError, match="outside this stack's layers"):
        plan(load_study(study_of(methods=[{"lora": {"layers": "0-7"}}])))


def test_an_ablation_that_leaves_nothing_is_left_out_with_a_note(study_of: Any) -> None:
    wanted = {"drop": ["attention"], "layers": ["first 50%"]}
    trials, _, notes = plan(load_study(study_of(methods=["lora"], ablations=wanted)))
    assert [trial.variant.label for trial in trials] == ["lora", "lora: first 50%"]
    assert any(note.startswith("left out: lora: drop attention") for note in notes)


def test_too_few_rows_for_a_scale_are_said(study_of: Any, capsys: pytest.CaptureFixture[str]) -> None:
    study = Study(study_of(methods=["zero_shot"], scales=[1000]))
    study.run(display=Lines())
    assert "reviews has only 56 training rows: scale 1,000 trains on all of them." in capsys.readouterr().out
    assert study.results().done()[0].data.train == 56


def test_ctrl_c_leaves_what_is_done(study_of: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    study = Study(study_of(methods=["zero_shot", "bitfit"]))
    with monkeypatch.context() as patched:
        patched.setattr(CohortTrainer, "train_step", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt()))
        with pytest.raises(KeyboardInterrupt):
            study.run(display=Display())
    assert status(study) == {"zero_shot": "done"}
    study.run(display=Display())
    assert status(study) == {"zero_shot": "done", "bitfit": "done"}


def test_one_study_is_not_run_twice_at_the_same_time(study_of: Any) -> None:
    study = Study(study_of(methods=["zero_shot"]))
    first = StudyRunner(study.settings, study.store)
    with pytest.raises(UserError, match="already running"):
        StudyRunner(study.settings, study.store)
    study.store.create("", ["kept"])
    with pytest.raises(UserError, match="already running"):
        StudyRunner(study.settings, study.store, fresh=True)
    assert study.store.planned() == ["kept"]  # nothing of it was deleted
    first.ledger.close()


def test_the_live_view_shows_trials_time_and_money(study_of: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    study = Study(study_of(budget={"dollars": 1.0, "price": "3.60/h"}))
    view = LiveView()
    console = Console(record=True, width=140, file=io.StringIO())
    shown: list[str] = []

    def look(*_: Any) -> None:
        console.print(view._render())
        shown.append(console.export_text(clear=True))

    for name in ("training", "evaluating", "recorded"):
        original = getattr(view, name)
        monkeypatch.setattr(view, name, lambda *args, original=original: (original(*args), look()))
    study.run(display=view)
    text = "\n".join(shown)
    assert "evaluating reviews, 16 rows, zero_shot, seed 0" in text
    assert "tuning reviews, 16 rows, bitfit, seed 0: epoch 1.0, step 2/2, validation loss" in text
    assert "of $2.00" in text
    assert "2/2 trials" in shown[-1]
    assert "reviews, 16 rows, bitfit, seed 0: accuracy" in shown[-1]
    assert "left" in text


def test_a_failed_trial_in_one_line(study_of: Any, capsys: pytest.CaptureFixture[str]) -> None:
    study = Study(study_of(methods=["bitfit"], budget={"seconds": 0.001}))
    study.run(display=Lines())
    assert "[1/1] reviews, 16 rows, bitfit, seed 0: failed (budget: " in capsys.readouterr().out


def test_paths_of_results(study_of: Any, tmp_path: Path) -> None:
    study = Study(study_of(methods=["zero_shot"]))
    study.run(display=Display())
    assert study.store.root == tmp_path / "studies" / "moods"
    other = Study(study_of(name="other"))
    other.store.create("", [])
    with pytest.raises(UserError, match="no finished trial yet"):
        open_study(other.store.root)


@pytest.fixture
def steps_made(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Each step of each training, by its number, as it is made."""
    made: list[int] = []
    step = TrialState.step

    def counted(self: TrialState, loss: float) -> None:
        step(self, loss)
        made.append(self.progress.step)

    monkeypatch.setattr(TrialState, "step", counted)
    return made


def test_a_trial_that_the_budget_ended_goes_on_from_its_checkpoint_with_more_money(
    study_of: Any, steps_made: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    training = {"epochs": 4, "batch_size": 8, "patience": None}
    whole = Study(study_of(name="whole", methods=["bitfit"], training=training))
    (expected,) = whole.run(display=Display()).done()
    poor = Study(study_of(methods=["bitfit"], training=training, budget={"seconds": 60.0, "per": "method"}))
    steps_made.clear()
    with monkeypatch.context() as patched:
        patched.setattr(CohortTrainer, "out_of_time", lambda self: len(steps_made) >= 3, raising=False)
        run = CohortTrainer.run

        def cut(self: CohortTrainer) -> None:
            self.out_of_time = lambda: len(steps_made) >= 3
            run(self)

        patched.setattr(CohortTrainer, "run", cut)
        (record,) = poor.run(display=Display()).done()
    assert record.training.stopped == "budget"
    assert steps_made == [1, 2, 3]
    (same,) = poor.run(display=Display()).done()  # no more money: it is done
    assert same == record
    rich = Study(study_of(methods=["bitfit"], training=training, budget={"seconds": 600.0, "per": "method"}))
    (record,) = rich.run(display=Display()).done()
    assert steps_made == [1, 2, 3, 4, 5, 6, 7, 8]
    assert record.training.stopped == "finished"
    assert record.test.scores == expected.test.scores
    assert [row.validation_loss for row in record.training.history] == pytest.approx(
        [row.validation_loss for row in expected.training.history]
    )


def test_a_trial_that_the_budget_cuts_ends_decayed_and_goes_on_from_before_the_decay(
    study_of: Any, steps_made: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    training = {"epochs": 10, "batch_size": 4, "patience": None}
    whole = Study(study_of(name="whole", methods=["bitfit"], training=training))
    (expected,) = whole.run(display=Display()).done()
    poor = Study(study_of(methods=["bitfit"], training=training, budget={"seconds": 60.0, "per": "method"}))
    steps_made.clear()

    class Notes(Display):
        def note(self, text: str) -> None:
            notes.append(text)

    notes: list[str] = []
    with monkeypatch.context() as patched:
        # ten steps in all are paid for: a clock of its own would need as long
        patched.setattr("dollartune.engines.cohort_worker.end_decayed", lambda look: 10 if look.step >= 8 else 40)
        (record,) = poor.run(display=Notes()).done()
    assert steps_made == list(range(1, 11))
    assert record.training.stopped == "budget"
    assert [(one.step, one.total_steps) for one in record.training.plan] == [(0, 40), (8, 10)]
    assert record.training.history[-1].step == 10
    assert [
        note for note in notes if "pays for 10 of 40 steps, so the learning rate falls to 0 over the last 2" in note
    ]
    rich = Study(study_of(methods=["bitfit"], training=training, budget={"seconds": 600.0, "per": "method"}))
    (record,) = rich.run(display=Display()).done()
    assert steps_made[10:] == list(range(9, 41)), "from before the decay"
    assert record.training.stopped == "finished"
    assert record.test.scores == expected.test.scores
    assert [row.validation_loss for row in record.training.history] == pytest.approx(
        [row.validation_loss for row in expected.training.history]
    )


def test_evaluation_that_runs_out_of_memory_goes_on_with_smaller_batches(
    study_of: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from dollartune.evaluate import evaluation

    scored = evaluation.label_log_probabilities
    sizes: list[int] = []

    def full(*args: Any) -> Any:
        sizes.append(args[-1])
        if args[-1] > 8:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return scored(*args)

    monkeypatch.setattr(evaluation, "label_log_probabilities", full)
    study = Study(study_of(methods=["bitfit"]))
    with caplog.at_level(logging.WARNING, "dollartune"):
        (record,) = study.run(display=Display()).done()
    assert sizes[:3] == [32, 16, 8]
    assert record.training.steps == 2
    assert "out of memory: trying again with 16 rows per pass while evaluating" in caplog.text


def test_a_record_says_what_the_method_says_of_its_part(study_of: Any) -> None:
    study = Study(study_of(methods=["adalora", "bitfit"]))
    records = {record.trial.group: record for record in study.run(display=Display()).done()}
    assert set(records["adalora"].parameters.reported["adalora"]) == {"mean_rank"}
    assert records["bitfit"].parameters.reported == {}


@pytest.mark.parametrize(
    "error",
    [
        OSError(28, "No space left on device"),
        RuntimeError("[enforce fail at inline_container.cc] . unexpected pos 64 vs 0"),
    ],
)
def test_what_the_machine_ended_is_tried_again(
    study_of: Any, monkeypatch: pytest.MonkeyPatch, trained: list[list[str]], error: Exception
) -> None:
    study = Study(study_of(methods=["bitfit"]))

    def full(self: CohortTrainer) -> None:
        raise error

    with monkeypatch.context() as during:
        during.setattr(CohortTrainer, "run", full)
        study.run(display=Display())
    assert status(study) == {"bitfit": "environment"}
    study.run(display=Display())
    assert status(study) == {"bitfit": "done"}
    study.run(display=Display())
    assert len(trained) == 1


def test_what_a_setting_ended_is_not_tried_again(
    study_of: Any, monkeypatch: pytest.MonkeyPatch, trained: list[list[str]]
) -> None:
    study = Study(study_of(methods=["bitfit"]))

    def wrong(self: CohortTrainer) -> None:
        raise ValueError("no")

    with monkeypatch.context() as during:
        during.setattr(CohortTrainer, "run", wrong)
        study.run(display=Display())
    study.run(display=Display())
    assert status(study) == {"bitfit": "error"}
    assert trained == []


@pytest.mark.parametrize("methods", [["bitfit"], ["zero_shot"]])
def test_test_rows_that_were_cut_are_counted_too(study_of: Any, reviews: Path, methods: list[str]) -> None:
    """Whether an input is too long is a fact of the row, wherever it is used."""
    settings = study_of(methods=methods, evaluation={"rows": 8, "free_generation": True})
    settings["training"] |= {"max_length": 8}
    (record,) = Study(settings).run(display=Display()).done()
    assert record.data.shortened == 16 + 8 + 8
