"""`dollartune.tune`: rows in, a tuned adapter out, from Python; and what both it and the command `tune` do around the study.

tuned = tune(frame, label="mood", budget="5 min")
tuned.predict(["what a fine day"])
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dollartune import format as numbers
from dollartune.backbones.kind import default_objective
from dollartune.backbones.loading import read_config
from dollartune.budget.limit import priced_budget
from dollartune.budget.prices import find_price
from dollartune.errors import UserError
from dollartune.evaluate.labelled_rows import rows_of_task, without_seen
from dollartune.evaluate.predict import evaluate_row_by_row, predict_rows, rows_of_texts
from dollartune.export.opening import open_adapter, stored_task
from dollartune.export.other_backbone import located, stored_backbone
from dollartune.files import write_atomically
from dollartune.methods.stored_adapter import read_info
from dollartune.planner.backbone_choice import choose_backbone
from dollartune.study.api import Study
from dollartune.study.progress import display_for_here
from dollartune.study.status import settings_of
from dollartune.study_file import split_methods
from dollartune.tasks.in_memory import FORMS, is_rows, rows_in_memory, write_rows
from dollartune.tasks.registry import load_task
from dollartune.trials.store import Store
from dollartune.tuning import (
    any_mistake,
    hand_over,
    need_place_for_adapter,
    nothing_handed_over,
    refuse_other_work,
    task_entry,
    tuning_study,
)

if TYPE_CHECKING:
    import pandas

    from dollartune.engines.display import Display
    from dollartune.evaluate.predict import Tuned
    from dollartune.evaluate.row_outcomes import RowOutcomes
    from dollartune.study.results import Results
    from dollartune.trials.record import TrialRecord


@dataclass
class TunedAdapter:
    """What `tune` returns."""

    folder: Path
    """The adapter, for `dollartune predict`, `export` and `serve`."""
    record: TrialRecord
    """What its trial left: settings, scores, seconds, dollars."""
    results: Results
    """The study behind it."""
    _open: Tuned | None = None

    @property
    def method(self) -> str:
        """The method with its settings."""
        return self.record.trial.label

    @property
    def score(self) -> float | None:
        """On the test rows; None where the money ended before they were asked."""
        return self.record.test.score if self.record.test is not None else None

    def predict(self, rows: Any, batch_size: int = 32) -> pandas.DataFrame:
        """A frame with the prediction for each row, and the probability of each label.

        Args:
            rows: a DataFrame, a list of mappings, a mapping of columns; or a list (or Series) of texts where the prompt has one
                column.

        Raises:
            UserError: they are none of these.
        """
        import pandas

        if self._open is None:
            # Kept open: loading a backbone takes longer than most questions.
            self._open = open_adapter(self.folder)
        asked = self._rows(rows)
        predictions = predict_rows(self._open, asked, batch_size)
        return pandas.DataFrame(
            [{"predicted": one.predicted, **(one.probabilities or {})} for one in predictions],
            # A frame's own index, so that the answer can be joined to it.
            index=rows.index if isinstance(rows, pandas.DataFrame | pandas.Series) else None,
        )

    def _rows(self, rows: Any) -> list[Mapping[str, Any]]:
        assert self._open is not None
        if isinstance(rows, str):
            raise UserError("one text is no list of rows.", hint="predict([text])")
        whole = isinstance(rows, Mapping) or hasattr(rows, "columns") or hasattr(rows, "column_names")
        listed = rows if whole else list(rows)
        if not whole and listed and all(isinstance(row, str) for row in listed):
            return rows_of_texts(self._open.task, listed)
        return list(rows_in_memory(listed))

    def __repr__(self) -> str:
        score = "not tested" if self.score is None else f"{self.record.metric} {numbers.score(self.score)}"
        return f"TunedAdapter({self.method}, {score}, in {self.folder})"


@dataclass(frozen=True)
class OldAndNew:
    """An adapter and the one that began with it, on the same test rows."""

    rows: int
    metric: str
    old: float
    new: float
    old_interval: tuple[float | None, float | None]
    new_interval: tuple[float | None, float | None]
    notes: tuple[str, ...]
    told_apart: bool | None
    """Whether the paired test of these rows says that one is better; None where the measure has no value per row, or the rows are
    one, or all of one group."""
    unseen: bool
    """Whether both say which rows they were tuned on, so that none of these is among them."""

    @property
    def sentence(self) -> str:
        """For people."""
        change = self.new - self.old
        seen = (
            "which neither was tuned on"
            if self.unseen
            else "some of which either may have been tuned on (it does not say)"
        )
        old, new = numbers.score(self.old), numbers.score(self.new)
        word = "unchanged" if old == new else "higher" if change > 0 else "lower"
        if old != new:
            word += {
                True: ", more than luck with the rows explains",
                False: ", which luck with the rows can explain",
                None: "; how sure that is cannot be said",
            }[self.told_apart]
        return f"{self.metric} on the same {self.rows} test rows, {seen}: {old} before, {new} now ({word})."


def tune(
    data: Any,
    backbone: str | os.PathLike[str] | None = None,
    *,
    budget: str = "5 min",
    methods: Sequence[str] = (),
    label: str | None = None,
    target: str | None = None,
    text: str | Sequence[str] | None = None,
    on_bad_row: str | None = None,
    out: str | Path = "tuned",
    price: str | None = None,
    rows: int | None = None,
    seeds: int = 3,
    trials: int | None = None,
    begin_with: str | Path | None = None,
    metric: str | None = None,
    limit: str | Sequence[str] = (),
    data_root: str | Path | None = None,
    name: str | None = None,
    fresh: bool = False,
    display: Display | None = None,
) -> TunedAdapter:
    """Tunes one adapter: a good one early, a better one with each further second of the budget.

    Args:
        data: a file, a preset's name, a DataFrame, a `datasets.Dataset`, a list of mappings, a mapping of columns, or a pair
            (texts, labels).
        backbone: the pretrained model: a name of `dollartune backbones ls`, a hub id, a folder. By default the largest at hand
            that the budget pays for.
        budget: time or money, as in `60 s`, `5 min`, `$1` (with `price`).
        methods: to tune with; by default those that suit.
        label: column with the class.
        target: column with the text to write, in place of a class.
        text: column, or columns, with the input.
        on_bad_row: what a malformed row does: `stop` or `skip`.
        out: folder for the adapter and the study. The same call on the same folder goes on.
        price: of this machine, as in `2.49/h`.
        rows: training rows; by default all that the budget pays to be read.
        seeds: maximum number of seeds of the best setting.
        trials: maximum number of settings to try per method.
        begin_with: folder of an adapter that this one begins with.
        metric: by which the adapter is chosen, as in `macro_f1` or `recall:LABEL`; by default the task's.
        limit: the most that serving it may take: `20 ms` (a request), `500 MiB`, `$0.10 per 1000` (with `price`), or several of
            them. What takes more is not tuned.
        data_root: folder with local copies of presets' data.
        name: of the task in tables and reports; by default the file's, or `dataframe`, `dataset`, `rows`.
        fresh: delete an earlier attempt first.
        display: how progress is shown; by default as suits a notebook, a terminal or a log.

    Returns:
        the adapter, its record and the results of the study behind it.

    Raises:
        UserError: the data, a name or the budget cannot work, or nothing was tuned before the budget ended.
    """
    if not isinstance(data, str | os.PathLike) and not is_rows(data):
        raise UserError(
            f"data of type {type(data).__name__} is not understood; expected a file, a preset's name, {FORMS}."
        )
    folder, backbone = Path(out), None if backbone is None else os.fspath(backbone)
    told = {
        "label": label,
        "target": target,
        "text": list(text) if isinstance(text, list | tuple) else text,
        "on_bad_row": on_bad_row,
        "name": name,
    }
    settings, notes = tuning_settings(
        # Rows in memory become a file beside the adapter: a killed run must find the same rows again.
        str(write_rows(data, folder / "data", name or "")) if is_rows(data) else str(data), backbone, budget, folder, told,
        methods=methods, price=price, rows=rows, seeds=seeds, trials=trials, begin_with=begin_with,
        metric=metric, limit=limit, data_root=Path(data_root) if data_root is not None else None, fresh=fresh,
    )  # fmt: skip
    shown = display or display_for_here()
    for note in notes:
        shown.note(note)
    study = Study(settings)
    if not fresh:
        refuse_other_work(study.store, study.settings)
    # Handed over at each improvement, so that an interrupted call leaves the best adapter so far.
    results = study.run(fresh=fresh, display=shown, improved=lambda: hand_over(study.store, folder / "adapter"))
    record = hand_over(study.store, folder / "adapter")
    if record is None:
        error = nothing_handed_over(study.store, study.settings.limits, all_failed=any_mistake(results.failed()))
        failed = "; ".join(dict.fromkeys(one.error.message for one in results.failed() if one.error.kind != "limit"))
        raise UserError(f"{error.message} {failed}".strip(), hint=error.hint)
    return TunedAdapter(folder / "adapter", record, results)


def tuning_settings(
    data: str,
    backbone: str | None,
    budget: str,
    out: Path,
    told: Mapping[str, Any],
    *,
    methods: Sequence[str] = (),
    price: str | None = None,
    rows: int | None = None,
    seeds: int = 3,
    trials: int | None = None,
    begin_with: str | Path | None = None,
    metric: str | None = None,
    limit: str | Sequence[str] = (),
    data_root: Path | None = None,
    fresh: bool = False,
) -> tuple[dict[str, Any], list[str]]:
    """The settings of the study that tunes one adapter, with a backbone chosen where none is named; and what was guessed.

    Args:
        fresh: what lies in `out` is deleted first, and decides nothing.

    Raises:
        UserError: as `tuning_study`; or the adapter to begin with is of another backbone than the one named.
    """
    parsed = priced_budget(budget, price)  # before anything is loaded
    for what, count in (("rows", rows), ("seeds", seeds), ("trials", trials)):
        if count is not None and count < 1:
            raise UserError(f"{what} is a number from 1 up; got {count}.")
    if isinstance(methods, str):
        methods = split_methods(methods)
    need_place_for_adapter(out)
    before: _Before | None = None
    notes: list[str] = []
    if begin_with is not None:
        before = _as_before(Path(begin_with), backbone, methods)
        backbone, methods = before.backbone, before.methods
    begun = None if fresh else settings_of(Store(out / "study"))
    if backbone is None and begun is not None:
        # A larger budget might pay for another one: the same command goes on with what it has.
        backbone = begun.backbones[0].name
        notes = [f"backbone {backbone}, with which {out} was begun. Another: --fresh, or another --out"]
    elif backbone is None:
        # The choice of a backbone is by time: what fits into the budget, whatever its unit.
        seconds = parsed.limit(1).in_seconds(find_price(price))
        choice = choose_backbone(task_entry(data, data_root, told)[1], seconds)
        backbone, notes = choice.name, [f"backbone {choice.why}. Another: dollartune backbones ls"]
    settings, guessed = tuning_study(
        backbone, data, methods, budget, out, price=price, rows=rows, seeds=seeds, trials=trials, metric=metric,
        limit=limit, data_root=data_root, told=told,
    )  # fmt: skip
    if begun is not None and located(settings["backbone"]) == located(begun.backbones[0].name):
        settings["backbone"] = begun.backbones[0].name  # by another of its names no record would be found again
    if before is not None:
        entry = settings["task"] if isinstance(settings["task"], dict) else {"preset": settings["task"]}
        loaded = before.loaded
        if before.anatomy is not None:
            # A study names a file; the adapter has its text.
            write_atomically(out / "anatomy.yaml", before.anatomy.encode())
            loaded = {**loaded, "anatomy": str((out / "anatomy.yaml").resolve())}
        settings |= {
            "backbone": {"name": settings["backbone"], **loaded} if loaded else settings["backbone"],
            "task": {**entry, **before.task} if before.task else settings["task"],
            "begin_with": str(Path(begin_with or "").resolve()),
        }
    return settings, [*notes, *guessed]


@dataclass(frozen=True)
class _Before:
    """What an adapter keeps of the one that it begins with: only then do its tensors mean the same."""

    backbone: str
    loaded: dict[str, Any]
    """Settings of the study's backbone beside its name, where they are no defaults."""
    anatomy: str | None
    """Text of the file that says what its modules are."""
    methods: list[Any]
    task: dict[str, Any]
    """Prompt, label words, and whether and how a chat template asks."""


