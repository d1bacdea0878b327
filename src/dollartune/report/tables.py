"""The tables of a report, the same for the page and for Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import stdev
from typing import TYPE_CHECKING

from dollartune import format as numbers
from dollartune.report.baselines import marks, nobody_above_chance
from dollartune.report.learning_speed import against_all, converged
from dollartune.report.provenance import modules_sentence
from dollartune.report.spending import budget_of, by_category, by_method
from dollartune.report.text import probability, rows_in_words
from dollartune.report.tries import tries_table

if TYPE_CHECKING:
    from dollartune.report.ablation import AblationRow
    from dollartune.report.class_scores import ClassScore
    from dollartune.report.contents import Board, BoardEntry, Contents
    from dollartune.stats import Summary
    from dollartune.stats.summary import PointEstimate
    from dollartune.trials.record import TrialRecord


@dataclass(frozen=True)
class Table:
    """Headings and rows of text. The first column names the row."""

    caption: str
    headings: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    numeric: frozenset[int] = frozenset()
    """Columns that are set to the right."""
    methods: tuple[str | None, ...] = ()
    """Method of each row, whose color and shape stand beside its name on the page."""
    strong: frozenset[int] = frozenset()
    """Rows that may be the best."""
    notes: tuple[str, ...] = field(default=())


def overview(contents: Contents) -> Table:
    """One row per board: the best, and the cheapest that may be the best."""
    rows = []
    for board in contents.boards:
        cheapest = board.cheapest
        rows.append(
            (
                board.task,
                "all" if board.scale is None else f"{board.scale:,}",
                numbers.listed([entry.label for entry in board.highest]),
                f"{numbers.score(board.best.score)} {board.metric}",
                _how_sure(board),
                f"{cheapest.label} ({board.cost_text(cheapest)})" if cheapest is not None else numbers.NONE,
            )
        )
    headings = ("Task", "Training rows", "Highest score", "Score", "How sure", "Cheapest that may be best")
    return Table("Results in short", headings, tuple(rows), frozenset({1, 3}))


def over_boards(over: Summary) -> Table:
    """Mean rank and probability of improvement over all tasks and scales."""
    rows = [
        (one.method, numbers.score(one.mean_rank.value, 2), _range(one.mean_rank))
        + (
            (numbers.score(one.improvement.value, 2), _range(one.improvement))
            if one.improvement
            else (numbers.NONE,) * 2
        )
        for one in over.methods
    ]
    headings = ("Method", "Mean rank", "95 % interval", f"{over.leader} improves on it", "95 % interval")
    return Table("Over all tasks and scales", headings, tuple(rows), frozenset({1, 2, 3, 4}), notes=(over.sentence,))


def _range(share: PointEstimate) -> str:
    return f"{numbers.score(share.low, 2)} to {numbers.score(share.high, 2)}"


def _how_sure(board: Board) -> str:
    if board.comparison is None:
        return "unknown"
    tied = len(board.candidates)
    if nobody_above_chance(board):
        return "none above the majority"
    if len(board.compared) == 1 < len(board.entries):
        return "compared with nothing"
    if board.comparison.conditional:
        return "one seed: not known"
    return numbers.percent(board.comparison.level) if tied == 1 else f"{tied} of {len(board.compared)} may be best"


def _with_deviation(entry: BoardEntry) -> str:
    """The mean over seeds, and their standard deviation (n - 1) where there are several."""
    spread = f" (± {numbers.score(stdev(entry.scores))})" if len(entry.scores) > 1 else ""
    return numbers.score(entry.score) + spread


def leaderboard(board: Board) -> Table:
    """Scores with intervals, paired differences to the best, and what each method costs."""
    asked = any(
        entry.mean_measure("inference", "seconds") is not None for entry in board.entries
    )  # in a table of its own
    # A column of equal numbers says nothing.
    in_context = not asked and len({round(entry.prompt_tokens) for entry in board.entries}) > 1
    written = any(entry.generated(board.metric) is not None for entry in board.entries)
    several_seeds = any(len(entry.records) > 1 for entry in board.entries)
    headings = [
        "Method",
        board.metric,
        "95 % interval",
        "Against the best",
        "May be best",
        "Probability",
    ]
    headings += ["Against baselines"] if board.baselines else []
    headings += ["Seeds", "Trained parameters", "Time"]
    headings += ["Dollars"] if board.priced else []
    headings += ["Peak memory", "Adapter file"]
    headings += ["Tokens per request"] if in_context else []
    headings += [f"{board.metric}, free writing"] if written else []
    rows = []
    listed = (*board.entries, *board.baselines)
    for entry in listed:
        # None and not "no": a baseline is in no comparison for the best.
        may_be_best = None if entry.baseline else entry.may_be_best
        row = [
            f"{entry.label} (baseline)" if entry.baseline else entry.label,
            _with_deviation(entry),
            numbers.span(entry.low, entry.high),
            _against(entry, board),
            {True: "yes", False: "no", None: numbers.NONE}[may_be_best],
            probability(None if entry.standing is None else entry.standing.probability),
        ]
        row += [_above(entry, board)] if board.baselines else []
        row += [str(len(entry.records)), _trained(entry), numbers.seconds(entry.seconds)]
        row += [numbers.dollars(entry.dollars)] if board.priced else []
        row += [_peak(entry), numbers.size(entry.adapter_bytes)]
        row += [numbers.count(entry.prompt_tokens)] if in_context else []
        row += [numbers.score(entry.generated(board.metric))] if written else []
        rows.append(tuple(row))
    over = rows_in_words(board.test_rows)
    notes = [
        f"Intervals cover {over}{' and seeds' if several_seeds else '; with one seed they ignore variation between seeds'}."
    ]
    if board.comparison is not None and len(board.entries) > 1:
        given = ", given these seeds" if board.comparison.conditional else ""
        notes.append(f"Probability: that the method is the best of these{given}, for someone without a prior opinion.")
    if any(len(entry.records) > 1 for entry in listed):
        notes.append("±: standard deviation over seeds.")
    cost = "Time and dollars" if board.priced else "Time"
    notes.append("Trained parameters: with their share of the backbone.")
    notes.append(f"{cost}: one trial, mean over seeds, with tuning, evaluation and export.")
    if any(entry.peak_trials > 1 for entry in listed):
        notes.append("Peak memory of several together: their trials were tuned in one pass, and all of them are in it.")
    if any(record.trial.extends or record.trial.averaged_with for entry in listed for record in entry.records):
        notes.append("What goes on from another trial, or is averaged with one, has cost what that one has cost too.")
    if any(record.cost.earlier_seconds for entry in listed for record in entry.records):
        notes.append(
            "Features of the frozen backbone that were there already, and outputs of its frozen layers, cost what they took when "
            "they were computed, for another trial or by an earlier study."
        )
    if written:
        notes.append(
            "Free writing: the model writes what it likes and the label is read from it, instead of the likeliest label "
            "being taken."
        )
    # Words ("yes", "above") stand to the left; all else is numbers.
    right = frozenset(range(1, len(headings))) - {4, *([6] if board.baselines else [])}
    return Table(
        f"{board.title}: all methods, best first", tuple(headings), tuple(rows), right,
        tuple(None if entry.baseline else entry.series for entry in listed),
        frozenset(i for i, e in enumerate(board.entries) if e.may_be_best), tuple(notes),
    )  # fmt: skip


def _peak(entry: BoardEntry) -> str:
    """The most memory while tuning, and of how many trials together."""
    size = numbers.size(entry.peak_bytes)
    return f"{size} ({entry.peak_trials} together)" if entry.peak_trials > 1 else size


def _above(entry: BoardEntry, board: Board) -> str:
    if entry.baseline or board.comparison is None:
        return numbers.NONE
    return ", ".join(marks(board, entry)) or "above"


def _trained(entry: BoardEntry) -> str:
    """How much is trained, and its share of the backbone."""
    if not entry.trainable:
        return "none"
    if not entry.total:  # baselines on words have no backbone to have a share of
        return numbers.count(entry.trainable)
    # Full tuning with adapters beside it trains more than the backbone has.
    return f"{numbers.count(entry.trainable)} ({numbers.percent(entry.trainable / max(entry.total, entry.trainable))})"


def _against(entry: BoardEntry, board: Board) -> str:
    if entry.standing is None:
        return numbers.NONE
    if entry is board.best:
        return "best"
    difference, span = (
        numbers.change(entry.standing.difference),
        numbers.change_span(entry.standing.low, entry.standing.high),
    )
    # An interval of one number, where every resample gives the same, would repeat the difference.
    return difference if difference == span else f"{difference} ({span})"


def value(board: Board) -> Table:
    """Score per parameter, second and dollar (reference 001, Tables 5 and 6)."""
    headings = ["Method", board.metric, "per million trained parameters", "per second"]
    headings += ["per dollar"] if board.priced else []
    rows = []
    for entry in board.entries:
        row = [entry.label, numbers.score(entry.score)]
        # A million, as reference 001's Table 5: per parameter all digits would be zeros.
        row.append(numbers.ratio(entry.score / entry.trainable * 1e6 if entry.trainable else None))
        row.append(numbers.ratio(entry.score / entry.seconds if entry.seconds else None))
        row += [numbers.ratio(entry.score / entry.dollars if entry.dollars else None)] if board.priced else []
        rows.append(tuple(row))
    notes = (
        "These ratios favor whatever is small and quick, even where it learns little: read them beside the score.",
    )
    return Table(
        f"{board.title}: score for what it takes", tuple(headings), tuple(rows), frozenset(range(1, len(headings))),
        tuple(entry.series for entry in board.entries), notes=notes,
    )  # fmt: skip


def trained(board: Board) -> Table | None:
    """Where each method's parameters lie; None where nothing was tuned."""
    entries = [entry for entry in board.entries if entry.trainable]
    if not entries:
        return None
    said = [
        ", ".join(f"{name.replace('_', ' ')} {numbers.ratio(value)}" for name, value in entry.reported.items())
        for entry in entries
    ]
    rows = tuple(
        (
            entry.label,
            numbers.count(entry.trainable),
            modules_sentence(entry) or numbers.NONE,
            *([words] if any(said) else []),
        )
        for entry, words in zip(entries, said, strict=True)
    )
    headings = ("Method", "Trained parameters", "Where", *(["What the method says of it"] if any(said) else []))
    return Table(
        f"{board.title}: what was trained", headings, rows, frozenset({1}),
        tuple(entry.series for entry in entries),
    )  # fmt: skip


