"""One command for the impatient: a backbone and a task in, a tuned adapter out.

The study behind it is an ordinary one under one budget, whose search is `anytime`: a solved probe first, then the strongest
method, then more settings. The best adapter so far is handed over each time there is a better one, so that a kill leaves it.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from dollartune import format as numbers
from dollartune.backbones.kind import default_objective
from dollartune.backbones.loading import read_config
from dollartune.backbones.locate import from_anywhere
from dollartune.budget.limit import parse_budget
from dollartune.budget.prices import find_price
from dollartune.budget.serving_limits import ServingLimits, parse_limits
from dollartune.defaults import defaults
from dollartune.errors import UserError
from dollartune.files import replace_folder
from dollartune.methods.registry import method_class
from dollartune.methods.spelling import parse_call
from dollartune.methods.stored_adapter import CONFIG
from dollartune.metrics import counts_rare_classes
from dollartune.metrics import get as measure
from dollartune.planner.readable_rows import READING_SHARE, readable_rows
from dollartune.study.several import differences
from dollartune.study.status import settings_of
from dollartune.tasks.registry import load_task
from dollartune.tasks.suggest import suggest_task
from dollartune.trials.best import best_record
from dollartune.trials.content_hash import of_task
from dollartune.trials.record import FailedRecord, RequestFacts, whole_cost
from dollartune.trials.trial import variants

if TYPE_CHECKING:
    from dollartune.budget.serving_limits import ServingCost
    from dollartune.config import StudySettings
    from dollartune.tasks.base import Task
    from dollartune.trials.record import TrialRecord
    from dollartune.trials.store import Store

EVALUATION = {"free_generation": False, "forgetting": False, "inference_cost": False}
"""The one adapter that comes out is judged by its score. Free generation of every test row takes longer than training on a few
thousand rows, and what forgetting and a request cost is asked of a study that compares."""
_MOST_SAID = 3
"""Of the settings in which two studies differ: the first ones tell them apart."""


def task_entry(
    task: str, data_root: Path | None, told: Mapping[str, Any] | None = None
) -> tuple[str | dict[str, Any], Task]:
    """The study's entry for a preset's name or for a data file, whose task is guessed and spelled out.

    Args:
        told: what the user said of a data file's columns and bad rows.

    Raises:
        UserError: columns are named for a preset, which has its own.
    """
    # A suffix alone too: a misspelt file must be told as a file, not as an unknown preset.
    if Path(task).suffix or Path(task).exists():
        return suggest_task(str(Path(task).resolve()) if Path(task).exists() else task, data_root, told)
    if any(value is not None for value in (told or {}).values()):
        raise UserError(f"{task!r} is no data file, so its columns cannot be named.", "See `dollartune tasks show`.")
    return task, load_task(task, data_root)


def tuning_study(
    backbone: str,
    task: str,
    wanted: Sequence[str],
    budget: str,
    out: Path,
    *,
    price: str | None = None,
    rows: int | None = None,
    seeds: int = 3,
    trials: int | None = None,
    metric: str | None = None,
    limit: str | Sequence[str] = (),
    data_root: Path | None = None,
    told: Mapping[str, Any] | None = None,
) -> tuple[dict[str, Any], list[str]]:
    """The study that tunes one adapter.

    Args:
        wanted: methods; by default those of `defaults.yaml`, as far as they fit the backbone and the task.
        budget: `60 s`, `$1`.
        rows: training rows; by default all that the budget pays to be read.
        trials: most settings to try per method; by default what the budget pays for.
        metric: by which the adapter is chosen; by default the task's. Where rare classes count as much as common ones, so they
            do in training.
        limit: the most that serving it may take: `20 ms`, `500 MiB`, `$0.10 per 1000`, or several of them.
        told: label and text columns and what a malformed row does, for a data file.

    Returns:
        its settings, and what was guessed.

    Raises:
        UserError: unknown task, method or backbone, a budget or a limit that is none, or a limit in dollars without a price.
    """
    limits = parse_limits(limit)  # before anything is read
    if limits is not None and limits.dollars_per_1000 is not None and price is None:
        raise UserError(
            "a limit in dollars needs the price of the machine that serves.",
            hint="--price 2.49/h (dollartune machines ls)",
        )
    entry, loaded = task_entry(task, data_root, told)
    notes = list(loaded.notes)
    if metric is not None:
        measure(metric)  # refuses an unknown name before anything is read
        entry = {**({"preset": entry} if isinstance(entry, str) else entry), "metric": metric}
    usual = defaults().tune.image if loaded.modality == "image" else defaults().tune.text
    chosen: list[str | dict[str, Any]] = list(wanted) or list(usual)
    _need_trained(chosen)
    parsed = parse_budget(budget, per="study")
    classifies = default_objective(read_config(backbone)) == "classification"
    seconds = parsed.limit(1).in_seconds(find_price(price))
    if rows is None and (rows := readable_rows(loaded, seconds, classifies)) is not None:
        notes.append(
            f"{rows:,} of {len(loaded.load()['train']):,} training rows are read, in a random order: all would take more than "
            f"{numbers.percent(READING_SHARE)} of the budget (to choose: --rows)"
        )
    # Solving takes seconds, so that it is done again with the validation rows once the score on them is known.
    training: dict[str, Any] = {"train_on_validation": True}
    if metric is not None and counts_rare_classes(metric) and classifies:
        training |= {"class_weights": "balanced", "class_offsets": "validation"}
        if not wanted:
            chosen = [_balanced(method) if isinstance(method, str) else method for method in chosen]
        notes.append(
            f"classes weigh the same in training, however rare, as {metric} counts them so; thresholds come from validation rows"
        )
    settings = {
        "name": "study",
        # A relative path would work in this folder alone, for the study and for its adapters.
        "backbone": from_anywhere(backbone),
        "task": entry,
        "methods": chosen,
        "scales": ["all" if rows is None else rows],
        "seeds": seeds,
        "search": {"strategy": "anytime", **({} if trials is None else {"trials": trials})},
        "training": training,
        "evaluation": EVALUATION,
        "limits": limits,
        "budget": parsed.model_copy(update={"price": price}),
        "output": str(out),
        **({"data_root": str(data_root)} if data_root is not None else {}),
    }
    return settings, notes


def _need_trained(methods: Sequence[Any]) -> None:
    """Refuses methods of which none leaves an adapter, before money is spent on them.

    Raises:
        UserError: none does.
    """
    # One method is a name, a call or a mapping of its name; several that work together are a list of these.
    listed = [one for method in methods for one in (method if isinstance(method, list) else [method])]
    names = [parse_call(one)[0] if isinstance(one, str) else next(iter(one)) for one in listed]
    if names and not any(method_class(name).capabilities.trains for name in names):
        raise UserError(
            f"{', '.join(names)} trains nothing, so that there would be no adapter to hand over.",
            hint="Name a method that trains beside it (--method linear_probe), or compare it with others in a study: "
            "dollartune init",
        )


def _balanced(method: str) -> str | dict[str, Any]:
    """A method whose own setting of class weights is `balanced`, where it has one."""
    name, settings = parse_call(method)
    if "class_weight" not in method_class(name).Config.model_fields:
        return method
    return {name: {**settings, "class_weight": "balanced"}}


def best_adapter(store: Store) -> TrialRecord | None:
    """The record of the best adapter that is there, of the methods that were asked for: of the study's own trials, else of the
    settings that were tried."""
    settings = settings_of(store)
    asked = None if settings is None else {variant.group for variant in variants(settings.methods)}
    # An earlier call on the same folder may have tuned with others.
    there = [record for record in store.with_adapter() if asked is None or record.trial.group in asked]
    records = [record for record in there if record.status == "done"] or there
    return best_record(records)


def refuse_other_work(store: Store, settings: StudySettings) -> None:
    """Refuses to go on in a folder that was begun for another adapter: one sum would pay for both, and the better of two would be
    handed over that answer different questions, or were not held against the same limits.

    Raises:
        UserError: it holds a study of another backbone, of other data, or under other limits.
    """
    begun = settings_of(store)
    if begun is None:
        return
    limits, why, way_out = settings.limits, "", "--fresh, or another --out"
    if begun.limits != limits:
        why = f"with {begun.limits or 'no limit'} for what is served; now it is {limits or 'none'}"
    elif changed := _changed_files(store, settings):
        # first: of more rows other label words are guessed, too
        why = f"for an adapter on other rows: {', '.join(changed)} has changed since"
        if ((handed_over := store.root.parent / "adapter") / CONFIG).is_file():
            way_out += f", there with --begin-with {handed_over} to go on from this one"
    elif differing := differences(
        *({"backbone": s.backbones[0].model_dump(), "task": s.tasks[0]} for s in (begun, settings))
    ):
        why = f"for another adapter ({', '.join(differing[:_MOST_SAID])})"
    if why:
        raise UserError(f"{store.root} was begun {why}.", hint=f"{way_out}.")


def _changed_files(store: Store, settings: StudySettings) -> list[str]:
    """Files of a study's task that hold something else than when its trials were made."""
    root = Path(settings.data_root) if settings.data_root else None
    made_of = [record.trial.conditions.get("contents", {}).get("task") or {} for record in store.records()]
    return [
        name
        for name, content in of_task(settings.tasks[0], root).items()
        if (known := {one[name] for one in made_of if name in one}) and content not in known
    ]


