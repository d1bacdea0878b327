"""From rows to examples, and from the splits that a source has to all three."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from dollartune.errors import UserError, unknown_name
from dollartune.tasks.base import Example, SplitName
from dollartune.tasks.images import ImageFile, ImageStore
from dollartune.tasks.labels import label_text, match_label
from dollartune.tasks.splitting import SHARES, input_key, split_rows

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
) -> list[Example]:
    """Turns the rows of one split into examples `split/0`, `split/1` ...

    Args:
        columns: the roles of the columns; those of the answer are kept out of what a prompt may name.
        labels: the known labels (classification).
        split: the split that the rows belong to.
        rows: records as read.
        store: where the files of the image column lie; None for text, and for rows that bring their pictures along.
        bad: what happens to a row with an empty input or answer, an unknown label or a missing image.
    """
    examples: list[Example] = []
    answers = {columns.label, columns.target, columns.references}
    for row in rows:
        problem = _problem(columns, labels, row.values, store)
        if problem is not None:
            bad.report(row.where, problem)
            continue
        fields = {name: value for name, value in row.values.items() if name not in answers}
        if columns.image is not None:
            name = row.values[columns.image]
            fields["image"] = name if store is None else store.find(str(name))
        answer = row.values[columns.answer]
        identity = f"{split}/{len(examples)}"
        if columns.label is not None:
            examples.append(Example(identity, fields, label=match_label(label_text(answer), labels)))
        else:
            several = row.values.get(columns.references) if columns.references is not None else None
            references = (str(answer),) if several is None else tuple(several)
            examples.append(Example(identity, fields, target=str(answer), references=references))
    return examples


def _problem(
    columns: Columns, labels: Sequence[str], values: Mapping[str, Any], store: ImageStore | None
) -> str | None:
    """What is wrong with a row, in words; None if it is fine."""
    for name in (*columns.inputs, columns.answer):
        value = values.get(name)
        if value is None or (isinstance(value, str) and not value.strip()):
            return f"column {name!r} is empty" if name in values else f"column {name!r} is missing"
    if store is not None and columns.image is not None:
        try:
            store.find(str(values[columns.image]))
        except KeyError as error:
            return str(error.args[0]).rstrip(".?") + ("?" if str(error.args[0]).endswith("?") else "")
    if columns.label is not None and match_label(label_text(values[columns.label]), labels) is None:
        return str(unknown_name("label", label_text(values[columns.label]), labels)).rstrip(".")
    references = values.get(columns.references) if columns.references else None
    if references is not None and not (isinstance(references, list) and references and all(map(_is_text, references))):
        return f"column {columns.references!r} should hold a list of texts"
    return None


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def ties(columns: Columns, example: Example) -> tuple[str, ...]:
    """Keys of what must not stand in two splits: the example's input, and its group where there is one."""
    if columns.image is None:
        inputs = input_key(str(example.fields[name]) for name in columns.inputs)
    elif isinstance(example.fields["image"], ImageFile):
        inputs = input_key((example.fields["image"].read_bytes().hex(),))
    else:
        inputs = input_key((repr(example.fields["image"]),))
    if columns.group is None or example.fields.get(columns.group) is None:
        return (inputs,)
    return (inputs, input_key(("group", str(example.fields[columns.group]))))


def complete_splits(found: Examples, columns: Columns, notes: list[str]) -> Examples:
    """Cuts the splits that are missing, and takes out of training what a given validation or test split repeats.

    One split: 70/15/15. Test missing: half of validation, as reference 000 divided BoolQ's development split.
    Validation missing: 15 % of training, at most 2,500 rows.

    Args:
        found: examples per split that the source has; training is among them.
        columns: says what ties rows together.
        notes: gets a sentence on every cut and removal.

    Raises:
        UserError: nothing is left to train on, or there are too few rows to cut.
    """

    def keys(example: Example) -> tuple[str, ...]:
        return ties(columns, example)

    def stratum(example: Example) -> str:
        return example.label or ""

    train = found["train"]
    held = {key for split, rows in found.items() if split != "train" for example in rows for key in keys(example)}
    kept = [example for example in train if held.isdisjoint(keys(example))] if held else train
    if len(kept) < len(train):
        notes.append(f"left out {len(train) - len(kept)} training rows whose input is also in validation or test")
        if not kept:
            raise UserError("every training input is also in validation or test, so nothing is left to train on.")
    cut: Mapping[SplitName, list[Example]]
    if "test" not in found and "validation" not in found:
        cut = split_rows(kept, keys, stratum)
    elif "test" not in found:
        # A published test split without labels is common; the validation rows then serve for both, cut in half without
        # overlap.
        cut = split_rows(found["validation"], keys, stratum, {"validation": 0.5, "test": 0.5})
    elif "validation" not in found:
        share = min(SHARES["validation"], LARGEST_CARVED / len(kept))
        cut = split_rows(kept, keys, stratum, {"train": 1 - share, "validation": share})
    else:
        return {**found, "train": kept}
    counts = ", ".join(f"{len(rows)} {split}" for split, rows in cut.items())
    notes.append(f"divided by us with a fixed seed, no input in two splits: {counts} rows")
    whole = {**found, "train": kept, **cut}
    return {split: [replace(row, id=f"{split}/{n}") for n, row in enumerate(whole[split])] for split in SHARES}
