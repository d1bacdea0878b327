"""A solved adapter is solved again on the validation rows where what is left pays for it, and says so where it does not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dollartune import Study
from dollartune.engines.base import LEAST_TEST_ROWS
from dollartune.engines.stage_limits import StageLimits
from dollartune.engines.trial_context import RowCosts
from dollartune.engines.trial_scores import TrialScorer
from dollartune.methods.registry import build_method
from dollartune.train.solve import solve_on_all_seconds
from dollartune.trials.record import DoneRecord


@pytest.fixture
def solved(study_of: Any, local_backbone: Any) -> Any:
    """The record of a linear probe, and its adapter's file of facts."""

    def run(name: str) -> tuple[DoneRecord, dict[str, Any]]:
        study = Study(
            study_of(
                name=name, backbone=str(local_backbone("bert")), methods=["linear_probe"], keep_adapters="all",
                baselines=False, training={"train_on_validation": True},
            )
        )  # fmt: skip
        (record,) = study.run().done()
        folder = Path(study.store.folder(record.id)) / "adapter"
        return record, json.loads((folder / "adapter.json").read_text())

    return run


@pytest.mark.parametrize(("left", "again"), [(14.9, False), (15.1, True)])
def test_it_is_solved_again_where_one_and_a_half_times_its_seconds_are_left(
    solved: Any, monkeypatch: pytest.MonkeyPatch, left: float, again: bool
) -> None:
    monkeypatch.setattr("dollartune.engines.trial_scores.solve_on_all_seconds", lambda *_: 10.0)
    monkeypatch.setattr(StageLimits, "left", lambda self, trial: left)
    record, _ = solved("some")
    assert record.training.on_validation is again


def test_rows_that_were_not_solved_on_are_not_said_to_be(solved: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    _, both = solved("both")
    monkeypatch.setattr(StageLimits, "left", lambda self, trial: -1.0)
    record, one = solved("one")
    assert record.status == "done", "an adapter, and no interruption"
    assert not record.training.on_validation
    assert one["rows_seen"] != both["rows_seen"]


def test_what_scoring_a_solved_adapter_takes_says_nothing_of_a_pass(
    solved: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its rows' features may be there already, or it counts words alone: a trained adapter would get no time to be scored."""
    passes: list[int] = []
    scored: list[int] = []
    monkeypatch.setattr(RowCosts, "note_validation", lambda self, seconds, rows: passes.append(rows))
    monkeypatch.setattr(RowCosts, "note_rows", lambda self, rows: scored.append(rows))
    solved("alone")
    assert not passes
    assert len(scored) == 1


def test_more_rows_take_as_many_more_seconds_as_operations() -> None:
    from types import SimpleNamespace as Facts

    method = build_method("linear_probe")
    part = Facts(method=method, sites=[Facts(in_features=64, out_features=3)])
    row = Facts(prompt=(1, 2), content=b"x", length=2)
    state: Any = Facts(
        parts=[part], adapter=Facts(readout=Facts(rows_share=1.0, pooling=("mean",), most_tokens=None)), train=[row] * 100,
        progress=Facts(solution_seconds=2.0),
    )  # fmt: skip
    store: Any = Facts(missing=lambda backbone, rows, pooling: rows[:30])
    more = method.solve_operations(300, 64, 3) / method.solve_operations(100, 64, 3)
    backbone: Any = None
    assert solve_on_all_seconds(state, [row] * 200, backbone, store, 0.1) == pytest.approx(3.0 + 2.0 * more)  # type: ignore[list-item]


@pytest.mark.parametrize(
    ("left", "count"), [(-3.0, LEAST_TEST_ROWS), (1.0, LEAST_TEST_ROWS), (10.25, 90), (float("inf"), 130)]
)
def test_a_solved_adapter_is_scored_on_the_rows_that_what_is_left_pays_for(left: float, count: int) -> None:
    """A row takes 0.1 s, longer than it should have: what has been solved is not lost."""
    from types import SimpleNamespace as Facts

    state: Any = Facts(
        adapter=Facts(readout=Facts(pooling=("mean",), most_tokens=None)),
        progress=Facts(seconds_per_row=0.1, stopped="", rows_share=1.0),
    )
    rows = [Facts(content=number) for number in range(130)]
    # of the first 20 rows half are there already, and take nothing
    context: Any = Facts(
        validation=rows, backbone=None, features=Facts(missing=lambda backbone, rows, pooling: rows[10:])
    )
    nothing: Any = None
    scorer = TrialScorer(nothing, Facts(ledger=None), nothing, Facts(left=lambda trial: left))  # type: ignore[arg-type]
    assert scorer._affordable(nothing, context, state, 130) == count
    state.progress.stopped, state.progress.rows_share = "budget", 0.2
    assert scorer._affordable(nothing, context, state, 130) == min(count, 52), "twice the share of the training rows"
    context.features.missing = lambda backbone, rows, pooling: rows[100:]
    assert scorer._affordable(nothing, context, state, 130) == 100, "rows that are there take nothing"


@pytest.mark.parametrize(
    ("left", "each", "looked", "count"),
    [
        (13.3, 0.1, 0.1, 130),  # the margin is for others
        (13.2, 0.1, 0.1, 103),
        (13.2, 0.1, 0.05, 103),  # scoring texts takes longer than a look at them
        (13.2, 0.05, 0.1, 103),  # and looks may have become slower than scoring was
        (0.1, 0.1, 0.1, LEAST_TEST_ROWS),
        (0.1, 0.1, 0.0, 130),  # nothing was seen
    ],
)
def test_a_trained_adapter_is_scored_on_the_rows_that_what_is_left_pays_for(
    left: float, each: float, looked: float, count: int
) -> None:
    from types import SimpleNamespace as Facts

    state: Any = Facts(adapter=Facts(readout=None), progress=Facts(seconds_per_row=looked, stopped="", rows_share=None))
    context: Any = Facts(row_costs=Facts(seconds_per_validation_row=each))
    nothing: Any = None
    scorer = TrialScorer(nothing, Facts(ledger=None), nothing, Facts(left=lambda trial: left))  # type: ignore[arg-type]
    assert scorer._affordable(nothing, context, state, 130) == count


def test_a_search_trial_whose_money_is_short_has_a_score(study_of: Any, local_backbone: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr(TrialScorer, "_affordable", lambda *_: 3)
    study = Study(
        study_of(
            backbone=str(local_backbone("bert")), methods=["linear_probe"], baselines=False, search="anytime",
            budget={"seconds": 120.0, "per": "study"},
        )
    )  # fmt: skip
    study.run()
    tried = [record for record in study.results().everything if record.status in ("tried", "done")]
    assert {record.validation.examples for record in tried if record.validation is not None} == {3}
