"""What a report says, before it is written as a page, as Markdown or as charts: one `Contents` per study.

Contents
  boards: one per task and scale          -> Board
    entries: one per method variant       -> BoardEntry   (records of all its seeds, and its standing)
  failures, ledger, settings              -> what was spent and how it was run
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from statistics import fmean
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

from dollartune import format as numbers
from dollartune.errors import UserError, unknown_name
from dollartune.report.score_over_money import more_money, score_over_money
from dollartune.study.varying_settings import shown_labels

if TYPE_CHECKING:
    from pathlib import Path

    from dollartune.budget.totals import Totals
    from dollartune.config import StudySettings
    from dollartune.report.score_over_money import MoneyPoint
    from dollartune.stats import Comparison, Standing, Summary
    from dollartune.study.results import Results
    from dollartune.trials.record import Ablation, Cost, DataFacts, DoneRecord, FailedRecord, TrialRecord


@dataclass(frozen=True, eq=False)
class BoardEntry:
    """One method with fixed settings on one task and scale, over its seeds."""

    label: str
    method: str
    """The method (or combination) that it is a setting of."""
    records: tuple[DoneRecord, ...]
    standing: Standing | None
    """None where predictions are not stored or the metric cannot be resampled."""
    costs: tuple[Cost, ...]
    """Of each seed, with the trials that it went on from or was averaged with."""
    scores: tuple[float, ...]
    """Of each seed, on the rows that are compared."""

    @property
    def backbone(self) -> str:
        return self.records[0].trial.backbone

    @cached_property
    def score(self) -> float:
        return self.standing.score.value if self.standing else fmean(self.scores)

    @property
    def low(self) -> float | None:
        return self.standing.score.low if self.standing else None

    @property
    def high(self) -> float | None:
        return self.standing.score.high if self.standing else None

    @property
    def test_rows(self) -> int:
        """On which its score is taken: fewer than there are, where the money did not pay for all of them with every trial."""
        return self.standing.score.examples if self.standing else min(r.test.examples for r in self.records)

    @property
    def may_be_best(self) -> bool | None:
        return self.standing.may_be_best if self.standing else None

    @cached_property
    def seconds(self) -> float:
        """What one adapter took, mean over seeds: tuning, evaluation and export."""
        # A mean, not a sum: methods with more seeds would look dearer.
        return fmean(cost.seconds for cost in self.costs)

    @cached_property
    def dollars(self) -> float:
        return fmean(cost.dollars for cost in self.costs)

    @property
    def trainable(self) -> int:
        # The same for all seeds, as they differ in numbers and not in shapes.
        return self.records[0].parameters.trainable

    @property
    def total(self) -> int:
        return self.records[0].parameters.total

    @property
    def modules(self) -> Mapping[str, int]:
        return self.records[0].parameters.modules

    @property
    def reported(self) -> Mapping[str, float]:
        """What its methods say of their trained parts besides the size, means over the seeds: `mean_rank`, `sparsity`."""
        figures: dict[str, list[float]] = {}
        for record in self.records:
            for said in record.parameters.reported.values():
                for name, value in said.items():
                    if value is not None:
                        figures.setdefault(name, []).append(value)
        return {name: fmean(values) for name, values in figures.items()}

    @property
    def baseline(self) -> bool:
        """Whether it is there for methods to be held against."""
        return self.records[0].trial.baseline

    @property
    def trained(self) -> bool:
        """False for in-context methods: nothing was tuned."""
        return any(record.training is not None for record in self.records)

    @cached_property
    def peak_bytes(self) -> int | None:
        """Most memory while tuning; None where nothing was tuned or measured."""
        # The most of any seed: a machine must hold all of them.
        return max((record.memory.peak_bytes for record in self.records), default=0) or None

    @property
    def peak_trials(self) -> int:
        """How many trials were tuned together at that peak; 1 where it is one trial's alone, or nobody wrote it down."""
        together = (r.memory.trials or 1 for r in self.records if r.memory.peak_bytes == self.peak_bytes)
        return max(together, default=1)

    @cached_property
    def adapter_bytes(self) -> int | None:
        sizes = (record.adapter.bytes for record in self.records if record.adapter is not None)
        return next((size for size in sizes if size), None)

    @cached_property
    def prompt_tokens(self) -> float:
        """Tokens of one request: what an in-context prompt costs each time."""
        return fmean(record.test.prompt_tokens for record in self.records)

    def training(self, name: str) -> list[float]:
        """A figure of the training of each seed, such as `best_epoch`."""
        recorded = [getattr(record.training, name) for record in self.records if record.training is not None]
        return [float(value) for value in recorded if value is not None]

    def mean_training(self, name: str) -> float | None:
        values = self.training(name)
        return fmean(values) if values else None

    def generated(self, metric: str) -> float | None:
        """Score of free generation beside label scoring, mean over seeds."""
        recorded = [record.test.generation.scores.get(metric) for record in self.records]
        values = [float(value) for value in recorded if value is not None]
        return fmean(values) if values else None

    def measures(self, what: str, name: str) -> list[float]:
        """A figure of each seed beyond the score: of `inference` (a request) or `forgetting` (general text)."""
        recorded = [getattr(getattr(record, what), name, None) for record in self.records]
        return [float(value) for value in recorded if value is not None]

    def mean_measure(self, what: str, name: str) -> float | None:
        values = self.measures(what, name)
        return fmean(values) if values else None

    @cached_property
    def forgotten(self) -> list[float]:
        """By how much the loss on general text rose, in nats per token, for each seed; empty where not measured."""
        facts = (record.forgetting for record in self.records if record.forgetting is not None)
        # A loss that is no number is stored as none: such a seed says nothing.
        return [rise for one in facts if (rise := one.rise) is not None]

    @property
    def request_dollars(self) -> float | None:
        """Of 1,000 requests in batches, mean over seeds, each at the price of its own time; None where not measured, or where a
        seed had no price."""
        from dollartune.study.compare import request_dollars

        return request_dollars(self.records)

    def reason(self, what: str) -> str | None:
        """Why a figure was not measured."""
        reasons = (getattr(getattr(record, what), "reason", None) for record in self.records)
        return next((str(reason) for reason in reasons if reason), None)

    @property
    def series(self) -> str:
        """What decides its color, shape and name in every chart and table: each setting has its own, an ablation that of the
        whole method, beside which it stands."""
        return self.label if self.ablation is None else self.ablation.of

    @property
    def ablation(self) -> Ablation | None:
        return self.records[0].trial.ablation


