"""Uses a tuned adapter: predictions for a file, scores on a task."""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dollartune.errors import UserError, nearest
from dollartune.evaluate.evaluation import Evaluator, Prediction
from dollartune.tasks.base import Example, Task

if TYPE_CHECKING:
    from dollartune.attachment.attached import Attached
    from dollartune.backbones.loading import Backbone
    from dollartune.methods.base import Method
    from dollartune.train.encoding import Encoder

_MOVED = ("open_adapter", "stored_task")
"""Names of 0.1 that adapters' own cards print; to be deleted with `_moved`."""


def __getattr__(name: str) -> Any:
    if name not in _MOVED:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    new = "dollartune.export.opening"
    warnings.warn(f"{name} is in {new} now; the old name goes with the next version.", DeprecationWarning, stacklevel=2)
    return getattr(import_module(new), name)


@dataclass
class Tuned:
    """A backbone with a tuned adapter on it, and the task that the adapter was tuned for."""

    backbone: Backbone
    attached: Attached
    methods: list[Method[Any]]
    task: Task
    encoder: Encoder
    name: str = "adapter"

    def evaluator(self, batch_size: int, free_generation: bool = False, task: Task | None = None) -> Evaluator:
        return Evaluator(self.backbone, self.attached, task or self.task, self.encoder, (), free_generation, batch_size)


def predict_file(
    tuned: Tuned, rows: Sequence[Mapping[str, Any]], data: Path, out: Path | None, batch_size: int
) -> None:
    """Writes one JSON line per row: its number, the prediction, and probabilities where labels are scored.

    With `out`, rows that are there already are not done again, so an interrupted run goes on.
    """
    _check_columns(tuned.task, rows, data)
    done = _complete_lines(out) if out is not None else 0
    if done:
        print(f"{done} of {len(rows)} rows are there already.", file=sys.stderr)
    # Eight batches at a time: enough to sort rows by length, few enough that an interruption loses seconds.
    chunk = batch_size * 8
    with open(out, "a", encoding="utf8") if out is not None else _standard_output() as file:
        for start in range(done, len(rows), chunk):
            part = rows[start : start + chunk]
            for number, prediction in enumerate(predict_rows(tuned, part, batch_size), start):
                file.write(json.dumps(_line(number, prediction), ensure_ascii=False) + "\n")
            file.flush()
            if out is not None:
                print(f"\r{min(start + chunk, len(rows))}/{len(rows)} rows", end="", file=sys.stderr, flush=True)
    if out is not None:
        print(f"\nwrote {out}", file=sys.stderr)


def predict_rows(tuned: Tuned, rows: Sequence[Mapping[str, Any]], batch_size: int = 32) -> tuple[Prediction, ...]:
    """Predictions for rows of columns (no answers needed)."""
    label = tuned.task.labels[0] if tuned.task.labels else None
    examples = [Example(str(i), dict(row), label, "") for i, row in enumerate(rows)]
    return tuned.evaluator(batch_size).evaluate(tuned.name, tuned.methods, examples).predictions


def evaluate_adapter(tuned: Tuned, task: Task, rows: int, batch_size: int) -> dict[str, Any]:
    """Scores an adapter on a task's test rows, with intervals over the rows.

    Raises:
        UserError: the task's labels are not those that the adapter knows.
    """
    import numpy

    from dollartune import metrics
    from dollartune.stats import Outcomes, score_interval

    if task.labels != tuned.task.labels:
        raise UserError(f"the adapter knows the labels {tuned.task.labels}; {task.name!r} has {task.labels}.")
    splits = task.splits(0, 0, rows)
    found = tuned.evaluator(batch_size, task=task).evaluate(tuned.name, tuned.methods, splits.test)
    intervals = {}
    metric = metrics.get(task.metric)
    predictions = [p.probabilities if metric.takes == "probabilities" else p.predicted for p in found.predictions]
    statistics = metric.statistics(predictions, [list(p.references) or p.expected for p in found.predictions])
    if statistics is not None:
        outcome = Outcomes.from_statistics(
            numpy.stack([statistics.values]), statistics.score, task.metric, (metric.lowest, 1.0)
        )
        interval = score_interval(outcome)
        intervals[task.metric] = (interval.low, interval.high)
    return {
        "scores": found.scores,
        "intervals": intervals,
        "breakdown": found.breakdown,
        "examples": found.examples,
        "seconds": found.seconds,
    }


def read_rows(data: Path) -> list[dict[str, Any]]:
    """Rows of a data file, malformed ones refused with their line."""
    from dollartune.tasks.files import read_file, require_path
    from dollartune.tasks.rows import BadRows

    notes: list[str] = []
    require_path(data)
    found = read_file(data, BadRows("stop"), notes)
    for note in notes:
        print(f"note: {note}", file=sys.stderr)
    return [dict(row.values) for row in found]


def _check_columns(task: Task, rows: Sequence[Mapping[str, Any]], data: Path) -> None:
    for name in task.template.columns if task.template else ():
        if rows and name not in rows[0]:
            raise UserError(f"the prompt needs column {name!r}; {data} has {sorted(rows[0])}.{nearest(name, rows[0])}")


def _line(number: int, prediction: Prediction) -> dict[str, Any]:
    line: dict[str, Any] = {"row": number, "prediction": prediction.predicted}
    return line if prediction.probabilities is None else {**line, "probabilities": prediction.probabilities}


def _complete_lines(out: Path) -> int:
    """Number of whole lines in a file; a torn last line is cut off."""
    if not out.exists():
        return 0
    content = out.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    if len(whole) != len(content):
        out.write_bytes(whole)
    return whole.count(b"\n")


class _standard_output:
    """Standard output as a context manager that does not close it."""

    def __enter__(self) -> Any:
        return sys.stdout

    def __exit__(self, *error: object) -> None:
        sys.stdout.flush()
