"""Data files as users have them: each is read right, or refused with the reason and the way out."""

from __future__ import annotations

import csv
import gzip
import io
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pandas
import pytest
import yaml
from typer.testing import CliRunner

from dollartune.cli.app import app
from dollartune.errors import UserError
from dollartune.tasks import Task, load_task
from dollartune.tasks.base import Template, place
from dollartune.tasks.files import read_file
from dollartune.tasks.rows import BadRows
from dollartune.tasks.suggest import suggest_task

CASES = Path(__file__).parents[1] / "cases" / "files"


def total(task: Task) -> int:
    return sum(map(len, task.load().values()))


READ = {
    "plain.csv": ("negative", "positive"),
    "glue_quotes.tsv": ("negative", "positive"),
    "case_label.csv": ("negative", "positive"),
    "mixed_label.jsonl": ("0", "1"),
    "list_label.jsonl": ("negative", "positive"),
    "imbalance.csv": ("negative", "positive"),
    "pair.csv": ("0", "1"),
    "noheader.csv": ("negative", "positive"),
    "pandas_index.csv": ("negative", "positive"),
    "alpaca_mixed.json": ("negative", "positive"),
    "ndjson.ndjson": ("negative", "positive"),
    "int_float": ("0", "1"),
    "int_label.csv": ("0", "1"),
    "gz_named.csv": ("negative", "positive"),
    "brace_name.csv": ("negative", "positive"),
    "minus1.csv": ("-1", "0", "1"),
    "shared_first.csv": ("very bad", "very good"),
}


@pytest.mark.parametrize("name", READ)
def test_every_row_is_read(name: str) -> None:
    entry, task = suggest_task(str(CASES / name))
    assert task.labels == READ[name]
    assert total(task) == 60
    again = load_task(yaml.safe_load(yaml.safe_dump(entry)))
    assert again.load() == task.load()


SAID = {
    "glue_quotes.tsv": "quotes are read as text",
    "case_label.csv": "one label in 4 spellings is taken as 'positive'",
    "minus1.csv": "'-1' stands on 10 rows",
    "imbalance.csv": "always saying 'positive' scores 0.889",
    "many.csv": "77 of 77 classes have fewer than 5 training rows",
    "noheader.csv": "has no line of names",
    "pandas_index.csv": "left out column number 1, which has no name",
    "alpaca_mixed.json": "column 'input' is empty in 30 of 60 rows",
    "gz_named.csv": "the content is compressed (gzip)",
}


@pytest.mark.parametrize("name", SAID)
def test_what_was_done_is_said(name: str) -> None:
    assert SAID[name] in "\n".join(suggest_task(str(CASES / name))[1].notes)


def test_each_split_has_the_rare_class() -> None:
    counts = {
        split: Counter(row.label for row in rows)
        for split, rows in load_task(str(CASES / "imbalance.csv")).load().items()
    }
    assert {split: found["negative"] for split, found in counts.items()} == {"train": 1, "validation": 1, "test": 1}
    assert {split: sum(found.values()) for split, found in counts.items()} == {"train": 42, "validation": 9, "test": 9}


def test_both_texts_are_shown() -> None:
    for name, columns in {
        "pair.csv": ("question1", "question2"),
        "alpaca_mixed.json": ("instruction", "input"),
    }.items():
        template = suggest_task(str(CASES / name))[1].template
        assert template is not None
        assert template.columns == columns


def test_numbers_to_predict_are_refused_with_that_sentence() -> None:
    with pytest.raises(UserError, match="looks like a number to predict"):
        suggest_task(str(CASES / "regression.csv"))


def test_a_label_that_is_not_a_number_is_no_class() -> None:
    with pytest.raises(UserError, match=r"line 4: column 'label' is empty"):
        suggest_task(str(CASES / "float_NaN_literal.jsonl"))
    task = load_task({"data": str(CASES / "float_NaN_literal.jsonl"), "on_bad_row": "skip"})
    assert task.labels == ("0", "1")
    assert any("skipped" in note for note in task.notes)