@dataclass(frozen=True, eq=False)
class Board:
    """One task at one scale: what is compared with what, best first."""

    task: str
    scale: int | None
    metric: str
    entries: tuple[BoardEntry, ...]
    """The methods that are compared."""
    comparison: Comparison | None
    priced: bool
    baselines: tuple[BoardEntry, ...] = ()
    """What they are held against: the majority class, words, the untuned model; highest score first."""
    unsearched: str | None = None
    """Said above its table where learning rates were not searched."""

    @property
    def title(self) -> str:
        return f"{self.task}, {numbers.rows(self.scale)}"

    @property
    def compared(self) -> tuple[BoardEntry, ...]:
        """Those of the methods that are in the comparison."""
        return tuple(entry for entry in self.entries if entry.standing is not None)

    @property
    def test_rows(self) -> tuple[int, int]:
        """The fewest and the most that a method's score is taken on."""
        rows = [entry.test_rows for entry in self.entries]
        return min(rows), max(rows)

    @property
    def best(self) -> BoardEntry:
        """The highest observed score; of those that are compared, where any are."""
        return self.entries[0]

    @property
    def highest(self) -> tuple[BoardEntry, ...]:
        """The highest observed score: one entry, or all that score the same."""
        labels = self.comparison.highest if self.comparison is not None else ()
        among = self.compared or self.entries
        return tuple(one for one in among if one.label in labels or one.score == self.best.score)

    @property
    def candidates(self) -> tuple[BoardEntry, ...]:
        """All that cannot be told apart from the best."""
        return tuple(entry for entry in self.entries if entry.may_be_best)

    @property
    def cheapest(self) -> BoardEntry | None:
        """The one that costs least among those that may be the best."""
        return min(self.candidates, key=self.cost, default=None)

    def cost(self, entry: BoardEntry) -> float:
        """Dollars of one trial, or seconds when there is no price."""
        return entry.dollars if self.priced else entry.seconds

    def cost_text(self, entry: BoardEntry) -> str:
        return numbers.dollars(entry.dollars) if self.priced else numbers.seconds(entry.seconds)

    @cached_property
    def front(self) -> tuple[BoardEntry, ...]:
        """Those that no other beats in both score and cost (the Pareto front), cheapest first."""
        front: list[BoardEntry] = []
        # Of equal costs the best first, so that the others are behind the front.
        for entry in sorted(self.entries, key=lambda entry: (self.cost(entry), -entry.score)):
            if not front or entry.score > front[-1].score:
                front.append(entry)
        return tuple(front)

    def entry(self, label: str) -> BoardEntry | None:
        return next((entry for entry in (*self.entries, *self.baselines) if entry.label == label), None)

    @property
    def data(self) -> DataFacts:
        """Numbers of rows."""
        return self.best.records[0].data

    @property
    def labels(self) -> tuple[str, ...]:
        return self.best.records[0].labels


