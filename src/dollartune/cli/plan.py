"""`dollartune plan`: what a study will take, before anything is paid."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dollartune import format as numbers
from dollartune.cli.options import Budget, DataRoot, Json, Methods, Scales, Seeds, Sets, overrides

if TYPE_CHECKING:
    from dollartune.budget.limit import BudgetSettings
    from dollartune.config import StudySettings
    from dollartune.planner.study_plan import StudyPlan, TrialPlan

_PARTS = ("weights", "trained", "gradients", "optimizer", "activations", "logits", "kernels", "runtime")


def plan(
    studies: Annotated[list[Path], typer.Argument(metavar="STUDY...", help="Study files (YAML).")],
    machine: Annotated[
        str | None,
        typer.Option(
            help="Plan for this machine of `dollartune machines ls`; no weights needed. By default this one, or for a "
            "study that repeats a published one, the source's."
        ),
    ] = None,
    price: Annotated[str | None, typer.Option(help="Price of the machine, for example 2.49/h.")] = None,
    data_root: DataRoot = None,
    seeds: Seeds = None,
    methods: Methods = None,
    scales: Scales = None,
    budget: Budget = None,
    sets: Sets = None,
    tokens: Annotated[
        str | None, typer.Option(help="Suppose rows of so many tokens: 300, or prompt + answer as 300+40.")
    ] = None,
    calibrate: Annotated[
        bool, typer.Option("--calibrate/--no-calibrate", help="Measure a few real steps here (kept for later).")
    ] = True,
    json: Json = False,
) -> None:
    """Predict memory, seconds and dollars of every trial, and say what does not fit and what would."""
    from dollartune.cli.output import collect_rarely, print_json, print_table

    collect_rarely()  # before the imports that make most of the objects
    from dollartune.evidence import source_machine
    from dollartune.planner.study_plan import plan_study
    from dollartune.study_file import load_study

    told = (
        # Not to standard output, which may be JSON for a program.
        (lambda text: print(f"\r\033[K{text}", end="", file=sys.stderr)) if sys.stderr.isatty() else (lambda text: None)
    )
    instead = overrides(seeds, methods, scales, budget, sets)
    plans, rows = [], []
    for path in studies:
        settings = load_study(path, data_root=str(data_root) if data_root else None, **instead)
        study_plan = plan_study(settings, machine or source_machine(settings), price, tokens, calibrate, told)
        rows.append({"study": path.stem, **_beside_source(study_plan, settings)})
        plans.append({**as_data(study_plan), **({"source_paid": rows[-1]["source paid"]} if settings.source else {})})
        if sys.stderr.isatty():
            print("\r\033[K", end="", file=sys.stderr)
        if not json:
            if len(studies) > 1:
                print(f"== {path}")
            show(study_plan, settings)
            if settings.source is not None:
                print(f"the source paid: {rows[-1]['source paid']}\n")
    if json:
        print_json(plans[0] if len(plans) == 1 else plans)
    elif len(rows) > 1:
        print_table(rows)


def _beside_source(study_plan: StudyPlan, settings: StudySettings) -> dict[str, object]:
    """One line on a study: what is predicted, and what its source says that it paid."""
    from dollartune.evidence import paid

    theirs = paid(settings)
    said = "not said"
    if theirs is not None:
        money = numbers.dollars(theirs.dollars) if theirs.dollars is not None else "dollars not said"
        said = f"{money}{f', {numbers.seconds(theirs.seconds)}' if theirs.seconds else ''} ({theirs.covers})"
    return {
        "machine": study_plan.hardware.name,
        "trials": len(study_plan.trials),
        "do not fit": len(study_plan.refused),
        "predicted": numbers.seconds(study_plan.seconds),
        "predicted $": numbers.dollars(study_plan.dollars) if study_plan.hardware.dollars_per_hour else "-",
        "source paid": said if settings.source is not None else "-",
    }


def as_data(study_plan: StudyPlan) -> dict[str, object]:
    """The plan as JSON."""
    low, high = study_plan.range_seconds
    priced = bool(study_plan.hardware.dollars_per_hour)
    return {
        "machine": study_plan.hardware.name,
        "memory_bytes": study_plan.hardware.memory_bytes,
        "dollars_per_hour": study_plan.hardware.dollars_per_hour,
        "speed": study_plan.hardware.speed.source,
        "seconds": study_plan.seconds,
        "seconds_range": [low, high],
        "dollars": study_plan.dollars if priced else None,
        "load_seconds": study_plan.load_seconds,
        "notes": list(study_plan.notes),
        "trials": [_trial_data(planned, priced) for planned in study_plan.trials],
    }


def _trial_data(planned: TrialPlan, priced: bool) -> dict[str, object]:
    estimate, misfit = planned.estimate, planned.misfit
    return {
        "trial": planned.trial.identifier,
        "task": planned.trial.task,
        "rows": planned.trial.scale,
        "backbone": planned.trial.backbone,
        "method": planned.trial.label,
        "seed": planned.trial.seed,
        "trainable_parameters": estimate.trainable,
        "memory_bytes": dict(estimate.memory),
        "peak_bytes": estimate.peak_bytes,
        "steps": estimate.steps,
        "seconds": planned.seconds,
        "seconds_range": [estimate.low_seconds, estimate.high_seconds],
        "seconds_by_part": dict(estimate.parts),
        "dollars": planned.dollars if priced else None,  # without a price nothing is free
        "fits": planned.fits,
        "would_fit_with": dict(misfit.nearest) if misfit is not None else None,
        "refused": None if misfit is None else misfit.sentence(planned.trial.label, "the machine"),
    }


def show(study_plan: StudyPlan, settings: StudySettings) -> None:
    """Tables for people: memory and time of each trial, what is refused, the sum, what is searched, the budget beside it."""
    from dollartune.cli.output import print_note, print_table
    from dollartune.cli.run import searched

    first: dict[Any, TrialPlan] = {}
    seeds: dict[Any, int] = {}
    for planned in study_plan.trials:
        trial = planned.trial
        key = (trial.task, trial.backbone_index, trial.scale, trial.variant, trial.objective)
        first.setdefault(key, planned)
        seeds[key] = seeds.get(key, 0) + 1
    rows = [_row(planned, seeds[key], study_plan) for key, planned in first.items()]
    columns = {"task": "task", "rows": "rows", "method": "method", "seeds": "seeds", "parameters": "trained",
               "peak_bytes": "peak", **{f"{name}_bytes": name for name in _PARTS}, "duration": "time each",
               "range": "from - to", "dollars": "$ each", "fits": "fits"}  # fmt: skip
    where = f"{study_plan.hardware.name}, {numbers.size(study_plan.hardware.memory_bytes)}"
    priced = (
        f", {numbers.dollars(study_plan.hardware.dollars_per_hour)} per hour"
        if study_plan.hardware.dollars_per_hour
        else ""
    )
    speed = study_plan.hardware.speed
    print(f"on {where}{priced}; speed: {speed.source}, to within {numbers.percent(speed.uncertainty)}\n")
    print_table(rows, columns)
    for planned in first.values():
        if planned.misfit is not None:
            print(f"\nrefused: {planned.misfit.sentence(planned.trial.label, study_plan.hardware.name)}")
    for note in study_plan.notes:
        print_note(note)
    low, high = study_plan.range_seconds
    running = len(study_plan.trials) - len(study_plan.refused)
    money = f", {numbers.dollars(study_plan.dollars)}" if study_plan.hardware.dollars_per_hour else ""
    print(
        f"\n{running} of {len(study_plan.trials)} trials: {numbers.seconds(study_plan.seconds)}{money} "
        f"(from {numbers.seconds(low)} to {numbers.seconds(high)}), loading included."
    )
    for line in searched(settings, [planned.trial for planned in study_plan.trials], study_plan.tasks):
        print(line)
    for line in _budget_lines(study_plan, settings.budget, settings.search is not None):
        print(line)


def _row(planned: TrialPlan, seeds: int, study_plan: StudyPlan) -> dict[str, object]:
    estimate = planned.estimate
    return {
        "task": planned.trial.task,
        "rows": planned.trial.scale or "all",
        "method": planned.trial.label,
        "seeds": seeds,
        "parameters": estimate.trainable,
        "peak_bytes": estimate.peak_bytes,
        **{f"{name}_bytes": estimate.memory.get(name, 0) for name in _PARTS},
        "duration": numbers.seconds(planned.seconds),
        "range": f"{numbers.seconds(estimate.low_seconds)} - {numbers.seconds(estimate.high_seconds)}",
        "dollars": planned.dollars if study_plan.hardware.dollars_per_hour else None,
        "fits": planned.fits,
    }


def _budget_lines(study_plan: StudyPlan, budget: BudgetSettings | None, searches: bool) -> list[str]:
    """The budget beside the prediction of the trials as they are listed."""
    if budget is None or not budget.limited:
        return []
    price = study_plan.hardware.dollars_per_hour
    if budget.dollars is not None and not price:
        return [f"the budget is ${budget.dollars:g}: give --price or --machine to compare."]
    limit = budget.limit(sum(not one.trial.baseline for one in study_plan.trials)).in_seconds(price)
    if budget.per != "method":
        return [f"the budget of {numbers.seconds(limit)} {_enough(study_plan.seconds, limit, searches)}."]
    trials = {one.trial.variant.group: one.trial for one in study_plan.trials}
    # Baselines have no budget of their own, and bear no part of what the others share.
    groups = {group: seconds for group, seconds in study_plan.seconds_by_group().items() if not trials[group].baseline}
    shared = study_plan.load_seconds / max(1, len(groups))
    chooses = {group: searches and any(method.search for method in trials[group].variant.build()) for group in groups}
    return [
        f"{group}: {numbers.seconds(seconds + shared)}; "
        f"its budget of {numbers.seconds(limit)} {_enough(seconds + shared, limit, chooses[group])}."
        for group, seconds in groups.items()
    ]


def _enough(seconds: float, limit: float, searches: bool) -> str:
    if seconds <= limit:
        rest = f", the rest is for the search: {numbers.seconds(limit - seconds)}" if searches else ""
        return f"is enough ({numbers.percent(seconds / limit)} of it){rest}"
    short = (
        "fewer settings are tried, on fewer seeds, with shorter trainings"
        if searches
        else "trainings will be cut short"
    )
    return f"is not enough: it covers {numbers.percent(limit / seconds)}, so {short}"
