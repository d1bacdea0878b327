"""From rows to examples, and from the splits that a source has to all three."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from dollartune.errors import UserError, unknown_name
from dollartune.tasks.base import Example, SplitName
from dollartune.tasks.images import ImageFile, ImageStore, PictureCheck, content_key
from dollartune.tasks.labels import LabelReader, is_no_label, label_text
from dollartune.tasks.pictures import ImageBytes
from dollartune.tasks.splitting import SHARES, input_key, split_rows
from dollartune.tasks.values import as_text, is_missing

if TYPE_CHECKING:
    from dollartune.tasks.columns import Columns
    from dollartune.tasks.rows import BadRows, Row

Examples = dict[SplitName, list[Example]]

LARGEST_CARVED = 2500  # rows; no more of validation or test is ever used (reference 001, A.2)


def make_examples(
    columns: Columns,
    labels: Sequence[str],
    split: SplitName,
    rows: Sequence[Row],
    store: ImageStore | None,
    bad: BadRows,
    pictures: PictureCheck | None = None,
) -> list[Example]:
    """Turns the rows of one split into examples `split/0`, `split/1` ...

    A row without a value in some of several input columns goes in without it; it is bad only if nothing is left to read.

    Args:
        columns: the roles of the columns; those of the answer are kept out of what a prompt may name.
        labels: the known labels (classification).
        split: the split that the rows belong to.
        rows: records as read.
        store: where the files of the image column lie; None for text, and for rows that bring their pictures along.
        bad: what happens to a row without input or answer, with an unknown label, or with a missing or damaged image.
        pictures: looks at each picture; None leaves it at finding the files.
    """
    examples: list[Example] = []
    answers, read_label = {columns.label, columns.target, columns.references}, LabelReader(labels)
    for row in rows:
        problem = _problem(columns, read_label, row.values, store, pictures)
        if problem is not None:
            bad.report(row.where, problem)
            continue
        # Also for prompts that come later (`--prompt` at prediction): no template can name the answer.
        fields = {name: value for name, value in row.values.items() if name not in answers}
        fields |= {name: "" for name in columns.inputs if is_missing(fields.get(name))}
        if columns.image is not None:
            name = row.values[columns.image]
            fields["image"] = name if store is None else store.find(str(name))
        answer = row.values[columns.answer]
        identity = f"{split}/{len(examples)}"
        if columns.label is not None:
            examples.append(Example(identity, fields, label=read_label(answer)[0]))
        else:
            # One reference where the column is empty: the target itself.
            several = row.values.get(columns.references) if columns.references is not None else None
            target = as_text(answer)
            references = (target,) if is_missing(several) else tuple(several or ())
            examples.append(Example(identity, fields, target=target, references=references))
    return examples


def nothing_to_read(inputs: Sequence[str], values: Mapping[str, Any]) -> str | None:
    """Why a row cannot be asked, or None: every column that the prompt shows is empty or missing in it."""
    if any(not is_missing(values.get(name)) for name in inputs) or not inputs:
        return None
    if len(inputs) == 1:
        return f"column {inputs[0]!r} is {'empty' if inputs[0] in values else 'missing'}"
    return f"columns {', '.join(map(repr, inputs))} are empty"


def _problem(
    columns: Columns,
    read_label: LabelReader,
    values: Mapping[str, Any],
    store: ImageStore | None,
    pictures: PictureCheck | None,
) -> str | None:
    """What is wrong with a row, in words; None if it is fine."""
    unread = nothing_to_read(columns.inputs, values)
    if unread is not None:
        return unread
    answer, name = values.get(columns.answer), columns.answer
    if columns.label is not None:
        label, problem = read_label(answer)
        if problem is not None:
            return f"the label in column {name!r} {problem}"
        # The user's own words come first: `null` may be listed as a class.
        if label is None:
            if is_no_label(answer):
                return f"column {name!r} is {'empty' if name in values else 'missing'}"
            return str(unknown_name("label", label_text(answer), read_label.labels)).rstrip(".")
    elif is_missing(answer):
        return f"column {name!r} is {'empty' if name in values else 'missing'}"
    if columns.image is not None:
        picture = values[columns.image]
        if store is not None:
            try:
                picture = store.find(str(picture))
            except KeyError as error:
                return str(error.args[0]).rstrip(".?") + ("?" if str(error.args[0]).endswith("?") else "")
        elif not callable(picture):
            return f"column {columns.image!r} holds no picture, as it does in other rows"
        if pictures is not None and (problem := pictures.problem(picture)) is not None:
            return problem
    references = values.get(columns.references) if columns.references else None
    if not is_missing(references) and not (isinstance(references, list) and all(map(_is_text, references))):
        return f"column {columns.references!r} should hold a list of texts"
    return None


def empty_columns(columns: Columns, examples: Examples, notes: list[str]) -> None:
    """Writes a note on each input column that some rows leave empty."""
    rows = [example for split in examples.values() for example in split]
    for name in columns.inputs if len(columns.inputs) > 1 else ():
        empty = sum(is_missing(row.fields.get(name)) for row in rows)
        if empty:
            notes.append(f"column {name!r} is empty in {empty} of {len(rows)} rows, which go in without it")


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def ties(columns: Columns, example: Example) -> tuple[str, ...]:
    """Keys of what must not stand in two splits: the example's input, and its group where there is one."""
    if columns.image is None:
        inputs = input_key(as_text(example.fields[name]) for name in columns.inputs)
    elif isinstance(example.fields["image"], ImageFile | ImageBytes):
        inputs = content_key(example.fields["image"]) or ""
    else:
        inputs = input_key((repr(example.fields["image"]),))
    # A row without a group belongs to none: not-a-number would else be one huge group of strangers.
    if columns.group is None or is_missing(example.fields.get(columns.group)):
        return (inputs,)
    # Marked as a group, so that a group called like an input ties nothing to it.
    return (inputs, input_key(("group", as_text(example.fields[columns.group]))))


