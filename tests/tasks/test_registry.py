"""A new preset is one new file; other packages offer tasks by an entry point."""

from __future__ import annotations

import importlib.metadata
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dollartune.tasks import Example, Task, describe_task, load_task, presets, registry, task_names


@pytest.fixture
def fresh() -> Iterator[None]:
    """Forgets what the registry found before and after."""
    registry.presets.cache_clear()
    registry.ready_made.cache_clear()
    yield
    registry.presets.cache_clear()
    registry.ready_made.cache_clear()


def test_a_file_in_the_folder_is_a_preset(fresh: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "added_for_a_test.py").write_text(
        "from dataclasses import replace\n"
        "from dollartune.tasks.presets.sst2 import PRESET as SST2\n"
        "PRESET = replace(SST2, name='added', aliases=('also_added',))\n"
    )
    monkeypatch.setattr(presets, "__path__", [*presets.__path__, str(tmp_path)])
    assert "added" in task_names()
    assert load_task("also_added").name == "added"
    assert describe_task("added")["aliases"] == ["also_added"]
    sys.modules.pop("dollartune.tasks.presets.added_for_a_test")


def test_two_presets_with_one_name_are_a_programming_error(
    fresh: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "added_twice.py").write_text("from dollartune.tasks.presets.sst2 import PRESET\n")
    monkeypatch.setattr(presets, "__path__", [*presets.__path__, str(tmp_path)])
    with pytest.raises(ValueError, match="both claim the name 'sst2'"):
        registry.presets()
    sys.modules.pop("dollartune.tasks.presets.added_twice")


def made() -> Task:
    rows = [Example("train/0", {"text": "x"}, label="a")]
    return Task(
        "made", "classification", lambda: {"train": rows, "validation": rows, "test": rows}, label_words={"a": "A"}
    )


def test_entry_points_of_other_packages(fresh: None, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = importlib.metadata.EntryPoint("made", f"{__name__}:made", "dollartune.tasks")

    def entry_points(**wanted: Any) -> list[importlib.metadata.EntryPoint]:
        return [entry] if wanted == {"group": "dollartune.tasks"} else []

    monkeypatch.setattr(importlib.metadata, "entry_points", entry_points)
    assert "made" in task_names()
    assert load_task("made").name == "made"
    assert describe_task("made")["hub"] is None
