"""A preset: a public data set as a task, with the sources' prompt and measures. One preset is one file in `presets/`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from dollartune.errors import UserError, unknown_name
from dollartune.tasks.base import Example, Modality, SplitName, Task, TaskKind, Template
from dollartune.tasks.files import read_file, split_files
from dollartune.tasks.hub import HubSource, read_hub
from dollartune.tasks.images import ImageStore
from dollartune.tasks.labels import match_label
from dollartune.tasks.rows import BadRows, Row
from dollartune.tasks.splitting import input_key, split_rows

SPLITS: tuple[SplitName, ...] = ("train", "validation", "test")
LARGEST_CARVED = 2500  # rows; validation and test are capped there anyway (reference 001, A.2)


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
        folder = None if self.data_root is None else self.preset.local_folder(self.data_root)
        rows = self._from_folder(folder) if folder is not None else self._from_hub()
        return _complete(self.preset, rows)

    def _from_folder(self, folder: Path) -> dict[SplitName, list[Example]]:
        bad, notes = BadRows("stop"), list[str]()
        files = split_files(folder)
        if "train" not in files:
            raise UserError(f"{folder} has no train file.", "It should hold train, validation and test as .jsonl.gz (or csv, parquet).")
        store = ImageStore(_image_place(folder)) if self.preset.modality == "image" else None
        return {
            split: _examples(self.preset, split, read_file(path, bad, notes), bad, store) for split, path in files.items()
        }

    def _from_hub(self) -> dict[SplitName, list[Example]]:
        preset = self.preset
        if preset.hub is None:
            folders = " or ".join(dict.fromkeys((preset.name, *preset.folders)))
            raise UserError(
                f"the data of {preset.name} is not on the hub.",
                f"Give a folder that holds {folders}/train.jsonl.gz (and validation, test): --data-root FOLDER.",
            )
        bad = BadRows("stop")
        found: dict[SplitName, list[Example]] = {}
        for split, rows in read_hub(preset.hub).items():
            labelled = [row for row in rows if preset.kind == "generation" or preset.prepare(row.values).get(preset.label) is not None]
            examples = _examples(preset, split, labelled, bad, None)
            merge = preset.merge_references and split != "train"
            found[split] = _merged(preset, split, examples) if merge else examples
        return found


def _image_place(folder: Path) -> Path:
    return next((folder / name for name in ("images.zip", "images") if (folder / name).exists()), folder)


def _examples(preset: Preset, split: SplitName, rows: Sequence[Row], bad: BadRows, store: ImageStore | None) -> list[Example]:
    examples: list[Example] = []
    for row in rows:
        values = preset.prepare(row.values)
        missing = [name for name in preset.columns if values.get(name) is None]
        if missing:
            bad.report(row.where, f"column {missing[0]!r} is missing; the row has {sorted(values)}")
            continue
        fields = {name: values[name] for name in preset.columns}
        if store is not None:
            try:
                fields["image"] = store.find(str(fields["image"]))
            except KeyError as error:
                bad.report(row.where, str(error.args[0]))
                continue
        if preset.group is not None and preset.group in values:
            fields.setdefault(preset.group, values[preset.group])
        name = f"{split}/{len(examples)}"
        if preset.kind == "classification":
            label = _label(preset, values, row, bad)
            if label is not None:
                examples.append(Example(name, fields, label=label))
        else:
            target = values.get(preset.target)
            if not isinstance(target, str) or not target.strip():
                bad.report(row.where, f"column {preset.target!r} holds no text")
                continue
            references = values.get(preset.references) if preset.references else None
            examples.append(Example(name, fields, target=target, references=tuple(references or (target,))))
    return examples


def _label(preset: Preset, values: Mapping[str, Any], row: Row, bad: BadRows) -> str | None:
    value = values.get(preset.label)
    if value is None:
        bad.report(row.where, f"column {preset.label!r} is missing; the row has {sorted(values)}")
        return None
    mapped = preset.label_values.get(str(value).strip().lower(), value)
    label = match_label(mapped, preset.label_words)
    if label is None:
        bad.report(row.where, str(unknown_name("label", str(value), preset.label_words)).rstrip("."))
    return label


def _merged(preset: Preset, split: SplitName, examples: Sequence[Example]) -> list[Example]:
    """One example per input, with every target of that input as a reference."""
    targets: dict[tuple[str, ...], list[str]] = {}
    first: dict[tuple[str, ...], Example] = {}
    for example in examples:
        key = tuple(str(example.fields[name]) for name in preset.columns)
        first.setdefault(key, example)
        targets.setdefault(key, []).append(example.target or "")
    return [
        Example(f"{split}/{number}", first[key].fields, target=found[0], references=tuple(dict.fromkeys(found)))
        for number, (key, found) in enumerate(targets.items())
    ]


def _complete(preset: Preset, rows: dict[SplitName, list[Example]]) -> Mapping[SplitName, Sequence[Example]]:
    """Cuts the splits that the source lacks: test from half of validation, validation from the end of training.

    BoolQ has a labelled development split only, and reference 000 tuned on 74 %, validated on 13 % and tested on 13 %
    of 12,697 rows, which is that development split halved; CoLA's test labels are withheld, so its development split
    is the test and the validation rows come from training.
    """

    def group(example: Example) -> str:
        names = (preset.group,) if preset.group is not None and preset.group in example.fields else preset.columns
        return input_key(str(example.fields[name]) for name in names)

    def stratum(example: Example) -> str:
        return example.label or ""

    if set(rows) == {"train"}:
        cut = split_rows(rows["train"], group, stratum)
    elif "test" not in rows:
        halves = split_rows(rows["validation"], group, stratum, {"validation": 0.5, "test": 0.5})
        cut = {"train": rows["train"], **halves}
    elif "validation" not in rows:
        share = min(0.15, LARGEST_CARVED / len(rows["train"]))
        parts = split_rows(rows["train"], group, stratum, {"train": 1 - share, "validation": share})
        cut = {**parts, "test": rows["test"]}
    else:
        return rows
    return {
        split: [Example(f"{split}/{n}", e.fields, e.label, e.target, e.references) for n, e in enumerate(cut[split])]
        for split in SPLITS
    }
