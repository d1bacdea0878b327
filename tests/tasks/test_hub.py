"""The `datasets` library as a source, tested on folders in its formats (no network)."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dollartune.errors import UserError
from dollartune.tasks import load_task
from dollartune.tasks.hub import HubSource, read_hub
from dollartune.tasks.preset import Preset
from dollartune.tasks.registry import presets


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A data set saved to disk, with class numbers and a withheld label, as the hub's GLUE has them."""
    import datasets

    features = datasets.Features(
        {"sentence": datasets.Value("string"), "label": datasets.ClassLabel(names=["NEG", "POS"])}
    )

    def rows(count: int, start: int) -> Any:
        texts = [f"text {number}" for number in range(start, start + count)]
        return datasets.Dataset.from_dict({"sentence": texts, "label": [n % 2 for n in range(count)]}, features)

    place = tmp_path / "saved"
    datasets.DatasetDict({"train": rows(200, 0), "validation": rows(60, 1000)}).save_to_disk(place)
    return place


def preset(place: Path, **changes: Any) -> Preset:
    values: dict[str, Any] = {
        "name": "probe",
        "kind": "classification",
        "description": "",
        "citation": "",
        "licence": "",
        "columns": ("text",),
        "prompt": "{text}:",
        "label_words": {"neg": "bad", "pos": "good"},
        "hub": HubSource(str(place), splits={"train": "train", "test": "validation"}, columns={"text": "sentence"}),
    }
    return Preset(**{**values, **changes})


def test_class_numbers_become_names_and_columns_ours(saved: Path) -> None:
    found = read_hub(HubSource(str(saved), columns={"text": "sentence"}))
    assert set(found) == {"train", "validation"}
    assert found["train"][1].values == {"text": "text 1", "label": "POS"}
    assert found["train"][1].where.endswith("saved, train, row 2")


def test_a_preset_cuts_the_splits_that_the_hub_lacks(saved: Path) -> None:
    task = preset(saved).task()
    rows = task.load()
    assert {split: len(found) for split, found in rows.items()} == {"train": 170, "validation": 30, "test": 60}
    assert task.answer(rows["test"][1]) == "good"
    halves = preset(
        saved,
        hub=HubSource(str(saved), splits={"train": "train", "validation": "validation"}, columns={"text": "sentence"}),
    )
    assert {split: len(found) for split, found in halves.task().load().items()} == {
        "train": 200,
        "validation": 30,
        "test": 30,
    }
    assert task.load() is rows  # read once


def test_rows_of_one_input_become_references(tmp_path: Path) -> None:
    import datasets

    def rows(count: int, times: int, start: int) -> Any:
        source = [f"record {start + number // times}" for number in range(count)]
        return datasets.Dataset.from_dict({"mr": source, "text": [f"text {number}" for number in range(count)]})

    datasets.DatasetDict(
        {"train": rows(30, 3, 0), "validation": rows(12, 3, 100), "test": rows(12, 4, 200)}
    ).save_to_disk(tmp_path / "records")
    probe = preset(
        tmp_path,
        kind="generation",
        columns=("source",),
        prompt="{source}",
        label_words={},
        merge_references=True,
        hub=HubSource(str(tmp_path / "records"), columns={"source": "mr", "target": "text"}),
    )
    rows_found = probe.task().load()
    assert {split: len(found) for split, found in rows_found.items()} == {"train": 30, "validation": 4, "test": 3}
    assert rows_found["test"][0].references == ("text 0", "text 1", "text 2", "text 3")


def test_a_changed_data_set_is_refused(saved: Path) -> None:
    with pytest.raises(
        UserError, match=r"200 of 200 rows of .* are not as the preset probe expects them: .* unknown label"
    ):
        preset(saved, label_words={"ja": "ja", "nein": "nein"}).task().load()
    with pytest.raises(UserError, match="has no split 'tets'"):
        read_hub(HubSource(str(saved), splits={"train": "tets"}))
    with pytest.raises(UserError, match=r"no column 'sentense'; it has .* Did you mean 'sentence'"):
        read_hub(HubSource(str(saved), columns={"text": "sentense"}))


def test_user_folders_of_the_library(saved: Path, tmp_path: Path) -> None:
    import pandas

    assert load_task(str(saved)).labels == ("NEG", "POS")
    shards = tmp_path / "shards" / "data"
    shards.mkdir(parents=True)
    frame = pandas.DataFrame({"text": [f"t{n}" for n in range(40)], "label": [n % 2 for n in range(40)]})
    frame[:20].to_parquet(shards / "train-00000-of-00002.parquet")
    frame[20:].to_parquet(shards / "train-00001-of-00002.parquet")
    task = load_task(str(tmp_path / "shards"))
    assert sum(map(len, task.load().values())) == 40


def test_the_hubs_parquet_branch(tmp_path: Path) -> None:
    """Data sets that came with a script live on as <config>/<split>/0000.parquet in the branch refs/convert/parquet."""
    import pandas

    for split, count in (("train", 6), ("validation", 3), ("test", 3)):
        place = tmp_path / "records" / "default" / split
        place.mkdir(parents=True)
        frame = pandas.DataFrame(
            {"meaning_representation": [f"{split} {n}" for n in range(count)], "human_reference": "x"}
        )
        frame.to_parquet(place / "0000.parquet")
    source = presets()["e2e_nlg"].hub
    assert source is not None
    found = read_hub(replace(source, dataset=str(tmp_path / "records"), revision=None))
    assert {split: len(rows) for split, rows in found.items()} == {"train": 6, "validation": 3, "test": 3}
    assert found["test"][0].values == {"source": "test 0", "target": "x"}


def test_pictures_of_a_data_set_are_read_when_called(tmp_path: Path) -> None:
    import datasets
    from PIL import Image

    pictures = [Image.new("L", (3, 3), shade) for shade in range(20)]
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["dark", "light"])})
    table = datasets.Dataset.from_dict({"image": pictures, "label": [n // 10 for n in range(20)]}, features)
    table.save_to_disk(tmp_path / "pictures")
    task = load_task(str(tmp_path / "pictures"))
    assert (task.modality, task.labels) == ("image", ("dark", "light"))
    assert (
        task.load()["train"][0].fields["image"]().getpixel((0, 0)) == (0, 0, 0)
        or task.load()["train"][0].fields["image"].index
    )


def test_out_of_reach_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(UserError, match="cannot load the data set nobody/nothing") as caught:
        load_task("nobody/nothing")
    assert "--data-root FOLDER" in str(caught.value)