def any_mistake(failed: Iterable[FailedRecord]) -> bool:
    """Whether a trial failed for another reason than the money's end or a limit, so that more money would not help."""
    return any(record.error.kind not in ("budget", "limit") for record in failed)


def nothing_handed_over(store: Store, limits: ServingLimits | None, all_failed: bool = False) -> UserError:
    """Why there is no adapter: what is nearest to the limits, where those ruled out all that was tried.

    Args:
        all_failed: trials failed, for reasons that are told beside this.
    """
    over = _over_limits(store)
    nearest = min(over, key=lambda r: limits.excess(_serving(r)), default=None) if limits is not None else None
    if nearest is None and all_failed:
        return UserError("there is no adapter to hand over.", hint="Mend what failed; the same command goes on.")
    if nearest is None:
        return UserError("there is no adapter to hand over.", hint="Raise --budget; the same command goes on.")
    return UserError(
        f"nothing that was tried keeps the limit of {limits}. Nearest is {nearest.trial.label}: {nearest.error.message}.",
        hint="Raise --limit, or take a smaller backbone (dollartune backbones ls).",
    )


def _over_limits(store: Store) -> list[FailedRecord]:
    """Records of what was not trained because serving it would take more than it may."""
    return [record for record in store.records() if isinstance(record, FailedRecord) and record.error.kind == "limit"]


