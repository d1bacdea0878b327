"""Uses a tuned adapter: predictions for a file, scores on a task."""

from __future__ import annotations

import hashlib
import sys
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

from dollartune import format as numbers
from dollartune.errors import UserError, nearest
from dollartune.evaluate.answers_file import AnswersFile, fingerprint_of_rows
from dollartune.evaluate.evaluation import Evaluator, Prediction
from dollartune.evaluate.labelled_rows import LabelledRows, missing_classes
from dollartune.evaluate.row_outcomes import measure_of, row_outcomes
from dollartune.evaluate.seed_outcomes import interval_of
from dollartune.methods.stored_adapter import CONFIG, WEIGHTS
from dollartune.tasks.base import Example, Task
from dollartune.tasks.conversations import question_turns
from dollartune.tasks.examples import nothing_to_read
from dollartune.tasks.images import (
    ImageFile,
    ImageStore,
    PictureCheck,
    image_place,
    is_picture_place,
    picture_column,
    picture_names,
)
from dollartune.tasks.pictures import ImageBytes
from dollartune.tasks.turns import is_conversation

if TYPE_CHECKING:
    from dollartune.attachment.attached import Attached
    from dollartune.backbones.loading import Backbone
    from dollartune.evaluate.row_outcomes import RowOutcomes
    from dollartune.methods.base import Method
    from dollartune.stats import Interval
    from dollartune.tasks.rows_seen import RowsSeen
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
    folder: Path | None = None
    """Where it is stored."""
    rows_seen: RowsSeen | None = None
    """Rows that it was tuned on; None where that is not known."""

    def fingerprint(self) -> str:
        """Of the stored weights and of how it is asked; of the name where it is not stored."""
        digest = hashlib.sha256(self.name.encode() if self.folder is None else b"")
        if self.folder is not None:
            for file in (WEIGHTS, CONFIG):
                digest.update((self.folder / file).read_bytes())
        # 128 bits: an answers file must not be mistaken for another's, and a line of it stays short.
        return digest.hexdigest()[:32]

    def prompts(self, rows: Sequence[Mapping[str, Any]]) -> list[tuple[int, ...]]:
        """Tokens of each row's prompt, without solved examples."""
        return [encoded.prompt for encoded in self.encoder.encode(self.task, examples_of(self.task, rows))]

    def evaluator(self, batch_size: int, free_generation: bool = False, task: Task | None = None) -> Evaluator:
        return Evaluator(self.backbone, self.attached, task or self.task, self.encoder, (), free_generation, batch_size)


def predict_file(
    tuned: Tuned,
    rows: Sequence[Mapping[str, Any]],
    data: Path,
    out: Path | None,
    batch_size: int,
    limit: int | None = None,
    restart: bool = False,
) -> None:
    """Writes a prediction for each row, with probabilities where labels are scored: json lines, or csv by the name of `out`.

    With `out`, rows that are there already are not done again, so an interrupted run goes on; a file with answers of another
    adapter or to other rows is refused. Rows without anything to read are not asked, and are counted.

    Args:
        rows: all rows of the input.
        limit: only so many of them.
        restart: replace what is there.

    Raises:
        UserError: a column of the prompt is missing, or the file belongs to other work.
    """
    _check_columns(tuned.task, rows, data)
    pictures = pictures_of(rows, data) if tuned.task.modality == "image" else []
    stamped = [{**row, "image": one.stamp} for row, one in zip(rows, pictures, strict=True)] if pictures else rows
    if pictures:
        # Pictures that came with their rows are called by name from here on.
        rows = [{k: v.name if isinstance(v, ImageBytes) else v for k, v in row.items()} for row in rows]
    source = {
        "adapter": tuned.fingerprint(),
        "rows": fingerprint_of_rows(stamped),
        "adapter from": str(tuned.folder or tuned.name),
        "rows from": data.name,
    }
    # After the fingerprint: a later call with a larger limit goes on with the same file.
    rows = rows[:limit]
    inputs = tuned.task.template.columns if tuned.task.template else ()
    problems = [one.problem for one in pictures[:limit]] or [nothing_to_read(inputs, row) for row in rows]
    columns = list(dict.fromkeys(name for row in rows for name in row))
    file = AnswersFile(out, columns, tuned.task.labels, any(problems))
    done = file.begin(source, restart)
    if done:
        # to stderr, as all that is said here: standard output may hold the answers
        print(f"{done} of {len(rows)} rows are there already.", file=sys.stderr)
    if unread := sum(problem is not None for problem in problems):
        first = next(number for number, problem in enumerate(problems) if problem is not None)
        what = "have no readable picture" if pictures else "have nothing to read"
        print(
            f"note: {unread} of {len(rows)} rows {what} and get no prediction (row {first}: {problems[first]})",
            file=sys.stderr,
        )
    before = tuned.encoder.shortened
    # Eight batches at a time: enough to sort rows by length, few enough that an interruption loses seconds.
    chunk = batch_size * 8
    with file.open() as stream:
        for start in range(done, len(rows), chunk):
            several = range(start, min(start + chunk, len(rows)))
            asked = [number for number in several if problems[number] is None]
            ready = [{**rows[n], "image": pictures[n].picture} if pictures else rows[n] for n in asked]
            predictions = dict(zip(asked, predict_rows(tuned, ready, batch_size), strict=True)) if asked else {}
            for number in several:
                stream.write(file.lines(number, rows[number], predictions.get(number), problems[number]))
            # Whole chunks are written before they are reported, so that `done` counts what is there.
            stream.flush()
            if out is not None:
                print(f"\r{several.stop}/{len(rows)} rows", end="", file=sys.stderr, flush=True)
    if out is not None:
        print(f"\nwrote {out}", file=sys.stderr)
    for note in shortened_notes(tuned, tuned.encoder.shortened - before, len(rows) - done):
        print(f"note: {note}", file=sys.stderr)


