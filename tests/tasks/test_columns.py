"""Which columns are guessed to be the answer and the input, in tables as they are published."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dollartune.tasks import Task, load_task


def task_of(tmp_path: Path, rows: list[dict[str, Any]], **told: Any) -> Task:
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return load_task({"data": str(tmp_path / "a.jsonl"), **told})


def sentence(n: int) -> str:
    return f"The {n * 37 % 60}th day was long and full of rain"


TABLES: dict[str, tuple[list[dict[str, Any]], str, tuple[str, ...]]] = {
    # MultiNLI: other columns of few values stand before the label
    "gold_label": (
        [
            {
                "genre": "ab"[n // 3 % 2],
                "premise": sentence(n),
                "hypothesis": sentence(n + 1),
                "gold_label": "xyz"[n % 3],
            }
            for n in range(60)
        ],
        "gold_label",
        ("premise", "hypothesis"),
    ),
    "stars": (
        [{"year": 2001 + n % 3, "review": sentence(n), "stars": 1 + n % 5} for n in range(60)],
        "stars",
        ("review",),
    ),
    # Dolly: the category is one of the question
    "response": (
        [
            {"instruction": sentence(n), "context": "", "response": f"Since {n} days, yes.", "category": "ab"[n % 2]}
            for n in range(60)
        ],
        "response",
        ("instruction",),
    ),
    # Alpaca: `text` is question and answer in one
    "output": (
        [
            {
                "instruction": sentence(n),
                "output": f"It was day {n}.",
                "text": f"### Instruction:\n{sentence(n)}\n\n### Response:\nIt was day {n}.</s>",
            }
            for n in range(60)
        ],
        "output",
        ("instruction",),
    ),
    "class": (
        [
            {"class": "ab"[n % 2], "text": sentence(n), "formatted": f"{sentence(n)} Mood: {'ab'[n % 2]}"}
            for n in range(60)
        ],
        "class",
        ("text",),
    ),
    # an answer that stands in the text is what extractive questions are about
    "answer": (
        [
            {"context": f"{sentence(n)} in town {n}, he said", "question": "Where was it?", "answer": f"town {n}"}
            for n in range(60)
        ],
        "answer",
        ("context", "question"),
    ),
    # preferences
    "chosen": (
        [{"prompt": sentence(n), "chosen": f"Yes, day {n}.", "rejected": f"No, never {n}."} for n in range(60)],
        "chosen",
        ("prompt",),
    ),
}


@pytest.mark.parametrize("name", ["label", "labels", "class", "sentiment", "y"])
@pytest.mark.parametrize("category", [False, True])
def test_a_label_beside_prompt_and_response_is_one(tmp_path: Path, name: str, category: bool) -> None:
    """Reward and safety sets: the label is one of the pair; a category of the question stands beside it or not."""
    rows = [
        {"prompt": sentence(n), "response": f"Since {n} days, yes.", name: "ab"[n % 2]}
        | ({"category": "cde"[n % 3]} if category else {})
        for n in range(60)
    ]
    task = task_of(tmp_path, rows)
    assert (task.kind, task.answer_column) == ("classification", name)


def test_people_who_write_comments_are_no_conversation(tmp_path: Path) -> None:
    rows = [
        {
            "text": sentence(n),
            "label": "ab"[n % 2],
            "comments": [{"author": "bob", "content": f"Day {n}?"}],
            "lines": [{"speaker": "Mary", "text": f"Day {n}."}],
        }
        for n in range(60)
    ]
    task = task_of(tmp_path, rows)
    assert (task.kind, task.answer_column) == ("classification", "label")


def test_a_long_run_of_spaces_costs_no_more_than_its_length(tmp_path: Path) -> None:
    """Alpaca's rule looks at the ends of texts; trying every place of the run would take hours."""
    rows = [
        {"instruction": sentence(n), "output": f"Day {n}.", "text": f"{sentence(n)} Day {n}. </s> <|im_end|>\n"}
        for n in range(60)
    ]
    rows[0]["instruction"] = f"Look:{' ' * 1_000_000}here"
    assert "'text' ends with the answer" in "\n".join(task_of(tmp_path, rows).notes)


@pytest.mark.parametrize("answer", TABLES)
def test_the_answer_and_what_is_shown(tmp_path: Path, answer: str) -> None:
    rows, column, shown = TABLES[answer]
    task = task_of(tmp_path, rows)
    assert task.answer_column == column
    assert task.template is not None
    assert set(shown) <= set(task.template.columns) <= {*shown, "context"}


def test_other_columns_that_may_be_the_label_are_named(tmp_path: Path) -> None:
    rows = [{"spam": n % 2, "text": sentence(n), "rude": n // 2 % 2} for n in range(60)]
    note = next(note for note in task_of(tmp_path, rows).notes if "class label" in note)
    assert "'rude' might be it too" in note
    assert "`--label`" in note


def test_columns_without_names_the_fewest_values_are_the_label(tmp_path: Path) -> None:
    """CoLA: source, label, mark, sentence."""
    lines = [f"gj{n % 5:02}\t{n % 2}\t{'*' * (n % 2)}\t{sentence(n)}\n" for n in range(60)]
    (tmp_path / "train.tsv").write_text("".join(lines))
    task = load_task(str(tmp_path / "train.tsv"))
    assert (task.answer_column, task.labels) == ("column2", ("0", "1"))