def convergence(boards: Sequence[Board]) -> Table | None:
    """Epoch and seconds at the best validation loss per scale; with full tuning, its speed-up against each method."""
    by_board = {board: {row.entry.label: row for row in converged(board)} for board in boards}
    # Scales at which nothing was tuned (few-shot alone) get no columns.
    by_board = {board: rows for board, rows in by_board.items() if rows}
    if not by_board:
        return None
    labels = {label: row.entry.series for rows in by_board.values() for label, row in rows.items()}
    with_full = any(row.speed_up is not None for rows in by_board.values() for row in rows.values())
    headings = ["Method"]
    for board in by_board:
        scale = "all rows" if board.scale is None else f"{board.scale:,} rows"
        headings += [
            f"{scale}: epoch",
            f"{scale}: seconds",
            *([f"{scale}: full tuning sooner by"] if with_full else []),
        ]
    rows = []
    for label in labels:
        cells = [label]
        for by_label in by_board.values():
            row = by_label.get(label)
            cells += [f"{row.epoch:.3g}", numbers.seconds(row.seconds)] if row else [numbers.NONE] * 2
            cells += (
                [numbers.percent(row.speed_up) if row and row.speed_up is not None else numbers.NONE]
                if with_full
                else []
            )
        rows.append(tuple(cells))
    if with_full:
        # Reference 001 gives this one number beside its table.
        cells = ["all but full, on average"]
        for board in by_board:
            cells += ["", "", numbers.percent(against_all(board))]
        rows.append(tuple(cells))
    notes = ["Means over seeds."]
    if with_full:
        notes.append(
            "Full tuning sooner by 70 %: it had its best validation loss after 30 % of the other method's seconds. "
            "A negative number: it was later."
        )
    methods: tuple[str | None, ...] = (*labels.values(), None) if with_full else tuple(labels.values())
    return Table(f"{next(iter(by_board)).task}: when the validation loss was best", tuple(headings), tuple(rows),
                 frozenset(range(1, len(headings))), methods, notes=tuple(notes))  # fmt: skip


