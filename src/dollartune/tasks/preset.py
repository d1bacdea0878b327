"""A preset: a public data set as a task, with the sources' prompt and measures; one file each in `presets/`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from dollartune.errors import UserError
from dollartune.tasks.base import Example, Modality, SplitName, Task, TaskKind, Template
from dollartune.tasks.columns import Columns
from dollartune.tasks.examples import Examples, complete_splits, make_examples
from dollartune.tasks.files import read_file, split_files
from dollartune.tasks.hub import HubSource, read_hub
from dollartune.tasks.images import ImageStore, image_place
from dollartune.tasks.rows import BadRows, Row
from dollartune.tasks.splitting import SHARES

MOST_SKIPPED = 0.01  # of a hub split's rows; more means that the data set is not what the preset describes


def as_it_is(values: Mapping[str, Any]) -> Mapping[str, Any]:
    """The default `prepare`: the row unchanged."""
    return values


@dataclass(frozen=True)
class Preset:
    """Everything about a public task but its rows."""

    name: str
    kind: TaskKind
    description: str
    citation: str
    licence: str
    columns: tuple[str, ...]
    """Columns that a prompt may name; others, such as a review's star rating, are kept from the model."""
    folders: tuple[str, ...] = ()
    """Names of the local folder under the data root, in order of preference; the preset's own name comes first."""
    hub: HubSource | None = None
    prompt: str | None = None
    """The sources' wording; None for images."""
    extra_prompts: tuple[str, ...] = ()
    label_words: Mapping[str, str] = field(default_factory=dict)
    """Class label -> word to write, in label order (classification)."""
    label: str = "label"
    """Column of the class label."""
    label_values: Mapping[str, str] = field(default_factory=dict)
    """What the data writes for a label, in lower case -> the label, where they differ."""
    target: str = "target"
    """Column of the text to write (generation)."""
    references: str | None = None
    """Column with all acceptable texts as a list, where there is one."""
    merge_references: bool = False
    """On the hub, rows of validation and test with equal inputs are references of one example."""
    group: str | None = None
    """Column whose rows must stay in one split when a split has to be cut (a page, a patient)."""
    metric: str = "accuracy"
    metrics: tuple[str, ...] = ()
    modality: Modality = "text"
    max_answer_tokens: int = 8
    aliases: tuple[str, ...] = ()
    leaks: str = ""
    """What to beware of when scores are compared."""
    prepare: Callable[[Mapping[str, Any]], Mapping[str, Any]] = as_it_is
    """Brings a row of either source into our columns."""

    def task(self, data_root: Path | None = None) -> Task:
        """The preset as a task. Rows are read when they are first asked for: from `data_root`, else from the hub."""
        return Task(
            name=self.name,
            kind=self.kind,
            load=PresetRows(self, data_root),
            template=None if self.prompt is None else Template(self.prompt),
            label_words=dict(self.label_words),
            metric=self.metric,
            metrics=self.metrics,
            modality=self.modality,
            extra_templates=tuple(Template(text) for text in self.extra_prompts),
            max_answer_tokens=self.max_answer_tokens,
            description=self.description,
            source=f"{self.citation} Licence: {self.licence}",
            leaks=self.leaks,
            answer_column=self.label if self.kind == "classification" else self.target,
            group_column=self.group or "",
            references_column=self.references or "",
        )

    def local_folder(self, data_root: Path) -> Path | None:
        """The folder under `data_root` that holds this preset's splits, if there is one."""
        for name in (self.name, *self.folders):
            if (data_root / name).is_dir():
                return data_root / name
        return None


