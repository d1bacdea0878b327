"""What a person sees while a study runs: trials done, the one that is running, time left, money spent of the budget."""

from __future__ import annotations

import math
import textwrap
import time
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dollartune import format as numbers
from dollartune.engines.display import Display, TrialInTraining

if TYPE_CHECKING:
    from rich.live import Live

    from dollartune.budget.ledger import Ledger
    from dollartune.trials.record import TrialRecord
    from dollartune.trials.trial import Trial


def display_for_here(said: Iterable[str] = ()) -> Display:
    """How progress is shown where this runs: a line that is replaced in a notebook, a live view in a terminal, else lines.

    Args:
        said: notes that somebody has printed already.
    """
    import sys

    if in_notebook():
        return Notebook(said)
    return LiveView(said) if sys.stdout.isatty() else Lines(said)


def in_notebook() -> bool:
    """Whether a Jupyter kernel runs this; a terminal's IPython is a terminal."""
    import sys

    # Not imported for this: where a kernel runs it is there already.
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    return shell is not None and hasattr(shell, "kernel")


class Speaking(Display):
    """Says each note once.

    Args:
        said: notes that somebody has printed already.
    """

    def __init__(self, said: Iterable[str] = ()) -> None:
        self._said = set(said)
        self.done = self.total = 0

    def note(self, text: str) -> None:
        if text not in self._said:
            self._said.add(text)
            self._print(f"note: {text}")

    def expect(self, total: int) -> None:
        self.total = total

    @property
    def counted(self) -> str:
        """`3/12`, or `3` where it is not known how many there will be: a search decides that on the way."""
        return f"{self.done}/{self.total}" if self.total and self.total >= self.done else str(self.done)

    def _print(self, text: str) -> None:
        print(text, flush=True)


class Lines(Speaking):
    """One line per finished trial, for logs and pipes."""

    @contextmanager
    def study(self, trials: Sequence[Trial], todo: Sequence[Trial], ledger: Ledger) -> Iterator[None]:
        self.total, self.done = len(trials), len(trials) - len(todo)
        if self.done:
            rest = "going on with the rest" if self.done < self.total else "nothing is left to run"
            print(f"{self.done} of {self.total} trials have their record already; {rest}.", flush=True)
        yield

    def recorded(self, trial: Trial, record: TrialRecord) -> None:
        if record.status == "tried":
            print(f"[tried] {describe(trial, record)}", flush=True)
            return
        self.done += 1
        print(f"[{self.counted}] {describe(trial, record)}", flush=True)


@dataclass(eq=False)
class _Running:
    """A cohort in the live view."""

    trials: set[str]
    """Those without a record."""
    now: str = "loading"
    share: float = 0.0


class LiveView(Speaking):
    """A live view in a terminal."""

    def __init__(self, said: Iterable[str] = ()) -> None:
        super().__init__(said)
        self.began_with, self.started = 0, time.monotonic()
        self.live: Live | None = None
        self.running: list[_Running] = []
        """Cohorts: one, or those that other machines train at the same time."""
        self.recent: list[str] = []

    def _print(self, text: str) -> None:
        if self.live is None:
            super()._print(text)
        else:  # above the bar; the terminal breaks the line, not rich, which would break words
            self.live.console.print(text, soft_wrap=True, markup=False, highlight=False)

    @contextmanager
    def study(self, trials: Sequence[Trial], todo: Sequence[Trial], ledger: Ledger) -> Iterator[None]:
        from rich.live import Live

        self.total, self.done, self.ledger = len(trials), len(trials) - len(todo), ledger
        self.began_with, self.started = self.done, time.monotonic()
        # Four times a second looks live; more would only take time from training.
        with Live(self._render(), refresh_per_second=4, get_renderable=self._render) as self.live:
            yield
        self.live = None

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

    def recorded(self, trial: Trial, record: TrialRecord) -> None:
        self.done += record.status != "tried"
        cohort = self._cohort({trial.identifier})
        # A cohort stays in view until all of its trials have a record.
        cohort.trials.discard(trial.identifier)
        # Of a trial that is over: a final one counts in `done` from here.
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
        bar = Table.grid(padding=(0, 1))
        bar.add_row(
            ProgressBar(total=max(1.0, self.total, self.done + share), completed=self.done + share, width=32),
            f"{self.counted} trials", ", ".join(filter(None, [self._left(share), self._money()])),
        )  # fmt: skip
        now = [cohort.now for cohort in self.running] or ["loading"]
        return Group(*(Text(line, style="dim") for line in self.recent), bar, *(Text(f"  {line}") for line in now))

    def _left(self, share: float) -> str:
        """How long it will still take. A budget of time decides that itself: the rest of it stands beside."""
        made = self.done - self.began_with + share
        if self.ledger.limit_seconds is not None:
            return ""
        elapsed, rest = time.monotonic() - self.started, self.total - self.done - share
        # a twentieth of a trial: below that the forecast would be off by hours
        if made <= 0.05 or rest < 0:
            return f"running {numbers.clock(elapsed)}"
        return f"running {numbers.clock(elapsed)}, about {numbers.clock(elapsed / made * rest)} left"

    def _money(self) -> str:
        return used(self.ledger)