def complete_splits(given: Examples, columns: Columns, notes: list[str]) -> Examples:
    """Cuts the splits that are missing, and takes out of training what a given validation or test split repeats.

    One split: 70/15/15. Test missing: half of validation, as reference 000 divided BoolQ's development split.
    Validation missing: 15 % of training, at most 2,500 rows.

    Args:
        given: examples per split that the source has; training is among them.
        columns: says what ties rows together.
        notes: gets a sentence on every cut and removal.

    Raises:
        UserError: nothing is left to train on, or there are too few rows to cut.
    """

    def keys(example: Example) -> tuple[str, ...]:
        return ties(columns, example)

    def stratum(example: Example) -> str:
        return example.label or ""

    train = given["train"]
    held = {key for split, rows in given.items() if split != "train" for example in rows for key in keys(example)}
    # Taken from training and never from test: the test rows of a published set stay what others scored on.
    kept = [example for example in train if held.isdisjoint(keys(example))] if held else train
    if len(kept) < len(train):
        notes.append(f"left out {len(train) - len(kept)} training rows whose input is also in validation or test")
        if not kept:
            raise UserError("every training input is also in validation or test, so nothing is left to train on.")
    cut: Mapping[SplitName, list[Example]]
    if "test" not in given and "validation" not in given:
        cut = split_rows(kept, keys, stratum)
    elif "test" not in given:
        # A published test split without labels is common; the validation rows then serve for both, cut in half without
        # overlap.
        cut = split_rows(given["validation"], keys, stratum, {"validation": 0.5, "test": 0.5})
    elif "validation" not in given:
        # 15 % of a million rows would take long to validate on and tell nothing more.
        share = min(SHARES["validation"], LARGEST_CARVED / len(kept))
        cut = split_rows(kept, keys, stratum, {"train": 1 - share, "validation": share})
    else:
        return {**given, "train": kept}
    counts = ", ".join(f"{len(rows)} {split}" for split, rows in cut.items())
    notes.append(f"split at random (seed 0, duplicates kept together): {counts} rows")
    # Named anew below: a row that moved from train to test must not keep an id that says train.
    whole = {**given, "train": kept, **cut}
    return {split: [replace(row, id=f"{split}/{n}") for n, row in enumerate(whole[split])] for split in SHARES}
