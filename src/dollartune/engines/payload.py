"""What travels between a study's driver and the workers of a Ray cluster, and how it is made ready for that.

    driver                                            worker
    Payload  once, through Ray's object store
    Job      the argument of a call           ->      load, train, evaluate a cohort
             terms            <-  Began       <-      which machine, which attempt
             time limit       <-  Loaded      <-      what evaluating costs
             whether to go on <-  Validated   <-      a trial of a search has a validation loss
                                  Report, Recorded    what was done and spent

The study's folder and the backbones lie on a disk that all machines share; rows travel through Ray's object store, because
the driver has read and cut them already. A row of a text task is its columns. A row of an image task brings its picture
along.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dollartune.tasks.base import Example, SplitName, Splits, Task
from dollartune.tasks.images import ImageBytes, ImageFile
from dollartune.tasks.mixture import Mixture

if TYPE_CHECKING:
    from dollartune.budget.journal import Piece
    from dollartune.config import StudySettings
    from dollartune.engines.base import Cohort
    from dollartune.evaluate.evaluation import Prediction
    from dollartune.train.progress import Progress
    from dollartune.train.settings import TrainingSettings
    from dollartune.train.trial import TrialState
    from dollartune.trials.record import Cost, TrialRecord


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
    per_method: bool
    """Whether the budget holds for each method alone."""
    checkpoint_seconds: float
    """Least time between two checkpoints."""
    report_seconds: float
    """Between two reports of what was spent."""
    clock: Callable[[], float]
    """What a worker's ledger reads; tests give one that is simulated."""


@dataclass(frozen=True)
class Job:
    """A cohort for a worker. Ray may attempt it several times, so nothing in it grows old."""

    identifier: str
    cohort: Cohort
    training: TrainingSettings
    """The study's, or with smaller micro-batches after a machine's memory ran out."""
    splits: Any
    """Reference to the rows in Ray's object store."""
    prunes: bool
    """Ask the driver after each validation whether a trial should go on."""
    measures: bool
    """Only measure what the cohort's first trial costs."""


@dataclass(frozen=True)
class Terms:
    """What holds for an attempt that begins now."""

    price_per_hour: float
    """Of the part of the machine that the worker occupies."""
    limit_seconds: float | None
    """What loading may spend; afterwards a time limit takes its place. None without a budget."""
    recorded: frozenset[str]
    """Trials of the cohort that have their record: they are not done again."""
    spent_before: Mapping[str, Cost]
    """What earlier attempts have booked for each trial."""


# What a worker says


@dataclass(frozen=True)
class Message:
    """Something that happened in one attempt."""

    job: str
    attempt: str
    """The newest one counts: what an earlier one still says, from a machine that was thought lost, is passed over."""
    spent: Sequence[Piece]
    """Since the message before."""
    failed: frozenset[str]
    """Bookings that ended with an error, since the attempt began."""


@dataclass(frozen=True)
class Began(Message):
    """An attempt has begun. It is answered with its `Terms`."""

    node: str
    """Ray's name of its machine."""
    missing: Path | None
    """What should lie on a disk that all machines share and is not seen from here; None where all is."""


@dataclass(frozen=True)
class Loaded(Message):
    """What evaluating trials of the cohort costs on this worker, in its own seconds; see `engines.base.EvaluationCost`.
    It is answered with their `TimeLimit`, or with the `BudgetSpent` to raise."""

    trials: tuple[str, ...]
    seconds_per_row: float | None
    seconds_per_validation_row: float


@dataclass(frozen=True)
class Validated(Message):
    """A trial of a search has a validation loss. It is answered with whether the trial should end now."""

    trial: str
    step: int
    loss: float


@dataclass(frozen=True)
class TrialView:
    """How far a trial is: what a progress view and a tracker need of its `TrialState`."""

    name: str
    done: bool
    epoch: float
    total_steps: int
    progress: Progress

    @classmethod
    def of(cls, state: TrialState) -> TrialView:
        """A copy: training goes on while it travels."""
        progress = copy.copy(state.progress)
        progress.history = list(progress.history)
        return cls(state.name, state.done, state.epoch, state.total_steps, progress)


@dataclass(frozen=True)
class Report(Message):
    """Said at regular times, after each checkpoint, and at the end."""

    states: tuple[TrialView, ...] = ()
    evaluating: str | None = None
    """The trial that is being evaluated."""
    saved: bool = False
    """A checkpoint has been written: what was spent until now is not lost."""


@dataclass(frozen=True)
class Recorded(Message):
    """A trial has its record; its adapter lies in the study's folder."""

    trial: str
    record: TrialRecord
    predictions: tuple[Prediction, ...]


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