def used(ledger: Ledger) -> str:
    """`used 6:02 of 10:00`, `used $0.12 of $1.00`; what was used alone where nothing limits it."""
    several = (len(ledger.methods) or 1) if ledger.per == "method" else 1
    if ledger.limit_dollars is not None:
        spent, limit = ledger.spent_dollars(), ledger.limit_dollars * several
        return f"used {numbers.dollars(spent)} of {numbers.dollars(limit)}"
    if ledger.limit_seconds is not None:
        return f"used {numbers.clock(ledger.spent_seconds())} of {numbers.clock(ledger.limit_seconds * several)}"
    return f"used {numbers.dollars(ledger.spent_dollars())}" if ledger.price_per_hour else ""


class Notebook(LiveView):
    """One line and a bar under a notebook's cell, replaced as the study goes on; finished trials above them."""

    def __init__(self, said: Iterable[str] = ()) -> None:
        super().__init__(said)
        # Libraries that are imported later look for ipywidgets, for bars that this line replaces.
        warnings.filterwarnings("ignore", message="IProgress not found")
        self.notes: list[str] = []
        self._shown_at = 0.0
        self._handle: Any = None

    def _print(self, text: str) -> None:
        self.notes.append(text)
        self._show(now=True)

    @contextmanager
    def study(self, trials: Sequence[Trial], todo: Sequence[Trial], ledger: Ledger) -> Iterator[None]:
        self.total, self.done, self.ledger = len(trials), len(trials) - len(todo), ledger
        self.began_with, self.started = self.done, time.monotonic()
        self._show(now=True)
        try:
            yield
        finally:
            self.running.clear()
            self._show(now=True)

    def training(self, trials: Sequence[Trial], states: Sequence[TrialInTraining]) -> None:
        super().training(trials, states)
        self._show()

    def evaluating(self, trial: Trial) -> None:
        super().evaluating(trial)
        self._show()

    def recorded(self, trial: Trial, record: TrialRecord) -> None:
        super().recorded(trial, record)
        self._show(now=True)

    def _show(self, now: bool = False) -> None:
        """Replaces the output, at most twice a second: each time is a message to the browser."""
        if not now and time.monotonic() - self._shown_at < 0.5:
            return
        self._shown_at = time.monotonic()
        from IPython.display import HTML, display  # type: ignore[import-not-found, unused-ignore]

        shown = HTML(self.html())
        if self._handle is None:
            self._handle = display(shown, display_id=True)
        else:
            self._handle.update(shown)

    def html(self) -> str:
        """What stands under the cell."""
        from html import escape

        share = sum(cohort.share for cohort in self.running)
        # A note may come before the study has begun, when there is no ledger yet.
        known = getattr(self, "ledger", None) is not None
        facts = [f"{self.counted} trials", self._left(share) if known else "", self._money() if known else ""]
        lines = [*self.notes[-3:], *self.recent, *(cohort.now for cohort in self.running)]
        most = max(1.0, self.total, self.done + share)
        bar = f'<progress max="{most:g}" value="{self.done + share:g}" aria-label="trials"></progress>'
        return f"<div>{bar} {escape(', '.join(filter(None, facts)))}<pre>{escape(chr(10).join(lines))}</pre></div>"


def describe(trial: Trial, record: TrialRecord) -> str:
    """One finished trial in one line."""
    if record.error is not None:
        # Ours are whole at this width; what a library says may go on for pages, and `status` has all of it.
        why = textwrap.shorten(record.error.message.splitlines()[0], 240, placeholder=" ...")
        return f"{_name(trial)}: failed ({record.error.kind}: {why})"
    cost = record.cost
    money = f", {numbers.dollars(cost.dollars)}" if cost.price_per_hour else ""
    fewer = f", {record.fewer_rows}" if record.fewer_rows else ""
    if record.test is None:
        validated = record.validation_score
        score = f"validation {record.metric} " + (numbers.score(validated) if validated is not None else "not a number")
        ended = ", ended early" if record.stopped == "pruned" else ""
        return f"{_name(trial)}{fewer}: {score}{ended}, {numbers.seconds(cost.seconds)}{money}"
    score = f"{record.metric} {numbers.score(record.test.score)}"
    return f"{_name(trial)}{fewer}: {score}, {numbers.seconds(cost.seconds)}{money}"


def _name(trial: Trial) -> str:
    scale = f"{trial.scale} rows" if trial.scale else "all rows"
    return f"{trial.task}, {scale}, {trial.label}, seed {trial.seed}"