def spent_on(contents: Contents) -> Table | None:
    """Time and money by what they were spent on; None without a ledger."""
    rows = by_category(contents)
    totals = contents.ledger
    if not rows or totals is None:
        return None
    with_price = totals.dollars > 0
    headings = ("Spent on", "Time", "Share", *(("Dollars",) if with_price else ()))
    cells = [
        (what, numbers.seconds(s), numbers.percent(share), *((numbers.dollars(dollars),) if with_price else ()))
        for what, s, share, dollars in rows
    ]
    cells.append(
        ("all", numbers.seconds(totals.seconds), "100 %", *((numbers.dollars(totals.dollars),) if with_price else ()))
    )
    notes = () if totals.by_category.get("report") else ("Writing this report is booked once it is written.",)
    return Table(
        "What time and money went into", headings, tuple(cells), frozenset(range(1, len(headings))), notes=notes
    )


def spent_by(contents: Contents) -> Table | None:
    """Time and money by method, against the budget of each; None without a ledger."""
    rows = by_method(contents)
    if not rows or contents.ledger is None:
        return None
    with_price, budget = contents.ledger.dollars > 0, budget_of(contents)
    limited = budget is not None and budget.per == "method"
    headings = [
        "Method",
        "Its own time",
        "Its part of shared time",
        *(["Dollars"] if with_price else []),
        *(["Share of its budget"] if limited else []),
    ]
    cells = [
        (
            row.account, numbers.seconds(row.alone_seconds), numbers.seconds(row.shared_seconds),
            *((numbers.dollars(row.dollars),) if with_price else ()),
            *((numbers.percent(row.share_of_budget),) if limited else ()),
        )
        for row in rows
    ]  # fmt: skip
    notes = (
        "Shared time (loading the backbone, waiting between trials) is divided among the methods in equal parts; baselines bear "
        "none of it and have no budget.",
    )
    numeric = frozenset(range(1, len(headings)))
    return Table("By method, all its settings, scales and seeds", tuple(headings), tuple(cells), numeric,
                 tuple(_marked(contents, row.account) for row in rows), notes=notes)  # fmt: skip


