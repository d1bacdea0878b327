"""Image folders, zips and lists of images."""

from __future__ import annotations

import json
import shutil
import zipfile
from pathlib import Path
from typing import Any

import pytest

from dollartune.errors import UserError
from dollartune.tasks import images, load_task
from dollartune.tasks.config import TaskConfig
from dollartune.tasks.custom import task_and_columns
from dollartune.tasks.pictures import open_picture
from dollartune.tasks.rows_seen import rows_seen


def picture(path: Path, shade: int) -> None:
    from PIL import Image

    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (4, 4), shade % 256).save(path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    place = tmp_path / "animals"
    for number in range(20):
        picture(place / "cats" / f"{number}.png", number)
        picture(place / "dogs" / f"{number}.png", 100 + number)
    return place


def zipped(folder: Path, inside: str = "") -> Path:
    path = folder.with_suffix(".zip")
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(folder.rglob("*.*")):
            archive.write(file, inside + file.relative_to(folder).as_posix())
    return path


def test_folder_and_zip_give_the_same_task(folder: Path) -> None:
    from_folder = load_task(str(folder))
    from_zip = load_task(str(zipped(folder, "pictures/")))
    assert from_folder.modality == "image"
    assert from_folder.labels == ("cats", "dogs")
    assert {split: len(rows) for split, rows in from_zip.load().items()} == {"train": 28, "validation": 6, "test": 6}
    one, two = from_folder.load()["train"][3], from_zip.load()["train"][3]
    assert (one.id, one.label) == (two.id, two.label)
    assert one.fields["image"]().tobytes() == two.fields["image"]().tobytes()
    assert one.fields["image"]().mode == "RGB"


def test_splits_of_the_folder_are_kept(tmp_path: Path) -> None:
    for split, start in (("train", 0), ("val", 50), ("test", 100)):
        for label in ("a", "b"):
            for number in range(3):
                picture(tmp_path / split / label / f"{number}.png", start + number + (10 if label == "b" else 0))
    task = load_task(str(tmp_path))
    assert {split: len(rows) for split, rows in task.load().items()} == {"train": 6, "validation": 6, "test": 6}


def test_equal_pictures_stay_in_one_split(folder: Path) -> None:
    for number in range(10):
        shutil.copy(folder / "cats" / "0.png", folder / "cats" / f"copy{number}.png")
    task = load_task(str(folder))
    copies = [
        split for split, rows in task.load().items() for row in rows if row.fields["image"]().getpixel((0, 0))[0] == 0
    ]
    assert len(copies) == 11
    assert len(set(copies)) == 1


def test_list_of_files_with_labels(folder: Path) -> None:
    rows = [{"image": f"{kind}/{number}.png", "label": kind[:-1]} for kind in ("cats", "dogs") for number in range(20)]
    listing = folder / "labels.jsonl"
    listing.write_text("\n".join(map(json.dumps, rows)))
    beside = load_task({"data": str(listing), "image": "image", "label": "label"})
    assert beside.modality == "image"
    assert beside.labels == ("cat", "dog")
    archive = zipped(folder)
    moved = folder.parent / "labels.jsonl"
    moved.write_text("\n".join(map(json.dumps, [*rows, {"image": "cats/99.png", "label": "cat"}])))
    with pytest.raises(UserError, match=r"labels.jsonl, line 41: no image 'cats/99.png' in animals.zip. Did you mean"):
        load_task({"data": str(moved), "images": str(archive)})
    skipping = load_task({"data": str(moved), "images": str(archive), "on_bad_row": "skip"})
    assert sum(map(len, skipping.load().values())) == 40
    assert any("'image' is taken as the image file" in note for note in skipping.notes)


def test_a_folder_with_tables_and_a_zip_of_images(shared: Path) -> None:
    """The layout of the presets' local copies, given as a user's own data."""
    task = load_task(str(shared / "data" / "chest_xray_nih"))
    assert (task.modality, task.labels) == ("image", ("no_finding", "pneumonia"))
    assert {split: len(rows) for split, rows in task.load().items()} == {"train": 548, "validation": 100, "test": 201}
    assert task.load()["test"][0].fields["image"]().size == (128, 128)


def test_damaged_and_misplaced_images(folder: Path, tmp_path: Path) -> None:
    (folder / "cats" / "broken.png").write_bytes(b"no picture")
    with pytest.raises(UserError, match=r"animals/cats/broken.png: not a readable image"):
        load_task(str(folder))
    task = load_task({"data": str(folder), "on_bad_row": "skip"})
    assert any("skipped 1 malformed row" in note for note in task.notes)
    (folder / "cats" / "broken.png").unlink()
    picture(folder / "stray.png", 7)
    with pytest.raises(
        UserError, match=r"animals/stray.png: an image should lie in a folder with the name of its label"
    ):
        load_task(str(folder))
    (tmp_path / "fake.zip").write_bytes(b"no zip")
    with pytest.raises(UserError, match="neither a folder nor a readable zip"):
        load_task(str(tmp_path / "fake.zip"))
    with zipfile.ZipFile(tmp_path / "texts.zip", "w") as archive:
        archive.writestr("a.txt", "text")
    with pytest.raises(UserError, match="holds no images"):
        load_task(str(tmp_path / "texts.zip"))


def test_a_truncated_picture_costs_its_row(folder: Path) -> None:
    """Its header is whole, so only decoding shows it: when the data is read, not when a trial has been paid for."""
    from PIL import Image

    path = folder / "cats" / "0.png"
    Image.effect_noise((64, 64), 50).save(path)
    path.write_bytes(path.read_bytes()[:400])
    with pytest.raises(UserError, match=r"animals/cats/0.png: not a readable image"):
        load_task(str(folder))
    task = load_task({"data": str(folder), "on_bad_row": "skip"})
    assert sum(map(len, task.load().values())) == 39
    assert any("skipped 1 malformed row" in note and "cats/0.png" in note for note in task.notes)


def test_no_more_pixels_are_decoded_while_pictures_are_read_than_take_seconds(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two thousand pictures of a camera take minutes, which a short budget has not."""
    decoded: list[str] = []

    def counted(content: bytes, where: str) -> Any:
        decoded.append(where)
        return open_picture(content, where)

    monkeypatch.setattr(images, "open_picture", counted)
    monkeypatch.setattr(images, "MOST_PIXELS", 5 * 16)
    task = load_task(str(folder))
    assert len(decoded) == 5
    assert any("of 35 pictures the headers and ends were looked at" in note for note in task.notes)
    task_and_columns(TaskConfig(data=str(folder)), None, full=True)
    assert len(decoded) == 5 + 35


def test_a_pictures_file_is_read_once_for_its_hash(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Equal ones are told by it when splits are cut, and each adapter that is kept says which rows it has seen."""
    task = load_task(str(folder))
    read: list[str] = []
    monkeypatch.setattr(images.ImageFile, "read_bytes", lambda self: read.append(self.name) or b"")
    rows = task.load()["train"]
    seen = rows_seen(task, rows, ())
    assert seen is not None
    assert len(seen.trained) == len(rows)
    assert not read


def test_hidden_files_are_no_pictures(folder: Path) -> None:
    for hidden in ("cats/._0.png", ".ipynb_checkpoints/0-checkpoint.png", "dogs/.cache/0.png"):
        (folder / hidden).parent.mkdir(exist_ok=True)
        (folder / hidden).write_bytes(b"no picture")
    for place in (folder, zipped(folder)):
        task = load_task(str(place))
        assert (task.labels, sum(map(len, task.load().values()))) == (("cats", "dogs"), 40)


def test_a_test_folder_without_labels_is_left_out(folder: Path) -> None:
    (folder / "train").mkdir()
    for label in ("cats", "dogs"):
        shutil.move(folder / label, folder / "train" / label)
    for number in range(5):
        picture(folder / "test" / f"{number}.png", 200 + number)
    task = load_task(str(folder))
    assert sum(map(len, task.load().values())) == 40
    assert any("animals/test has no folders of labels" in note for note in task.notes)


def test_pictures_without_folders_say_what_to_do(tmp_path: Path) -> None:
    for number in range(6):
        picture(tmp_path / "set" / "train" / f"cat.{number}.png", number)
    with pytest.raises(UserError, match=r"no folders to take their labels from.*\n.*name a csv beside them"):
        load_task({"data": str(tmp_path / "set"), "on_bad_row": "skip"})


@pytest.mark.parametrize("begin", ["", "/home/somebody/animals/", "C:\\pictures\\animals\\", "other/place/animals/"])
def test_lists_name_files_as_they_lay_elsewhere(folder: Path, begin: str) -> None:
    rows = [{"image": f"{begin}{kind}/{n}.png", "label": kind} for kind in ("cats", "dogs") for n in range(20)]
    (folder / "labels.jsonl").write_text("\n".join(map(json.dumps, rows)))
    task = load_task(str(folder / "labels.jsonl"))
    for examples in task.load().values():
        assert all(example.fields["image"].name.startswith(f"{example.label}/") for example in examples)


@pytest.mark.parametrize("twice", [False, True])
def test_names_alone_are_found_where_they_are_the_only_ones(folder: Path, twice: bool) -> None:
    rows = [{"image": f"{kind}{n}.png", "label": kind} for kind in ("cats", "dogs") for n in range(20)]
    for kind in ("cats", "dogs"):
        for n in range(20):
            (folder / kind / f"{n}.png").rename(folder / kind / f"{kind}{n}.png")
    (folder / "labels.jsonl").write_text("\n".join(map(json.dumps, rows)))
    if twice:  # which of the two is meant, nobody can tell
        shutil.copy(folder / "cats" / "cats0.png", folder / "dogs" / "cats0.png")
        with pytest.raises(UserError, match=r"no image 'cats0\.png'"):
            load_task(str(folder / "labels.jsonl"))
    else:
        assert sum(map(len, load_task(str(folder / "labels.jsonl")).load().values())) == 40


@pytest.mark.parametrize("begin", ["", "/home/somebody/"])
def test_a_missing_picture_is_not_replaced_by_another_of_its_name(folder: Path, begin: str) -> None:
    rows = [{"image": f"{begin}{kind}/{n}.png", "label": kind} for kind in ("cats", "dogs") for n in range(20)]
    (folder / "labels.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (folder / "dogs" / "7.png").unlink()
    with pytest.raises(UserError, match=r"line 28: no image '.*dogs/7\.png'"):
        load_task(str(folder / "labels.jsonl"))
    # Below the folder that holds all, a list may leave out that folder; another's end is another picture here too.
    with pytest.raises(UserError, match=r"line 28: no image '.*dogs/7\.png'"):
        load_task({"data": str(folder / "labels.jsonl"), "images": str(zipped(folder))})


@pytest.mark.parametrize("begin", ["", "/", "./"])
def test_lists_leave_out_the_folder_around_all(folder: Path, begin: str) -> None:
    rows = [{"image": f"{begin}{kind}/{n}.png", "label": kind} for kind in ("cats", "dogs") for n in range(20)]
    (folder.parent / "labels.jsonl").write_text("\n".join(map(json.dumps, rows)))
    task = load_task({"data": str(folder.parent / "labels.jsonl"), "images": str(zipped(folder, "pictures/"))})
    for examples in task.load().values():
        assert all(example.fields["image"].name.startswith(f"pictures/{example.label}/") for example in examples)
