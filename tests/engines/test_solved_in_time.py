"""Solved adapters whose features take longer than was measured: whole studies, by a clock that passes with their rows."""

from __future__ import annotations

import csv
import json
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from pretend import Clock

from dollartune.engines import cohort_worker, stage_limits, trial_context
from dollartune.engines.base import scored_beside
from dollartune.engines.cohort_worker import CohortWorker
from dollartune.engines.display import Display
from dollartune.engines.trial_scores import TrialScorer
from dollartune.format import percent
from dollartune.methods.tfidf_probe import TfidfProbe
from dollartune.schedule import scheduler
from dollartune.study.api import Study
from dollartune.study.progress import describe
from dollartune.study.runner import StudyRunner
from dollartune.train import solve as train_solve
from dollartune.tuning import standings

EACH = 0.02
"""Seconds of a row forwards, as it is measured."""


class Slow:
    """Runs studies whose rows take `EACH`, and once they are trained so many times as long."""

    def __init__(self, study_of: Any, backbone: str, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.study_of, self.backbone, self.data = study_of, backbone, data
        self.clock, self.slow = Clock(), 1.0
        monkeypatch.setattr(time, "perf_counter", self.clock)
        for module in (cohort_worker, stage_limits, scheduler):
            monkeypatch.setattr(module, "closing_seconds", lambda: 0.1)
        load, states = trial_context.load_backbone, CohortWorker._states

        def load_timed(*given: Any, **named: Any) -> Any:
            backbone = load(*given, **named)
            backbone.model.base_model.register_forward_pre_hook(self._passes, with_kwargs=True)
            return backbone

        def train(worker: Any, *given: Any) -> Any:
            self.factor = self.slow
            return states(worker, *given)

        monkeypatch.setattr(trial_context, "load_backbone", load_timed)
        monkeypatch.setattr(CohortWorker, "_states", train)

    def _passes(self, module: Any, args: tuple[Any, ...], given: dict[str, Any]) -> None:
        first = next(value for value in (*args, *given.values()) if isinstance(value, torch.Tensor))
        self.clock.now += EACH * self.factor * len(first)

    def study(self, name: str, slow: float, **changes: Any) -> Study:
        """A study that has run; its ledger's seconds are in `spent`."""
        self.slow, self.factor = slow, 1.0
        study = Study(
            self.study_of(
                **{
                    "name": name, "backbone": self.backbone, "methods": ["linear_probe"], "scales": ["all"],
                    "task": {"data": str(self.data), "prompt": "{text}", "label": "mood"}, "keep_adapters": "all",
                    "baselines": False, "budget": {"seconds": 16.0, "per": "study"},
                    "evaluation": {"rows": 40, "free_generation": False, "forgetting": False, "inference_cost": False},
                    **changes,
                }
            )
        )  # fmt: skip
        study.store.create(study.settings.model_dump_json(exclude={"output", "engine"}), [])
        self.notes: list[str] = []
        display = Display()
        display.note = self.notes.append  # type: ignore[method-assign]
        runner = StudyRunner(study.settings, study.store, display)
        runner.ledger.clock = self.clock
        before = runner.ledger.spent_seconds()
        runner.run()
        self.spent = runner.ledger.spent_seconds() - before
        return study


@pytest.fixture
def slow(study_of: Any, local_backbone: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Slow:
    path = tmp_path / "many.csv"
    words = {"good": ("lovely", "bright", "fine", "sweet"), "bad": ("awful", "dull", "poor", "sour")}
    with path.open("w", encoding="utf8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("text", "mood"))
        for n in range(600):
            mood = ("good", "bad")[n % 2]
            writer.writerow((f"number {n} was {words[mood][n // 2 % 4]} today", mood))
    return Slow(study_of, str(local_backbone("bert")), path, monkeypatch)


@pytest.mark.parametrize("factor", [1.0, 1.54, 2.5, 4.0])
def test_a_search_ends_with_the_best_adapter_that_its_rows_give_within_the_budget(slow: Slow, factor: float) -> None:
    study = slow.study("search", factor, search="anytime")
    assert slow.spent <= 16.0
    records = [record for record in study.store.records() if record.training is not None]
    assert not [record.error for record in study.store.records() if record.error is not None]
    record = max(records, key=lambda record: record.rows_share)
    assert record.validation is not None
    assert record.data.train is not None
    assert record.data.validation is not None
    rows, scored = record.rows_share * record.data.train, record.validation.examples
    # what was kept for the scores was enough
    assert scored == scored_beside(record.rows_share if record.stopped == "budget" else 1.0, record.data.validation)
    if record.rows_share < 1:
        assert (rows + 1.25 * scored) * EACH * factor >= 0.85 * 16.0, "and no more than that was kept"
        assert (record.stopped, record.fewer_rows) == ("budget", f"solved on {percent(record.rows_share)} of the rows")
        assert record.fewer_rows in slow.notes[-1]
        assert any(record.fewer_rows in line for line in standings(study.store, record))
    assert record.training is not None
    assert record.training.examples == pytest.approx(rows, abs=1)
    assert (study.store.folder(record.id) / "adapter").is_dir()


def test_what_is_trained_tells_the_pace_of_its_rows_before_it_is_scored(
    slow: Slow, monkeypatch: pytest.MonkeyPatch
) -> None:
    paces: list[float] = []
    affordable = TrialScorer._affordable

    def asked(scorer: TrialScorer, trial: Any, context: Any, state: Any, most: int) -> int:
        paces.append(state.progress.seconds_per_row)
        return affordable(scorer, trial, context, state, most)

    monkeypatch.setattr(TrialScorer, "_affordable", asked)
    study = slow.study(
        "trained", 4.0, search="anytime", methods=["bitfit"], budget={"seconds": 25.0, "per": "study"},
        training={"batch_size": 8},
    )  # fmt: skip
    assert paces == pytest.approx([4 * EACH] * len(paces))
    assert len(paces) == len([record for record in study.store.records() if record.training is not None]) > 0
    assert slow.spent <= 25.0


def test_a_solution_that_takes_three_times_as_long_as_was_estimated_is_waited_for(
    slow: Slow, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The one on tokens alone has told it."""
    monkeypatch.setattr(train_solve, "OPERATIONS_PER_SECOND", 1e9)  # four seconds for all rows
    solve = TfidfProbe.solve

    def timed(method: TfidfProbe, part: Any, rows: Any) -> None:
        if "C" not in method.solution:  # not when it is solved again, with the C that was chosen
            width = rows.features.shape[1]
            slow.clock.now += 3 * method.solve_operations(len(rows.labels), width, rows.classes) / 1e9
        solve(method, part, rows)

    monkeypatch.setattr(TfidfProbe, "solve", timed)
    study = slow.study(
        "solution", 2.5, search="anytime", methods=["tfidf_probe"], budget={"seconds": 36.0, "per": "study"}
    )
    records = {record.trial.label: record for record in study.store.records()}
    assert set(records) == {"tfidf_probe(pooling=none)", "tfidf_probe"}
    assert [record.error for record in records.values()] == [None, None]
    features = records["tfidf_probe"]
    assert 0.2 < features.rows_share < 0.9
    assert features.validation is not None
    assert features.data.validation is not None
    assert features.validation.examples == scored_beside(features.rows_share, features.data.validation)
    assert slow.spent <= 36.0


@pytest.mark.parametrize("methods", [["linear_probe"], ["knn"], ["tfidf_probe"]])
def test_a_listed_trial_is_solved_on_what_its_part_pays_for_and_made_again_by_its_share(
    slow: Slow, methods: list[str]
) -> None:
    study = slow.study("listed", 2.5, methods=methods)
    (record,) = study.store.records()
    assert record.status == "done"
    assert record.test is not None
    assert slow.spent <= 16.0
    assert 0.05 < record.rows_share < 0.5
    assert record.training is not None
    assert record.training.rows_share == record.rows_share
    slow.factor = 100.0
    assert study.again(record.id).equal, "by its share, and on no clock"
    adapter = json.loads((study.store.folder(record.id) / "adapter" / "adapter.json").read_text())
    whole = slow.study("whole", 1.0, methods=methods, budget=None)
    (complete,) = whole.store.records()
    seen = json.loads((whole.store.folder(complete.id) / "adapter" / "adapter.json").read_text())["rows_seen"][
        "trained"
    ]
    assert len(adapter["rows_seen"]["trained"]) == pytest.approx(record.rows_share * len(seen), rel=0.05)


def test_with_more_money_it_goes_on_from_the_features_that_are_there(slow: Slow) -> None:
    (before,) = slow.study("grows", 2.5).store.records()
    (after,) = slow.study("grows", 2.5, budget={"seconds": 30.0, "per": "study"}).store.records()
    assert after.id == before.id
    assert after.rows_share > 1.5 * before.rows_share
    assert after.cost.features_seconds - after.cost.features_booked_seconds > 0, "they were paid for then"
    trial: Any = SimpleNamespace(task="many", scale=None, label="linear_probe", seed=0)
    assert f"seed 0, {before.fewer_rows}: accuracy" in describe(trial, before)
