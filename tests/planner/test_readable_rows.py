"""Rows that a budget pays to be read: by their sizes, the same everywhere, and all where there are few."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from dollartune.planner.readable_rows import BYTES_PER_SECOND, MOST_CHARACTERS, PICTURE_SECONDS, readable_rows
from dollartune.tasks.base import Example, Task
from dollartune.tasks.custom import RowsInMemory
from dollartune.tasks.pictures import ImageBytes
from dollartune.tuning import tuning_study


def task_of(rows: list[Example]) -> Task:
    return Task("t", "classification", RowsInMemory({"train": rows}))


def texts(count: int, characters: int) -> Task:
    text = "x" * characters  # one for all rows: of its own each would have gigabytes
    return task_of([Example(f"train/{n}", {"text": text, "number": 3}, "a") for n in range(count)])


def test_a_quarter_of_the_budget_reads_rows_by_what_their_texts_hold() -> None:
    # 0.3 ms and a microsecond for each character: a millisecond
    assert readable_rows(texts(3000, 700), 10.0) == pytest.approx(2500, abs=1)
    assert readable_rows(texts(2490, 700), 10.0) is None
    assert readable_rows(texts(100_000, 700), math.inf) is None
    # what lies behind the tokens that a backbone reads is not read
    assert readable_rows(texts(3000, 100 * MOST_CHARACTERS), 10.0) == readable_rows(texts(3000, MOST_CHARACTERS), 10.0)
    # but of a prompt, all of it is made tokens of before it is cut: 0.8 s
    assert readable_rows(texts(3000, 100 * MOST_CHARACTERS), 10.0, classifies=False) == 3


def test_long_rows_at_one_end_of_a_file_count_as_much_as_short_ones() -> None:
    rows = [Example(f"train/{n}", {"text": "x" * (200 if n < 5000 else 2200)}, "a") for n in range(10_000)]
    assert readable_rows(task_of(rows), 10.0) == pytest.approx(2.5 / 1.5e-3, rel=0.05)


def test_pictures_and_conversations_are_read_too() -> None:
    picture = ImageBytes("p", b"x" * 300_000)
    rows = [Example(f"train/{n}", {"image": picture}, "a") for n in range(500)]
    assert readable_rows(task_of(rows), 20.0) == int(5.0 / (PICTURE_SECONDS + 300_000 / BYTES_PER_SECOND))
    said = [Example(str(n), {}, target="b", turns=(("user", "x" * 400), ("assistant", "y" * 300))) for n in range(3000)]
    assert readable_rows(task_of(said), 10.0) == pytest.approx(2500, abs=1)


def test_tune_knows_that_prompts_are_read_whole(tmp_path: Path) -> None:
    path = tmp_path / "long.csv"
    path.write_text("text,label\n" + "".join(f"{n} {'many words ' * 3000},{'ab'[n % 2]}\n" for n in range(200)))
    scales = [
        tuning_study(backbone, str(path), [], out=tmp_path, budget="4 s")[0]["scales"]
        for backbone in ("tiny-encoder", "tiny-decoder")
    ]
    assert scales == [[117], [30]]


@pytest.mark.parametrize("budget", [{"budget": "1 s"}, {"budget": "$0.001", "price": "3.6/h"}])
def test_tune_reads_no_more_rows_than_its_budget_pays_for(tmp_path: Path, budget: dict[str, Any]) -> None:
    """A file of a hundred thousand rows would be read until the money is spent, and nothing would have been learned."""
    path = tmp_path / "long.csv"
    path.write_text("text,label\n" + "".join(f"{n} {'many words ' * 300},{'ab'[n % 2]}\n" for n in range(200)))

    def study(**given: Any) -> tuple[Any, str]:
        settings, notes = tuning_study("tiny-encoder", str(path), [], out=tmp_path, **{**budget, **given})
        return settings["scales"], "\n".join(notes)

    (scale,), said = study()
    assert 50 < scale < 100
    assert f"{scale} of 140 training rows are read" in said
    for given in ({"rows": 120}, {"budget": "60 s", "price": None}):
        scales, said = study(**given)
        assert scales == [given.get("rows", "all")]
        assert "rows are read" not in said
