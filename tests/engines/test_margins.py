"""What a worker has in hand: for evaluating, writing and measuring beside the training, and for what it reports."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from dollartune.budget.ledger import Ledger
from dollartune.config import EvaluationSettings, StudySettings
from dollartune.engines import baselines, extra_metrics, ray_cluster, trial_scores
from dollartune.engines.base import Cohort, EvaluationCost, TimeLimit, evaluation_seconds
from dollartune.engines.extra_metrics import ExtraMetrics
from dollartune.engines.record_writer import RecordWriter
from dollartune.engines.stage_limits import StageLimits
from dollartune.engines.trial_context import RowCosts
from dollartune.engines.trial_scores import TrialScorer
from dollartune.evaluate.cost import RequestCost
from dollartune.study_file import load_study
from dollartune.trials.expand import plan
from dollartune.trials.trial import Trial


@pytest.fixture
def settings() -> StudySettings:
    return load_study({"backbone": "a", "task": "boolq", "methods": ["lora"]})


def costs(validation: int = 100, test: int = 300) -> EvaluationCost:
    """Rows of ten milliseconds."""
    return EvaluationCost(test, validation, 0.01, 0.01)


COHORT = Cohort((object(),))  # type: ignore[arg-type]


# Time that training leaves


def test_rows_that_take_a_fifth_longer_than_measured_are_still_evaluated_and_written(settings: StudySettings) -> None:
    kept = evaluation_seconds(COHORT, costs(), settings)
    assert 1.2 * 4.0 + 0.2 <= kept <= 1.3 * 4.0 + 0.3, "and no more than that is taken from the training"


def test_training_ends_early_enough_for_a_last_validation_and_a_checkpoint_on_a_slow_disk(
    settings: StudySettings,
) -> None:
    ledger = Ledger(limit_seconds=100.0, clock=lambda: 0.0, heartbeat_seconds=0)
    adapter = SimpleNamespace(count=lambda: 25_000_000)
    states: Any = [SimpleNamespace(adapter=adapter)]
    context: Any = SimpleNamespace(costs=costs, seconds_per_validation=3.0)
    end = StageLimits(settings, ledger).training_end(COHORT, context, TimeLimit(100.0), states)
    assert end is not None
    # each parameter, its gradient's two moments and the best state so far: 400 MB at 200 MB/s
    assert end.reserve_seconds == pytest.approx(evaluation_seconds(COHORT, costs(), settings) + 3.0 + 2.0)


def test_one_quick_look_lowers_what_rows_are_thought_to_take_by_a_fifth_and_a_slow_one_counts_at_once() -> None:
    costs = RowCosts(0.1, 0.1)
    costs.note_test(0.01 * 100, 100)
    costs.note_validation(0.01 * 100, 100)
    assert costs.seconds_per_row == pytest.approx(0.08)
    assert costs.seconds_per_validation_row == pytest.approx(0.08)
    costs.note_test(0.5 * 100, 100)
    costs.note_validation(0.5 * 100, 100)
    assert costs.seconds_per_row == costs.seconds_per_validation_row == pytest.approx(0.5)


# Measurements that decide no score


def test_a_solution_tells_what_the_next_one_takes_unless_it_was_a_moment_s_or_quick() -> None:
    costs = RowCosts()
    for seconds, estimated, ratio in ((0.6, 0.19, 1.0), (0.6, 0.2, 3.0), (0.1, 0.19, 3.0), (1.0, 2.0, 1.0)):
        costs.note_solution(seconds, estimated)
        assert costs.solution_ratio == pytest.approx(ratio)


def test_a_figure_beside_the_score_is_left_out_where_it_might_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    """A row takes a second: 24 for the requests and one for asking them again, 80 for paragraphs; a fifth on top."""
    asked: list[str] = []
    cost = RequestCost(8, 0.01, 0.03, 9.0, 0, 1000)
    monkeypatch.setattr(extra_metrics, "request_cost", lambda *given: (asked.append("requests"), cost)[1])
    monkeypatch.setattr(ExtraMetrics, "_forgetting", lambda *given: (asked.append("text"), {"reason": "none"})[1])
    evaluator: Any = None

    def take(seconds: float, adapter: str | None, **wanted: bool) -> Any:
        measures = ExtraMetrics(EvaluationSettings(**wanted))
        return measures.take(evaluator, adapter, [], [], 0, seconds, 1.0)

    only_requests = {"inference_cost": True, "forgetting": False}
    assert "about 30.0 s" in take(29.0, None, **only_requests)["inference"].reason
    take(31.0, None, **only_requests)
    only_text = {"inference_cost": False, "forgetting": True}
    assert "about 96.0 s" in take(95.0, "mine", **only_text)["forgetting"].reason
    take(97.0, "mine", **only_text)
    assert asked == ["requests", "text"]


def test_a_baseline_s_batch_takes_what_the_quickest_of_five_did(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each pass is a second quicker than the one before: 12 s for the first text, which warms up, then 11, ..."""
    now, passes = 0.0, iter(range(12, 0, -1))

    def answer(texts: Any) -> None:
        nonlocal now
        now += next(passes)

    monkeypatch.setattr(baselines.time, "perf_counter", lambda: now)
    task: Any = SimpleNamespace(template=None)
    facts = baselines.request_facts(SimpleNamespace(log_probabilities=answer), task, [object()])  # type: ignore[arg-type, list-item]
    assert facts.alone_seconds == 11.0
    assert facts.seconds == 6.0


