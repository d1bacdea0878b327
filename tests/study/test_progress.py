"""What people see while a study runs: no 0/0, no 4/3, no negative time; each note once."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from dollartune.budget.ledger import Ledger
from dollartune.format import clock
from dollartune.study.progress import Lines, LiveView, describe, used


def shown(view: LiveView) -> str:
    console = Console(width=120, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(view._render())
    return console.export_text()


def live(total: int, done: int, began_with: int = 0, limit: float | None = None) -> LiveView:
    view = LiveView()
    view.ledger = Ledger(limit_seconds=limit, per="study")
    view.total, view.done, view.began_with = total, done, began_with
    return view


@pytest.mark.parametrize(("total", "done"), [(0, 0), (0, 1), (3, 4), (3, 3), (5, 2)])
@pytest.mark.parametrize("limit", [None, 600.0])
def test_counts_and_times_are_never_absurd(total: int, done: int, limit: float | None) -> None:
    text = shown(live(total, done, limit=limit))
    assert "0/0" not in text
    assert "4/3" not in text
    assert "-" not in text.replace("–", "")
    assert ("used 0:00 of 10:00" in text) == (limit is not None)


def test_a_search_says_how_many_are_done_and_no_more(capsys: pytest.CaptureFixture[str]) -> None:
    lines = Lines()
    lines.done, lines.total = 2, 0
    assert lines.counted == "2"
    lines.total = 1
    assert lines.counted == "2"
    lines.total = 7
    assert lines.counted == "2/7"


@pytest.mark.parametrize(("done", "told"), [(2, "going on with the rest"), (4, "nothing is left to run")])
def test_what_is_there_already_is_told(done: int, told: str, capsys: pytest.CaptureFixture[str]) -> None:
    trials: list[Any] = [SimpleNamespace()] * 4
    with Lines().study(trials, trials[done:], Ledger()):
        pass
    assert told in capsys.readouterr().out


def test_each_note_is_said_once(capsys: pytest.CaptureFixture[str]) -> None:
    lines = Lines(said=["the columns were guessed"])
    for text in ("the columns were guessed", "split at random", "split at random"):
        lines.note(text)
    assert capsys.readouterr().out == "note: split at random\n"


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0:00"), (59.9, "0:59"), (362, "6:02"), (3723, "1:02:03"), (-3, "0:00"), (None, "–")]
)
def test_clocks(seconds: float | None, text: str) -> None:
    assert clock(seconds) == text


def test_money_stands_before_time() -> None:
    ledger: Any = SimpleNamespace(
        methods=(), per="study", limit_dollars=1.0, limit_seconds=None, spent_dollars=lambda: 0.12, price_per_hour=1.0
    )
    assert used(ledger) == "used $0.12 of $1.00"


@pytest.mark.parametrize(
    ("message", "shown"),
    [
        (
            "the budget was used up before the evaluation of the tuned adapter had ended. With a larger budget the same command "
            "goes on from there.",
            "goes on from there.)",
        ),
        ("word " * 100, "word ...)"),
    ],
)
def test_why_a_trial_failed_is_not_cut_inside_a_sentence_of_ours(message: str, shown: str) -> None:
    trial: Any = SimpleNamespace(task="moods", scale=None, label="lora", seed=0)
    record: Any = SimpleNamespace(error=SimpleNamespace(kind="budget", message=message))
    assert describe(trial, record).endswith(shown)