@pytest.mark.parametrize("name", ["alpaca_gen.json", "messages.jsonl", "nested_output.json"])
def test_texts_to_write_are_read(name: str) -> None:
    task = suggest_task(str(CASES / name))[1]
    assert (task.kind, total(task)) == ("generation", 60)


def test_structures_to_write_are_json() -> None:
    task = load_task(str(CASES / "nested_output.json"))
    for row in task.load()["train"]:
        assert set(json.loads(row.target or "")) == {"mood", "score"}


def test_a_messy_file_takes_one_command(tmp_path: Path) -> None:
    runner, out = CliRunner(), tmp_path / "study.yaml"
    stopped = runner.invoke(app, ["init", str(CASES / "tickets.csv"), "--out", str(out)])
    assert isinstance(stopped.exception, UserError)
    assert "--on-bad-row skip" in str(stopped.exception)
    done = runner.invoke(app, ["init", str(CASES / "tickets.csv"), "--out", str(out), "--on-bad-row", "skip"])
    assert done.exit_code == 0, done.output
    assert "malformed rows" in done.output
    entry = yaml.safe_load(out.read_text())["task"]
    assert entry["on_bad_row"] == "skip"
    assert "Message" in entry["prompt"]
    assert total(load_task(entry)) > 0
    told = runner.invoke(
        app,
        [
            "init",
            str(CASES / "pair.csv"),
            "--out",
            str(tmp_path / "b.yaml"),
            "--label",
            "is_duplicate",
            "--text",
            "question2",
        ],
    )
    assert told.exit_code == 0, told.output
    assert "question1" not in yaml.safe_load((tmp_path / "b.yaml").read_text())["task"]["prompt"]


@pytest.mark.parametrize(
    "name", ["text{0}", "a:b", "what!", "`tick`", "a.b[0]", "x y", "{", "}{", "ä", "a\tb", "100%", "$(x)", "#"]
)
def test_names_are_data(tmp_path: Path, name: str) -> None:
    template = Template(f"Say: {place(name)}.")
    assert template.columns == (name,)
    assert template({name: "it {0}"}) == "Say: it {0}."
    rows = [{name: f"a text with number {n}", "label": "ab"[n % 2]} for n in range(20)]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    entry, task = suggest_task(str(tmp_path / "a.jsonl"))
    assert load_task(yaml.safe_load(yaml.safe_dump(entry))).load() == task.load()


ROWS = [{"text": f"a text with number {n}", "label": "ab"[n % 2]} for n in range(30)]
FRAME = pandas.DataFrame(ROWS)
WRITTEN = {
    "index.csv": lambda path: FRAME.to_csv(path),
    "twice.csv": lambda path: pandas.read_csv(io.StringIO(FRAME.to_csv())).to_csv(path),
    "bare.csv": lambda path: FRAME.to_csv(path, index=False, header=False),
    "columns.json": lambda path: FRAME.to_json(path),
    "records.json": lambda path: FRAME.to_json(path, orient="records"),
    "list.json": lambda path: path.write_text(json.dumps(FRAME.to_dict("list"))),
    "lines.json": lambda path: FRAME.to_json(path, orient="records", lines=True),
    "inside.json": lambda path: path.write_text(json.dumps({"version": 1, "data": ROWS}, indent=1)),
    "lines.csv": lambda path: FRAME.to_json(path, orient="records", lines=True),
    "list.jsonl": lambda path: path.write_text(json.dumps(ROWS, indent=1)),
    "packed.tsv": lambda path: path.write_bytes(gzip.compress(FRAME.to_csv(index=False, sep="\t").encode())),
    "table.csv": lambda path: FRAME.to_parquet(path),
    "trailing.csv": lambda path: path.write_text(
        "text,label,,\n" + "".join(f"{r['text']},{r['label']},,\n" for r in ROWS)
    ),
}