@dataclass(frozen=True, eq=False)
class Contents:
    """A whole study."""

    name: str
    results: Results
    boards: tuple[Board, ...]
    failures: tuple[FailedRecord, ...]
    settings: StudySettings | None
    """None where the study file is missing or unreadable."""
    ledger: Totals | None
    methods: tuple[str, ...]
    """In the order of the study file."""
    series: tuple[str, ...] = ()
    """What has a color of its own (`BoardEntry.series`), methods in their order; the position decides color and shape."""
    notes: tuple[str, ...] = field(default=())
    with_rows: bool = True
    """Whether rows of the data and what was predicted for them may be shown: not where the data are private."""

    @property
    def priced(self) -> bool:
        return any(board.priced for board in self.boards)

    @property
    def tasks(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(board.task for board in self.boards))

    @cached_property
    def summary(self) -> Summary | None:
        """Over all boards; None where there is one, or they cannot be compared."""
        return self.results.summary if any(board.comparison is not None for board in self.boards) else None

    def of_task(self, task: str) -> tuple[Board, ...]:
        """Boards of a task, smallest scale first."""
        return tuple(board for board in self.boards if board.task == task)

    @cached_property
    def _money(self) -> list[MoneyPoint]:
        return score_over_money(self.results.store, self.results.everything)

    def score_over_money(self, board: Board) -> list[MoneyPoint]:
        """A point per record of a board, at the money that had been booked for the board when it ended."""
        return [one for one in self._money if one.board == f"{board.task}|{board.scale or ''}"]

    def more_money(self, board: Board) -> str | None:
        """What more money would buy, in a sentence; None where nobody can know that: too little was seen, nothing would be tried
        with more, or the money went from method to method in the order of the study file, so that what the later part bought is
        what the later methods are."""
        here = [
            record for record in self.results.everything
            if (record.trial.task, record.trial.scale) == (board.task, board.scale) and not record.trial.baseline
        ]  # fmt: skip
        by_promise = all(record.budget is None or record.budget.per == "study" for record in here)
        if not by_promise or not any(record.search is not None for record in here):
            return None
        return more_money(self.score_over_money(board), board.priced)

    def chosen(self, task: str | None, scale: int | None) -> tuple[Board, ...]:
        """Boards of that task and scale; all where none is named.

        Raises:
            UserError: no such task or scale.
        """
        if task is not None and task not in self.tasks:
            raise unknown_name("task of this study", task, self.tasks)
        chosen = tuple(b for b in self.boards if task in (None, b.task) and scale in (None, b.scale))
        if not chosen:
            scales = sorted({b.scale for b in self.boards if b.scale is not None})
            raise UserError(f"there are no results at scale {scale}; the study has {scales or 'one without a limit'}.")
        return chosen


_MADE: WeakKeyDictionary[Results, Contents] = WeakKeyDictionary()


def collect(results: Results) -> Contents:
    """Gathers what a report says; computed once for each `Results`.

    Raises:
        UserError: no trial of the study has a record.
    """
    if results not in _MADE:
        _MADE[results] = _collect(results)
    return _MADE[results]


