"""What is known of a cell before and after a run has told."""

from __future__ import annotations

from typing import Any

from dollartune.study_file import load_study


def test_all_rows_count_as_a_study_s_default_until_a_run_has_told_how_many_there_are(by_hand: Any) -> None:
    default = load_study({"backbone": "a", "task": "boolq", "methods": ["lora"]}).scales
    assert [by_hand(100.0).scheduler.history.rows()] == list(default)
