"""From a `TaskConfig` to a `Task`: the user's own data, or a changed preset. `registry.load_task` decides which."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dollartune.errors import UserError, nearest, unknown_name
from dollartune.tasks.base import Example, SplitName, Task, TaskKind, Template
from dollartune.tasks.class_counts import class_notes
from dollartune.tasks.columns import NAME_ANSWER, Columns, choose_columns, need_column
from dollartune.tasks.conversations import make_conversations
from dollartune.tasks.examples import complete_splits, empty_columns, make_examples
from dollartune.tasks.files import file_format, read_file, require_path, split_files, without_empty
from dollartune.tasks.hub import HubSource, read_hub
from dollartune.tasks.images import (
    ImageStore,
    PictureCheck,
    bring_pictures,
    holds_images,
    image_place,
    is_picture_place,
    read_image_folder,
)
from dollartune.tasks.labels import (
    classes_of,
    is_no_label,
    label_problem,
    label_text,
    match_label,
    number_to_predict,
)
from dollartune.tasks.rows import SPLIT_NAMES, BadRows, Row

if TYPE_CHECKING:
    from dollartune.tasks.config import TaskConfig

Rows = dict[SplitName, list[Row]]
_Key = tuple[str, str, str]
_Stamps = tuple[tuple[str, int, int, int], ...] | None
"""(path, inode, nanosecond of its last change, bytes) of each file."""

MOST_CLASSES = 1000  # more different labels than this are taken for a mistaken column


@dataclass(frozen=True)
class RowsInMemory:
    """Rows that were read when the task was made (`Task.load`)."""

    rows: Mapping[SplitName, Sequence[Example]]

    def __call__(self) -> Mapping[SplitName, Sequence[Example]]:
        """Returns the rows."""
        return self.rows


def changed_preset(config: TaskConfig, task: Task, columns: Sequence[str] | None) -> Task:
    """A preset with another prompt, other label words or measures.

    Args:
        task: the preset's, as it is.
        columns: those that a prompt may name; None where that is not known.

    Raises:
        UserError: a label word for a label that it does not have, or a column that it does not have.
    """
    changes: dict[str, Any] = {}
    if config.label_words is not None:
        words = dict(task.label_words)
        for given, word in config.label_words.items():
            label = match_label(given, task.labels)
            if label is None:
                raise unknown_name(f"label of {task.name}", given, task.labels)
            words[label] = word
        changes["label_words"] = words
    if config.prompt is not None:
        changes["template"] = Template(config.prompt)
        need_column(changes["template"])
        if columns is not None:
            # At reading, not after an hour of training.
            changes["template"](dict.fromkeys(columns, ""))  # refuses an unknown column now
    if config.extra_prompts is not None:
        changes["extra_templates"] = tuple(Template(text) for text in config.extra_prompts)
    if config.metrics is not None:
        changes["metrics"] = tuple(config.metrics)
    for key in ("name", "max_answer_tokens", "metric", "chat", "system"):
        if getattr(config, key) is not None:
            changes[key] = getattr(config, key)
    return _checked(replace(task, **changes))


@dataclass(frozen=True)
class _Made:
    """What was made of files: all of a task that its name, measures and further wordings do not change."""

    columns: Columns
    template: Template | None
    words: Mapping[str, str]
    examples: Mapping[SplitName, Sequence[Example]]
    notes: tuple[str, ...]
    guesses: tuple[str, ...]
    """Of the notes, those on columns and classes."""


def task_and_columns(config: TaskConfig, data_root: Path | None, full: bool = False) -> tuple[Task, Columns]:
    """A task from the user's files, images or hub data set, and the roles of its columns.

    Args:
        full: decode every picture, however many there are.

    Raises:
        UserError: unknown file, column or label; malformed rows; measures that do not fit the kind of task.
    """
    assert config.data is not None
    key, stamps = _key(config, data_root), _stamps(config, data_root)
    kept = _kept.get(key)
    made = kept[1] if kept is not None and kept[0] == stamps else _make(config, data_root, full)
    _keep(key, stamps, made)
    columns, notes = made.columns, list(made.notes)
    kind: TaskKind = "classification" if columns.label is not None else "generation"
    metric, further = _usual_metrics(kind, made.examples["train"], notes)
    task = Task(
        name=config.name or Path(config.data.rstrip("/")).name.split(".")[0],
        kind=kind,
        # Lists of its own: in a notebook, what is done to them is done to no later task.
        load=RowsInMemory({split: list(rows) for split, rows in made.examples.items()}),
        template=made.template,
        label_words=made.words,
        metric=config.metric or metric,
        metrics=further if config.metrics is None else tuple(config.metrics),
        modality="image" if columns.image is not None else "text",
        extra_templates=tuple(Template(text) for text in config.extra_prompts or ()),
        max_answer_tokens=config.max_answer_tokens or 64,
        chat=config.chat or "auto",
        system=config.system or "",
        # A report is passed on: where the file lies here is nobody's business.
        description=f"{kind} on {Path(config.data).name if Path(config.data).is_absolute() else config.data}",
        source=config.data,
        answer_column=columns.answer,
        group_column=columns.group or "",
        references_column=columns.references or "",
        notes=tuple(notes),
    )
    for wording in task.extra_templates:
        wording(made.examples["train"][0].fields)
    return _checked(task), columns


def _make(config: TaskConfig, data_root: Path | None, full: bool) -> _Made:
    """Reads the files, and makes examples and splits of them."""
    assert config.data is not None
    notes: list[str] = []
    bad = BadRows(config.on_bad_row)
    rows = _read(config, data_root, bad, notes)
    rows = {split: without_empty(of_split, notes) for split, of_split in rows.items()}
    if not rows.get("train"):
        raise UserError(f"{config.data} has no training rows; it has {sorted(rows)}.")
    read = len(notes)
    columns, template = choose_columns(config, rows["train"], config.data, notes)
    words = _label_words(config, columns, rows["train"], notes)
    guesses = tuple(notes[read:])
    _leave_out_unlabelled(config, columns, rows, notes)
    store = _store(config, data_root, columns, rows["train"])
    pictures = None if columns.image is None else PictureCheck(sum(map(len, rows.values())), full)
    if columns.conversation is not None:
        examples = {split: make_conversations(columns.conversation, split, rows[split], bad) for split in rows}
    else:
        examples = {
            split: make_examples(columns, tuple(words), split, rows[split], store, bad, pictures) for split in rows
        }
    notes += [] if pictures is None else pictures.notes()
    empty_columns(columns, examples, notes)
    for split, of_split in examples.items():
        if not of_split:
            skipped = f" {bad.notes()[0]}." if bad.skipped else ""
            raise UserError(f"{config.data} has no usable row for the {split} split.{skipped}")
    examples = complete_splits(examples, columns, notes)
    notes += class_notes(tuple(words), examples)
    return _Made(columns, template, words, examples, (*notes, *bad.notes()), guesses)


# What was read, once

_kept: dict[_Key, tuple[_Stamps, _Made]] = {}
"""The latest ones. One command asks for a task three or four times (told early, spelled out, planned), and reading a hundred
thousand rows takes ten seconds of whatever is paid for."""
MOST_KEPT, MOST_KEPT_BYTES = 4, 256 << 20
"""Tasks, and bytes of the files of all but the latest, which are a few times as many in memory: who goes from one large set to
the next in a notebook holds one of them."""
_NO_ROWS = frozenset({"name", "extra_prompts", "chat", "system", "max_answer_tokens", "metric", "metrics"})
"""Fields that change nothing of what is read."""


def spelled_out(told: TaskConfig, spelled: TaskConfig, data_root: Path | None) -> None:
    """Lets a task whose guesses are spelled out be the one that they were made of, which has just been read."""
    kept = _kept.get(_key(told, data_root))
    if kept is not None:
        stamps, made = kept
        told_again = tuple(note for note in made.notes if note not in made.guesses)
        _keep(_key(spelled, data_root), stamps, replace(made, notes=told_again, guesses=()))


def _keep(key: _Key, stamps: _Stamps, made: _Made) -> None:
    # Pictures are read when they are asked for, and their files have no stamp here.
    if stamps is None or made.columns.image is not None:
        return
    _kept.pop(key, None)
    _kept[key] = (stamps, made)
    while len(_kept) > MOST_KEPT or _bytes_beside(made) > MOST_KEPT_BYTES:
        del _kept[next(iter(_kept))]


def _bytes_beside(made: _Made) -> int:
    """Of the files of which other rows are kept; a task that was told and the same spelled out share theirs."""
    others = {id(one.examples): files or () for files, one in _kept.values() if one.examples is not made.examples}
    return sum(size for files in others.values() for *_, size in files)


def _key(config: TaskConfig, data_root: Path | None) -> _Key:
    return config.model_dump_json(exclude=set(_NO_ROWS), exclude_none=True), str(data_root), str(Path.cwd())


def _stamps(config: TaskConfig, data_root: Path | None) -> _Stamps:
    """What tells the files of a task from others that take their place; None where it is made of anything else."""
    found: list[tuple[str, int, int, int]] = []
    for name in (config.data, config.validation, config.test):
        if name is None:
            continue
        path = _find(name, data_root)
        files = [path] if path.is_file() else list(split_files(path).values()) if path.is_dir() else []
        # Other folders (pictures, the hub's layouts) are looked through anew.
        if not files:
            return None
        for file in files:
            about = file.stat()
            found.append((str(file.resolve()), about.st_ino, about.st_mtime_ns, about.st_size))
    return tuple(found)


def _usual_metrics(kind: TaskKind, examples: Sequence[Example], notes: list[str]) -> tuple[str, tuple[str, ...]]:
    """The primary measure and the further ones for a task that names none. ROUGE knows a-z only, so it would give other
    scripts a zero whatever the model writes."""
    if kind == "classification":
        return "accuracy", ("balanced_accuracy", "f1")
    # Two hundred texts have thousands of letters: more would not change which alphabet it is.
    letters = [letter for example in examples[:200] for letter in example.target or "" if letter.isalpha()]
    # Four fifths: names and loan words in English text stay below a fifth, other scripts far above.
    if sum(letter.isascii() for letter in letters) < 0.8 * len(letters):
        notes.append("the texts are not in the Latin alphabet, so the measure is chrf (set `metric:` to choose)")
        return "chrf", ("bleu",)
    return "rougeL", ("rouge1", "rouge2", "chrf")


def _checked(task: Task) -> Task:
    """Refuses measures that do not fit the kind of task, and label words that cannot be told apart."""
    from dollartune.metrics import get

    words = list(task.label_words.values())
    for label, word in task.label_words.items():
        if not word.strip():
            raise UserError(f"task {task.name!r}: the word of label {label!r} is empty.", "Change `label_words`.")
        if words.count(word) > 1:
            raise UserError(f"task {task.name!r} has the label word {word!r} for two labels.", "Change `label_words`.")

    for name in (task.metric, *task.metrics):
        metric = get(name)
        if metric.kind != task.kind:
            raise UserError(
                f"measure {name!r} is for {metric.kind}, and task {task.name!r} is {task.kind}.",
                "See `dollartune tasks show`.",
            )
        # now, and not where it is scored, when training is paid
        if metric.of_class is not None and metric.of_class not in task.labels:
            raise UserError(
                f"measure {name!r}: task {task.name!r} has no label {metric.of_class!r}.{nearest(metric.of_class, task.labels)} "
                f"It has {', '.join(task.labels)}."
            )
    return task


def _find(name: str, data_root: Path | None) -> Path:
    """A file of the user's: relative to the current folder, else to the data root."""
    path = Path(name).expanduser()
    if not path.exists() and data_root is not None and (data_root / name).exists():
        return data_root / name
    return path