def _as_before(folder: Path, backbone: str | None, methods: Sequence[str]) -> _Before:
    """Backbone, methods and prompt of a stored adapter.

    Raises:
        UserError: another backbone is named, or other methods.
    """
    info = read_info(folder)
    task = stored_task(info)
    mine = stored_backbone(folder, info["backbone"])
    if backbone is not None and located(backbone) != located(mine):
        raise UserError(
            f"{folder} was tuned on {info['backbone']}; an adapter cannot go on with another backbone ({backbone}).",
            hint=f"dollartune tune DATA --begin-with {folder}",
        )
    # Method and settings as stored: its tensors fit no others.
    described: list[Any] = [{str(m["method"]): {k: v for k, v in m.items() if k != "method"}} for m in info["methods"]]
    if methods:
        raise UserError(f"--begin-with keeps the method of {folder}; leave --method out.")
    # The words and the prompt too: the same tensors under another prompt would begin from somewhere else.
    changes: dict[str, Any] = {"label_words": dict(task.label_words)} if task.label_words else {}
    if task.template is not None:
        changes["prompt"] = task.template.text
    objective = info.get("objective")
    if objective == "language" and task.chat_template is None:
        changes["chat"] = "never"  # also where the tokenizer has got a template since
    if task.system:
        changes["system"] = task.system
    loaded = {
        key: info[key]
        for key, default in {
            # of the head: a decoder that was tuned to score classes does so again
            "objective": default_objective(read_config(mine)), "quantize": "none", "random_weights_seed": None,
        }.items()
        if info.get(key) not in (None, default)
    }  # fmt: skip
    described = [described[0] if len(described) == 1 else described]
    return _Before(mine, loaded, info.get("anatomy"), described, changes)


