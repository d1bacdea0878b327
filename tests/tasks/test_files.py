"""Readers: what goes in comes out, and every malformed row is named by its line."""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
import lzma
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from dollartune.errors import UserError
from dollartune.tasks.files import read_file, split_files
from dollartune.tasks.rows import BadRows

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)


def read(path: Path, action: str = "stop") -> tuple[list[dict[str, object]], BadRows, list[str]]:
    bad, notes = BadRows(action), list[str]()  # type: ignore[arg-type]
    return [dict(row.values) for row in read_file(path, bad, notes)], bad, notes


@settings(max_examples=150, deadline=None)
@example([(",\n", "")], ",", False)
@given(st.lists(st.tuples(texts, texts), min_size=1, max_size=6), st.sampled_from([",", ";", "\t", "|"]), st.booleans())
def test_csv_round_trip(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, str]], by: str, gz: bool
) -> None:
    """Quotes, delimiters, line breaks inside values, any separator, compressed or not."""
    buffer = io.StringIO(newline="")
    writer = csv.writer(buffer, delimiter=by, quoting=csv.QUOTE_ALL)
    writer.writerow(["text", "label"])
    writer.writerows(rows)
    path = tmp_path_factory.mktemp("csv") / ("data.csv.gz" if gz else "data.csv")
    data = buffer.getvalue().encode()
    path.write_bytes(gzip.compress(data, mtime=0) if gz else data)
    found, bad, notes = read(path)
    assert found == [{"text": one, "label": two} for one, two in rows]
    assert not bad.skipped
    # That values go over several lines is said where that many lines may be an open quote's work.
    assert any("over several lines" not in note for note in notes) == (by != ",")


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.dictionaries(texts, st.one_of(texts, st.integers(), st.booleans(), st.none())), min_size=1, max_size=6)
)
def test_jsonl_round_trip(tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, object]]) -> None:
    path = tmp_path_factory.mktemp("jsonl") / "data.jsonl"
    path.write_text("\n\n".join(json.dumps(row, ensure_ascii=False) for row in rows) + "\n", encoding="utf-8")
    assert read(path)[0] == rows


def test_every_format_gives_the_same_rows(tmp_path: Path) -> None:
    import pandas

    frame = pandas.DataFrame({"text": ["a, b", "ü"], "label": ["x", "y"]})
    frame.to_csv(tmp_path / "a.csv", index=False)
    frame.to_csv(tmp_path / "a.tsv", index=False, sep="\t")
    frame.to_json(tmp_path / "a.jsonl", orient="records", lines=True)
    frame.to_json(tmp_path / "a.json", orient="records")
    frame.to_json(tmp_path / "a.jsonl.gz", orient="records", lines=True)
    frame.to_parquet(tmp_path / "a.parquet")
    for ending in ("csv", "tsv", "jsonl", "json", "jsonl.gz", "parquet"):
        assert read(tmp_path / f"a.{ending}")[0] == frame.to_dict("records"), ending


def test_long_values_and_byte_order_mark(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("text,label\n" + "x" * 300_000 + ",y\n", encoding="utf-8-sig")
    assert read(tmp_path / "a.csv")[0] == [{"text": "x" * 300_000, "label": "y"}]
    assert csv.field_size_limit() == 131_072


BAD_LINES = {
    "a.csv": ("text,label\nfine,x\nwrong,y,z\nfine,y\n", "a.csv, line 3: 3 values, but the header names 2 columns"),
    "quote.csv": ('text,label\nfine,x\n"one\ntwo,y\n', "quote.csv, line 3: not valid csv"),
    "late.csv": (
        'text,label\n"two\nlines",x\nwrong\nfine,y\n',
        "late.csv, line 4: 1 value, but the header names 2 columns",
    ),
    "a.jsonl": ('{"text": "fine"}\n{"text": \n', "a.jsonl, line 2: not valid JSON"),
    "b.jsonl": ('{"text": "fine"}\n\n["text"]\n', "b.jsonl, line 3: a JSON object is expected, not a list"),
    "a.json": ('[{"text": "fine"}, 3]', "a.json, row 2: a JSON object is expected, not a number"),
}


@pytest.mark.parametrize("name", BAD_LINES)
def test_malformed_row_stops_with_its_line_or_is_counted(tmp_path: Path, name: str) -> None:
    content, message = BAD_LINES[name]
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError) as caught:
        read(tmp_path / name)
    assert str(caught.value).startswith(message)
    assert "on_bad_row: skip" in str(caught.value)
    rows, bad, _ = read(tmp_path / name, "skip")
    assert rows
    assert len(bad.skipped) == 1
    assert bad.notes()[0].startswith(f"skipped 1 malformed row (on_bad_row: skip): {message}")


def test_bytes_that_are_not_utf8_name_their_line(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(b"text,label\nfine,x\n" + "Müller,y\n".encode("latin-1"))
    with pytest.raises(UserError, match=r"a.csv, line 3: not valid UTF-8"):
        read(tmp_path / "a.csv")
    (tmp_path / "a.jsonl").write_bytes('{"text": "Müller"}\n'.encode("latin-1"))
    with pytest.raises(UserError, match=r"a.jsonl, line 1: not valid UTF-8"):
        read(tmp_path / "a.jsonl")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("empty.csv", b"", "is empty"),
        ("nameless.csv", b",\na,b\n", "no column has a name"),
        ("header.csv", b"text,label\n", "holds no usable row"),
        ("cut.jsonl.gz", gzip.compress(b'{"a": 1}\n' * 1000, mtime=0)[:-20], "not a complete gzip file"),
        ("no.jsonl.gz", b"plain", "not a complete gzip file"),
        ("cut.jsonl.bz2", bz2.compress(b'{"a": 1}\n' * 1000)[:-20], "not a complete bzip2 file"),
        ("no.csv.bz2", b"plain", "not a complete bzip2 file"),
        ("cut.csv.xz", lzma.compress(b"text,label\n" * 1000)[:-20], "not a complete xz file"),
        ("a.json", b"{}", "should hold a list of objects; it holds an object"),
        ("b.json", b"{", "is not valid JSON"),
        ("a.parquet", b"PAR1", "is not a readable parquet file"),
        ("a.xlsx", b"", "cannot read"),
        ("a.parquet.gz", b"", "cannot read"),
    ],
)
def test_unusable_file(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message):
        read(tmp_path / name)


def test_missing_file_names_the_nearest(tmp_path: Path) -> None:
    (tmp_path / "reviews.csv").write_text("text,label\na,b\n")
    with pytest.raises(UserError, match=r"no such file or folder: 'reviws.csv' .* Did you mean 'reviews.csv'\?"):
        read(tmp_path / "reviws.csv")
    with pytest.raises(UserError, match="there is no folder"):
        read(tmp_path / "nowhere" / "reviews.csv")


def test_split_files_by_their_usual_names(tmp_path: Path) -> None:
    for name in ("train.csv", "dev.jsonl.gz", "test.parquet", "README.md", "train_extra.csv"):
        (tmp_path / name).touch()
    assert {split: path.name for split, path in split_files(tmp_path).items()} == {
        "train": "train.csv",
        "validation": "dev.jsonl.gz",
        "test": "test.parquet",
    }
    (tmp_path / "valid.csv").touch()
    with pytest.raises(UserError, match="two files for the validation split"):
        split_files(tmp_path)
