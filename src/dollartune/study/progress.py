"""What a person sees while a study runs: trials done, the one that is running, time left, money spent of the budget."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dollartune import format as numbers
from dollartune.engines.display import Display, TrialInTraining

if TYPE_CHECKING:
    from dollartune.budget.ledger import Ledger
    from dollartune.trials.record import TrialRecord
    from dollartune.trials.trial import Trial


class Lines(Display):
    """One line per finished trial, for logs and pipes."""

    def __init__(self) -> None:
        self.done = self.total = 0

    def note(self, text: str) -> None:
        print(f"note: {text}", flush=True)

    @contextmanager
    def study(self, trials: Sequence[Trial], todo: Sequence[Trial], ledger: Ledger) -> Iterator[None]:
        self.total, self.done = len(trials), len(trials) - len(todo)
        if self.done:
            print(f"{self.done} of {self.total} trials have their record already; going on with the rest.", flush=True)
        yield

    def expect(self, total: int) -> None:
        self.total = total

    def recorded(self, trial: Trial, record: TrialRecord) -> None:
        if record.status == "tried":
            print(f"[tried] {describe(trial, record)}", flush=True)
            return
        self.done += 1
        print(f"[{self.done}/{self.total}] {describe(trial, record)}", flush=True)


@dataclass(eq=False)
class _Running:
    """A cohort in the live view."""

    trials: set[str]
    """Those without a record."""
    now: str = "loading"
    share: float = 0.0


class LiveView(Display):
    """A live view in a terminal."""

    def __init__(self) -> None:
        self.done = self.failed = self.total = self.began_with = 0
        self.running: list[_Running] = []
        """Cohorts: one, or those that other machines train at the same time."""
        self.recent: list[str] = []

    def note(self, text: str) -> None:
        print(f"note: {text}", flush=True)

    @contextmanager
    def study(self, trials: Sequence[Trial], todo: Sequence[Trial], ledger: Ledger) -> Iterator[None]:
        from rich.live import Live

        self.total, self.done, self.ledger = len(trials), len(trials) - len(todo), ledger
        self.began_with, self.started = self.done, time.monotonic()
        # Four times a second looks live; more would only take time from training.
        with Live(self._render(), refresh_per_second=4, get_renderable=self._render):
            yield

    def training(self, trials: Sequence[Trial], states: Sequence[TrialInTraining]) -> None:
        cohort = self._cohort({trial.identifier for trial in trials})
        running = [s for s in states if not s.done] or list(states)
        cohort.share = sum(min(1.0, s.progress.step / max(1, s.total_steps)) for s in states) / len(states)
        state = running[0]
        loss = f", validation loss {state.progress.best_loss:.3f}" if math.isfinite(state.progress.best_loss) else ""
        more = f" (+{len(states) - 1} beside it)" if len(states) > 1 else ""
        name = next(t for t in trials if t.identifier == state.name)
        cohort.now = (
            f"tuning {_name(name)}{more}: epoch {state.epoch:.1f}, step {state.progress.step}/{state.total_steps}{loss}"
        )

    def evaluating(self, trial: Trial) -> None:
        self._cohort({trial.identifier}).now = f"evaluating {_name(trial)}"

    def expect(self, total: int) -> None:
        self.total = total

    def recorded(self, trial: Trial, record: TrialRecord) -> None:
        self.done += record.status != "tried"
        cohort = self._cohort({trial.identifier})
        cohort.trials.discard(trial.identifier)
        cohort.share = 0.0
        if not cohort.trials:
            self.running.remove(cohort)
        # Eight lines: with the bar and the running cohorts they fit the 24 lines of a small terminal.
        self.recent = [*self.recent[-7:], describe(trial, record)]

    def _cohort(self, trials: set[str]) -> _Running:
        for cohort in self.running:
            if cohort.trials & trials:
                return cohort
        self.running.append(_Running(trials))
        return self.running[-1]

    def _render(self) -> Any:
        from rich.console import Group
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        share = sum(cohort.share for cohort in self.running)
        made = self.done - self.began_with + share
        elapsed = time.monotonic() - self.started if hasattr(self, "started") else 0.0
        eta = (
            f"about {numbers.seconds(elapsed / made * (self.total - self.done - share))} left"
            if made > 0.05
            else "measuring"
        )
        bar = Table.grid(padding=(0, 1))
        bar.add_row(
            ProgressBar(total=max(1, self.total), completed=self.done + share, width=32),
            f"{self.done}/{self.total} trials", f"{numbers.seconds(elapsed)}, {eta}", self._money(),
        )  # fmt: skip
        now = [cohort.now for cohort in self.running] or ["loading"]
        return Group(*(Text(line, style="dim") for line in self.recent), bar, *(Text(f"  {line}") for line in now))

    def _money(self) -> str:
        ledger = self.ledger
        spent, several = ledger.spent_seconds(), len(ledger.methods) or 1
        several = several if ledger.per == "method" else 1
        if ledger.limit_dollars is not None:
            return f"{numbers.dollars(ledger.spent_dollars())} of {numbers.dollars(ledger.limit_dollars * several)}"
        if ledger.limit_seconds is not None:
            return f"{numbers.seconds(spent)} of {numbers.seconds(ledger.limit_seconds * several)}"
        return numbers.dollars(ledger.spent_dollars()) if ledger.price_per_hour else ""


def describe(trial: Trial, record: TrialRecord) -> str:
    """One finished trial in one line."""
    if record.error is not None:
        return f"{_name(trial)}: failed ({record.error.kind}: {record.error.message.splitlines()[0][:120]})"
    cost = record.cost
    money = f", {numbers.dollars(cost.dollars)}" if cost.price_per_hour else ""
    if record.test is None:
        validated = record.validation_score
        score = f"validation {record.metric} " + (f"{validated:.3f}" if validated is not None else "not a number")
        ended = ", ended early" if record.stopped == "pruned" else ""
        return f"{_name(trial)}: {score}{ended}, {numbers.seconds(cost.seconds)}{money}"
    return f"{_name(trial)}: {record.metric} {record.test.score:.3f}, {numbers.seconds(cost.seconds)}{money}"


def _name(trial: Trial) -> str:
    scale = f"{trial.scale} rows" if trial.scale else "all rows"
    return f"{trial.task}, {scale}, {trial.label}, seed {trial.seed}"