def _marked(contents: Contents, name: str) -> str | None:
    """A method's mark where it has one of its own; charts show baselines as grey crosses."""
    baselines = {record.trial.group for record in contents.results.records if record.trial.baseline}
    return name if name in contents.series and name not in baselines else None


def failures(contents: Contents) -> Table | None:
    """Trials that failed, with class and message; None if none did."""
    if not contents.failures:
        return None
    rows = []
    for record in contents.failures:
        trial, error = record.trial, record.error
        scale = "all" if trial.scale is None else f"{trial.scale:,}"
        rows.append(
            (
                trial.label,
                trial.task,
                scale,
                str(trial.seed),
                error.kind.replace("_", " "),
                error.message,
            )
        )
    headings = ("Method", "Task", "Training rows", "Seed", "What happened", "Message")
    return Table(
        "Trials that failed",
        headings,
        tuple(rows),
        frozenset({2, 3}),
        tuple(_marked(contents, r.trial.group) for r in contents.failures),
    )


def ablation(changes: Sequence[AblationRow]) -> Table | None:
    """Changes with their paired intervals; None without ablations."""
    if not changes:
        return None
    rows = tuple(
        (
            row.of, row.name, row.board.title, numbers.score(row.whole.score), numbers.score(row.entry.score),
            _with_span(row), f"{numbers.count(row.entry.trainable)} ({numbers.percent(row.share)})",
        )
        for row in changes
    )  # fmt: skip
    headings = (
        "Method",
        "Changed",
        "On",
        "Score of the whole",
        "Score with the change",
        "Change (95 % interval)",
        "Trained parameters left",
    )
    return Table("Ablations", headings, rows, frozenset({3, 4, 5, 6}), tuple(row.whole.series for row in changes),
                 notes=(_ABLATION_NOTE,))  # fmt: skip


_ABLATION_NOTE = (
    "An interval that reaches over 0 means that the change may be luck. Each holds for itself: of twenty changes that do nothing "
    "about one has an interval beside 0. With one seed it ignores variation between seeds."
)


def _with_span(row: AblationRow) -> str:
    """A change with its paired interval, where there is one."""
    span = numbers.change_span(row.low, row.high)
    return numbers.change(row.change) + (f" ({span})" if span != numbers.NONE else "")


__all__ = [
    "Table", "ablation", "convergence", "failures", "leaderboard", "overview", "spent_by", "spent_on", "trained", "value",
]  # fmt: skip


def classes(of: str, scores: Sequence[ClassScore]) -> Table:
    """Precision, recall and F1 of each class of one trial."""
    rows = tuple(
        (
            one.label,
            numbers.score(one.precision),
            numbers.score(one.recall),
            numbers.score(one.f1),
            numbers.count(one.rows),
        )
        for one in scores
    )
    return Table(
        f"Scores per class: {of}", ("Class", "Precision", "Recall", "F1", "Test rows"), rows, frozenset({1, 2, 3, 4}),
        notes=("One trial, no mean over seeds.",),
    )  # fmt: skip


def tries(method: str, records: Sequence[TrialRecord]) -> Table:
    """Every setting of a method that was tried, best validation score first."""
    rows_of_tries = tries_table(records)
    keys = list(
        dict.fromkeys(key for row in rows_of_tries for key in row if key not in ("validation", "seconds", "trial"))
    )
    rows = tuple(
        (
            row["trial"],
            *(_setting(row.get(key)) for key in keys),
            numbers.score(row["validation"]),
            numbers.seconds(row["seconds"]),
        )
        for row in rows_of_tries
    )
    return Table(
        f"{method}: settings tried", ("Trial", *keys, "Validation", "Time"), rows,
        frozenset({len(keys) + 1, len(keys) + 2}),
    )  # fmt: skip


def _setting(value: object) -> str:
    return numbers.NONE if value is None else f"{value:.3g}" if isinstance(value, float) else str(value)
