"""Anytime: first adapter early, the best so far only better, the budget kept, every decision said; with a clock of its own."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import Any

import pytest
from pretend import Pretended, PretendEngine

from dollartune.budget.deadline import BudgetSpent
from dollartune.engines.base import Cohort, EvaluationCost
from dollartune.methods.registry import method_class
from dollartune.methods.rules import Facts
from dollartune.planner.trial_cost import TrialCost
from dollartune.schedule.anytime import at_step
from dollartune.schedule.first_settings import strongest
from dollartune.schedule.run_cost import TEST_SHARE
from dollartune.trials.build_record import failed_record
from dollartune.trials.record import RECORD_VERSION, Cost, record_of
from dollartune.trials.trial import Trial

ROWS, VALIDATION, TEST = 1000, 100, 200
STEP_SECONDS, ROW_SECONDS, PROBE_SECONDS = 0.1, 0.002, 2.0
"""A pass over the rows is 63 steps of 16: 6.3 s."""
PARAMETERS = 20_000_000


class TimedEngine(PretendEngine):
    """Solves in two seconds; trains so many steps, or as many as the time limit allows; scores rise with the steps."""

    def measure(self, trial: Trial) -> TrialCost:
        return TrialCost(1, PROBE_SECONDS / 1.3, 0.0, 0.0, 0.0, 0.0)

    def run(self, cohorts: Iterable[Cohort]) -> None:
        for cohort in cohorts:
            self.cohorts.append(cohort)
            costs = EvaluationCost(TEST, VALIDATION, ROW_SECONDS, ROW_SECONDS)
            (trial,) = cohort.trials
            try:
                limit = self.driver.time_limit(cohort, costs)
            except BudgetSpent as error:
                self.driver.leave(trial, failed_record(trial, "budget", str(error), Cost()))
                continue
            self._timed(cohort, trial, limit.seconds)

    def _timed(self, cohort: Cohort, trial: Trial, seconds: float) -> None:
        if self.break_after <= 0:
            raise KeyboardInterrupt
        self.break_after -= 1
        slow = self.slow(trial) if callable(self.slow) else self.slow
        ledger, name = self.driver.ledger, trial.identifier
        if cohort.purpose == "evaluate":
            tried = self.driver.read(name)
            rows = TEST if cohort.test_rows is None else cohort.test_rows
            with ledger.book("evaluate", trial=name):
                self.clock.now += rows * ROW_SECONDS * slow
            values = {**tried.to_json(), "status": "done", "test": {"score": tried.validation_score, "examples": rows}}
            self.driver.leave(trial, record_of(values))
            return
        evaluating = VALIDATION * ROW_SECONDS * slow
        steps, training, stopped = 1, PROBE_SECONDS * slow, "finished"
        if not trial.solved:
            possible = int(max(0.0, seconds - 1.3 * evaluating) / (STEP_SECONDS * slow))
            assert trial.steps is not None
            steps = possible if trial.length == "money" else min(trial.steps, possible)
            training = steps * STEP_SECONDS * slow
        score = self.truth(trial) - (0.0 if trial.solved else 3.0 / max(6, steps))
        if trial.averaged_with is not None:
            score = self.driver.read(trial.averaged_with).validation_score
        curve = [{"epoch": 0.0, "step": s, "seconds": 0.0, "train_loss": 1.0, "validation_loss": 1 - self.truth(trial) + 3 / s}
                 for s in range(10, steps + 1, 10)]  # fmt: skip
        for point in curve:
            if self.driver.prune(trial, int(point["step"]), point["validation_loss"]):
                steps, stopped = int(point["step"]), "pruned"
                training = steps * STEP_SECONDS * slow
                break
        with ledger.book("tune", trial=name):
            self.clock.now += training
        with ledger.book("evaluate", trial=name):
            self.clock.now += evaluating
        values = {
            "version": RECORD_VERSION, "id": name, "trial": trial.to_json(), "metric": "accuracy", "status": "tried",
            "validation": {"score": score, "examples": VALIDATION, "standard_error": 0.02},
            "training": {"stopped": stopped, "best_validation_loss": 1 - score, "seconds": training, "steps": steps,
                         "best_step": steps, "history": curve},
            "parameters": {"total": PARAMETERS}, "data": {"train": ROWS, "validation": VALIDATION, "test": TEST},
            "cost": {"seconds": training + evaluating, "dollars": 0.0, "price_per_hour": 0.0},
        }  # fmt: skip
        self.driver.leave(trial, record_of(values))


def first_rate(method: str, facts: Facts) -> Any:
    """That the rules say; None where none speaks of the method."""
    return method_class(method).defaults_for(facts).get("lr")


def truth(trial: Trial) -> float:
    """Full tuning at its first rate is best in the end; the probe is better than a short training."""
    (method,) = trial.variant.build() if len(trial.variant.methods) == 1 else trial.variant.build()[:1]
    if trial.solved:
        return 0.78
    rate = first_rate(method.name, Facts(32, ROWS)) or 1e-3
    return (0.86 if method.name == "full" else 0.85) - 0.02 * abs(method.config.lr - rate) / rate


@pytest.fixture
def anytime(study_of: Any) -> Any:
    def run(seconds: float, **given: Any) -> Pretended:
        methods = given.pop("methods", ["linear_probe", "full", "lora"])
        on_validation = given.pop("train_on_validation", False)
        settings = study_of(
            methods=methods, seeds=2, scales=["all"], search="anytime", baselines=False, keep_adapters="none",
            budget={"seconds": seconds, "per": "study"}, training={"batch_size": 16, "train_on_validation": on_validation},
            evaluation={"rows": 8, "free_generation": False, "forgetting": False, "inference_cost": False},
        )  # fmt: skip
        return Pretended(settings, truth, engine=TimedEngine, **given)

    return run


def cohorts(run: Pretended) -> list[Cohort]:
    return run.engine.cohorts


def methods_of(run: Pretended) -> list[str]:
    return [cohort.trials[0].variant.group for cohort in cohorts(run) if cohort.purpose == "search"]


def test_the_first_adapter_is_the_solved_probe_within_a_tenth_of_the_money(anytime: Any) -> None:
    run = anytime(60.0)
    first = run.study.store.read(cohorts(run)[0].trials[0].identifier)
    assert methods_of(run)[0] == "linear_probe"
    assert first.cost.seconds <= 0.1 * 60


def test_one_run_of_the_strongest_method_uses_the_time_where_it_is_short(anytime: Any) -> None:
    run = anytime(45.0)
    assert methods_of(run) == ["linear_probe", "full"]
    main = cohorts(run)[1].trials[0]
    assert main.length == "money"
    assert 0.95 * 45 <= run.seconds() <= 45


@pytest.mark.parametrize("slow", [0.7, 1.0, 1.2, 3.0])
@pytest.mark.parametrize("seconds", [8.0, 15.0, 30.0, 60.0, 120.0, 400.0])
def test_the_budget_is_kept_and_spent_or_given_back_with_a_reason(anytime: Any, seconds: float, slow: float) -> None:
    run = anytime(seconds, slow=slow)
    assert run.seconds() <= seconds * 1.001
    ending = run.notes[-1]
    assert run.seconds() >= 0.95 * seconds or "left unspent" in ending, ending


def test_below_a_third_of_a_pass_over_the_rows_the_probe_stays_and_the_rest_is_given_back(anytime: Any) -> None:
    run = anytime(5.0)
    assert methods_of(run) == ["linear_probe"]
    assert "epochs would fit" in run.notes[-1]
    assert "left unspent" in run.notes[-1]
    assert run.runner.finals[0].solved


def test_a_run_whose_evaluation_does_not_fit_is_not_begun(anytime: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("ROWS", 100), ("VALIDATION", 200), ("ROW_SECONDS", 0.1)):
        monkeypatch.setitem(globals(), name, value)
    run = anytime(45.0)  # 22 s for the probe and its validation rows, which 23 s do not pay for again
    assert methods_of(run) == ["linear_probe"]
    assert "epochs would fit" in run.notes[-1]


@pytest.mark.parametrize(("seconds", "method"), [(15.0, "layer_freezing"), (40.0, "full")])
def test_with_few_epochs_the_upper_layers_alone_are_trained(anytime: Any, seconds: float, method: str) -> None:
    run = anytime(seconds, methods=["linear_probe", "full", "layer_freezing", "lora"])
    assert methods_of(run)[1] == method


@pytest.mark.parametrize(
    ("per_row", "wanted"),
    [
        (1e-6, [(None, 1.0)]),
        (0.005, [(0, 1.0), (None, 1.0)]),
        (0.045, [(0, 1.0), (128, 1.0)]),
        (0.12, [(0, 1.0), (128, 0.4)]),
        (10.0, [(0, 1.0)]),
    ],
    ids=["at once", "after tokens alone", "first 128 tokens", "of some rows", "tokens alone"],
)
def test_what_the_backbone_is_shown_follows_from_what_that_takes(
    anytime: Any, monkeypatch: pytest.MonkeyPatch, per_row: float, wanted: list[tuple[int | None, float]]
) -> None:
    """Rows of 200 tokens, whose features take so many seconds each."""

    def measure(self: TimedEngine, trial: Trial) -> TrialCost:
        (method,) = trial.variant.build()
        if method.config.pooling == "none":  # is solved in no time
            return TrialCost(1, 0.1, 0.0, 0.0, 0.0, 0.0)
        most = method.config.first_tokens or 200
        return TrialCost(1, ROWS * per_row * min(200, most) / 200, 0.0, 0.0, 0.0, 0.0)

    monkeypatch.setattr(TimedEngine, "measure", measure)
    run = anytime(60.0, methods=["tfidf_probe"])
    shown = []
    for cohort in cohorts(run):
        if cohort.purpose == "search":
            (method,) = cohort.trials[0].variant.build()
            tokens = 0 if method.config.pooling == "none" else method.config.first_tokens
            shown.append((tokens, pytest.approx(method.config.rows_share, abs=0.05)))
    assert shown == wanted


def test_the_best_by_validation_is_handed_over_and_nothing_is_trained_twice(anytime: Any) -> None:
    run = anytime(200.0)
    searched = [cohort.trials[0] for cohort in cohorts(run) if cohort.purpose == "search"]
    assert len({trial.identifier for trial in searched}) == len(searched)
    evaluated = [cohort for cohort in cohorts(run) if cohort.purpose == "evaluate"]
    assert [cohort.purpose for cohort in cohorts(run)].index("evaluate") == len(cohorts(run)) - 1
    records = [run.study.store.read(trial.identifier) for trial in searched]
    scores = [record.validation_score for record in records if record.stopped != "pruned"]
    (final,) = run.runner.finals
    assert final == evaluated[0].trials[0]
    record = run.study.store.read(final.identifier)
    assert record.validation_score == max(score for score in scores if score is not None)
    assert record.status == "done"
    assert record.search is not None


def test_other_settings_come_before_seeds_and_neither_before_the_strongest_method(anytime: Any) -> None:
    run = anytime(600.0)
    trials = [cohort.trials[0] for cohort in cohorts(run) if cohort.purpose == "search"]
    assert [trial.variant.group for trial in trials][:2] == ["linear_probe", "full"]
    first_of_seed = next((n for n, trial in enumerate(trials) if trial.seed == 1), len(trials))
    labels = [trial.variant.label for trial in trials]
    assert first_of_seed > max(labels.index(label) for label in labels)


def test_a_hopeless_setting_ends_early_and_a_good_one_does_not(anytime: Any) -> None:
    run = anytime(600.0)
    records = {
        cohort.trials[0].variant.label: run.study.store.read(cohort.trials[0].identifier)
        for cohort in cohorts(run)
        if cohort.purpose == "search"
    }
    pruned = [label for label, record in records.items() if record.stopped == "pruned"]
    assert pruned, list(records)
    assert all("lr=" in label for label in pruned)


def test_test_rows_are_paid_for_by_a_small_part_and_by_what_training_leaves(
    anytime: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(globals(), "ROW_SECONDS", 0.2)  # all rows would take 40 s, validation rows take 20
    run = anytime(60.0)
    (cohort,) = [cohort for cohort in cohorts(run) if cohort.purpose == "evaluate"]
    assert cohort.test_rows is not None
    assert int(TEST_SHARE * 60 / 0.2) < cohort.test_rows < TEST
    assert any(f"{cohort.test_rows} of 200 test rows" in note for note in run.notes)


@pytest.mark.parametrize("seconds", [80, 120, 400])
def test_in_the_end_the_best_is_averaged_with_a_run_on_all_rows(anytime: Any, seconds: float) -> None:
    run = anytime(seconds, train_on_validation=True)
    runs = [cohort.trials[0] for cohort in cohorts(run) if cohort.purpose == "search"]
    alone = [trial for trial in runs if trial.averaged_with is None]
    best = max(alone, key=lambda trial: run.engine.driver.read(trial.identifier).validation_score or 0.0)
    assert runs[-1].averaged_with == best.identifier
    assert runs[-1].seed == best.seed, "the same seed is the same start"
    assert [trial.averaged_with for trial in runs[:-1]] == [None] * (len(runs) - 1)
    assert cohorts(run)[-1].trials == (runs[-1],), "it is what is handed over"


@pytest.mark.parametrize(("seconds", "after"), [(60.0, 0), (60.0, 1), (60.0, 2), (400.0, 4), (400.0, 7)])
def test_a_killed_study_goes_on_as_if_nothing_had_been(anytime: Any, seconds: float, after: int) -> None:
    killed = anytime(seconds, break_after=after)
    assert killed.killed
    done = {record.id for record in killed.study.store.records()}
    again = anytime(seconds, at=killed.clock.now)
    assert not again.killed
    # with money for many runs a race was under way
    races = [cell.state.rungs is not None for cell in again.runner.scheduler.schedulers]
    assert races == [seconds > 60]
    repeated = [c.trials[0].identifier for c in cohorts(again) if c.purpose == "search"]
    assert not done & set(repeated)
    assert again.runner.finals
    assert again.seconds() <= seconds


def test_without_a_probe_a_short_first_run_gives_an_early_adapter(anytime: Any) -> None:
    run = anytime(100.0, methods=["lora"])
    first = run.study.store.read(cohorts(run)[0].trials[0].identifier)
    assert first.cost.seconds <= 0.1 * 100
    assert len(methods_of(run)) > 1


def test_rules_name_the_strongest_method_and_its_rate() -> None:
    assert strongest(["lora", "bitfit", "full"], 22_000_000) == ["full", "lora", "bitfit"]
    assert strongest(["full", "lora"], 135_000_000) == ["lora", "full"]
    assert first_rate("full", Facts(384, 1000)) == pytest.approx(1e-4)
    assert first_rate("full", Facts(768, 1000)) == pytest.approx(5e-5)
    assert first_rate("lora", Facts(384, 1000)) == pytest.approx(1e-3)
    assert first_rate("bitfit", Facts(384, 1000)) is None


def test_a_curve_is_read_between_its_points() -> None:
    curve = [(10, 1.0), (20, 0.5)]
    assert [at_step(curve, step) for step in (5, 10, 15, 20, 30)] == [None, 1.0, 0.75, 0.5, None]
    assert all(a >= b for a, b in itertools.pairwise(at_step(curve, step) or 0.0 for step in range(10, 21)))


def test_a_study_ends_when_further_runs_would_not_change_the_answer(
    anytime: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All settings come out within a hundredth of each other: after some of them nothing is expected of the rest."""
    monkeypatch.setitem(
        globals(), "truth", lambda trial: 0.7 if trial.solved else 0.85 + len(trial.variant.label) % 7 / 1000
    )
    methods = ["linear_probe", "full", "lora", "bitfit", "dora"]
    run = anytime(4000.0, methods=methods)
    assert "would not change this (probability 0.9" in run.notes[-1]
    assert "left unspent" in run.notes[-1]
    assert len(cohorts(run)) > 4
    few = anytime(150.0, methods=methods)
    assert "probability" not in few.notes[-1], "two runs do not tell what a third would do"
