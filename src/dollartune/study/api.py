"""The Python API of studies: `Study(backbone=..., task=..., methods=[...]).run()`, then results as frames."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dollartune.config import StudySettings
from dollartune.errors import UserError
from dollartune.study.live_file import LiveFile
from dollartune.study.progress import display_for_here
from dollartune.study.results import Results
from dollartune.study_file import load_study
from dollartune.tasks.in_memory import is_rows, write_rows
from dollartune.trials.store import Store

if TYPE_CHECKING:
    from dollartune.engines.display import Display
    from dollartune.study.again import Again
    from dollartune.trials.trial import Trial


class Study:
    """A study: settings, and a folder with what has been found so far.

    Examples:
        >>> results = Study(backbone="tiny-decoder", task="demo_library", methods=["zero_shot", "lora"]).run()
        >>> results.leaderboard()

    What is not given is as in the file, or as the study file's reference says (`docs/study-file.md`).

    Args:
        source: a study file, a mapping of its keys, or settings; what is given beside it stands in place of its own. Leave it out
            and give the keys themselves.
        backbone: a name of `dollartune backbones ls`, a hub id, a folder, a mapping (`{"name": ...}`), or a list of them.
        task: a preset, a data file, a mapping (`{"data": ...}`); or rows: a DataFrame, a `datasets.Dataset`, a list of
            mappings, a pair (texts, labels), also as the `data` of a mapping.
        tasks: several of them.
        methods: names, calls as `lora(rank=8)`, mappings from a name to settings; a list in a setting means every value of it.
        scales: numbers of training rows, or `all`.
        seeds: how many, or which.
        budget: `$1`, `20 min`, `$5 per study`, or a mapping.
        search: choose settings before the final runs: true (with a budget by default), false, the most settings to try, or a
            mapping.
        training: how trials are trained, as `{"epochs": 3, "batch_size": 16}`.
        evaluation: what is measured, as `{"rows": 500}`.
        baselines: also run the majority class, tf-idf and the untuned model.
        name: of the study and its folder, and of a task whose rows are given.
        output: folder in which its folder is made; `studies`.
        data_root: folder with local copies of presets' data.
        begin_with: folder of an adapter whose tensors trials of the same methods begin with.
        settings: any other key of a study file.

    Raises:
        UserError: an unknown key, with the nearest one, or a value of the wrong kind.
    """

    def __init__(
        self,
        source: str | Path | Mapping[str, Any] | StudySettings | None = None,
        *,
        backbone: str | Mapping[str, Any] | Sequence[str | Mapping[str, Any]] | None = None,
        task: Any = None,
        tasks: Sequence[Any] | None = None,
        methods: Sequence[Any] | None = None,
        scales: Sequence[int | str | None] | None = None,
        seeds: int | Sequence[int] | None = None,
        budget: str | Mapping[str, Any] | None = None,
        search: bool | int | str | Mapping[str, Any] | None = None,
        training: Mapping[str, Any] | None = None,
        evaluation: Mapping[str, Any] | None = None,
        baselines: bool | None = None,
        name: str | None = None,
        output: str | None = None,
        data_root: str | None = None,
        begin_with: str | None = None,
        **settings: Any,
    ) -> None:
        stated = {
            "backbone": backbone, "task": task, "tasks": tasks, "methods": methods, "scales": scales, "seeds": seeds,
            "budget": budget, "search": search, "training": training, "evaluation": evaluation, "baselines": baselines,
            "name": name, "output": output, "data_root": data_root, "begin_with": begin_with,
        }  # fmt: skip
        # None is what was not stated, so that a study file's own value stays.
        given = {key: value for key, value in stated.items() if value is not None} | settings
        folder = Path(output or "studies") / "data"
        if "task" in given:
            given["task"] = _task_of(given["task"], folder, name or "")
        if "tasks" in given:
            given["tasks"] = [_task_of(one, folder) for one in given["tasks"]]
        if isinstance(source, StudySettings) and given:
            # Only what was set: a default of this version is none that somebody stated (`Store.as_begun`).
            source = source.model_dump(exclude_unset=True)
        if isinstance(source, StudySettings):
            self.settings = source
        else:
            self.settings = load_study(source, **given) if source is not None else load_study(given)
        self.absent: list[str] = []
        """Methods that the study names and that could run on none of its backbones; known once it has run."""
        self.store = Store(Path(self.settings.output) / (self.settings.name or self._default_name()))
        if isinstance(source, str | Path):
            self.store.need_other_file(Path(source))
        self._stated = self.settings
        self.settings = self.store.as_begun(self.settings)

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

        # Before anything heavy is imported: those seconds are paid for as well.
        began = time.monotonic() - (seconds_before or 0.0)
        from dollartune.study.startup import starting

        if fresh:  # what is deleted first decides nothing
            self.settings = self._stated
        # Without where and on what it runs: neither changes a result, and a moved folder is the same study.
        text = self.settings.model_dump_json(indent=1, exclude={"output", "engine"})
        chosen = display or display_for_here()
        whole_process = seconds_before is not None  # then nobody else waits for what the start is needed for
        guard = starting(self.settings, self.store.root, time.monotonic() - began, fresh)
        with guard if whole_process else nullcontext():
            from dollartune.study.precheck import check_names

            check_names(self.settings, read_data=False)  # what needs no PyTorch, before it is imported
            from dollartune.study.runner import StudyRunner
            from dollartune.study.trackers import tracked
            from dollartune.trials.expand import absent_methods

            chosen = LiveFile(tracked(chosen, self.settings.trackers, self.store.root), self.store.root)
            runner = StudyRunner(self.settings, self.store, chosen, fresh, improved, seconds_after)
        # After the runner was made, whose checks may refuse the study: then no folder is left behind.
        with runner.ledger:
            self.store.create(text, [trial.identifier for trial in runner.finals])
            self.absent = absent_methods(self.settings, runner.trials)
            runner.run(time.monotonic() - began)
        return self.results()

    def again(self, trial: str) -> Again:
        """Trains a recorded trial again by its recorded steps, and compares it with the adapter that it left.

        Args:
            trial: its identifier, or the beginning of it.

        Raises:
            UserError: there is no such trial, its adapter was not kept, or settings and data are not what they were.
        """
        from dollartune.study.again import run_again

        return run_again(self.store, self.settings, trial)

    def extend(
        self, trial: str, steps: int | None = None, epochs: float | None = None, display: Display | None = None
    ) -> Results:
        """Trains a finished trial further, as a trial of its own beside it (`lora, +60 steps`), paid by the study's budget.

        Args:
            trial: its identifier, or the beginning of it; its adapter must have been kept.
            steps: on top of those that it has had; by default as many.
            epochs: the same in passes over its training rows.

        Raises:
            UserError: there is nothing to go on with, or nothing is left of the budget.
        """
        from dollartune.study.extend import extension
        from dollartune.study.runner import StudyRunner
        from dollartune.trials.expand import plan

        # Before the runner, which takes the study for itself.
        longer = extension(self.store, self.settings, plan(self.settings)[0], trial, steps, epochs)
        shown = LiveFile(display or display_for_here(), self.store.root)
        StudyRunner(self.settings, self.store, shown).extend(longer)
        return self.results()

    def results(self) -> Results:
        """Results so far."""
        return Results(self.store, self.store.planned())


def _task_of(task: Any, folder: Path, name: str = "") -> Any:
    """A task whose rows, where the program holds them, are a file."""
    if is_rows(task):
        return {"data": str(write_rows(task, folder, name).resolve())}
    if isinstance(task, Mapping) and is_rows(task.get("data")):
        return {**task, "data": str(write_rows(task["data"], folder, str(task.get("name") or name)).resolve())}
    return task


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