# Offsets of classes


@pytest.mark.parametrize(("rows", "chosen"), [(19, False), (20, True)])
def test_offsets_are_chosen_by_twenty_rows_at_least(rows: int, chosen: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    found = SimpleNamespace(worth_it=True)
    seen: list[Any] = []
    monkeypatch.setattr(trial_scores, "has_offsets", lambda *given: True)
    monkeypatch.setattr(trial_scores, "held_out_offsets", lambda scored, *others: (seen.append(scored), found)[1])
    training = SimpleNamespace(class_offsets="validation")
    nothing: Any = None
    driver: Any = SimpleNamespace(ledger=nothing)
    scorer = TrialScorer(SimpleNamespace(training=training), driver, nothing, nothing)  # type: ignore[arg-type]
    task = SimpleNamespace(labels=("no", "yes"), metric="macro_f1")
    context: Any = SimpleNamespace(task=task, backbone=None)
    sure = SimpleNamespace(probabilities={"no": 1.0, "yes": 0.0}, expected="no")
    state: Any = SimpleNamespace(adapter=None)
    evaluation: Any = SimpleNamespace(predictions=[sure] * rows)
    assert (scorer._class_offsets(nothing, context, state, evaluation) is found) == chosen
    assert all(math.isfinite(value) for scored in seen for value in scored.flatten().tolist()), (
        "a rounded 0 has one too"
    )


# Records


class Sink:
    def __init__(self, ledger: Ledger) -> None:
        self.ledger, self.left = ledger, list[Any]()

    def leave(self, trial: Trial, record: Any, predictions: Any = ()) -> None:
        self.left.append(record)

    def has(self, trial: str) -> bool:
        return False

    def folder(self, trial: str) -> Path:
        raise AssertionError("nothing is written for a failure")


def test_a_failure_is_recorded_with_its_place_and_its_price(study_of: Any) -> None:
    """A stack of a megabyte would be read with every record of a study."""
    settings = load_study(study_of(methods=["bitfit"], seeds=1))
    (trial, *_), _, _ = plan(settings)
    now = 0.0
    ledger = Ledger(clock=lambda: now, price_per_hour=2.0, heartbeat_seconds=0)
    sink = Sink(ledger)
    with ledger.book("tune", trial=trial.identifier, method="bitfit"):
        now = 1800.0
    writer = RecordWriter(settings, sink, 0)  # type: ignore[arg-type]
    try:
        raise ValueError("the cause" + " of a long story" * 1000)
    except ValueError as error:
        writer.failed(trial, error)
    (record,) = sink.left
    assert 3000 < len(record.error.traceback) <= 4000
    assert record.cost.dollars == pytest.approx(1.0), "half an hour"


# A cluster


def test_an_address_is_given_five_seconds_to_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[float] = []

    def connected(address: Any, timeout: float) -> Any:
        asked.append(timeout)
        return SimpleNamespace(close=lambda: None)

    monkeypatch.setattr(ray_cluster.socket, "create_connection", connected)
    ray_cluster._knock("10.0.0.1:6379")
    assert 4.0 <= asked[0] <= 6.0, "over a slow line; a wrong address is not waited for"