@pytest.mark.parametrize("name", WRITTEN)
def test_what_tools_write_is_read(tmp_path: Path, name: str) -> None:
    WRITTEN[name](tmp_path / name)
    task = load_task(str(tmp_path / name))
    assert (task.labels, total(task)) == (("a", "b"), 30)
    assert {next(iter(row.fields.values())) for rows in task.load().values() for row in rows} == {
        r["text"] for r in ROWS
    }


@pytest.mark.parametrize(
    ("start", "what"), [(b"PK\x03\x04xx", "spreadsheet"), (b"\x28\xb5\x2f\xfd", "zstd"), (b"%PDF-1", "PDF")]
)
def test_other_kinds_of_files_are_named(tmp_path: Path, start: bytes, what: str) -> None:
    (tmp_path / "a.csv").write_bytes(start)
    with pytest.raises(UserError, match=what):
        read_file(tmp_path / "a.csv", BadRows(), [])


QUOTED = ['"begins', 'ends"', '"both"', 'in "the" middle', '"', '""', 'three """ quotes', "none", '"He" said "no"']


@pytest.mark.parametrize("by", ["\t", ";", "|"])
@pytest.mark.parametrize("last", QUOTED)
def test_quotes_of_files_without_quoting(tmp_path: Path, by: str, last: str) -> None:
    """Each text stands last once: a quote that is open at the end of the file is as much text as any other."""
    texts = [*QUOTED, "a plain one", last]
    (tmp_path / "a.tsv" if by == "\t" else tmp_path / "a.csv").write_text(
        f"text{by}label\n" + "".join(f"{text}{by}{'ab'[n % 2]}\n" for n, text in enumerate(texts))
    )
    path = next(tmp_path.iterdir())
    assert [row.values["text"] for row in read_file(path, BadRows(), [])] == texts


@pytest.mark.parametrize("by", ["\t", ",", ";"])
def test_quotes_of_a_csv_writer(tmp_path: Path, by: str) -> None:
    texts = [f"tab{by} inside", 'a "word"', "two\nlines", '"all"', "plain"]
    with (tmp_path / "a.tsv" if by == "\t" else tmp_path / "a.csv").open("w", newline="") as stream:
        writer = csv.writer(stream, delimiter=by)
        writer.writerows([["text", "label"], *([text, "ab"[n % 2]] for n, text in enumerate(texts))])
    assert [row.values["text"] for row in read_file(next(tmp_path.iterdir()), BadRows(), [])] == texts


def test_a_first_line_that_reads_like_a_row_is_asked_about(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("".join(f"this is text number {n},{n}x\n" for n in range(20)))
    with pytest.raises(UserError, match="reads like a row of data"):
        load_task(str(tmp_path / "a.csv"))


def test_a_test_file_without_labels(tmp_path: Path) -> None:
    FRAME.to_csv(tmp_path / "train.csv", index=False)
    for missing in ({"text": "new {}"}, {"text": "new {}", "label": ""}, {"text": "new {}", "label": "-1"}):
        rows = [{key: value.format(n) for key, value in missing.items()} for n in range(9)]
        pandas.DataFrame(rows).to_csv(tmp_path / "test.csv", index=False)
        task = load_task({"data": str(tmp_path), "label": "label"})
        assert total(task) == 30
        assert any("test.csv has no answers" in note for note in task.notes)
    with pytest.raises(UserError, match=r"nothing can be scored on it.*\n.*dollartune predict ADAPTER"):
        load_task({"data": str(tmp_path / "train.csv"), "test": str(tmp_path / "test.csv"), "label": "label"})


def test_groups_that_are_missing_tie_nothing(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [{**row, "group": float("nan")} for row in ROWS]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    task = load_task({"data": str(tmp_path / "a.jsonl"), "label": "label", "text": "text", "group": "group"})
    assert all(len(found) > 2 for found in task.load().values())
