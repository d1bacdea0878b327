"""How long a process has been running decides what is booked for its start, and whether a report is paid."""

from __future__ import annotations

import time

import pytest

from dollartune.study.startup import seconds_since_start


def test_a_clock_that_is_set_books_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    before, real = seconds_since_start(), time.time
    assert before > 0
    for jump in (86400.0, -86400.0):
        monkeypatch.setattr(time, "time", lambda jump=jump: real() + jump)
        assert before <= seconds_since_start() < before + 60
