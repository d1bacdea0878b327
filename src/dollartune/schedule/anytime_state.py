"""What the anytime scheduler has decided and seen: its runs, what came of them, and the state that lies on disk."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

# Not for types alone: the state file is read by these annotations.
from dollartune.schedule.first_settings import Setting  # noqa: TC001
from dollartune.schedule.rungs import RungsState  # noqa: TC001
from dollartune.schedule.scheduler import AccountPart  # noqa: TC001

if TYPE_CHECKING:
    from dollartune.trials.record import TrialRecord

Stage = Literal["probe", "early", "main", "longer", "setting", "rung", "seed", "average"]


@dataclass(frozen=True)
class Run:
    """A search trial that was decided."""

    stage: Stage
    setting: Setting
    seed: int
    steps: int | None
    """Optimizer steps; None where it is solved."""
    why: str
    limit_seconds: float | None = None
    """What it may take; None: all that is left."""
    length: Literal["settings", "money", "at_most"] = "settings"
    """What decides how many steps there are (`trials.Trial.length`)."""
    averaged_with: str | None = None
    """The trial with whose adapter it is averaged in the end, once it has trained on the validation rows too."""


@dataclass(frozen=True)
class RunOutcome:
    """What the record of a run says."""

    score: float | None
    """On the validation rows; None where it failed or was ended as hopeless."""
    standard_error: float
    seconds: float
    training_seconds: float
    steps: int
    best_step: int
    loss: float | None
    """The best validation loss on the way."""
    curve: tuple[tuple[int, float], ...]
    """(step, validation loss)."""
    stopped: str
    rows: int
    """Training rows."""
    parameters: int
    """Of the backbone."""
    evaluated: bool
    """Whether on the test rows."""
    test_score: float | None
    test_rows: int
    seconds_per_row: float
    """Of evaluating and writing, per validation row."""
    error: str
    impossible: bool
    """Whether it failed for what its method takes, in memory or when it is served: another rate of it would too."""
    rows_share: float = 1.0
    """Of the training rows, where it was solved on a part of them."""
    fewer_rows: str = ""
    """That part in words, where its time ended before the rows that its setting names."""

    @property
    def last_gain(self) -> float:
        """Share of its steps after which its loss was lowest: 1 where it was still getting better when it ended."""
        # Not the step of what was kept: an average of the last states is kept for another reason.
        lowest = min(self.curve, key=lambda at: at[1])[0] if self.curve else self.best_step
        return lowest / max(1, self.steps)

    @classmethod
    def of(cls, record: TrialRecord) -> RunOutcome:
        training, validation = record.training, record.validation
        usable = record.status != "failed" and record.stopped != "pruned"
        history = () if training is None else training.history
        return cls(
            score=record.validation_score if usable else None,
            standard_error=0.0 if validation is None else validation.standard_error,
            seconds=record.cost.seconds,
            training_seconds=0.0 if training is None else training.seconds,
            steps=0 if training is None else training.steps,
            best_step=0 if training is None else training.best_step,
            loss=None if training is None else training.best_validation_loss,
            curve=tuple((point.step, point.validation_loss) for point in history if point.validation_loss is not None),
            stopped=record.stopped or "",
            rows=record.data.train or 0,
            parameters=record.parameters.total,
            evaluated=record.status == "done",
            test_score=None if record.test is None else record.test.score,
            test_rows=0 if record.test is None else record.test.examples,
            seconds_per_row=after_training(record) / max(1, 0 if validation is None else validation.examples),
            error="" if record.error is None else record.error.message,
            impossible=record.error is not None and record.error.kind in ("out_of_memory", "limit"),
            rows_share=record.rows_share,
            fewer_rows=record.fewer_rows,
        )


@dataclass
class AnytimeState:
    """What has been decided and seen, on disk."""

    account: AccountPart | None = None
    runs: list[Run] = field(default_factory=list)
    outcomes: dict[str, RunOutcome] = field(default_factory=dict)
    """By trial."""
    test_rows: int = 0
    """That there are."""
    seconds_per_test_row: float = 0.0
    seconds_per_row: float = 0.0
    """Of a validation row, forwards, where that was measured first."""
    validation_rows: int = 0
    """That a run is scored on."""
    all_validation_rows: int = 0
    """That there are: the end is trained on all of them."""
    probe_tokens: list[int | None] = field(default_factory=list)
    """What the probe passes through the backbone, run by run (`Setting.tokens`); empty before that is decided."""
    probe_share: float = 1.0
    """Of the training rows, for those."""
    part_share: float | None = None
    """Of the training rows, where a part of them comes before those; None where they come at once."""
    tokens_share: float | None = None
    """Of the training rows, where tokens alone are counted; None before that is decided."""
    probe_tried: int = 0
    """Limits whose seconds were measured on the way to that."""
    rungs: RungsState | None = None
    """The race of further settings, once it has begun."""
    final: str | None = None
    """The trial that is handed over, once that is decided."""
    evaluated_rows: int | None = None
    """Test rows on which it is evaluated; None before that is decided."""
    refused: bool = False
    """Whether its evaluation did not come about."""
    over: bool = False
    ending: str = ""
    """Why no more was trained."""

    @classmethod
    def from_version_1(cls, values: Mapping[str, Any]) -> AnytimeState | None:
        """There was no such scheduler in 0.1."""
        return None


def after_training(record: TrialRecord) -> float:
    """Seconds of evaluating and writing."""
    return max(0.0, record.cost.seconds - (0.0 if record.training is None else record.training.seconds))
