"""The rows that `evaluate` scores: all of a file, the test rows of a task; without those that the adapter was tuned on."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from dollartune.errors import UserError, nearest
from dollartune.tasks.columns import LABEL_NAMES, TARGET_NAMES, Columns
from dollartune.tasks.conversations import conversation_column, make_conversations
from dollartune.tasks.examples import make_examples
from dollartune.tasks.files import file_format, read_file, without_empty
from dollartune.tasks.images import (
    ImageStore,
    PictureCheck,
    bring_pictures,
    holds_images,
    image_place,
    is_picture_place,
    picture_column,
    read_image_folder,
)
from dollartune.tasks.labels import match_label
from dollartune.tasks.rows import BadRows, Row
from dollartune.tasks.rows_seen import row_hash

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dollartune.evaluate.predict import Tuned
    from dollartune.tasks.base import Example, Task
    from dollartune.tasks.rows import OnBadRow

NAMED = 3
"""Rows that are named where some are left out; the rest is counted."""

_HINT = "Correct the row, or leave such rows out: --on-bad-row skip."


@dataclass(frozen=True)
class LabelledRows:
    """Rows to score, and what was left out of them or doubted."""

    examples: tuple[Example, ...]
    notes: tuple[str, ...]
    seen: int = 0
    """Rows that the adapter was tuned on or chosen by; among `examples` only if that was asked for."""
    group_column: str = ""
    """Column that says which rows come together, such as a patient; empty where each is on its own."""


def is_data_file(data: str) -> bool:
    """Whether `evaluate` is given rows as they are (a file, pictures in folders) rather than a task with splits."""
    path = Path(data).expanduser()
    if path.is_file():
        return path.suffix.lower() == ".zip" or file_format(path) is not None or not path.suffix
    # A folder with tables is a task with splits, whatever pictures lie beside them.
    return path.is_dir() and not _has_tables(path) and holds_images(path)


def rows_of_file(tuned: Tuned, data: Path, answer: str | None, on_bad_row: OnBadRow) -> LabelledRows:
    """Every row of a file, with the adapter's own prompt columns and label words.

    Args:
        tuned: the adapter.
        data: a file of rows, or a folder or zip of pictures.
        answer: column with the label or the text to write; by default the one it was tuned with.
        on_bad_row: whether a row without input or label stops or is left out and counted.

    Raises:
        UserError: a column is missing, or rows are malformed.
    """
    bad, notes = BadRows(on_bad_row, _HINT), list[str]()
    task, store = tuned.task, None
    if is_picture_place(data):
        rows = [row for split in read_image_folder(data, bad, notes).values() for row in split]
        columns = Columns(("image",), label="label", image="image")
    else:
        rows = read_file(data, bad, notes)
        columns = _columns(task, rows, data, answer)
        rows = without_empty(rows, notes)
        if not rows:
            raise UserError(f"{data} holds no usable row: all are empty.")
        if columns.image is not None and not bring_pictures([row.values for row in rows], columns.image):
            store = ImageStore(image_place(data.parent))
    if columns.conversation is not None:
        examples = make_conversations(columns.conversation, "test", rows, bad)
    else:
        pictures = None if columns.image is None else PictureCheck(len(rows))
        examples = make_examples(columns, task.labels, "test", rows, store, bad, pictures)
    # Rows that were left out have no example; their places in the file name the others.
    skipped = {text.split(": ")[0] for text in bad.skipped}
    where = [row.where for row in rows if row.where not in skipped]
    named = [replace(example, id=name) for example, name in zip(examples, where, strict=True)]
    return LabelledRows(tuple(named), (*notes, *bad.notes()), group_column=task.group_column)


def _has_tables(folder: Path) -> bool:
    return any(path.is_file() and file_format(path) is not None for path in folder.iterdir())


def _columns(task: Task, rows: Sequence[Row], data: Path, answer: str | None) -> Columns:
    names = list(dict.fromkeys(name for row in rows for name in row.values))
    inputs = task.template.columns if task.template is not None else ("image",)
    if task.template is None and "image" not in names:
        inputs = (picture_column([row.values for row in rows]) or "image",)
    for name in inputs:
        if name not in names:
            raise UserError(f"the adapter's prompt needs column {name!r}; {data} has {names}.{nearest(name, names)}")
    if answer is None and task.kind == "generation" and len(inputs) == 1 and conversation_column(rows) == inputs[0]:
        return Columns(tuple(inputs), conversation=inputs[0])
    usual = LABEL_NAMES if task.kind == "classification" else TARGET_NAMES
    # Reversed, so that of two names that differ in case alone the first wins.
    left = {name.lower(): name for name in reversed(names) if name not in inputs}
    # What was said now, else the column of tuning, else a usual name.
    wanted = answer or (task.answer_column if task.answer_column in names else None)
    column = wanted or next((left[name] for name in usual if name in left), None)
    if column is None or column not in names:
        told = repr(column or task.answer_column or "label")
        raise UserError(
            f"{data} has no column {told} with the answers; it has {names}.",
            "Name it: --label COLUMN. Without answers nothing can be scored: dollartune predict ADAPTER FILE",
        )
    image = inputs[0] if task.template is None else None
    if task.kind == "classification":
        return Columns(tuple(inputs), label=column, image=image)
    references = task.references_column if task.references_column in names else None
    return Columns(tuple(inputs), target=column, references=references)


def rows_of_task(tuned: Tuned, task: Task, rows: int) -> LabelledRows:
    """The test rows of a task, with the adapter's labels.

    Raises:
        UserError: the task has a label that the adapter does not know, or lacks a column of its prompt.
    """
    mine = tuned.task
    if task.kind != mine.kind:
        raise UserError(f"the adapter was tuned for {mine.kind}; {task.name!r} is {task.kind}.")
    meaning = {label: match_label(label, mine.labels) for label in task.labels}
    if unknown := [label for label, known in meaning.items() if known is None]:
        raise UserError(f"the adapter knows the labels {mine.labels}; {task.name!r} has {tuple(unknown)} beside them.")
    # Scale 0: training rows are not needed, and test rows do not depend on it.
    test = task.splits(0, 0, rows).test
    if test and mine.template is not None:
        for name in mine.template.columns:
            if name not in test[0].fields:
                raise UserError(
                    f"the adapter's prompt needs column {name!r}; {task.name!r} has {sorted(test[0].fields)}."
                    f"{nearest(name, test[0].fields)}"
                )
    relabelled = (replace(row, label=meaning[row.label]) if row.label is not None else row for row in test)
    return LabelledRows(tuple(relabelled), (), group_column=task.group_column or mine.group_column)


def without_seen(tuned: Tuned, labelled: LabelledRows, all_rows: bool, source: str) -> LabelledRows:
    """Leaves out the rows that the adapter was tuned on or chosen by, and says which; or keeps them and says that.

    Raises:
        UserError: no row is left.
    """
    if tuned.rows_seen is None:
        note = "the adapter does not say which rows it was tuned on: where they are among these, this is no test"
        return replace(labelled, notes=(*labelled.notes, note))
    hashes = [row_hash(tuned.task, example) for example in labelled.examples]
    trained = [hash_ in tuned.rows_seen.trained for hash_ in hashes]
    # Counted once: a row that it was trained on is worse than one that chose settings.
    chosen = [hash_ in tuned.rows_seen.chosen_by and not before for hash_, before in zip(hashes, trained, strict=True)]
    seen = [one or other for one, other in zip(trained, chosen, strict=True)]
    count = sum(seen)
    if not count:
        return labelled
    what = f"{sum(trained)} that the adapter was trained on and {sum(chosen)} that chose its settings"
    if all_rows:
        note = f"no test: among the {len(seen)} rows are {what} (--all-rows)"
        return replace(labelled, notes=(*labelled.notes, note), seen=count)
    if count == len(seen):
        raise UserError(
            f"every row of {source} is one that the adapter was tuned on or chosen by, so a score would be no test.",
            "Give other rows, or add --all-rows to score these all the same.",
        )
    names = [example.id for example, left_out in zip(labelled.examples, seen, strict=True) if left_out]
    shown = ", ".join(names[:NAMED]) + (", ..." if len(names) > NAMED else "")
    note = f"left out {count} of {len(seen)} rows: {what} ({shown}); --all-rows scores them too"
    kept = tuple(example for example, left_out in zip(labelled.examples, seen, strict=True) if not left_out)
    return replace(labelled, examples=kept, notes=(*labelled.notes, note), seen=count)


def missing_classes(task: Task, examples: Sequence[Example]) -> list[str]:
    """A sentence on the adapter's classes that no row has."""
    counts = Counter(example.label for example in examples)
    absent = [label for label in task.labels if not counts[label]]
    if not absent or task.kind != "classification":
        return []
    named = ", ".join(map(repr, absent[:8])) + (" ..." if len(absent) > 8 else "")
    return [
        f"no row has {len(absent)} of the adapter's {len(task.labels)} classes ({named}): nothing is said about them"
    ]


def as_data(labelled: LabelledRows) -> dict[str, object]:
    """For JSON: what was left out and doubted."""
    return {"notes": list(labelled.notes), "rows_seen": labelled.seen}
