"""Several studies: held against each other, or merged into one folder."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from dollartune.budget.journal import held, read_settled, write_lines
from dollartune.errors import UserError
from dollartune.files import drafted
from dollartune.study.compare import Board, boards, draws_rows, is_baseline, rows_of_all
from dollartune.study.results import Results
from dollartune.study.status import settings_of
from dollartune.trials.store import Store
from dollartune.trials.trial import study_conditions

if TYPE_CHECKING:
    from dollartune.config import StudySettings
    from dollartune.stats import Comparison, Outcomes
    from dollartune.trials.record import DoneRecord


@dataclass(frozen=True)
class BoardBeside:
    """One task and number of training rows of two studies."""

    board: Board
    comparison: Comparison | None
    """All variants of both; None where they were not tested on the same rows."""
    rows: tuple[dict[str, str | float | None], ...]
    """label, the score of each study by its name, their difference; none where they measured something else, or on other rows."""
    note: str | None


def compare_studies(first: Results, second: Results) -> list[BoardBeside]:
    """What both studies have in common, board by board.

    Raises:
        UserError: they have no task and number of training rows in common.
    """
    one, other = boards(first, as_stored=True), boards(second, as_stored=True)
    names = _names(first.store.root, second.store.root)
    # Task and number of training rows: scores at other scales are no comparison.
    common = [board for board in one if board in other]
    if not common:
        raise UserError(
            f"the two studies have no task with the same number of training rows: {_listed(one)} and {_listed(other)}."
        )
    return [_beside(board, names, (first, one[board]), (second, other[board])) for board in common]


def _names(first: Path, second: Path) -> tuple[str, str]:
    """Short names of two studies that tell them apart: as many folders above them as that takes.

    Raises:
        UserError: they are the same.
    """
    a, b = first.resolve().parts, second.resolve().parts
    for many in range(1, max(len(a), len(b)) + 1):
        # Each side is a key beside these two.
        if a[-many:] != b[-many:] and not {"/".join(a[-many:]), "/".join(b[-many:])} & {"label", "difference"}:
            return "/".join(a[-many:]), "/".join(b[-many:])
    raise UserError(f"{first} and {second} are the same study.")


def _listed(common: Mapping[Board, object]) -> str:
    return ", ".join(f"{task} ({rows or 'all'} rows)" for task, rows in common) or "nothing"


Side = tuple[Results, dict[str, list["DoneRecord"]]]


def _beside(board: Board, names: tuple[str, str], first: Side, second: Side) -> BoardBeside:
    labels = list(dict.fromkeys([*first[1], *second[1]]))
    sides = tuple(zip(names, (first, second), strict=True))
    note = None
    comparison: Comparison | None = None
    metrics = [_metric(side) for side in (first, second)]
    if metrics[0] != metrics[1]:
        note = f"{names[0]} measured {metrics[0]} and {names[1]} {metrics[1]}: scores are no difference."
    # Paired intervals need the same rows in the same order, not only as many.
    elif _test_rows(first) != _test_rows(second):
        note = "the two were tested on different rows, so that scores stand side by side and no difference is claimed."
    else:
        from dollartune.stats import compare

        outcomes: dict[str, Outcomes] = {}
        for name, (results, variants) in sides:
            for label, records in variants.items():
                outcome = None if is_baseline(records) else results.outcomes(records)
                if outcome is not None:
                    outcomes[f"{label} ({name})"] = outcome
        # All variants of both in one comparison, whose level holds for all of them together.
        everything = [record for side in (first, second) for records in side[1].values() for record in records]
        if (common := rows_of_all(everything)) is not None:
            outcomes = {label: outcome.first(common) for label, outcome in outcomes.items()}
        paired = draws_rows(everything)
        comparison = compare(outcomes, paired_seeds=paired) if len(outcomes) > 1 else None
    rows: list[dict[str, str | float | None]] = []
    # On the rows that all were compared on, where the money of some paid for more.
    compared = {one.method: one.score.value for one in comparison.standings} if comparison is not None else {}
    for label in labels:
        scores = {name: [record.test.score for record in variants.get(label, ())] for name, (_, variants) in sides}
        means = {
            name: compared.get(f"{label} ({name})", fmean(of_seeds)) if of_seeds else None
            for name, of_seeds in scores.items()
        }
        a, b = (means[name] for name in names)
        difference = b - a if a is not None and b is not None and note is None else None
        rows.append({"label": label, **means, "difference": difference})
    return BoardBeside(board, comparison, tuple(rows), note)


def _metric(side: Side) -> str:
    """What a study measured on this board; all its trials measured the same."""
    return next(record.metric for records in side[1].values() for record in records)


def _test_rows(side: Side) -> list[tuple[Any, Any]]:
    """Identifier and answer of every test row, of the first record that has them."""
    results, variants = side
    for records in variants.values():
        for record in records:
            if rows := results.predictions(record.id):
                return [(row["example_id"], row["expected"]) for row in rows]
    return []


def merge_studies(sources: Sequence[Store], out: Path) -> Store:
    """A study with the trials of several, which stay as they are.

    The study file is the first one's with the methods, scales and seeds of all; what was booked is the sum, a booking that
    several have (one is a copy of another, or was merged before) counted once. A trial that several have is taken from the
    first.

    Raises:
        UserError: there is something in the folder, the studies are about other tasks or backbones, or were trained or evaluated
            with other settings.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{str(out)!r} is there already.", hint="Name a new folder: --out FOLDER")
    settings = [settings_of(store) for store in sources]
    first = settings[0]
    for store, one in zip(sources, settings, strict=True):
        if first is None or one is None:
            raise UserError(f"the study in {store.root} has no settings that can be read, and cannot be merged.")
        # These two decide which rows there are; methods, scales and seeds may differ and are joined.
        if one.tasks != first.tasks or one.backbones != first.backbones:
            raise UserError(
                f"{store.root} has another task or backbone than {sources[0].root}; trials on different rows are no one study.",
                hint=f"dollartune compare {sources[0].root} {store.root}",
            )
        if differing := _differing(first, one):
            raise UserError(
                f"{store.root} was run with other settings than {sources[0].root} ({', '.join(differing)}): one table would call "
                "different trials the same method.",
                hint=f"dollartune compare {sources[0].root} {store.root}",
            )
    known = [one for one in settings if one is not None]
    assert first is not None
    merged = first.model_copy(
        update={
            "name": out.resolve().name,  # also of `.`
            "output": str(out.resolve().parent),
            "methods": _union(method for one in known for method in one.methods),
            "scales": tuple(_union(scale for one in known for scale in one.scales)),
            "seeds": tuple(_union(seed for one in known for seed in one.seeds)),
            "budget": None,  # it was spent by the parts; what they booked is kept
        }
    )
    planned = _union(trial for source in sources for trial in source.planned() or ())
    with drafted(out) as draft:  # a merge that is killed leaves no half of a study
        store = Store(draft)
        store.create(merged.model_dump_json(indent=1, exclude={"output", "engine"}), planned)
        write_lines(store.ledger, (line for source in sources for line in read_settled(source.ledger)))
        for source in sources:
            for folder in sorted(path for path in (source.root / "trials").iterdir() if path.is_dir()):
                # The same identifier is the same trial, so that the first one's will do.
                if not store.folder(folder.name).exists():
                    # Without what is being written just now, or was when its process died.
                    shutil.copytree(folder, store.folder(folder.name), ignore=shutil.ignore_patterns(".*"))
    return Store(out)