def _read(config: TaskConfig, data_root: Path | None, bad: BadRows, notes: list[str]) -> Rows:
    assert config.data is not None
    path = _find(config.data, data_root)
    # `owner/name` is a hub id only where it cannot be a file of the user's: a mistyped path must be called missing, not
    # be looked for on the hub.
    if not path.exists():
        if (
            config.data.count("/") == 1
            and file_format(path) is None
            and not path.parent.is_dir()
            and path.suffix != ".zip"
        ):
            return read_hub(HubSource(config.data, config.config, revision=config.revision))
        require_path(path)
    for key in ("config", "revision"):
        if getattr(config, key) is not None and not path.is_dir():
            raise UserError(f"`{key}` belongs to a data set of the hub; {config.data} is a file.")
    if path.is_dir():
        rows = _read_folder(config, path, bad, notes)
    elif is_picture_place(path):
        rows = read_image_folder(path, bad, notes)
    else:
        # One file is all rows; splits are cut from it, unless it says them itself.
        rows = _by_split_column(config, read_file(path, bad, notes), notes)
    given: dict[SplitName, str | None] = {"validation": config.validation, "test": config.test}
    for split, name in given.items():
        if name is not None:
            rows[split] = read_file(_find(name, data_root), bad, notes)
    return rows


def _read_folder(config: TaskConfig, folder: Path, bad: BadRows, notes: list[str]) -> Rows:
    files = split_files(folder)
    tables = sorted(path for path in folder.iterdir() if path.is_file() and file_format(path) is not None)
    # Named splits come first: a folder may hold pictures beside them.
    if "train" in files:
        unread = [path.name for path in tables if path not in files.values()]
        if unread:
            notes.append(
                f"not read in {folder.name}: {', '.join(unread[:5])} (splits are called train, validation and test)"
            )
        return {split: read_file(path, bad, notes) for split, path in files.items()}
    if (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file():
        return read_hub(HubSource(str(folder)))
    if holds_images(folder):
        return read_image_folder(folder, bad, notes)
    below = [path for path in folder.rglob("*") if path.is_file() and file_format(path) is not None]
    # A configuration is one of the hub's layouts, and so are the files that describe data of other endings.
    if tables == below and len(tables) == 1 and config.config is None and tables[0].name not in _DESCRIPTIONS:
        _refuse_held_out(folder, tables[0])
        return _by_split_column(config, read_file(tables[0], bad, notes), notes)
    if below:
        return read_hub(HubSource(str(folder), config.config))
    raise UserError(
        f"{folder} holds neither train, validation and test files (csv, jsonl, parquet), nor images.",
        "Name one data file: `data: FOLDER/FILE.csv`.",
    )


_DESCRIPTIONS = ("dataset_infos.json", "dataset_info.json")
"""Files in which the hub's library describes the data beside them."""


def _refuse_held_out(folder: Path, table: Path) -> None:
    """Asks about a folder's only table where it is called after validation or test (`test.csv`, `dev_matched.tsv`).

    Raises:
        UserError: it is.
    """
    words = re.split(r"[\W_]+", table.name.lower())
    splits = {SPLIT_NAMES[word]: None for word in words if word in SPLIT_NAMES}
    if splits and "train" not in splits:
        raise UserError(
            f"{folder} has no training rows: its only table is {table.name}, by its name the {next(iter(splits))} split.",
            f"To cut all splits from its rows, name the file: `data: {folder.name}/{table.name}`.",
        )


def _store(config: TaskConfig, data_root: Path | None, columns: Columns, rows: Sequence[Row]) -> ImageStore | None:
    """Where the files named in the image column lie; None if the rows bring their pictures along."""
    if columns.image is None or bring_pictures([row.values for row in rows], columns.image):
        return None
    assert config.data is not None
    if config.images is not None:
        return ImageStore(_find(config.images, data_root))
    path = _find(config.data, data_root)
    return ImageStore(image_place(path if path.is_dir() else path.parent))


def _label_words(config: TaskConfig, columns: Columns, rows: Sequence[Row], notes: list[str]) -> dict[str, str]:
    """Label -> word in a fixed order: the user's, else sorted (numbers by value)."""
    if columns.label is None:
        if config.label_words is not None:
            raise UserError(
                "`label_words` belong to a classification task; this one writes texts.",
                "Name the label column: `label: COLUMN`.",
            )
        return {}
    if config.label_words is not None:
        if len(config.label_words) < 2:
            raise UserError(
                f"a classification task needs at least two labels; label_words has {list(config.label_words)}."
            )
        return dict(config.label_words)
    values = [row.values.get(columns.label) for row in rows]
    classes = classes_of(values)
    labels = classes.labels
    if len(labels) < 2:
        problem = next((text for value in values if (text := label_problem(value)) is not None), None)
        if problem is not None:
            raise UserError(f"{rows[0].where}: the label in column {columns.label!r} {problem}.")
        raise UserError(
            f"column {columns.label!r} has {f'one label ({labels[0]})' if labels else 'no label'}; two are needed.",
            f"Another column? {NAME_ANSWER}",
        )
    number = number_to_predict(labels, len(values))
    if number is not None:
        raise UserError(
            f"column {columns.label!r} {number}, and DollarTune chooses among classes.",
            "Write a column of classes (low, middle, high) beside it and name it as the label, take another column, or list the "
            "values in `label_words` where they are classes all the same.",
        )
    if len(labels) > MOST_CLASSES:
        raise UserError(
            f"column {columns.label!r} has {len(labels)} different values: is it a label?",
            "For texts to write, use `target:` instead of `label:`.",
        )
    notes += classes.notes
    return {label: label for label in labels}


def _by_split_column(config: TaskConfig, rows: list[Row], notes: list[str]) -> Rows:
    """The rows of one file by the column that says their split, where there is one; else all of them to be cut.

    No name is asked for (`split`, `set`, `Usage`): nothing but a split is called `train` in some rows and `test` in the others.
    """
    # Before the split column is looked for: an empty row says no split.
    rows = without_empty(rows, notes)
    asked = {
        *(config.label, config.target, config.references, config.conversation, config.group, config.image),
        *(config.text if isinstance(config.text, list) else [config.text]),
        *(
            name
            for prompt in (config.prompt, *(config.extra_prompts or ()))
            if prompt
            for name in Template(prompt).columns
        ),
    }
    for name in dict.fromkeys(name for row in rows[:1] for name in row.values if name not in asked):
        values = [row.values.get(name) for row in rows]
        splits = [SPLIT_NAMES.get(value.strip().lower()) if isinstance(value, str) else None for value in values]
        if None in splits or "train" not in splits or len(set(splits)) < 2:
            continue
        by_split: Rows = {}
        for row, split in zip(rows, splits, strict=True):
            assert split is not None
            kept = {key: value for key, value in row.values.items() if key != name}
            by_split.setdefault(split, []).append(Row(kept, row.where))
        counts = ", ".join(f"{len(of_split)} {split}" for split, of_split in by_split.items())
        notes.append(f"column {name!r} says the split of each row: {counts}")
        return by_split
    return {"train": rows}


def _leave_out_unlabelled(config: TaskConfig, columns: Columns, rows: Rows, notes: list[str]) -> None:
    """Leaves out a folder's validation or test file that has no answers at all, as competitions publish theirs.

    Raises:
        UserError: the study names the file itself.
    """
    for split in ("validation", "test") if columns.conversation is None else ():
        if not rows.get(split) or not all(is_no_label(row.values.get(columns.answer)) for row in rows[split]):
            # Withheld labels of the hub are -1 throughout.
            minus = all(label_text(row.values.get(columns.answer)) == "-1" for row in rows.get(split, ()))
            if not rows.get(split) or not minus or columns.label is None:
                continue
        source = rows[split][0].where.split(",")[0]
        why = f"{source} has no answers (column {columns.answer!r} is empty or missing in all {len(rows[split])} rows)"
        if getattr(config, split) is not None:
            raise UserError(
                f"{why}, so nothing can be scored on it.",
                f"Take `{split}:` out of the task; {split} rows are then cut from the others. For its answers: "
                f"dollartune predict ADAPTER {getattr(config, split)}",
            )
        notes.append(f"{why}: it is left out, and {split} rows are cut from the others")
        del rows[split]
