"""Parquet files of pandas and of the hub."""

from __future__ import annotations

import pickle
from pathlib import Path

import datasets
import pandas
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


def test_an_index_of_pandas_is_no_column(tmp_path: Path) -> None:
    frame = pandas.DataFrame(
        {"text": [f"text number {n}" for n in range(30)], "label": pandas.Categorical(["a", "b"] * 15)},
        index=[f"row with name {n}" for n in range(30)],
    )
    frame.to_parquet(tmp_path / "a.parquet")
    task = load_task(str(tmp_path / "a.parquet"))
    assert task.template is not None
    assert task.template.columns == ("text",)
