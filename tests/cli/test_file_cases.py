"""Data files as users have them, from end to end: `init` writes a study file of each that `check` takes, or says why not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

CASES = Path(__file__).parents[1] / "cases" / "files"
TAKEN = {
    "plain.csv": "",
    "glue_quotes.tsv": "quotes are read as text",
    "minus1.csv": "'-1' stands on 10 rows",
    "case_label.csv": "one label in 4 spellings is taken as 'positive'",
    "mixed_label.jsonl": "",
    "list_label.jsonl": "",
    "nested_output.json": "",
    "imbalance.csv": "always saying 'positive' scores 0.889",
    "many.csv": "77 of 77 classes have fewer than 5 training rows",
    "pair.csv": "",
    "int_label.csv": "",
    "noheader.csv": "has no line of names",
    "pandas_index.csv": "left out column number 1, which has no name",
    "alpaca_gen.json": "",
    "alpaca_mixed.json": "column 'input' is empty in 30 of 60 rows",
    "messages.jsonl": "",
    "ndjson.ndjson": "",
    "int_float": "",
    "gz_named.csv": "the content is compressed (gzip)",
    "brace_name.csv": "",
    "shared_first.csv": "",
}
REFUSED = {
    "float_NaN_literal.jsonl": "column 'label' is empty",
    "regression.csv": "looks like a number to predict",
    "tickets.csv": "--on-bad-row skip",
    "images_one_truncated": "trunc.png",
}
SKIPPED = ("float_NaN_literal.jsonl", "tickets.csv", "images_one_truncated")
"""What is refused for some rows is read without them, as the refusal says."""


def said(output: str) -> str:
    """Without the line breaks of a terminal."""
    return " ".join(output.split())


@pytest.mark.parametrize("name", [*TAKEN, *(f"{name} without bad rows" for name in SKIPPED)])
def test_a_file_becomes_a_study(command: Any, tmp_path: Path, name: str) -> None:
    name, _, skip = name.partition(" ")
    out = tmp_path / "study.yaml"
    code, text, notes = command(
        "init", CASES / name, "--out", out, *(("--on-bad-row", "skip") if skip else ("--force",))
    )
    assert code == 0, notes
    assert TAKEN.get(name, "skip") in said(text + notes)
    code, text, notes = command("check", out)
    assert code == 0, text + notes
    assert "Traceback" not in text + notes


@pytest.mark.parametrize("name", REFUSED)
def test_a_file_is_refused_with_the_reason(command: Any, tmp_path: Path, name: str) -> None:
    out = tmp_path / "study.yaml"
    code, text, notes = command("init", CASES / name, "--out", out)
    if code == 0:  # pictures are opened where they are checked
        code, text, notes = command("check", out, "--full")
    assert code in (1, 2), text + notes
    assert REFUSED[name] in said(text + notes)
    assert "Traceback" not in text + notes
