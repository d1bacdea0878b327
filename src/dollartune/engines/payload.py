"""What a machine without the driver's disk needs to do a cohort: rows instead of paths, the backbone's files as bytes.

A row of a text task is its columns. A row of an image task brings its picture along. A task goes without its reader of
rows, because the driver cuts the splits once for all machines.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from dollartune.backbones.embedded import embedded_names
from dollartune.backbones.locate import resolve
from dollartune.config import BackboneSettings
from dollartune.errors import UserError
from dollartune.tasks.base import Example, SplitName, Splits, Task
from dollartune.tasks.images import ImageBytes, ImageFile
from dollartune.tasks.mixture import Mixture

_SETTINGS = (".json", ".txt", ".model", ".jinja", ".tiktoken", ".spm", ".vocab", ".merges", ".py")
_WEIGHTS = ".safetensors"
_OLDER_WEIGHTS = "pytorch_model"


def _stay_with_the_driver() -> Mapping[SplitName, Sequence[Example]]:
    raise RuntimeError("a task's rows stay with the driver of the study; machines get the splits that they need")


def packed_task(task: Task) -> Task:
    """The task without its rows, and a mixture's tasks without theirs."""
    if isinstance(task, Mixture):
        parts = tuple(packed_task(part) for part in task.parts)
        held_out = tuple(packed_task(part) for part in task.held_out)
        return replace(task, load=_stay_with_the_driver, parts=parts, held_out=held_out)
    return replace(task, load=_stay_with_the_driver)


def packed_splits(splits: Splits) -> Splits:
    """The same rows, with pictures in place of the paths of pictures."""
    return Splits(*(tuple(_packed_row(row) for row in rows) for rows in (splits.train, splits.validation, splits.test)))


def _packed_row(row: Example) -> Example:
    if not any(callable(value) for value in row.fields.values()):
        return row
    return replace(row, fields={name: _packed_value(value) for name, value in row.fields.items()})


def _packed_value(value: Any) -> Any:
    if isinstance(value, ImageFile):
        return ImageBytes(value.name, value.read_bytes())
    return value() if callable(value) else value


def backbone_files(wanted: BackboneSettings) -> tuple[dict[str, Path], str | None]:
    """The files that loading a backbone reads, by name; none for an embedded one, which every installation has.

    A hub id is downloaded here, once, unless it lies in this machine's cache.

    Returns:
        the files, and the commit on the hub, if they are from there.

    Raises:
        UserError: the hub does not have it, or it has no config.json.
    """
    if wanted.name in embedded_names():
        return {}, None
    folder, revision = Path(resolve(wanted.name)).expanduser(), None  # a GGUF file is sent unpacked
    if not folder.is_dir():
        folder = _snapshot(wanted)
        revision = folder.name
    files = {path.name: path for path in sorted(folder.iterdir()) if path.is_file() and _is_read(path.name, wanted)}
    if any(name.endswith(_WEIGHTS) for name in files):
        files = {name: path for name, path in files.items() if not name.startswith(_OLDER_WEIGHTS)}
    if "config.json" not in files:
        raise UserError(
            f"backbone {wanted.name!r} has no config.json in {folder}.",
            hint="Give a hub id, a directory with a config.json, or an embedded name.",
        )
    return files, revision


def _is_read(name: str, wanted: BackboneSettings) -> bool:
    if name.endswith(".py"):
        return wanted.trust_remote_code
    if name.endswith(_WEIGHTS) or name.startswith(_OLDER_WEIGHTS):
        return wanted.random_weights_seed is None
    return name.endswith(_SETTINGS)


def _snapshot(wanted: BackboneSettings) -> Path:
    from huggingface_hub import HfApi, snapshot_download

    hub_id = resolve(wanted.name)
    patterns = [f"*{ending}" for ending in _SETTINGS] + [f"*{_WEIGHTS}"]
    try:
        try:
            names = HfApi().list_repo_files(hub_id)
            if not any("/" not in name and name.endswith(_WEIGHTS) for name in names):
                patterns.append(f"{_OLDER_WEIGHTS}*")
        except OSError:  # no network: what lies in the cache has to do
            patterns.append(f"{_OLDER_WEIGHTS}*")
        return Path(snapshot_download(hub_id, allow_patterns=patterns))
    except (OSError, ValueError) as error:
        first = str(error).strip().splitlines()[0]
        raise UserError(
            f"backbone {wanted.name!r} cannot be read, so it cannot be sent to the cluster: {first}"
        ) from None


def unpack_files(contents: Mapping[str, Any], folder: Path) -> None:
    """Writes a backbone's files on the machine that needs them. The folder appears whole, or not at all.

    Args:
        contents: name -> content, as bytes or an array of bytes.
        folder: several processes of a machine may write the same one; the first one's stays.
    """
    import shutil
    import tempfile

    if folder.is_dir():
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
    for name, content in contents.items():
        (temporary / name).write_bytes(memoryview(content))
    try:
        temporary.rename(folder)
    except OSError:
        if not folder.is_dir():
            raise
        shutil.rmtree(temporary, ignore_errors=True)
