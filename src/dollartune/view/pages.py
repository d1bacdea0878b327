"""What one page shows of one study: state and rows at once, charts as they are asked for."""

from __future__ import annotations

import io
import threading
from collections.abc import Mapping
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dollartune.cache import cache_directory, keep
from dollartune.errors import UserError, unknown_name
from dollartune.report.contents import series_order
from dollartune.study.live_file import ask_to_extend, ask_to_stop, read_live, runs_now
from dollartune.study.status import settings_of
from dollartune.trials.record import DoneRecord
from dollartune.view.extend_process import Extending, ExtendProcess
from dollartune.view.quick_charts import VegaLite, curves_spec, money_spec
from dollartune.view.state import (
    PredictionsPage,
    StudyState,
    classes_of,
    curves,
    predictions_page,
    score_against_money,
    steps_to_go_on,
    study_state,
)

if TYPE_CHECKING:
    from dollartune.tasks.base import Example, Task
    from dollartune.trials.store import Store

QUICK = ("money", "curves")
"""Charts that need neither altair nor PyTorch."""
NOTHING: VegaLite = {"nothing": "there is nothing to draw here yet."}
CHARTS = (*QUICK, "pareto", "tries", "importance", "confusion", "calibration")


class PageState(StudyState):
    """What the page asks for each second."""

    extending: Extending | None


class ShownPredictions(PredictionsPage):
    """With what the page needs to show them."""

    pictures: bool
    task: str


