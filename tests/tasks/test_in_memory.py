"""Frames, data sets and lists as data: what comes out of the file is what went in."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy
import pandas
import pytest

from dollartune.errors import UserError
from dollartune.tasks.in_memory import is_rows, write_rows

ROWS = [{"text": "a fine day", "mood": "good"}, {"text": "rain\nagain", "mood": "bad"}]


def dataset() -> Any:
    import datasets

    features = datasets.Features({"text": datasets.Value("string"), "mood": datasets.ClassLabel(names=["good", "bad"])})
    return datasets.Dataset.from_dict({"text": [r["text"] for r in ROWS], "mood": [0, 1]}, features=features)


@pytest.mark.parametrize(
    "data",
    [
        ROWS,
        tuple(ROWS),
        pandas.DataFrame(ROWS),
        {"text": [r["text"] for r in ROWS], "mood": ["good", "bad"]},
        dataset(),
    ],
    ids=["list", "tuple", "frame", "columns", "dataset"],
)
def test_each_form_becomes_the_same_rows(data: Any, tmp_path: Path) -> None:
    assert is_rows(data)
    path = write_rows(data, tmp_path)
    assert [json.loads(line) for line in path.read_text().splitlines()] == ROWS
    assert write_rows(data, tmp_path) == path, "the same rows are the same file"


def test_texts_and_labels(tmp_path: Path) -> None:
    path = write_rows((["a", "b"], numpy.array([0, 1])), tmp_path)
    assert [json.loads(line) for line in path.read_text().splitlines()] == [
        {"text": "a", "label": 0},
        {"text": "b", "label": 1},
    ]


def test_rows_are_called_by_what_they_are_or_as_they_are_told(tmp_path: Path) -> None:
    frame = pandas.DataFrame({"text": ["a"], "label": ["x"]})
    assert write_rows(frame, tmp_path).name == "dataframe.jsonl"
    assert write_rows([{"text": "a"}], tmp_path).name == "rows.jsonl"
    assert write_rows(frame, tmp_path, "my tickets/2024").name == "my_tickets_2024.jsonl"
    other = write_rows(frame.assign(text="b"), tmp_path)
    assert other.name.startswith("dataframe-")
    # The same rows are found again, whatever was written between.
    assert write_rows(frame, tmp_path).name == "dataframe.jsonl"
    assert write_rows(frame.assign(text="b"), tmp_path) == other


def test_cells_of_lists_and_dates_of_numpy(tmp_path: Path) -> None:
    frame = pandas.DataFrame({"text": ["a", "b"], "references": [numpy.array(["x", "y"]), numpy.array(["z"])]})
    frame.to_parquet(tmp_path / "rows.parquet")
    for data in (frame, pandas.read_parquet(tmp_path / "rows.parquet")):
        rows = [json.loads(line) for line in write_rows(data, tmp_path).read_text().splitlines()]
        assert [row["references"] for row in rows] == [["x", "y"], ["z"]]
    days = numpy.array(["2026-01-02", "NaT"], dtype="datetime64[ns]")
    path = write_rows({"text": ["a", "b"], "day": days}, tmp_path)
    assert [json.loads(line)["day"] for line in path.read_text().splitlines()] == ["2026-01-02T00:00:00", None]


def test_what_is_missing_is_null(tmp_path: Path) -> None:
    frame = pandas.DataFrame(
        {"text": ["a", None], "n": [1.5, float("nan")], "day": pandas.to_datetime(["2026-01-02", None])}
    )
    rows = [json.loads(line) for line in write_rows(frame, tmp_path).read_text().splitlines()]
    assert rows[0]["day"].startswith("2026-01-02")
    assert rows[1] == {"text": None, "n": None, "day": None}


@pytest.mark.parametrize("name", ["boolq", Path("rows.csv"), {"data": "rows.csv", "label": "mood"}, None])
def test_names_and_task_mappings_are_no_rows(name: Any) -> None:
    assert not is_rows(name)


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        ([1, 2], "row 0 is int"),
        ([], "no rows"),
        ({"text": ["a"], "label": []}, "different lengths"),
        ([{"text": "a", "picture": object()}], "a value of type object"),
    ],
)
def test_what_cannot_be_rows_is_said(data: Any, sentence: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        write_rows(data, tmp_path)
    assert sentence in str(caught.value)