def old_and_new(old: Path, new: Path, study: Study) -> OldAndNew | None:
    """Scores an adapter and the one that began with it on the test rows of the study, without those that the old one was tuned
    on; None where no such row is left."""
    settings = study.settings
    root = Path(settings.data_root) if settings.data_root else None
    task = load_task(settings.tasks[0], root)
    before, now = open_adapter(old), open_adapter(new)
    try:
        labelled = without_seen(before, rows_of_task(before, task, settings.evaluation.rows), False, task.name)
        # Without the rows that either was tuned on, or the later one would be scored on what it has seen.
        labelled = without_seen(now, labelled, False, task.name)
    except UserError:
        return None
    made = [evaluate_row_by_row(tuned, labelled, settings.evaluation.batch_size) for tuned in (before, now)]
    evaluations, metric = [scores for scores, _ in made], before.task.metric
    unknown = (None, None)
    first, second = (one["intervals"].get(metric, unknown) for one in evaluations)
    return OldAndNew(
        len(labelled.examples), metric, evaluations[0]["scores"][metric], evaluations[1]["scores"][metric],
        first, second, tuple(dict.fromkeys(labelled.notes)), _told_apart(metric, [rows for _, rows in made]),
        before.rows_seen is not None and now.rows_seen is not None,
    )  # fmt: skip


def _told_apart(metric: str, rows: Sequence[RowOutcomes]) -> bool | None:
    """Whether two adapters differ by more than luck with the rows, which both were asked."""
    from dollartune.evaluate.row_outcomes import measure_of
    from dollartune.evaluate.seed_outcomes import seed_outcomes
    from dollartune.stats import compare
    from dollartune.stats.intervals import units_of

    measure = measure_of(metric)
    one, other = (None, None) if measure is None else (seed_outcomes(measure, [each]) for each in rows)
    if one is None or other is None or units_of(one) == 1:
        return None
    # Two adapters as they are, and not their methods: other seeds are no question here.
    return compare({"old": one, "new": other}, seedless=("old", "new")).winner is not None