def shortened_notes(tuned: Tuned, shortened: int, rows: int) -> list[str]:
    """A sentence on inputs that did not fit into the length the adapter was tuned with."""
    if not shortened:
        return []
    return [
        f"{shortened} of {rows} rows are longer than the adapter's {tuned.encoder.max_length} tokens and were cut to them"
    ]


def predict_rows(tuned: Tuned, rows: Sequence[Mapping[str, Any]], batch_size: int = 32) -> tuple[Prediction, ...]:
    """Predictions for rows of columns (no answers needed)."""
    examples = examples_of(tuned.task, rows)
    return tuned.evaluator(batch_size).evaluate(tuned.name, tuned.methods, examples).predictions


def examples_of(task: Task, rows: Sequence[Mapping[str, Any]]) -> list[Example]:
    """Rows of columns as examples without an answer."""
    # Any label: an example needs one to be encoded, and predictions do not look at it.
    label = task.labels[0] if task.labels else None
    return [_asked(task, Example(str(i), dict(row), label, "")) for i, row in enumerate(rows)]


def _asked(task: Task, example: Example) -> Example:
    """The example as it stands; where its only column holds a conversation, with the turns that wait for an answer."""
    columns = task.template.columns if task.template is not None else ()
    if task.kind != "generation" or len(columns) != 1 or not is_conversation(example.fields.get(columns[0])):
        return example
    try:
        turns = question_turns(example.fields, columns[0])
    except ValueError as error:
        raise UserError(f"row {example.id}, column {columns[0]!r}: {error}.") from None
    return replace(example, turns=turns)


class AdapterScores(TypedDict):
    """What an adapter scores on rows with answers."""

    scores: dict[str, float]
    intervals: dict[str, tuple[float, float]]
    """Of the primary metric, over the rows."""
    breakdown: dict[str, int]
    examples: int
    seconds: float
    rows_seen: int
    """Rows among them that it was tuned on or chosen by."""
    notes: list[str]


def evaluate_rows(tuned: Tuned, rows: LabelledRows, batch_size: int) -> AdapterScores:
    """Scores an adapter on rows with answers: by its own prompt, label words and lengths, with intervals over the rows."""
    return evaluate_row_by_row(tuned, rows, batch_size)[0]


def evaluate_row_by_row(tuned: Tuned, rows: LabelledRows, batch_size: int) -> tuple[AdapterScores, RowOutcomes]:
    """The same, with what was done on each row: two adapters on the same rows are told apart by the rows that differ."""
    task = tuned.task
    evaluation = tuned.evaluator(batch_size).evaluate(tuned.name, tuned.methods, rows.examples)
    notes = [
        *rows.notes,
        *missing_classes(task, rows.examples),
        *shortened_notes(tuned, evaluation.shortened, len(rows.examples)),
    ]
    # By the column of these rows: the adapter's task may name none.
    grouping = replace(task, group_column=rows.group_column)
    stored = [
        {**asdict(prediction), "group": grouping.group_of(example)}
        for prediction, example in zip(evaluation.predictions, rows.examples, strict=True)
    ]
    metric = measure_of(task.metric)
    outcomes = row_outcomes(stored, task.metric)
    interval = None if metric is None else interval_of(metric, outcomes)
    if (chance := _chance(task, rows.examples, interval)) is not None:
        notes.append(chance)
    intervals = {} if interval is None else {task.metric: (interval.low, interval.high)}
    scored: AdapterScores = {
        "scores": evaluation.scores,
        "intervals": intervals,
        "breakdown": evaluation.breakdown,
        "examples": evaluation.examples,
        "seconds": evaluation.seconds,
        "rows_seen": rows.seen,
        "notes": notes,
    }
    return scored, outcomes