def _serving(record: TrialRecord) -> ServingCost:
    facts = record.inference or RequestFacts()
    return facts.serving(record.cost.price_per_hour)


def need_place_for_adapter(out: Path) -> None:
    """Refuses a folder of somebody else's where the adapter will lie: it would be replaced.

    Raises:
        UserError: there is one.
    """
    place = out / "adapter"
    if place.exists() and not (place / CONFIG).is_file() and not (place.is_dir() and not any(place.iterdir())):
        raise UserError(f"{str(place)!r} is no adapter, and would be replaced by one.", hint="Give another --out.")


def hand_over(store: Store, out: Path) -> TrialRecord | None:
    """Puts a copy of the best adapter at `out`; returns its record, or None where there is none.

    From the first time on there is a whole adapter at `out` at every moment: the new folder takes the old one's place at once.
    """
    record, out = best_adapter(store), out.resolve()  # a link to a folder stays a link to it
    if record is None:
        return None
    # Beside it and so on the same disk, where a folder is exchanged at once.
    new = out.with_name(f".{out.name}.new")
    shutil.rmtree(new, ignore_errors=True)
    shutil.copytree(store.folder(record.id) / "adapter", new)
    replace_folder(new, out)
    return record


@dataclass(frozen=True)
class _Standing:
    """A line of what was tried."""

    label: str
    validation: float | None
    error: float
    """Standard error of it."""
    validation_rows: int
    test: str
    seconds: float
    cost: str
    handed_over: bool

    @classmethod
    def of(
        cls, records: Sequence[TrialRecord], label: str, handed_over: TrialRecord, known: Mapping[str, TrialRecord]
    ) -> _Standing:
        """Of one run, or of several seeds: their mean, and what one of them cost on average, with the run that it is averaged
        with. What all seeds cost together would make a setting dearer for having been tried more often.

        Args:
            known: all records, by identifier.
        """
        one = next((record for record in records if record.id == handed_over.id), records[0])
        scores = [record.validation_score for record in records if record.validation_score is not None]
        costs = [whole_cost(record, known) for record in records]
        seconds, dollars = fmean(cost.seconds for cost in costs), [cost.known_dollars for cost in costs]
        validation, test = one.validation, one.test
        return cls(
            label,
            fmean(scores) if scores else None,
            0.0 if validation is None else validation.standard_error or _error(one, validation.examples),
            0 if validation is None else validation.examples,
            "" if test is None else f"{numbers.score(test.score)} ({test.examples})",
            seconds,
            numbers.seconds(seconds)
            if None in dollars
            else numbers.dollars(fmean(one for one in dollars if one is not None)),
            one.id == handed_over.id,
        )