def _differing(one: StudySettings, other: StudySettings) -> list[str]:
    """What decides every trial's result and is not the same in both."""
    return differences(*({**study_conditions(settings), "draws": settings.draws} for settings in (one, other)))


def differences(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """In what two mappings of settings differ, in words: `training.batch_size 8 and 16`."""
    a, b = _flat(one), _flat(other)
    return [f"{key} {a.get(key)} and {b.get(key)}" for key in dict.fromkeys([*a, *b]) if a.get(key) != b.get(key)]


def _flat(values: Mapping[str, object], before: str = "") -> dict[str, object]:
    """Mappings in mappings as dotted keys, as `--set` takes them."""
    flat: dict[str, object] = {}
    for key, value in values.items():
        flat |= _flat(value, f"{before}{key}.") if isinstance(value, Mapping) else {f"{before}{key}": value}
    return flat


def _union(values: Any) -> list[Any]:
    """Each value once, in order; mappings cannot be keys, so that they are compared one by one."""
    union: list[Any] = []
    for value in values:
        if value not in union:
            union.append(value)
    return union


def remove_trials(store: Store, wanted: Sequence[str]) -> list[str]:
    """Deletes trials by identifier or its beginning; returns their identifiers. The next run of the study trains them again.

    Raises:
        UserError: there is no such trial, several begin so, or the study is running.
    """
    there = sorted(path.name for path in (store.root / "trials").iterdir() if path.is_dir())
    chosen: list[str] = []
    for name in wanted:
        # Every name begins with nothing: an empty variable in a script must not name the only trial.
        matching = [trial for trial in there if name and trial.startswith(name)]
        # As git has it: a beginning is enough if it names one.
        if len(matching) != 1:
            what = "no trial begins" if not matching else f"{len(matching)} trials begin"
            raise UserError(f"{what} with {name!r} in {store.root}.", hint=f"dollartune trials ls {store.root}")
        chosen += matching
    chosen = list(dict.fromkeys(chosen))  # two beginnings may name one trial
    with held(store.ledger):  # a study that runs would go on with what is gone
        for trial in chosen:
            store.remove(trial)
    return chosen