def _chance(task: Task, examples: Sequence[Example], interval: Interval | None) -> str | None:
    """A sentence where the score was not shown to be above that of always giving the most frequent label of these rows."""
    labels = [example.label for example in examples if example.label is not None]
    measure = measure_of(task.metric)
    # A measure of one class, or of ranks, has no constant answer that one would be held against.
    if not labels or interval is None or measure is None or measure.takes != "labels" or measure.of_class is not None:
        return None
    most, rows = Counter(labels).most_common(1)[0]
    if rows == len(labels):
        return None
    constant = measure.score([most] * len(labels), labels)
    if interval.low > constant:
        return None
    return (
        f"not shown to be above chance: always saying {most!r} would score {numbers.score(constant, 4)} on these rows"
    )


def read_rows(data: Path) -> list[dict[str, Any]]:
    """Rows of a data file, malformed ones refused with their line; the pictures of a folder or zip, in order of their names."""
    if is_picture_place(data):
        return [{"image": name} for name in picture_names(data)]
    from dollartune.tasks.files import read_file, require_path
    from dollartune.tasks.rows import BadRows

    notes: list[str] = []
    require_path(data)
    read = read_file(data, BadRows("stop", "Correct the row: predictions are numbered by rows."), notes)
    for note in notes:
        print(f"note: {note}", file=sys.stderr)
    return [dict(row.values) for row in read]


def rows_of_texts(task: Task, texts: Sequence[str]) -> list[Mapping[str, Any]]:
    """Bare texts as rows of a task whose prompt has one column.

    Raises:
        UserError: it has several: which of them the texts were would be a guess.
    """
    columns = task.template.columns if task.template is not None else ()
    if len(columns) != 1:
        raise UserError(f"the prompt has the columns {', '.join(columns)}; give rows with them, not texts alone.")
    return [{columns[0]: text} for text in texts]


@dataclass(frozen=True)
class AskedPicture:
    """The picture of one row."""

    picture: ImageFile | ImageBytes | None
    problem: str | None
    """Why it cannot be asked, or None."""
    stamp: str
    """Hash of the file: another picture under the same name is another row."""
    name: str
    """As the row calls it."""


def pictures_of(rows: Sequence[Mapping[str, Any]], data: Path) -> list[AskedPicture]:
    """The pictures that rows name in column `image`, else in the first that holds names of pictures: in the folder or zip
    itself, or in `images.zip`, `images/` or the folder beside a table, as they are found for tuning."""
    store = ImageStore(data if is_picture_place(data) else image_place(data.parent))
    check = PictureCheck(len(rows), full=True)
    column = "image" if any("image" in row for row in rows) else picture_column(rows)
    asked = []
    for row in rows:
        name = row.get(column or "image")
        try:
            picture = name if isinstance(name, ImageBytes) else store.find(str(name))
        except KeyError as error:
            asked.append(AskedPicture(None, str(error.args[0]).rstrip("."), str(name), str(name)))
            continue
        stamp = hashlib.sha256(picture.read_bytes()).hexdigest()[:32]
        called = name.name if isinstance(name, ImageBytes) else str(name)
        asked.append(AskedPicture(picture, check.problem(picture), stamp, called))
    return asked


def _check_columns(task: Task, rows: Sequence[Mapping[str, Any]], data: Path) -> None:
    known = dict.fromkeys(name for row in rows for name in row)
    if task.modality == "image" and rows and "image" not in known and picture_column(rows) is None:
        raise UserError(
            f"the adapter reads pictures: a column with their names is needed; {data} has {sorted(known)}."
            f"{nearest('image', known)}",
            "Or give the folder or zip of pictures itself.",
        )
    for name in task.template.columns if task.template else ():
        if rows and name not in known:
            raise UserError(f"the prompt needs column {name!r}; {data} has {sorted(known)}.{nearest(name, known)}")
