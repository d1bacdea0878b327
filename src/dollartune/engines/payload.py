"""What travels between the driver of a study and its workers on other machines.

A worker is given settings with whole paths, tasks without rows, rows with pictures; it answers calls, and says in between
what it has done and spent.

The study's folder and the backbones lie on a disk that all machines share; rows travel through Ray's object store, because
the driver has read and cut them already. A row of a text task is its columns. A row of an image task brings its picture
along.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dollartune.tasks.base import Example, SplitName, Splits, Task
from dollartune.tasks.images import ImageBytes, ImageFile
from dollartune.tasks.mixture import Mixture

if TYPE_CHECKING:
    from dollartune.config import StudySettings
    from dollartune.engines.base import Cohort
    from dollartune.engines.worker_account import Spent
    from dollartune.planner.trial_cost import TrialCost
    from dollartune.train.progress import Progress
    from dollartune.train.settings import TrainingSettings
    from dollartune.train.trial import TrialState
    from dollartune.trials.record import TrialRecord


@dataclass(frozen=True)
class Payload:
    """What every worker of a study gets once."""

    settings: StudySettings
    """With whole paths: see `whole_paths`."""
    tasks: tuple[Task, ...]
    """Without rows: see `packed_task`."""
    places: int
    """Places in each input that stay free for virtual tokens."""
    folder: Path
    """Of the study's trials: checkpoints and adapters are written straight into it."""
    shared: tuple[Path, ...]
    """What must be seen under the same path on every machine."""
    limited: bool
    """Whether there is a budget."""
    per_method: bool
    """Whether it holds for each method alone."""
    checkpoint_seconds: float
    """Least time between two checkpoints."""
    report_seconds: float
    """Between two reports of what was spent."""
    clock: Callable[[], float]
    """What a worker's ledger reads; tests give one of their own."""


@dataclass(frozen=True)
class Job:
    """One attempt at a cohort."""

    identifier: str
    """Of the attempt: what a worker says is read as long as this attempt is the one that counts."""
    cohort: Cohort
    training: TrainingSettings
    """The study's, or with smaller micro-batches after a machine's memory ran out."""
    splits: Any
    """Reference to the rows in Ray's object store."""
    price_per_hour: float
    """Of the part of the machine that the worker occupies."""
    limit_seconds: float
    """What loading may spend; afterwards a time limit takes its place."""
    recorded: frozenset[str] = frozenset()
    """Trials of the cohort that have their record: they are not done again."""
    spent_before: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    """Trial -> seconds and dollars that earlier attempts have booked for it."""
    prunes: bool = False
    """Ask the driver after each validation whether a trial should go on."""


# What a worker answers


@dataclass(frozen=True)
class Started:
    """A worker has started."""

    node: str
    """Ray's name of its machine."""
    process: int
    missing: Path | None
    """What should lie on a disk that all machines share and is not seen from here; None where all is."""


@dataclass(frozen=True)
class Loaded:
    """What a cohort's evaluation costs on this worker, in its own seconds. See `engines.base.EvaluationCost`."""

    seconds_per_row: float | None
    seconds_per_validation_row: float


@dataclass(frozen=True)
class Ended:
    """An attempt has ended, with a record for each trial."""

    spent: Spent
    trial_cost: TrialCost | None = None
    """Where that was all that was asked for."""
    unpaid: str | None = None
    """Why it could not be measured: the money was spent."""


# What it says in between


@dataclass(frozen=True)
class Event:
    """Something that happened in one attempt at a cohort."""

    job: str
    spent: Spent
    """Everything that the attempt has spent until then."""


@dataclass(frozen=True)
class Seen:
    """How far a trial is: what a progress view and a tracker need of its `TrialState`."""

    name: str
    done: bool
    epoch: float
    total_steps: int
    progress: Progress

    @classmethod
    def of(cls, state: TrialState) -> Seen:
        """A copy: training goes on while it travels."""
        progress = copy.copy(state.progress)
        progress.history = list(progress.history)
        return cls(state.name, state.done, state.epoch, state.total_steps, progress)


@dataclass(frozen=True)
class Report(Event):
    """Said at regular times, and after each checkpoint."""

    states: tuple[Seen, ...] = ()
    evaluating: str | None = None
    """The trial that is being evaluated."""
    saved: bool = False
    """A checkpoint has been written: what was spent until now is not lost."""


@dataclass(frozen=True)
class Recorded(Event):
    """A trial has its record; its adapter lies in the study's folder."""

    trial: str
    record: TrialRecord
    predictions: tuple[Any, ...] = ()


@dataclass(frozen=True)
class Question(Event):
    """A trial of a search has a validation loss: should it end now?"""

    trial: str
    step: int
    loss: float
    answers: Any = field(repr=False)
    """A queue of the worker's, into which the driver puts True or False."""


# How it is made ready


def whole_paths(settings: StudySettings) -> StudySettings:
    """The same settings for a process that was started in another folder."""

    def whole(path: str | None) -> str | None:
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
    return value() if callable(value) else value
