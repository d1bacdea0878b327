"""Parquet files of pandas and of the hub."""

from __future__ import annotations

import pickle
from pathlib import Path

import datasets
import pandas
import pyarrow
import pyarrow.parquet
from PIL import Image

from dollartune.tasks import load_task
from dollartune.tasks.files import read_file
from dollartune.tasks.pictures import ImageBytes
from dollartune.tasks.rows import BadRows


def test_class_numbers_of_the_hub_are_names(tmp_path: Path) -> None:
    features = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["bad", "good"])}
    )
    rows = {"text": [f"text number {n}" for n in range(30)], "label": [n % 2 if n else -1 for n in range(30)]}
    datasets.Dataset.from_dict(rows, features=features).to_parquet(str(tmp_path / "a.parquet"))
    found = [row.values["label"] for row in read_file(tmp_path / "a.parquet", BadRows(), [])]
    assert found == [None, *(["good", "bad"] * 15)[:29]]


def test_pictures_of_the_hub_are_pictures(tmp_path: Path) -> None:
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["dark", "light"])})
    shades = [(60 + n) * (1 + n % 2) for n in range(24)]
    pictures = [Image.new("RGB", (8, 8), (shade, shade, shade)) for shade in [*shades, shades[0]]]
    labels = [n % 2 for n in range(24)] + [0]
    table = datasets.Dataset.from_dict({"image": pictures, "label": labels}, features=features)
    table.to_parquet(str(tmp_path / "a.parquet"))
    task = load_task(str(tmp_path / "a.parquet"))
    assert (task.modality, task.labels) == ("image", ("dark", "light"))
    seen = [row.fields["image"]().getpixel((0, 0))[0] for rows in task.load().values() for row in rows]
    assert sorted(seen) == sorted([*shades, shades[0]])
    # They travel to other machines as they are stored.
    assert all(isinstance(row.fields["image"], ImageBytes) for row in pickle.loads(pickle.dumps(task.splits())).test)
    # equal pictures stay together
    holders = [
        split
        for split, rows in task.load().items()
        for row in rows
        if row.fields["image"]().getpixel((0, 0))[0] == shades[0]
    ]
    assert len(set(holders)) == 1


def test_values_that_are_no_class_numbers_stay(tmp_path: Path) -> None:
    """A tool that writes names over the numbers keeps the description of the column."""
    features = datasets.Features({"label": datasets.ClassLabel(names=["bad", "good"])})
    datasets.Dataset.from_dict({"label": [0]}, features=features).to_parquet(str(tmp_path / "a.parquet"))
    described = pyarrow.parquet.read_schema(tmp_path / "a.parquet").metadata
    for stored, meant in ((["bad", "good", None], ["bad", "good", None]), ([0, 1, -1, 2], ["bad", "good", None, 2])):
        table = pyarrow.table({"label": stored}).replace_schema_metadata(described)
        pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
        assert [row.values["label"] for row in read_file(tmp_path / "a.parquet", BadRows(), [])] == meant


def test_a_row_without_a_picture_says_nothing_of_the_others(tmp_path: Path) -> None:
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("string")})
    pictures = [None, *(Image.new("RGB", (8, 8), (shade, shade, shade)) for shade in range(24))]
    table = datasets.Dataset.from_dict({"image": pictures, "label": [*"ab" * 12, "a"]}, features=features)
    table.to_parquet(str(tmp_path / "a.parquet"))
    task = load_task({"data": str(tmp_path / "a.parquet"), "on_bad_row": "skip"})
    assert sum(map(len, task.load().values())) == 24
    # the name of a file alone, in a column of pictures
    stored = pyarrow.parquet.read_table(tmp_path / "a.parquet").to_pylist()
    stored[1]["image"] = {"bytes": None, "path": "b.png"}
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(stored), tmp_path / "b.parquet")
    task = load_task({"data": str(tmp_path / "b.parquet"), "on_bad_row": "skip"})
    assert any("row 2: column 'image' holds no picture" in note for note in task.notes)


def test_an_index_of_pandas_is_no_column(tmp_path: Path) -> None:
    frame = pandas.DataFrame(
        {"text": [f"text number {n}" for n in range(30)], "label": pandas.Categorical(["a", "b"] * 15)},
        index=[f"row with name {n}" for n in range(30)],
    )
    frame.to_parquet(tmp_path / "a.parquet")
    task = load_task(str(tmp_path / "a.parquet"))
    assert task.template is not None
    assert task.template.columns == ("text",)
