"""Data sets of the Hugging Face hub, and folders on disk in a form that its `datasets` library reads."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dollartune.errors import UserError, nearest
from dollartune.hub_access import without_waiting
from dollartune.tasks.pictures import DAMAGE, as_rgb
from dollartune.tasks.rows import SPLIT_NAMES, Row

if TYPE_CHECKING:
    from dollartune.tasks.base import SplitName


@dataclass(frozen=True)
class HubSource:
    """Where a task's rows are on the hub, and how its columns are called there."""

    dataset: str
    """Hub id such as `nyu-mll/glue`, or a local folder."""
    config: str | None = None
    """Configuration ("subset") of the data set, for example `cola`."""
    splits: Mapping[SplitName, str] = field(default_factory=dict)
    """Our split -> the hub's split. Empty: by the usual names."""
    columns: Mapping[str, str] = field(default_factory=dict)
    """Our column -> the hub's column, where they differ."""
    revision: str | None = None
    """Branch, tag or commit; `refs/convert/parquet` for data sets that came with a loading script."""
    data_dir: str | None = None
    """Folder inside the data set's repository."""


@dataclass(frozen=True)
class HubImage:
    """Reads one picture of a `datasets.Dataset` when it is called."""

    dataset: Any
    index: int
    column: str

    def __call__(self) -> Any:
        """Returns a `PIL.Image` in RGB, upright, 8 bits.

        Raises:
            UserError: the picture is damaged, or there is none.
        """
        where = f"row {self.index + 1}, column {self.column!r}"
        try:
            picture = self.dataset[self.index][self.column]
        except DAMAGE as error:
            raise UserError(f"{where} is not a readable image: {error}.") from error
        if picture is None:
            raise UserError(f"{where} holds no picture.")
        return as_rgb(picture)


def read_hub(source: HubSource) -> dict[SplitName, list[Row]]:
    """Reads every split named in `source`, under our split and column names; class numbers become class names.

    Raises:
        UserError: the data set, configuration, split or column is not there, or the hub cannot be reached.
    """
    splits = _load(source)
    wanted = dict(source.splits) or _usual_splits(source, splits)
    rows: dict[SplitName, list[Row]] = {}
    for ours, theirs in wanted.items():
        if theirs not in splits:
            raise UserError(
                f"{source.dataset} has no split {theirs!r}; it has {sorted(splits)}.{nearest(theirs, splits)}"
            )
        rows[ours] = _rows(source, theirs, splits[theirs])
    return rows


def _load(source: HubSource) -> Mapping[str, Any]:
    """Returns split name -> `datasets.Dataset`."""
    import datasets

    folder = Path(source.dataset)
    try:
        # `save_to_disk` writes one of the two; `load_dataset` would read such a folder as raw files.
        if (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file():
            loaded = datasets.load_from_disk(source.dataset)
        else:
            with without_waiting(source.dataset):
                loaded = datasets.load_dataset(
                    source.dataset, source.config, revision=source.revision, data_dir=source.data_dir
                )
    except Exception as error:  # the library raises a dozen kinds; each means that these rows cannot be had
        name = source.dataset + (f" ({source.config})" if source.config else "")
        # The library's messages run over pages; their first line says what is wrong.
        reason = str(error).strip().split("\n")[0]
        raise UserError(
            f"cannot load the data set {name}: {type(error).__name__}: {reason}",
            "Check the id and the network, or give a folder with train, validation and test files: --data-root FOLDER.",
        ) from error
    return loaded if isinstance(loaded, Mapping) else {"train": loaded}


def _usual_splits(source: HubSource, splits: Mapping[str, Any]) -> dict[SplitName, str]:
    by_split: dict[SplitName, str] = {}
    for name in splits:
        split = SPLIT_NAMES.get(name)
        if split is not None and split not in by_split:
            by_split[split] = name
    # A data set with one split, whatever its name, is cut by us.
    if not by_split and len(splits) == 1:
        by_split["train"] = next(iter(splits))
    if "train" not in by_split:
        raise UserError(f"{source.dataset} has no split called train; it has {sorted(splits)}.")
    return by_split


def _rows(source: HubSource, split: str, dataset: Any) -> list[Row]:
    import datasets

    for name in source.columns.values():
        if name not in dataset.column_names:
            raise UserError(
                f"{source.dataset}, split {split}, has no column {name!r}; "
                f"it has {dataset.column_names}.{nearest(name, dataset.column_names)}"
            )
    renamed = {name: ours for ours, name in source.columns.items()}
    images = [name for name, feature in dataset.features.items() if isinstance(feature, datasets.Image)]
    # The hub stores class numbers; label words and users speak of names.
    classes = {
        name: feature.names for name, feature in dataset.features.items() if isinstance(feature, datasets.ClassLabel)
    }
    # Reading a row decodes its pictures: they are left out here and loaded one by one when they are needed.
    plain = dataset.remove_columns(images)
    rows = []
    for index in range(len(dataset)):
        record = plain[index] if plain.column_names else {}
        values = {renamed.get(name, name): _named(value, classes.get(name)) for name, value in record.items()}
        values |= {renamed.get(name, name): HubImage(dataset, index, name) for name in images}
        rows.append(Row(values, f"{source.dataset}, {split}, row {index + 1}"))
    return rows


def _named(value: Any, names: list[str] | None) -> Any:
    """A class number as its name; -1 (the hub's sign for a withheld label) as None."""
    if names is None or value is None:
        return value
    # GLUE and others publish their test rows so.
    return names[value] if value >= 0 else None


def fetched(source: HubSource) -> bool:
    """Whether a data set was fetched before, so that reading it needs no network."""
    home = os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface"
    cache = os.environ.get("HF_DATASETS_CACHE") or Path(home) / "datasets"
    # The library's own naming of its folders; a wrong guess costs a look at the network.
    return Path(source.dataset).is_dir() or (Path(cache) / source.dataset.replace("/", "___")).is_dir()
