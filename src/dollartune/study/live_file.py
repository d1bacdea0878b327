"""What is running now, in a file beside the records: `dollartune view` reads it while another process writes it.

progress.json    when it was written, the trials in training with their losses so far, what is being evaluated
requests/stop-ID left by the page: the trial ends at its next validation, keeps its best state and is evaluated
requests/extend-ID.json  so many steps more of a finished trial, once the study's own trials are done
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NotRequired, TypedDict

from dollartune.engines.display import Display, TrialInTraining
from dollartune.files import write_atomically

if TYPE_CHECKING:
    from dollartune.budget.ledger import Ledger
    from dollartune.train.progress import Validation
    from dollartune.trials.record import TrialRecord
    from dollartune.trials.trial import Trial

EVERY_SECONDS = 1.0
"""Between two writings: a page that asks each second shows it as live, and a write takes less than a millisecond."""
LONGEST_SILENCE = 30.0
"""Seconds without a writing after which a study is taken for dead: evaluating a trial writes none meanwhile."""
MOST_POINTS = 400
"""Of a curve; a chart shows no more."""


class Point(TypedDict):
    """Of a validation curve."""

    step: int
    epoch: float
    seconds: float
    loss: float


class TrialNow(TypedDict):
    """What a trial is doing."""

    trial: str
    task: str
    rows: int | None
    """Training rows; None: all."""
    label: str
    seed: int
    doing: Literal["tuning", "evaluating"]
    step: NotRequired[int]
    steps: NotRequired[int]
    epoch: NotRequired[float]
    curve: list[Point]


class Live(TypedDict):
    """The file."""

    at: float
    """Seconds since 1970."""
    running: bool
    total: int
    trials: list[TrialNow]


class LiveFile(Display):
    """Tells another display, and writes what runs now.

    Args:
        inner: the display that people see.
        root: the study's folder.
    """

    def __init__(self, inner: Display, root: Path) -> None:
        self.inner, self.path = inner, root / "progress.json"
        self.total = 0
        self._curves: dict[str, list[Point]] = {}
        self._running: dict[str, TrialNow] = {}
        self._written = 0.0

    @contextmanager
    def study(self, trials: Sequence[Trial], todo: Sequence[Trial], ledger: Ledger) -> Iterator[None]:
        self.total = len(trials)
        try:
            with self.inner.study(trials, todo, ledger):
                yield
        finally:
            self._running.clear()
            # Also where the study ends by an error: a page must not show it as running for ever.
            self._write(running=False)

    def note(self, text: str) -> None:
        self.inner.note(text)

    def expect(self, total: int) -> None:
        self.total = total
        self.inner.expect(total)

    def training(self, trials: Sequence[Trial], states: Sequence[TrialInTraining]) -> None:
        self.inner.training(trials, states)
        # Steps of a small model take milliseconds; the file is for eyes.
        if time.monotonic() - self._written < EVERY_SECONDS:
            return
        by_name = {trial.identifier: trial for trial in trials}
        for state in states:
            now = self._now(by_name[state.name], "tuning")
            now["step"], now["steps"], now["epoch"] = state.progress.step, state.total_steps, state.epoch
        self._write()

    def validated(self, trial: Trial, validation: Validation) -> None:
        self.inner.validated(trial, validation)
        # Of a training that diverged: JSON has no number for it, and a chart no place.
        if not math.isfinite(validation.validation_loss):
            return
        point: Point = {
            "step": validation.step,
            "epoch": validation.epoch,
            "seconds": validation.seconds,
            "loss": validation.validation_loss,
        }
        self._curves.setdefault(trial.identifier, []).append(point)

    def evaluating(self, trial: Trial) -> None:
        self.inner.evaluating(trial)
        self._now(trial, "evaluating")
        self._write()

    def recorded(self, trial: Trial, record: TrialRecord) -> None:
        self.inner.recorded(trial, record)
        self._running.pop(trial.identifier, None)
        self._curves.pop(trial.identifier, None)  # its record has it
        self._write()

    def _now(self, trial: Trial, doing: Literal["tuning", "evaluating"]) -> TrialNow:
        """Notes what a trial is doing."""
        now: TrialNow = {
            "trial": trial.identifier, "task": trial.task, "rows": trial.scale, "label": trial.label, "seed": trial.seed,
            "doing": doing, "curve": [],
        }  # fmt: skip
        self._running[trial.identifier] = now
        return now

    def _write(self, running: bool = True) -> None:
        self._written = time.monotonic()
        # The latest points of each curve: what came before is on the page already.
        for name, now in self._running.items():
            now["curve"] = self._curves.get(name, [])[-MOST_POINTS:]
        state: Live = {
            "at": time.time(), "running": running, "total": self.total, "trials": list(self._running.values()),
        }  # fmt: skip
        with suppress(OSError):  # a full disk ends no study because of what is only looked at
            write_atomically(self.path, json.dumps(state).encode(), durable=False)


def read_live(root: Path) -> Live | None:
    """What a study's process wrote last; None where none ever did."""
    try:
        content: Live = json.loads((root / "progress.json").read_text(encoding="utf8"))
    except (OSError, ValueError):
        return None
    return content


def runs_now(root: Path) -> bool:
    """Whether a process is at work on the study, as far as its file says; one that was killed has left it unchanged."""
    live = read_live(root)
    return live is not None and live["running"] and time.time() - live["at"] < LONGEST_SILENCE


def stop_request(root: Path, trial: str) -> Path:
    """The file that asks for the end of a trial."""
    return root / "requests" / f"stop-{trial}"


def ask_to_stop(root: Path, trial: str) -> None:
    """Leaves the request that a trial ends at its next validation."""
    write_atomically(stop_request(root, trial), b"", durable=False)


def ask_to_extend(root: Path, trial: str, steps: int | None) -> None:
    """Leaves the request that a finished trial is trained further (`study.extend`); None: for as many steps as it has had."""
    path = root / "requests" / f"extend-{trial}.json"
    write_atomically(path, json.dumps({"steps": steps}).encode(), durable=False)


def asked_extensions(root: Path) -> Iterator[tuple[str, int | None]]:
    """(trial, steps) of all such requests. Each is taken away when the next one is asked for: an interruption loses none."""
    for path in sorted((root / "requests").glob("extend-*.json")):
        yield path.stem.removeprefix("extend-"), json.loads(path.read_text(encoding="utf8"))["steps"]
        path.unlink(missing_ok=True)
