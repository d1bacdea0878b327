"""Pictures are predicted as they are tuned: from a folder, a zip, or a table that names them."""

from __future__ import annotations

import base64
import json
import shutil
import zipfile
from pathlib import Path
from typing import Any

import pandas
import pytest
from PIL import Image

from dollartune.engines.display import Display
from dollartune.errors import UserError
from dollartune.evaluate.doubts import doubts
from dollartune.evaluate.labelled_rows import rows_of_file
from dollartune.evaluate.predict import predict_file, predict_rows, read_rows
from dollartune.export.opening import open_adapter
from dollartune.serve.service import _image
from dollartune.study.api import Study


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty pictures of two colours."""
    place = tmp_path_factory.mktemp("data") / "colours"
    for label, colour in (("blue", (20, 30, 200)), ("red", (200, 30, 20))):
        (place / label).mkdir(parents=True)
        for number in range(20):
            shade = tuple(value + number for value in colour)
            Image.new("RGB", (28, 28), shade).save(place / label / f"{number}.png")
    return place


@pytest.fixture(scope="module")
def adapter(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    settings = {
        "backbone": "tiny-vit", "task": {"data": str(folder)}, "methods": ["bitfit"], "scales": [16], "seeds": 1,
        "baselines": False, "training": {"epochs": 1}, "output": str(tmp_path_factory.mktemp("studies")),
        "evaluation": {"rows": 8, "forgetting": False, "inference_cost": False},
    }  # fmt: skip
    study = Study(settings)
    (record,) = study.run(display=Display()).done()
    return study.store.folder(record.id) / "adapter"


def asked(adapter: Path, data: Path, out: Path) -> list[dict[str, Any]]:
    predict_file(open_adapter(adapter), read_rows(data), data, out, 8)
    return [json.loads(line) for line in out.read_text().splitlines()]


def test_a_folder_a_zip_and_a_table_say_the_same(adapter: Path, folder: Path, tmp_path: Path) -> None:
    place = tmp_path / "to_ask"
    shutil.copytree(folder / "red", place / "some" / "deep")
    (place / "some" / "deep" / "broken.png").write_bytes((folder / "red" / "3.png").read_bytes()[:40])
    found = asked(adapter, place, tmp_path / "folder.jsonl")
    assert len(found) == 21
    assert [line.get("problem") is not None for line in found].count(True) == 1
    with zipfile.ZipFile(tmp_path / "all.zip", "w") as archive:
        for path in sorted(place.rglob("*.png")):
            archive.write(path, path.relative_to(place).as_posix())
    zipped = asked(adapter, tmp_path / "all.zip", tmp_path / "zip.jsonl")
    assert [line["prediction"] for line in zipped] == [line["prediction"] for line in found]
    table = place / "rows.csv"
    table.write_text("image,who\nsome/deep/1.png,a\nsome/deep/none.png,b\n")
    first, second = asked(adapter, table, tmp_path / "table.jsonl")
    assert first["prediction"] in {"blue", "red"}
    assert "no image 'some/deep/none.png'" in second["problem"]
    # another picture under the same name is another input
    shutil.copy(folder / "blue" / "1.png", place / "some" / "deep" / "1.png")
    with pytest.raises(UserError, match="other rows"):
        asked(adapter, table, tmp_path / "table.jsonl")


def test_pictures_inside_a_table_are_asked_and_scored(adapter: Path, folder: Path, tmp_path: Path) -> None:
    """As the hub keeps them: the file's bytes in a column."""
    names = [f"{colour}/{number}.png" for colour in ("blue", "red") for number in range(4)]
    pictures = [{"bytes": (folder / name).read_bytes(), "path": name} for name in names]
    labels = [name.split("/")[0] for name in names]
    pandas.DataFrame({"image": pictures, "label": labels}).to_parquet(tmp_path / "rows.parquet")
    found = asked(adapter, tmp_path / "rows.parquet", tmp_path / "rows.jsonl")
    apart = [asked(adapter, folder / colour, tmp_path / f"{colour}.jsonl") for colour in ("blue", "red")]
    by_name = {f"{colour}/{n}.png": line for colour, lines in zip(("blue", "red"), apart, strict=True)
               for n, line in zip(sorted(range(20), key=lambda n: f"{n}.png"), lines, strict=True)}  # fmt: skip
    assert [line["prediction"] for line in found] == [by_name[name]["prediction"] for name in names]
    predict_file(
        open_adapter(adapter),
        rows := read_rows(tmp_path / "rows.parquet"),
        tmp_path / "rows.parquet",
        tmp_path / "rows.csv",
        8,
    )
    assert [line.split(",")[0] for line in (tmp_path / "rows.csv").read_text().splitlines()[1:]] == names
    assert len(rows_of_file(open_adapter(adapter), tmp_path / "rows.parquet", None, "stop").examples) == len(rows)


def test_a_table_of_another_column_is_asked_scored_and_doubted_as_it_is_tuned(adapter: Path, folder: Path) -> None:
    """`tune` guesses the column by its values, and prints these commands for the same file."""
    names = [f"{colour}/{number}.png" for colour in ("blue", "red") for number in range(4)]
    table = folder / "list.csv"
    table.write_text(
        "file_id,label\n" + "".join(f"{name},{name.split('/')[0]}\n" for name in [*names, "blue/none.png"])
    )
    opened, rows = open_adapter(adapter), read_rows(table)
    assert [line["prediction"] is None for line in asked(adapter, table, folder.parent / "list.jsonl")] == [
        *[False] * 8,
        True,
    ]
    assert len(rows_of_file(opened, table, None, "skip").examples) == 8
    found = doubts(opened, rows, data=table)
    assert {one.text for one in found.labelled} == set(names)
    assert found.unread == (8,)
    table.unlink()


def test_a_table_without_pictures_is_refused_with_the_column(adapter: Path, tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("imag,who\nfirst,a\n")
    with pytest.raises(UserError, match="a column with their names is needed"):
        asked(adapter, tmp_path / "rows.csv", tmp_path / "out.jsonl")


def test_the_server_opens_pictures_as_files_are_opened(adapter: Path, tmp_path: Path) -> None:
    picture = Image.new("I;16", (28, 28), 4000)  # 12 bits in 16
    picture.save(tmp_path / "grey.png")
    sent = _image(base64.b64encode((tmp_path / "grey.png").read_bytes()).decode())
    assert sent.mode == "RGB"
    assert sent.getpixel((3, 3)) == (249, 249, 249)  # 4000 of 4095
    tuned = open_adapter(adapter)
    (served,), (read,) = (predict_rows(tuned, [{"image": one}]) for one in (sent, lambda: sent))
    assert served.probabilities == pytest.approx(read.probabilities)
