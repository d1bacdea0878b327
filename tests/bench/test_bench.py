"""The benchmark itself: both sides compute the same, contestants take turns, and rows say what was measured."""

from __future__ import annotations

import json
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from commands import Command

from dollartune.study.api import Study

BENCH = Path(__file__).resolve().parents[2] / "bench"


@pytest.fixture
def modules(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCH))

    def load(name: str) -> Any:
        import importlib

        return importlib.import_module(name)

    yield load
    for name in ("contest", "table", "ceiling", "shapes", "racing", "anytime", "budgets"):
        sys.modules.pop(name, None)


@pytest.mark.slow
def test_ours_and_the_peers_losses_are_the_same() -> None:
    text = "import json, sys; sys.path.insert(0, '.'); import curve; print('RESULT' + json.dumps(curve.both()))"
    code, out, error = Command(folder=BENCH, program=partial(exec, text, {})).ended(300)
    assert code == 0, error
    found = json.loads(out.rsplit("RESULT", 1)[1])
    assert len(found["ours"]) == len(found["peer"]) == 12
    assert found["equal"], found
    assert found["ours"][-1] < found["ours"][0]


def test_turns_are_alternated(modules: Any) -> None:
    contest = modules("contest")
    asked: list[str] = []

    class CohortWorker:
        def __init__(self, name: str) -> None:
            self.name = name

        def ask(self, command: str, value: Any) -> dict[str, Any]:
            asked.append(self.name)
            return {"seconds": len(asked)}

    found = contest.in_turns([CohortWorker("a"), CohortWorker("b")], 3, "steps", 1)
    assert asked == ["a", "b", "b", "a", "a", "b"]
    assert [len(own) for own in found] == [3, 3]
    assert contest.ratios([6, 8, 10], [2, 2, 2]) == (4, 3, 5)


def test_a_worker_that_dies_says_why(modules: Any, tmp_path: Path) -> None:
    contest = modules("contest")
    with pytest.raises(RuntimeError, match="KeyError"), contest.contestants([{"side": "ours"}], tmp_path):
        pass


def test_rows_have_the_columns_that_every_file_gives(modules: Any) -> None:
    table = modules("table")
    row = table.row("case", 2.0, 1.0, (2.0, 1.9, 2.1), ">= 1x", True)
    assert tuple(row) == table.COLUMNS == ("case", "ours", "peer", "ratio", "low", "high", "bar", "passed", "note")
    table.show([row, table.row("other", None, None, None, "", None, "no GPU here")])


def test_lengths_are_those_of_boolq(modules: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    shapes = modules("shapes")
    for data in (shapes.DATA, tmp_path):
        monkeypatch.setattr(shapes, "DATA", data)
        lengths = shapes.boolq_lengths(64)
        assert len(lengths) == 64
        assert 120 < sum(lengths) / 64 < 200
        assert 250 < max(lengths) <= 512


def test_a_simulated_study_is_decided_by_the_scheduler_itself(modules: Any) -> None:
    racing = modules("racing")
    poor, rich = (racing.by_anytime(racing.World(1, 0.02), money) for money in (300.0, 30_000.0))
    for arm, length in (poor, rich):
        assert arm in racing.World(1, 0.02).arms
        assert 0 < length <= 1
    world = racing.World(1, 0.02)
    assert world.truth(*rich) >= world.truth(*poor)
    assert world.best.max() - world.truth(*rich) < 0.02


def test_what_a_study_left_is_held_against_what_was_promised(modules: Any, study_of: Any) -> None:
    budgets, from_study = (
        modules("budgets"),
        Study(study_of(methods=["bitfit"], budget={"seconds": 600.0, "per": "study"})),
    )
    from_study.run()
    row = budgets.outcome(5, from_study.store.root, 0, "", 300 << 20, 300.0)
    assert row["adapter"] == "bitfit"
    assert row["majority"] == pytest.approx(0.5, abs=0.1)
    assert 0 < row["validation"] <= 1
    assert row["peak bytes"] > 0 < row["promised bytes"]
    assert row["wall over"] > 1, "study 5 has two methods with 30.8 s each"
    assert row["word"] is None
    assert "0 without an adapter, 0 with one below" in budgets.summary([row]) or row["validation"] < row["majority"]
    assert budgets.page([row]).count("|") > 20