def _collect(results: Results) -> Contents:
    from dollartune.study.compare import boards, scores_of_seeds, unsearched_rates

    if not results.records:
        raise UserError(
            f"the study in {results.store.root} has no finished trial to report.", "dollartune run STUDY.yaml"
        )
    notes: tuple[str, ...] = ()
    try:
        compared = results.comparisons
    except UserError as error:  # such as results of two differently cut test sets in one folder
        compared, notes = {}, (f"No intervals and no verdict, because the results cannot be compared: {error.message}",)
    made = []
    for key, variants in boards(results).items():
        comparison = compared.get(key)
        known = (*comparison.standings, *comparison.baselines) if comparison is not None else ()
        standings = {s.method: s for s in known}
        entries = [
            BoardEntry(
                label,
                records[0].trial.group,
                tuple(records),
                standings.get(label),
                tuple(results.cost(record) for record in records),
                tuple(scores_of_seeds(results, records, standings.get(label))),
            )
            for label, records in variants.items()
        ]
        # What is in no comparison can lead none. The label decides between equal scores, so that a report of the same records is
        # the same file.
        entries.sort(key=lambda e: (comparison is not None and e.standing is None, -e.score, e.label))
        # All or none: dollars of some beside seconds of others cannot be compared.
        priced = all(cost.price_per_hour for entry in entries for cost in entry.costs)
        metric = entries[0].records[0].metric
        compared_entries = tuple(entry for entry in entries if not entry.baseline)
        beside = tuple(entry for entry in entries if entry.baseline)
        if not compared_entries:  # baselines are all there is so far
            compared_entries, beside = beside, ()
        unsearched = unsearched_rates(results, key)
        made.append(Board(key[0], key[1], metric, compared_entries, comparison, priced, beside, unsearched))
    # A plan may list trials that the budget never paid for; they count as open, and the sentence says so.
    planned = len(results.store.planned() or ())
    if planned > len(results.records):
        notes = (*notes, f"The study is not finished: {len(results.records)} of {planned} trials have a result so far.")
    begun = {
        record.trial.label: record.training.begun_with
        for record in results.records
        if record.training is not None and record.training.begun_with
    }
    if begun:
        folder = next(iter(begun.values()))
        notes = (*notes, f"{', '.join(begun)} began with the adapter in {folder}; all others began fresh.")
    failures = tuple(results.failed())
    settings, unread = _settings(results)
    methods = _method_order(results.records, settings)
    return Contents(
        results.store.root.name, results, tuple(made), failures, settings, _ledger(results), methods,
        series_order(results.records, settings), (*notes, *unread),
    )  # fmt: skip


def _settings(results: Results) -> tuple[StudySettings | None, tuple[str, ...]]:
    """The study as it was asked for, as stored beside the results."""
    from pydantic import ValidationError

    from dollartune.config import StudySettings

    path = results.store.root / "study.yaml"
    if not path.is_file():
        return None, ("The study file is not beside the results, so its settings are not shown.",)
    try:
        return StudySettings.model_validate_json(path.read_bytes()), ()
    except ValidationError:
        # A run writes JSON that is valid. This is YAML that somebody put there, which is as good, or the file of another
        # version of dollartune: reading it as a study file tells them apart, and says what is wrong with the second.
        return _handwritten(path)


def _handwritten(path: Path) -> tuple[StudySettings | None, tuple[str, ...]]:
    from dollartune.study_file import load_study

    try:
        return load_study(path), ()
    except UserError as error:
        return None, (f"The study file beside the results cannot be read: {error.message}",)


def _ledger(results: Results) -> Totals | None:
    from dollartune.budget.totals import read_totals

    return read_totals(results.store.ledger) if results.store.ledger.is_file() else None


def series_order(records: Sequence[TrialRecord], settings: StudySettings | None) -> tuple[str, ...]:
    """What has a color of its own (`BoardEntry.series`): methods as the study lists them, the shorter label first; what they are
    held against comes last, as it is grey."""
    order = {method: place for place, method in enumerate(_method_order(records, settings))}
    shown = shown_labels([record for record in records if record.status == "done"])
    ranks = {}
    for record in records:
        trial = record.trial
        name = shown.get(trial.label, trial.label) if trial.ablation is None else trial.ablation.of
        ranks[name] = (trial.baseline, order[trial.group], len(name), name)
    return tuple(sorted(ranks, key=lambda name: ranks[name]))


def _method_order(records: Sequence[TrialRecord], settings: StudySettings | None) -> tuple[str, ...]:
    """Methods as the study lists them, then any others by name."""
    groups = sorted({record.trial.group for record in records})
    if settings is None:
        return tuple(groups)
    written: list[str] = []
    for entry in settings.methods:
        parts = entry if isinstance(entry, list) else [entry]
        # Labels of combinations are joined with ` + `, and settings in parentheses are not part of a method's group.
        written.append(
            " + ".join((part if isinstance(part, str) else next(iter(part))).split("(")[0] for part in parts)
        )
    return tuple(sorted(groups, key=lambda group: (written.index(group) if group in written else len(written), group)))
