"""Uses a tuned adapter: predictions for a file, scores on a task."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from dollartune.attachment.attached import Attached
from dollartune.backbones.device_map import DeviceMap
from dollartune.backbones.loading import Backbone, load_backbone
from dollartune.backbones.weights import DTYPES
from dollartune.errors import UserError, nearest
from dollartune.evaluate.evaluation import Evaluator, Prediction
from dollartune.export.directory import load_adapter, read_info, tokenizer_hash
from dollartune.methods.base import Method
from dollartune.tasks.base import Example, Task, Template
from dollartune.train.encoding import Encoder


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


def open_adapter(folder: Path, device_map: DeviceMap | None = None) -> Tuned:
    """Loads an adapter with its backbone, which `device_map` spreads over devices (see `load_backbone`).

    Raises:
        UserError: not an adapter, or the backbone's tokenizer is another than it was tuned with.
    """
    info = read_info(folder)
    labels = stored_task(info).labels
    objective = info["objective"]
    backbone = load_backbone(
        info["backbone"],
        objective,
        labels if objective == "classification" else (),
        dtype=DTYPES.get(info.get("dtype", ""), torch.float32),
        quantize=info.get("quantize", "none"),
        random_weights_seed=info.get("random_weights_seed"),
        device_map=device_map,
    )
    if info.get("tokenizer") and tokenizer_hash(backbone.processor) != info["tokenizer"]:
        raise UserError(f"the tokenizer of {info['backbone']!r} is not the one that {str(folder)!r} was tuned with.")
    attached = Attached(backbone.model, backbone.anatomy)
    adapter = load_adapter(folder, backbone)
    attached.put("adapter", adapter)
    task = stored_task(info)
    return Tuned(
        backbone,
        attached,
        list(adapter.methods),
        task,
        Encoder(backbone, info.get("max_length"), info.get("reserved_places", 0)),
    )


def stored_task(info: Mapping[str, Any]) -> Task:
    """The task that an adapter remembers: its prompt and label words, without data.

    Raises:
        UserError: it remembers none (it was imported without one).
    """
    stored = info.get("task")
    if not isinstance(stored, Mapping):
        raise UserError(
            "the adapter remembers no task, so there is no prompt to ask with.",
            hint="dollartune import PEFT_DIR --task TASK --out DIR",
        )
    missing = {"name", "kind", "prompt", "label_words", "metric", "max_answer_tokens"} - stored.keys()
    if missing or not isinstance(stored["label_words"], Mapping):
        raise UserError(f"the adapter's task is malformed: it lacks {sorted(missing) or 'label words'}.")
    return Task(
        name=stored["name"],
        kind=stored["kind"],
        load=lambda: {"train": [], "validation": [], "test": []},
        template=Template(stored["prompt"]) if stored["prompt"] else None,
        label_words=stored["label_words"],
        metric=stored["metric"],
        modality="text" if stored["prompt"] else "image",
        max_answer_tokens=stored["max_answer_tokens"],
    )


def predict_file(
    folder: Path,
    data: Path,
    out: Path | None,
    batch_size: int,
    limit: int | None,
    device_map: DeviceMap | None = None,
) -> None:
    """Writes one JSON line per row: its number, the prediction, and probabilities where labels are scored.

    With `out`, rows that are there already are not done again, so an interrupted run goes on.
    """
    rows = _rows(data)[:limit]
    tuned = open_adapter(folder, device_map)
    _check_columns(tuned.task, rows, data)
    done = _complete_lines(out) if out is not None else 0
    if done:
        print(f"{done} of {len(rows)} rows are there already.", file=sys.stderr)
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


def evaluate_adapter(
    folder: Path,
    data: str,
    rows: int,
    batch_size: int,
    data_root: Path | None,
    device_map: DeviceMap | None = None,
) -> dict[str, Any]:
    """Scores an adapter on a task's test rows, with intervals over the rows.

    Raises:
        UserError: the task's labels are not those that the adapter knows.
    """
    import numpy

    from dollartune import metrics
    from dollartune.stats import Outcomes, score_interval
    from dollartune.tasks.registry import load_task

    task = load_task(data, data_root)
    tuned = open_adapter(folder, device_map)
    if task.labels != tuned.task.labels:
        raise UserError(f"the adapter knows the labels {tuned.task.labels}; {data!r} has {task.labels}.")
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


def _rows(data: Path) -> list[dict[str, Any]]:
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
