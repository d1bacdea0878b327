"""`Study` from Python: what is given beside a file or settings stands in their place."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from dollartune.errors import UserError
from dollartune.study.api import Study


def test_keywords_stand_in_place_of_settings(study_of: Any) -> None:
    settings = Study(study_of(methods=["bitfit"])).settings
    changed = Study(settings, methods=["norm", "lora"], seeds=2, scales=["all"]).settings
    assert changed.methods == ["norm", "lora"]
    assert changed.seeds == (0, 1)
    assert changed.scales == (None,)
    assert changed.tasks == settings.tasks
    assert "draws" not in changed.model_fields_set, "a folder of before 0.2 keeps its draw"
    assert Study(settings).settings is settings
    with pytest.raises(UserError, match="seeds"):
        Study(settings, seeds="many")


@pytest.mark.parametrize("key", ["task", "tasks"])
def test_a_task_stands_in_place_of_a_files_tasks(key: str, tmp_path: Path) -> None:
    file = tmp_path / "study.yaml"
    file.write_text("backbone: tiny-decoder\ntask: demo_library\nmethods: [bitfit]\n")
    given: Any = {key: "demo_kind" if key == "task" else ["demo_kind"]}
    assert Study(file, **given, output=str(tmp_path)).settings.tasks == ("demo_kind",)


def test_two_tasks_of_one_name_stand_in_no_table_together(study_of: Any, reviews: Path, tmp_path: Path) -> None:
    other = tmp_path / "other" / reviews.name
    other.parent.mkdir()
    other.write_text(reviews.read_text())
    with pytest.raises(UserError, match=r"2 tasks are called 'reviews', and their scores") as caught:
        Study(study_of(task=None, tasks=[str(reviews), str(other)])).trials()
    assert "name: NAME" in str(caught.value.hint)
    named = {"data": str(other), "name": "later"}
    assert {trial.task for trial in Study(study_of(task=None, tasks=[str(reviews), named])).trials()} == {
        "reviews",
        "later",
    }