class StudyPage:
    """The data behind the page."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self._extending: ExtendProcess | None = None
        self._lock = threading.Lock()
        """altair and the readers of data are not made for several threads at once."""

    def state(self) -> PageState:
        """How far the study is."""
        return {**study_state(self.store), "extending": None if self._extending is None else self._extending.state()}

    def chart(self, name: str, asked: Mapping[str, str]) -> VegaLite:
        """A Vega-Lite specification with its data.

        Args:
            name: of `CHARTS`.
            asked: `board`, and for charts of one trial `trial`, for those of a search `method`.

        Raises:
            UserError: there is no such chart.
        """
        if name not in CHARTS:
            raise unknown_name("chart", name, CHARTS)
        board = asked.get("board", "")
        if name == "money":
            ends = [one for one in score_against_money(self.store) if one["board"] == board]
            return money_spec(ends, self._order()) or NOTHING
        if name == "curves":
            points = [p for p in curves(self.store) if p["board"] == board]
            return curves_spec(points, self._order(), asked.get("over", "epoch")) or NOTHING
        with self._lock:
            chart = self._drawn(name, board, asked)
        if chart is None:
            return NOTHING
        # The report's tests validate these charts; here it would take most of the time.
        spec: VegaLite = chart.to_dict(validate=False)
        if name == "confusion" or name == "calibration":
            spec["usermeta"] = classes_of(self.store, self._done(asked.get("trial", "")))
        return spec

    def _order(self) -> tuple[str, ...]:
        return series_order(list(self.store.records()), settings_of(self.store))

    def _drawn(self, name: str, board: str, asked: Mapping[str, str]) -> Any:
        from dollartune.report.charts import classes, pareto, tries
        from dollartune.report.tries import importances

        if name in ("confusion", "calibration"):
            record = self._done(asked.get("trial", ""))
            rows = self.store.predictions(record.id)
            return (
                classes.confusion_chart(rows, record.labels) if name == "confusion" else classes.calibration_chart(rows)
            )
        task, _, rows_text = board.partition("|")
        scale = int(rows_text) if rows_text else None
        if name == "pareto":
            from dollartune.report.contents import collect
            from dollartune.study.results import Results

            contents = collect(Results(self.store, self.store.planned()))
            of_board = next((b for b in contents.boards if (b.task, b.scale) == (task, scale)), None)
            return None if of_board is None else pareto.pareto_chart(of_board, contents.series)
        tried = [
            r for r in self.store.records() if (r.trial.task, r.trial.scale) == (task, scale) and not r.trial.baseline
        ]
        tried = [r for r in tried if r.trial.group == asked.get("method", r.trial.group)]
        if name == "tries":
            return tries.tries_chart(tried)
        return tries.importance_chart(importances(tried))

    def _done(self, trial: str) -> DoneRecord:
        record = self.store.read(trial)
        if not isinstance(record, DoneRecord):
            raise UserError(f"trial {trial!r} has no predictions.")
        return record

    def predictions(self, asked: Mapping[str, str]) -> ShownPredictions:
        """A page of predictions."""
        trial = asked.get("trial", "")
        record = self._done(trial)
        task = self._tasks.get(record.trial.task)
        with self._lock:
            examples = self._examples(record.trial.task)
        inputs = {}
        if task is not None and task.template is not None:
            inputs = {name: task.prompt(example) for name, example in examples.items()}
        # From an address, which anybody may type.
        page = max(0, int(asked.get("page") or 0))
        shown = predictions_page(self.store, trial, asked.get("other") or None, asked.get("only", "all"), page, inputs)
        return {**shown, "pictures": task is not None and task.modality == "image", "task": record.trial.task}

    def picture(self, task: str, example: str) -> bytes:
        """The image of one test row, as PNG.

        Raises:
            UserError: there is none.
        """
        with self._lock:
            row = self._examples(task).get(example)
            if row is None or "image" not in row.fields:
                raise UserError(f"there is no picture {example!r}.")
            image = row.fields["image"]()
            buffer = io.BytesIO()
            image.convert("RGB").save(buffer, "PNG")
            return buffer.getvalue()

    @cached_property
    def _tasks(self) -> dict[str, Task]:
        """Tasks whose data is at hand: rows are shown beside their predictions."""
        from dollartune.report.task_facts import at_hand
        from dollartune.tasks.registry import load_task

        settings, tasks = settings_of(self.store), {}
        root = Path(settings.data_root) if settings is not None and settings.data_root else None
        for spec in settings.tasks if settings is not None else ():
            if not at_hand(spec, root, rows=True):
                continue  # nothing is asked of a hub for the sake of a look
            try:
                task = load_task(spec, root)
            except (UserError, OSError):
                continue  # the data has moved since: predictions stand alone
            tasks[task.name] = task
        return tasks

    def _examples(self, task: str) -> dict[str, Example]:
        if task not in self._tasks:
            return {}
        try:
            return {example.id: example for example in self._tasks[task].load()["test"]}
        except (UserError, OSError):
            return {}

    def stop(self, trial: str) -> dict[str, str]:
        """Asks for the end of a trial in training.

        Raises:
            UserError: it is not in training.
        """
        live = read_live(self.store.root)
        running = [one["trial"] for one in live["trials"] if one["doing"] == "tuning"] if live is not None else []
        # A request for a trial that has ended would lie there and end its next run.
        if trial not in running:
            raise UserError("this trial is not in training.")
        ask_to_stop(self.store.root, trial)
        return {"stopping": trial}

    def extend(self, trial: str, steps: int) -> dict[str, str]:
        """Trains a finished trial further: by the process that runs the study, once its own trials are done, or by a new one.

        Raises:
            UserError: its adapter was not kept, or another trial is being extended.
        """
        if steps_to_go_on(self.store, self.store.read(trial)) is None:
            raise UserError("the adapter of this trial was not kept, so it cannot be trained further.")
        if steps < 1:
            raise UserError("a trial is trained further for one step at least.")
        if runs_now(self.store.root):
            ask_to_extend(self.store.root, trial, steps)
            return {"words": "It is trained further once the study's own trials are done."}
        if self._extending is not None and self._extending.runs:
            raise UserError("another trial is being trained further; wait for it.")
        self._extending = ExtendProcess(self.store.root, trial, steps)
        return {"words": self._extending.state()["words"]}

    def libraries(self) -> str:
        """Vega and its embedding as one script; putting it together takes seconds, so it is kept.

        Raises:
            UserError: the extra `report` is not installed.
        """
        from dollartune.report.notebook import require_altair

        require_altair()
        # By the versions of both libraries: another version would draw another dialect.
        path = cache_directory() / f"charts-{version('altair')}-{version('vl-convert-python')}.js"
        if path.is_file():
            return path.read_text(encoding="utf8")
        from dollartune.report.page import chart_libraries

        with self._lock:
            text = chart_libraries()
            keep(path, text.encode())
        return text
