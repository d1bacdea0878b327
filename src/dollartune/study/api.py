"""The Python API of studies: `Study(backbone=..., task=..., methods=[...]).run()`, then results as frames."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dollartune.config import StudySettings
from dollartune.errors import UserError
from dollartune.study.live_file import LiveFile
from dollartune.study.progress import display_for_here
from dollartune.study.results import Results
from dollartune.study_file import load_study
from dollartune.trials.store import Store

if TYPE_CHECKING:
    from dollartune.engines.display import Display
    from dollartune.study.again import Again
    from dollartune.trials.trial import Trial


class Study:
    """A study: settings, and a folder with what has been found so far.

    >>> results = Study(backbone="tiny-decoder", task="demo_library", methods=["zero_shot", "lora"]).run()
    >>> results.leaderboard()

    Args:
        source: a study file or a mapping; or give its keys as keyword arguments.
    """

    def __init__(self, source: str | Path | Mapping[str, Any] | StudySettings | None = None, **settings: Any) -> None:
        self.settings = (
            source
            if isinstance(source, StudySettings)
            else load_study(source if source is not None else settings, **(settings if source is not None else {}))
        )
        self.absent: list[str] = []
        """Methods that the study names and that could run on none of its backbones; known once it has run."""
        self.store = Store(Path(self.settings.output) / (self.settings.name or self._default_name()))

    def _default_name(self) -> str:
        backbone = Path(self.settings.backbones[0].name).name
        task = self.settings.tasks[0]
        name = task if isinstance(task, str) else str(task.get("preset") or task.get("data") or "task")
        return f"{Path(name).stem}-{backbone}"

    def trials(self) -> list[Trial]:
        """What would be run, in order; loads no weights."""
        from dollartune.trials.expand import plan

        return plan(self.settings)[0]

    def run(
        self,
        fresh: bool = False,
        display: Display | None = None,
        seconds_before: float | None = None,
        improved: Callable[[], object] | None = None,
        seconds_after: float = 0.0,
    ) -> Results:
        """Runs what has no record yet, and returns the results.

        Args:
            fresh: delete earlier results of this study first, once its settings and data have been found good.
            display: how progress is shown; by default a live view in a terminal, a bar in a notebook, and lines elsewhere.
            seconds_before: what starting up took until now, which the budget pays for too.
            improved: called each time when there is a better adapter in the store.
            seconds_after: what the budget pays for after the run, such as a report.

        Raises:
            UserError: anything in the study that cannot work, or the same study is being run by another process.
        """
        import time

        began = time.monotonic() - (seconds_before or 0.0)
        from dollartune.study.startup import starting

        text = self.settings.model_dump_json(indent=1, exclude={"output", "engine"})
        chosen = display or display_for_here()
        whole_process = seconds_before is not None  # then nobody else waits for what the start is needed for
        guard = starting(self.settings, self.store.root, time.monotonic() - began, fresh)
        with guard if whole_process else nullcontext():
            from dollartune.study.runner import StudyRunner
            from dollartune.study.trackers import tracked
            from dollartune.trials.expand import absent_methods

            chosen = LiveFile(tracked(chosen, self.settings.trackers, self.store.root), self.store.root)
            runner = StudyRunner(self.settings, self.store, chosen, fresh, improved, seconds_after)
        self.store.create(text, [trial.identifier for trial in runner.finals])
        self.absent = absent_methods(self.settings, runner.trials)
        runner.run(time.monotonic() - began)
        return Results(self.store, [trial.identifier for trial in runner.finals])

    def again(self, trial: str) -> Again:
        """Trains a recorded trial again by its recorded steps, and compares it with the adapter that it left.

        Args:
            trial: its identifier, or the beginning of it.

        Raises:
            UserError: there is no such trial, its adapter was not kept, or settings and data are not what they were.
        """
        from dollartune.study.again import run_again

        return run_again(self.store, self.settings, trial)

    def results(self) -> Results:
        """Results so far."""
        return Results(self.store, self.store.planned())


def open_study(path: str | Path) -> Results:
    """Results of a study that has run.

    Raises:
        UserError: there is no study there.
    """
    from dollartune.trials.store import find_study

    store = find_study(path)
    if not any(store.records()):
        raise UserError(f"the study in {store.root} has no finished trial yet.", hint="dollartune status STUDY")
    return Results(store, store.planned())