SHORT = 0.5
"""Of the longest run's steps: a shorter one did not decide how good its setting is, and its line says how long it was."""


def _longest(records: Sequence[TrialRecord]) -> list[tuple[list[TrialRecord], str]]:
    """Records with the words for them, seeds of a setting together: without short runs of settings that were trained longer, too;
    others say theirs."""
    # Solved methods have none, and are what they are; those whose time ended say on how many rows.
    steps = {record.id: record.training.steps for record in records if record.training and record.trial.steps}
    most = max(steps.values(), default=0)
    longest: dict[str, int] = {}
    for record in records:
        longest[record.trial.label] = max(longest.get(record.trial.label, 0), steps.get(record.id, 0))
    shown: dict[str, list[TrialRecord]] = {}
    for record in records:
        own, label = steps.get(record.id), record.trial.label
        if own is not None and own < SHORT * longest[label]:
            continue
        short = own is not None and own < SHORT * most
        more = f", {own} steps" if short else f", {record.fewer_rows}" if record.fewer_rows else ""
        shown.setdefault(f"{label}{more}", []).append(record)
    return [(alike, f"{label}, {len(alike)} runs" if len(alike) > 1 else label) for label, alike in shown.items()]


def _error(record: TrialRecord, rows: int) -> float:
    """Standard error of an accuracy; 0, which is not printed, where the measure is another."""
    score = record.validation_score
    return (score * (1 - score) / rows) ** 0.5 if score is not None and record.metric == "accuracy" and rows else 0.0


def standings(store: Store, handed_over: TrialRecord) -> list[str]:
    """What was tried and what it is held against, in lines: scores, how sure, seconds; and whether something cheaper does too.

    Args:
        handed_over: the record of the adapter that came out.
    """
    records = [record for record in store.records() if record.status in ("tried", "done")]
    known = {record.id: record for record in records}
    lines = [_Standing.of(alike, label, handed_over, known) for alike, label in _longest(records)]
    lines.sort(key=lambda one: -1.0 if one.validation is None else one.validation, reverse=True)
    wide = max((len(one.label) for one in lines), default=0)
    printed = [f"{handed_over.metric:{wide}}  {'validation':>14}  {'test (rows)':>13}  {'cost a run':>10}"]
    for one in lines:
        score = "" if one.validation is None else numbers.score(one.validation)
        score += f" ± {numbers.score(one.error)}" if one.error else ""
        mark = "  handed over" if one.handed_over else ""
        printed.append(f"{one.label:{wide}}  {score:>14}  {one.test:>13}  {one.cost:>10}{mark}")
    printed += [f"{record.trial.label:{wide}}  not tuned: {record.error.message}" for record in _over_limits(store)]
    ours = next((one for one in lines if one.handed_over), None)
    return [*printed, *(_cheaper(lines, ours) if ours is not None else ())]


def _cheaper(lines: Sequence[_Standing], ours: _Standing) -> list[str]:
    """A sentence where something that cost at most a third is no worse, or hardly."""
    for one in sorted(lines, key=lambda line: line.seconds):
        if one.validation is None or ours.validation is None or one.handed_over or one.seconds >= ours.seconds / 3:
            continue
        if one.validation_rows != ours.validation_rows:  # on other rows another score says little
            continue
        lower = ours.validation - one.validation
        if lower <= 0:
            # A baseline may take less than the clock resolves.
            times = max(1, round(ours.seconds / max(1e-3, one.seconds)))
            return [f"{one.label} does as well here for 1/{times} of the money."]
        # Worth telling, and no more: the rows are the same, so that a difference may be sure where each score is not, and what
        # was answered row by row is not kept of runs that only chose a setting.
        if lower < math.hypot(ours.error, one.error):
            return [
                f"{one.label} is {numbers.score(lower)} lower on the same {ours.validation_rows} validation rows, and took "
                f"{numbers.percent(one.seconds / ours.seconds)} of the money."
            ]
    return []
