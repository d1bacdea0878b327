"""Features of as many rows as there is time for, with a clock that passes when rows do."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from dollartune.train.encoding import Encoded
from dollartune.train.rows_in_time import pass_in_time, rows_of, share_of

ROWS = [Encoded(f"train/{n}", (n,), label=n % 4) for n in range(1000)]
EACH = 0.01
"""Seconds of a row, as it was measured: all take ten."""


class Passes:
    """A store whose rows take so long; the first row of all has number 0."""

    def __init__(
        self, monkeypatch: pytest.MonkeyPatch, slow: Callable[[int], float], known: Sequence[Encoded] = ()
    ) -> None:
        self.slow, self.known, self.stages, self.now = slow, {row.content for row in known}, list[int](), 0.0
        monkeypatch.setattr(time, "perf_counter", lambda: self.now)

    @property
    def passed(self) -> int:
        return sum(self.stages)

    def missing(self, backbone: Any, rows: Sequence[Encoded], pooling: Any) -> list[Encoded]:
        return list({row.content: row for row in rows if pooling and row.content not in self.known}.values())

    def features(self, backbone: Any, attached: Any, rows: Sequence[Encoded], *_: Any) -> None:
        fresh = self.missing(backbone, rows, ("mean",))
        for number in range(self.passed, self.passed + len(fresh)):
            self.now += EACH * self.slow(number)
        self.stages.append(len(fresh))
        self.known |= {row.content for row in fresh}

    def share(
        self, seconds: float, scored: int = 0, planned: float = 1.0, solution: float = 0.0, rows: Any = ROWS,
        pooling: tuple[str, ...] = ("mean",),
    ) -> float:  # fmt: skip
        """The share of the rows that pass in so many seconds, where so many are scored afterwards."""
        readout: Any = SimpleNamespace(rows_share=planned, pooling=pooling, most_tokens=None)
        store, nothing = self, None
        share, _ = pass_in_time(
            readout, rows, nothing, nothing, store, 32,  # type: ignore[arg-type]
            lambda count, pace: seconds - self.now - scored * pace - solution * count, EACH,
        )  # fmt: skip
        return share


@pytest.mark.parametrize("slow", [0.5, 1.0, 1.54, 2.0, 3.0, 4.0])
@pytest.mark.parametrize("seconds", [2.0, 6.0, 15.0, 60.0])
def test_as_many_rows_pass_as_the_time_pays_for_and_their_scores_are_left(
    monkeypatch: pytest.MonkeyPatch, slow: float, seconds: float
) -> None:
    """Of whatever a row takes, as all of them would take up to twenty times what there is."""
    store = Passes(monkeypatch, lambda number: slow)
    share = store.share(seconds, scored=100)
    affordable = min(1.0, (seconds / (EACH * slow) - 100) / 1000)
    assert rows_of(share, 1000) == store.passed
    if affordable < 0.03:  # the first rows have passed before that is known
        assert share <= 0.03
    else:
        assert affordable - 0.05 <= share <= affordable


def test_where_all_fit_there_is_no_stage_more_than_the_first_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    store = Passes(monkeypatch, lambda number: 1.0)
    assert store.share(100.0) == 1.0
    assert store.stages == [16, 984]


def test_a_machine_that_becomes_four_times_as_slow_in_the_middle_ends_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    for begins in range(0, 600, 20):
        store = Passes(monkeypatch, lambda number, begins=begins: 4.0 if number >= begins else 1.0)
        store.share(6.0)
        assert store.now <= 6.0, begins
        assert store.passed >= min(begins, 500) + 0.9 * max(0, (6.0 - begins * EACH) / (4 * EACH)) - 40


@pytest.mark.parametrize("disturbed", [range(16), range(40, 60)])
def test_a_stage_that_was_disturbed_does_not_end_it(monkeypatch: pytest.MonkeyPatch, disturbed: range) -> None:
    """Scores of 300 rows at ten times the pace would take more than all that there is."""
    store = Passes(monkeypatch, lambda number: 10.0 if number in disturbed else 1.0)
    assert store.share(10.0, scored=300) >= 0.4


def test_each_moment_s_rows_are_a_share_of_each_class_and_a_part_of_the_next_one_s(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rows = [Encoded(f"train/{n}", (n,), label=0 if n < 700 else 1 if n < 999 else 2) for n in range(1000)]
    before: set[bytes] = set()
    for seconds in (0.5, 2.0, 4.0, 7.0):
        store = Passes(monkeypatch, lambda number: 1.0)
        chosen = share_of(rows, share := store.share(seconds, rows=rows))
        assert {row.content for row in chosen} == store.known, "every row that has passed is solved on"
        assert Counter(row.label for row in chosen)[0] == pytest.approx(0.7 * share * 1000, abs=2)
        assert {row.label for row in chosen} == {0, 1, 2}
        assert before <= store.known
        before = store.known


def test_rows_that_are_there_take_no_time_and_count(monkeypatch: pytest.MonkeyPatch) -> None:
    store = Passes(monkeypatch, lambda number: 1.0, known=share_of(ROWS, 0.5))
    assert 0.65 <= store.share(2.0) <= 0.7
    store = Passes(monkeypatch, lambda number: 1.0, known=ROWS)
    assert store.share(0.5) == 1.0


def test_the_solution_has_its_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    store = Passes(monkeypatch, lambda number: 1.0)
    share = store.share(6.0, solution=0.005)
    assert 0.36 <= share <= 0.4
    assert store.now + 0.005 * 1000 * share <= 6.0
    assert Passes(monkeypatch, lambda number: 1.0).share(6.0, solution=0.01, pooling=()) == pytest.approx(0.6)


def test_no_more_rows_pass_than_the_settings_name(monkeypatch: pytest.MonkeyPatch) -> None:
    store = Passes(monkeypatch, lambda number: 1.0)
    assert store.share(100.0, planned=0.333) == 0.333
    assert store.passed == 333


@pytest.mark.parametrize("seconds", [-5.0, 0.0, 0.01])
def test_where_nothing_fits_a_row_of_each_class_passes(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    store = Passes(monkeypatch, lambda number: 1.0)
    share = store.share(seconds)
    assert sorted(row.label for row in share_of(ROWS, share)) == [0, 1, 2, 3]
