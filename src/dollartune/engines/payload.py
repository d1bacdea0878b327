"""What travels between a study's driver and the workers of a Ray cluster, and how it is made ready for that.

The study's folder and the backbones lie on a disk that all machines share; rows travel through Ray's object store, because
the driver has read and cut them already. A row of a text task is its columns. A row of an image task brings its picture
along.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dollartune.tasks.base import Example, SplitName, Splits, Task
from dollartune.tasks.images import ImageFile
from dollartune.tasks.mixture import Mixture
from dollartune.tasks.pictures import ImageBytes

if TYPE_CHECKING:
    from dollartune.config import StudySettings
    from dollartune.engines.base import Cohort
    from dollartune.train.progress import Progress
    from dollartune.trials.record import Cost


@dataclass(frozen=True)
class Job:
    """A cohort for a worker: the argument of its call."""

    identifier: str
    cohort: Cohort
    settings: StudySettings
    """The study's, with whole paths, and smaller micro-batches after a machine's memory ran out."""
    prunes: bool
    """Ask the driver after each validation whether a trial should go on."""
    measures: bool
    """Only measure what the cohort's first trial costs."""
    folder: Path
    """Of the study's trials: checkpoints and adapters are written straight into it."""
    shared: tuple[Path, ...]
    """What must be seen under the same path on every machine."""
    checkpoint_seconds: float
    """Least time between two checkpoints."""
    clock: Callable[[], float]
    """What the worker's ledger reads; tests give one that is simulated."""
    recorded: frozenset[str]
    """Trials of the cohort that have their record: they are not done again."""
    spent_before: Mapping[str, Cost]
    """What was booked for each trial at earlier workers."""


@dataclass(frozen=True)
class TrialView:
    """How far a trial is: what a progress view and a tracker need of its `TrialState`."""

    name: str
    done: bool
    epoch: float
    total_steps: int
    progress: Progress


def whole_paths(settings: StudySettings) -> StudySettings:
    """The same settings for a process that was started in another folder."""

    def whole(path: str | None) -> str | None:
        # A name of the hub is no path here, and stays.
        return str(Path(path).expanduser().resolve()) if path is not None and Path(path).expanduser().exists() else path

    backbones = tuple(one.model_copy(update={"name": whole(one.name)}) for one in settings.backbones)
    evaluation = settings.evaluation.model_copy(update={"general_text": whole(settings.evaluation.general_text)})
    changes = {"backbones": backbones, "evaluation": evaluation, "begin_with": whole(settings.begin_with)}
    return settings.model_copy(update={**changes, "output": str(Path(settings.output).resolve())})


def shared_paths(settings: StudySettings) -> tuple[Path, ...]:
    """Files and folders outside the package that training reads, of settings with whole paths."""
    named = [*(one.name for one in settings.backbones), settings.begin_with, settings.evaluation.general_text]
    return tuple(Path(name) for name in named if name is not None and Path(name).is_absolute())


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
    return value() if callable(value) and not isinstance(value, ImageBytes) else value
