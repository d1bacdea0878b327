"""Tables as programs write them, beyond plain csv: each is read right, or refused with the way out."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas
import pytest

from dollartune.errors import UserError
from dollartune.tasks import load_task
from dollartune.tasks.compression import opened
from dollartune.tasks.config import TaskConfig
from dollartune.tasks.custom import _read
from dollartune.tasks.files import file_format, read_file
from dollartune.tasks.images import ImageFile
from dollartune.tasks.rows import BadRows

ROWS = [{"text": f"a text, with number {n}", "label": "ab"[n % 2]} for n in range(30)]
FRAME = pandas.DataFrame(ROWS)
CSV = FRAME.to_csv(index=False)


def zipped(content: str, name: str = "inside.csv") -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr(name, content)
        archive.writestr(f"__MACOSX/._{name}", "unreadable")
    return stream.getvalue()


def backslashed(row: dict[str, str]) -> str:
    return f'"{row["text"]}, \\"so\\" \\d",{row["label"]}\n'


CONTENTS: dict[str, bytes] = {
    "mac.csv": CSV.replace("\n", "\r").encode(),
    "utf16.csv": CSV.encode("utf-16"),
    "utf16_be.csv": b"\xfe\xff" + CSV.encode("utf-16-be"),
    "unicode_text.tsv": FRAME.to_csv(index=False, sep="\t").encode("utf-16"),
    "lines.jsonl": FRAME.to_json(orient="records", lines=True).encode("utf-16"),
    "whole.json": FRAME.to_json(orient="records").encode("utf-16"),
    "excel.csv": ("sep=;\r\n" + FRAME.to_csv(index=False, sep=";", lineterminator="\r\n")).encode("utf-8-sig"),
    "excel_hash.csv": ("sep=#\n" + FRAME.to_csv(index=False, sep="#")).encode(),
    "commas.tsv": CSV.encode(),
    "semicolons.tsv": FRAME.to_csv(index=False, sep=";").encode(),
    "trailing.csv": "".join(f"{line},\n" if n else f"{line}\n" for n, line in enumerate(CSV.splitlines())).encode(),
    "row_names.csv": "".join(
        f'"{n}",{line}\n' if n else f"{line}\n" for n, line in enumerate(CSV.splitlines())
    ).encode(),
    "twice.csv": FRAME.assign(other=FRAME["text"]).rename(columns={"other": "text"}).to_csv(index=False).encode(),
    "a.csv.gz": gzip.compress(CSV.encode(), mtime=0),
    "a.csv.bz2": bz2.compress(CSV.encode()),
    "a.jsonl.xz": lzma.compress(FRAME.to_json(orient="records", lines=True).encode()),
    "a.csv.zip": zipped(CSV),
    "a.zip": zipped(FRAME.to_json(orient="records", lines=True), "data/inside.jsonl"),
    "packed.csv": bz2.compress(CSV.encode()),
    "zipped.csv": zipped(CSV),
    "split.json": FRAME.to_json(orient="split").encode(),
    "index.json": FRAME.to_json(orient="index").encode(),
    "values.json": FRAME.to_json(orient="values").encode(),
    "named_values.json": json.dumps([list(FRAME.columns), *FRAME.values.tolist()]).encode(),
    "lists.jsonl": "\n".join(json.dumps(row) for row in FRAME.values.tolist()).encode(),
    "nested.jsonl": "\n".join(
        json.dumps({"id": f"x{n}", "data": {"text": row["text"]}, "meta": {"label": row["label"]}})
        for n, row in enumerate(ROWS)
    ).encode(),
}


@pytest.mark.parametrize("name", CONTENTS)
def test_what_programs_write_is_read(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(CONTENTS[name])
    bad, notes = BadRows(), list[str]()
    rows = [row.values for row in read_file(path, bad, notes)]
    found = [
        (text_of(row, ("text", "data.text", "column1")), text_of(row, ("label", "meta.label", "column2")))
        for row in rows
    ]
    assert found == [(row["text"], row["label"]) for row in ROWS]
    task = load_task(str(path))
    assert (task.labels, sum(map(len, task.load().values()))) == (("a", "b"), 30)


def text_of(row: Any, names: tuple[str, ...]) -> str:
    return str(next(row[name] for name in names if name in row))


def test_backslashes_before_quotes_are_theirs_and_others_stay(tmp_path: Path) -> None:
    path = tmp_path / "spark.csv"
    path.write_text("text,label\n" + "".join(map(backslashed, ROWS)))
    rows = read_file(path, BadRows(), notes := [])
    assert [row.values["text"] for row in rows] == [f'{row["text"]}, "so" \\d' for row in ROWS]
    assert any("quotes inside values" in note for note in notes)
    # a value that ends with a backslash is no such quote
    path.write_text('text,label\n"C:\\",a\n"D:\\",b\n')
    assert [row.values["text"] for row in read_file(path, BadRows(), [])] == ["C:\\", "D:\\"]


def test_a_column_alone_may_hold_commas(tmp_path: Path) -> None:
    (tmp_path / "test.tsv").write_text("sentence\nfine, or not\nwell; so\n")
    assert [row.values for row in read_file(tmp_path / "test.tsv", BadRows(), [])] == [
        {"sentence": "fine, or not"},
        {"sentence": "well; so"},
    ]


def test_a_column_of_one_name_and_other_values_can_be_named(tmp_path: Path) -> None:
    frame = FRAME.assign(other=[f"another text {n}" for n in range(30)]).rename(columns={"other": "text"})
    frame.to_csv(tmp_path / "a.csv", index=False)
    task = load_task({"data": str(tmp_path / "a.csv"), "text": "text.1"})
    assert task.prompt(task.load()["train"][0]).startswith("another text")
    assert any("'text.1'" in note for note in load_task(str(tmp_path / "a.csv")).notes)


def test_rows_that_are_too_long_here_and_there_are_told_by_their_line(tmp_path: Path) -> None:
    """One value more in some rows is damage, and no name of the rows."""
    path = tmp_path / "a.csv"
    path.write_text("text,label\nx,one,a\ny,b\nz,two,b\n")
    with pytest.raises(UserError, match="line 2: 3 values, but the header names 2 columns"):
        read_file(path, BadRows(), [])


def test_empty_rows_of_spreadsheets_are_left_out(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(CSV + ",\n,\n")
    task = load_task(str(tmp_path / "a.csv"))
    assert sum(map(len, task.load().values())) == 30
    assert any("left out 2 rows without any value" in note for note in task.notes)


@pytest.mark.parametrize("as_folder", [False, True])
def test_empty_rows_say_no_split(tmp_path: Path, as_folder: bool) -> None:
    frame = FRAME.assign(part=["train"] * 20 + ["dev"] * 4 + ["test"] * 6)
    (tmp_path / "a.csv").write_text(frame.to_csv(index=False) + ",,\n ,,\n")
    task = load_task(str(tmp_path if as_folder else tmp_path / "a.csv"))
    assert {split: len(rows) for split, rows in task.load().items()} == {"train": 20, "validation": 4, "test": 6}
    assert sum("left out 2 rows without any value" in note for note in task.notes) == 1


@pytest.mark.parametrize("values", ["Doe, John,m\nRoe, Jane,f\n", "1, John,m\nx, Jane,f\n"])
def test_commas_without_quotes_are_no_names_of_rows(tmp_path: Path, values: str) -> None:
    (tmp_path / "a.csv").write_text("name,label\n" + values)
    with pytest.raises(UserError, match="line 2: 3 values, but the header names 2 columns"):
        read_file(tmp_path / "a.csv", BadRows(), [])


# In the file's own header and in the directory of the zip: the encryption's mark, and Deflate64's number.
@pytest.mark.parametrize(("offset", "value", "why"), [(6, 1, "encrypted"), (8, 9, "compression method")])
def test_zips_that_cannot_be_unpacked_are_refused(tmp_path: Path, offset: int, value: int, why: str) -> None:
    content = bytearray(zipped(CSV))
    for start in (content.index(b"PK\x03\x04") + offset, content.index(b"PK\x01\x02") + offset + 2):
        content[start] = value
    (tmp_path / "a.zip").write_bytes(content)
    with pytest.raises(UserError, match=rf"cannot read .*a.zip: .*{why}"):
        load_task(str(tmp_path / "a.zip"))
    with pytest.raises(UserError, match=why):
        ImageFile(tmp_path / "a.zip", "inside.csv").read_bytes()


def test_errors_of_what_reads_an_unpacked_file_are_its_own(tmp_path: Path) -> None:
    (tmp_path / "a.csv.zip").write_bytes(zipped(CSV))
    with pytest.raises(RecursionError), opened(tmp_path / "a.csv.zip"):
        raise RecursionError


@pytest.mark.parametrize(
    ("name", "content", "way_out"),
    [
        ("latin.csv", CSV.replace("a text", "ä text").encode("latin-1"), "iconv -f WINDOWS-1252 -t UTF-8"),
        ("latin_header.csv", CSV.replace("text,", "täxt,", 1).encode("latin-1"), "iconv -f WINDOWS-1252"),
        ("cut.csv", b"\xff\xfea", "Save the file as UTF-8"),
        ("table.txt", CSV.encode(), "copy it to a name with its ending"),
        ("one.csv", CSV.replace('"', "").replace(",", "^").encode(), "--label COLUMN"),
        ("same.csv", CSV.replace(",b", ",a").encode(), "--label COLUMN"),
        ("object.json", b'{"text": "a"}', "Write one object for each row"),
    ],
)
def test_refusals_name_the_way_out(tmp_path: Path, name: str, content: bytes, way_out: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError) as caught:
        load_task(str(tmp_path / name))
    assert way_out in str(caught.value)


def test_a_zip_of_several_tables_says_what_it_holds(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "kaggle.zip", "w") as archive:
        for name in ("train.csv", "test.csv"):
            archive.writestr(name, CSV)
    with pytest.raises(UserError, match=r"It holds test.csv, train.csv: unpack it"):
        load_task(str(tmp_path / "kaggle.zip"))
    assert file_format(tmp_path / "kaggle.zip") is None


SPLITS: dict[str, Callable[[Path], object]] = {
    "column.csv": lambda path: FRAME.assign(Usage=["Training"] * 20 + ["dev"] * 4 + ["TEST"] * 6).to_csv(
        path, index=False
    ),
    "keys.json": lambda path: path.write_text(json.dumps({"train": ROWS[:20], "val": ROWS[20:24], "test": ROWS[24:]})),
    "lines_of_names.json": lambda path: path.write_text(
        json.dumps(
            {
                split: [["text", "label"], *(list(row.values()) for row in rows)]
                for split, rows in (("train", ROWS[:20]), ("val", ROWS[20:24]), ("test", ROWS[24:]))
            }
        )
    ),
    "lists.json": lambda path: path.write_text(
        json.dumps(
            {
                split: [list(row.values()) for row in rows]
                for split, rows in (("train", ROWS[:20]), ("val", ROWS[20:24]), ("test", ROWS[24:]), ("oos", ROWS[:3]))
            }
        )
    ),
}


@pytest.mark.parametrize("name", SPLITS)
def test_splits_inside_a_file_are_kept(tmp_path: Path, name: str) -> None:
    SPLITS[name](tmp_path / name)
    task = load_task(str(tmp_path / name))
    assert {split: len(rows) for split, rows in task.load().items()} == {"train": 20, "validation": 4, "test": 6}
    texts = [next(iter(row.fields.values())) for row in task.load()["test"]]
    assert texts == [row["text"] for row in ROWS[24:]]
    assert task.labels == ("a", "b")


def test_a_line_of_names_in_the_only_split_is_no_row(tmp_path: Path) -> None:
    rows = [["text", "label"], *(list(row.values()) for row in ROWS)]
    (tmp_path / "a.json").write_text(json.dumps({"train": rows}))
    task = load_task(str(tmp_path / "a.json"))
    assert (task.answer_column, task.labels, sum(map(len, task.load().values()))) == ("label", ("a", "b"), 30)


def test_conversations_in_splits_stay_whole(tmp_path: Path) -> None:
    def turns(n: int) -> list[dict[str, str]]:
        return [{"role": "user", "content": f"Question {n}?"}, {"role": "assistant", "content": f"Answer {n}."}]

    splits = {"train": range(20), "test": range(20, 26), "val": range(26, 30)}
    (tmp_path / "a.json").write_text(json.dumps({name: [turns(n) for n in some] for name, some in splits.items()}))
    rows = load_task(str(tmp_path / "a.json")).load()
    assert {split: len(of_split) for split, of_split in rows.items()} == {"train": 20, "validation": 4, "test": 6}
    assert [row.target for row in rows["test"]] == [f"Answer {n}." for n in splits["test"]]


@pytest.mark.parametrize(
    "told",
    [
        {"group": "part"},
        {"prompt": "{part}: {text}"},
        {"extra_prompts": ["{text} ({part})"]},
        {"target": "text", "text": "label", "references": "part"},
    ],
)
def test_a_column_with_a_role_says_no_split(tmp_path: Path, told: dict[str, Any]) -> None:
    FRAME.assign(part=["train", "test"] * 15).to_csv(tmp_path / "a.csv", index=False)
    config = TaskConfig.model_validate({"data": str(tmp_path / "a.csv"), "label": None, **told})
    rows = _read(config, None, BadRows(), [])
    assert list(rows) == ["train"]
    assert all("part" in row.values for row in rows["train"])


def test_a_split_column_that_is_asked_for_is_a_column(tmp_path: Path) -> None:
    FRAME.assign(part=["train", "test"] * 15).to_csv(tmp_path / "a.csv", index=False)
    assert load_task({"data": str(tmp_path / "a.csv"), "label": "part"}).labels == ("test", "train")


def test_the_one_file_of_a_folder_is_read_as_itself(tmp_path: Path) -> None:
    """`None` and `NA` are classes here: another reader would take them for missing values."""
    FRAME.assign(label=["None", "NA"] * 15).to_csv(tmp_path / "reviews.csv", index=False)
    assert load_task(str(tmp_path)).labels == ("NA", "None")


@pytest.mark.parametrize("name", ["test.csv", "dev_matched.csv", "reviews-test.csv", "validation-00000.csv"])
def test_the_one_file_of_a_folder_is_no_training_data_if_it_is_called_after_another_split(
    tmp_path: Path, name: str
) -> None:
    (tmp_path / name).write_text(CSV)
    with pytest.raises(UserError, match=rf"no training rows: its only table is {name}.*\n.*name the file: `data: "):
        load_task(str(tmp_path))
    assert load_task(str(tmp_path / name)).labels == ("a", "b")


def test_a_description_of_data_is_no_table(tmp_path: Path) -> None:
    """The hub's library knows what it describes."""
    (tmp_path / "dataset_infos.json").write_text('{"default": {}}')
    (tmp_path / "data.txt").write_text("a text, with number 1\n")
    with pytest.raises(UserError, match=r"is the answer; it has \['text'\]"):
        load_task(str(tmp_path))


def test_a_configuration_is_asked_of_the_hubs_library(tmp_path: Path) -> None:
    (tmp_path / "reviews.csv").write_text(CSV)
    with pytest.raises(UserError, match=r"another.*not found"):
        load_task({"data": str(tmp_path), "config": "another"})


def test_files_that_are_no_split_are_named(tmp_path: Path) -> None:
    for name in ("train.csv", "dev_matched.csv"):
        (tmp_path / name).write_text(CSV)
    assert any("not read" in note and "dev_matched.csv" in note for note in load_task(str(tmp_path)).notes)
