"""What a design can show is said before it is paid for."""

from __future__ import annotations

from pathlib import Path

from dollartune.planner.design import design_notes
from dollartune.study_file import load_study
from dollartune.trials.expand import plan


def notes(**settings: object) -> list[str]:
    study = load_study({"backbone": "tiny-decoder", "task": "demo_library", "methods": ["lora", "bitfit"], **settings})
    trials, tasks, _ = plan(study, read_rows=False)
    return design_notes(study, trials, tasks)


def test_the_smallest_difference_is_stated_beforehand() -> None:
    (three,) = notes(seeds=3)
    assert "2 methods and 3 seeds show a difference of about 0." in three
    (one,) = notes(seeds=1)
    assert "with one seed nothing is known of other seeds" in one
    assert notes(methods=["lora"]) == []


def test_rows_in_groups_count_as_groups(tmp_path: Path) -> None:
    file = tmp_path / "visits.csv"
    rows = [f"text {n} of {n // 5},{'yes' if n % 2 else 'no'},{n // 5}" for n in range(200)]
    file.write_text("text,label,patient\n" + "\n".join(rows) + "\n")
    (said,) = notes(task={"data": str(file), "label": "label", "prompt": "{text}", "group": "patient"})
    assert "test rows in" in said
    assert "groups, 2 methods" in said