@dataclass(frozen=True)
class PresetRows:
    """Reads a preset's rows once, on demand (`Task.load`)."""

    preset: Preset
    data_root: Path | None

    def __call__(self) -> Mapping[SplitName, Sequence[Example]]:
        """Returns all rows of the three splits.

        Raises:
            UserError: the data is in neither place, or a row is malformed.
        """
        return self._rows

    @cached_property
    def _rows(self) -> Mapping[SplitName, Sequence[Example]]:
        preset = self.preset
        columns = Columns(
            preset.columns,
            label=preset.label if preset.kind == "classification" else None,
            target=preset.target if preset.kind == "generation" else None,
            references=preset.references,
            image="image" if preset.modality == "image" else None,
            group=preset.group,
        )
        folder = None if self.data_root is None else preset.local_folder(self.data_root)
        read = self._from_hub(columns) if folder is None else self._from_folder(folder, columns)
        whole = set(read) == set(SHARES)  # a source's own division stands, rows that it repeats included
        return read if whole else complete_splits(read, columns, [])

    def _from_folder(self, folder: Path, columns: Columns) -> Examples:
        bad = BadRows("stop")
        files = split_files(folder)
        if "train" not in files:
            raise UserError(
                f"{folder} has no train file.",
                "It should hold train, validation and test as .jsonl.gz (or csv, parquet).",
            )
        store = None if columns.image is None else ImageStore(image_place(folder))
        return {
            split: self._examples(split, read_file(path, bad, []), columns, store, bad) for split, path in files.items()
        }

    def _from_hub(self, columns: Columns) -> Examples:
        """Reads the hub's rows; one with a withheld label or an empty text is left out, up to one in a hundred."""
        preset = self.preset
        if preset.hub is None:
            raise UserError(
                f"the data of {preset.name} is not on the hub.",
                f"Give a folder that holds {(*preset.folders, preset.name)[0]}/train.jsonl.gz (and validation, test): "
                "--data-root FOLDER.",
            )
        by_split: Examples = {}
        for split, rows in read_hub(preset.hub).items():
            bad = BadRows("skip")
            examples = self._examples(split, rows, columns, None, bad)
            if len(bad.skipped) > len(rows) * MOST_SKIPPED:
                raise UserError(
                    f"{len(bad.skipped)} of {len(rows)} rows of {preset.hub.dataset} ({split}) are not as the preset "
                    f"{preset.name} expects them: {bad.skipped[0]}.",
                    "Did the data set change? Fix its revision, or use a local folder: --data-root FOLDER.",
                )
            # in training each text stays a row: all of them are learned
            by_split[split] = merged(examples, columns) if preset.merge_references and split != "train" else examples
        return by_split

    def _examples(
        self, split: SplitName, rows: Sequence[Row], columns: Columns, store: ImageStore | None, bad: BadRows
    ) -> list[Example]:
        """Examples with the preset's own columns only, so that no prompt shows what gives the answer away."""
        preset = self.preset
        kept = {*columns.inputs, columns.answer, columns.references, columns.group}
        split_rows: list[Row] = []
        for row in rows:
            try:
                prepared = preset.prepare(row.values)
            except KeyError as error:
                bad.report(row.where, f"column {error} is missing; the row has {sorted(row.values)}")
                continue
            values = {name: value for name, value in prepared.items() if name in kept}
            if columns.label in values:
                # BoolQ's answers are truth values, which Python writes with a capital
                values[columns.label] = preset.label_values.get(
                    str(values[columns.label]).lower(), values[columns.label]
                )
            split_rows.append(Row(values, row.where))
        return make_examples(columns, tuple(preset.label_words), split, split_rows, store, bad)


def merged(examples: Sequence[Example], columns: Columns) -> list[Example]:
    """One example per input, with every target of that input as a reference."""
    first: dict[tuple[str, ...], Example] = {}
    targets: dict[tuple[str, ...], list[str]] = {}
    for example in examples:
        key = tuple(str(example.fields[name]) for name in columns.inputs)
        first.setdefault(key, example)
        targets.setdefault(key, []).append(example.target or "")
    return [replace(first[key], references=tuple(dict.fromkeys(references))) for key, references in targets.items()]
