"""What `check` says of rows is made once for the same rows, and anew for others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from dollartune.planner import asked_rows
from dollartune.study_file import load_study
from dollartune.trials.expand import plan


@pytest.fixture
def notes(study_of: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("DOLLARTUNE_CACHE", str(tmp_path / "cache"))
    made: list[str] = []
    look = asked_rows._notes

    def looked(*arguments: Any) -> list[str]:
        found = look(*arguments)
        made.extend(found)
        return found

    monkeypatch.setattr(asked_rows, "_notes", looked)

    def asked(**changes: Any) -> tuple[list[str], list[str]]:
        """What is said, and what was looked at for it."""
        made.clear()
        settings = load_study(study_of(**changes))
        trials, tasks, _ = plan(settings)
        return asked_rows.asked_notes(settings, trials, tasks), list(made)

    return asked


def test_the_same_rows_are_looked_at_once(notes: Any) -> None:
    short = {"training": {"epochs": 1, "max_length": 8}}
    said, looked = notes(**short)
    assert any("are longer than 8 tokens and are cut" in note for note in said)
    assert said == looked
    assert notes(**short) == (said, [])
    assert notes(**short, methods=["lora", "ia3"]) == (said, [])


def test_other_rows_prompts_or_lengths_are_looked_at_anew(notes: Any, reviews: Path, tmp_path: Path) -> None:
    said, _ = notes(training={"epochs": 1, "max_length": 8})
    other, looked = notes(training={"epochs": 1, "max_length": 9})
    assert other == looked != said
    task = {"data": str(reviews), "prompt": "Here is what somebody wrote: {text}. Mood:", "label": "mood"}
    assert notes(training={"epochs": 1, "max_length": 9}, task=task)[1]
    changed = tmp_path / "changed.csv"
    changed.write_text(
        "text,mood\n" + "\n".join(f"a much longer text of row {n},{['good', 'bad'][n % 2]}" for n in range(60))
    )
    task = {"data": str(changed), "prompt": "{text}. Mood:", "label": "mood"}
    assert notes(training={"epochs": 1, "max_length": 9}, task=task)[1]
