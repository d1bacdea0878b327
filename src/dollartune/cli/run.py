"""Commands that run a study: demo, check, run."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dollartune.cli.options import (
    Address,
    Budget,
    DataRoot,
    Engine,
    Json,
    Methods,
    Output,
    Price,
    Scales,
    Seeds,
    Sets,
    Shrink,
    StudyPath,
    on_engine,
    overrides,
    store_of,
    study_settings,
)
from dollartune.cli.results import report_of, say_adapter, show_results

if TYPE_CHECKING:
    from dollartune.config import StudySettings
    from dollartune.study.results import Results
    from dollartune.tasks.base import Task
    from dollartune.trials.store import Store
    from dollartune.trials.trial import Trial


def run(
    study: StudyPath,
    fresh: Annotated[bool, typer.Option("--fresh", help="Delete earlier results of this study first.")] = False,
    data_root: DataRoot = None,
    price: Price = None,
    output: Output = None,
    json: Json = False,
    shrunk: Shrink = False,
    engine: Engine = None,
    address: Address = None,
    seeds: Seeds = None,
    methods: Methods = None,
    scales: Scales = None,
    budget: Budget = None,
    sets: Sets = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", "-n", help="List what would be run and what is done already; train nothing.")
    ] = False,
    with_report: Annotated[bool, typer.Option("--report/--no-report", help="Write the report at the end.")] = True,
    again: Annotated[
        str | None,
        typer.Option("--again", metavar="TRIAL", help="Train a recorded trial again by its steps, and compare."),
    ] = None,
) -> None:
    """Run a study: tune every method, evaluate, report. Run it again to go on after an interruption.

    Options in place of the file's keys hold for this run; what was done with other settings stays in the folder.
    Exit status 1 where a method of the study could run on none of its backbones, or all of its trials failed.
    """
    if again is not None and (study.is_dir() or (study.name == "study.yaml" and (study.parent / "trials").is_dir())):
        _train_again(*_as_stored(study, data_root), again, json)
        return
    settings = study_settings(
        study, data_root, price, output, shrunk, fresh, **overrides(seeds, methods, scales, budget, sets)
    )
    if again is not None:
        _train_again(settings, store_of(settings, study), again, json)
    elif dry_run:
        _list_trials(settings, study, json)
    else:
        _run(on_engine(settings, engine, address), study, fresh, json, with_report)


def _run(settings: StudySettings, study: Path, fresh: bool, json: bool, with_report: bool) -> None:
    """Runs it and says what came out."""
    from dollartune.cli.output import QUIET, command, print_json
    from dollartune.study.startup import RUN_REPORT_SHARE, report_seconds, seconds_since_start, starting, whole_limit
    from dollartune.study.torchrun import side_by_side

    root = store_of(settings, study).root
    with side_by_side(settings, root) as own:
        # Heavy imports happen inside, where the time that they take is told and booked.
        with starting(own, Path(own.output) / root.name, seconds_since_start(), fresh):
            from dollartune.engines.display import Display
            from dollartune.study.api import Study

            made = Study(own)
        follows = own.output != settings.output
        quiet = Display() if json or follows or QUIET.get() else None
        # Under torchrun the one that keeps the records writes it, for all.
        after = report_seconds(whole_limit(own), RUN_REPORT_SHARE) if with_report else None
        outcome = made.run(fresh=fresh, display=quiet, seconds_before=seconds_since_start(), seconds_after=after or 0.0)
    # Under torchrun every process runs this; the one that keeps the records prints.
    if follows:
        return
    if not json:
        show_results(outcome)
    page = _booked_page(own, outcome) if after is not None and outcome.done() else None
    broken = _without_score(outcome)
    if json:
        board = outcome.leaderboard().to_dict("records")
        print_json({"study": str(made.store.root), "leaderboard": board, "report": page,
                    "not_run": made.absent, "no_score": broken})  # fmt: skip
    else:
        if page is not None:
            print(f"\nreport: {page}")
        elif with_report and after is None:
            print(f"\nno report, it would take too much of this budget: {command('report', made.store.root)}")
        say_adapter(outcome)
    if made.absent:
        print(f"\nnot run: {', '.join(made.absent)}; `dollartune check {study}` says why.", file=sys.stderr)
    if broken:
        print(f"\nno score: {', '.join(broken)}; every trial failed.", file=sys.stderr)
    if made.absent or broken:
        raise typer.Exit(1)


def _booked_page(settings: StudySettings, outcome: Results) -> Path:
    """The report; what writing it takes is booked."""
    from dollartune.study.booked_report import booked_report

    with booked_report(settings, outcome.store):
        return report_of(outcome)


def _without_score(outcome: Results) -> list[str]:
    """Methods all of whose trials failed, other than for lack of money, of which the budget's sentence tells."""
    failed = {r.trial.group for r in outcome.failed() if r.error.kind != "budget"}
    return sorted(failed - {r.trial.group for r in outcome.done()})


def _list_trials(settings: StudySettings, study: Path, json: bool) -> None:
    """Which trials a run would make, and which have their record already."""
    from dollartune.cli.output import command, print_json, print_note, print_table
    from dollartune.study.full_check import full_check
    from dollartune.study.precheck import check_names
    from dollartune.trials.expand import plan

    # Before `plan`, which opens data and configs.
    check_names(settings)
    trials, tasks, notes = plan(settings)
    trials, more = full_check(settings, trials, tasks)
    notes += more
    store = store_of(settings, study)
    rows = [
        {"task": t.task, "rows": t.scale or "all", "method": t.label, "seed": t.seed, "trial": t.identifier,
         "done": store.has(t.identifier)}
        for t in trials
    ]  # fmt: skip
    if json:
        print_json({"study": str(store.root), "trials": rows, "notes": notes})
        return
    for note in notes:
        print_note(note)
    print_table(rows)
    todo = sum(not row["done"] for row in rows)
    for line in searched(settings, trials, tasks):
        print(line)
    print(f"\n{todo} of {len(rows)} trials would be run, in {store.root}. What they cost: {command('plan', study)}")


def searched(settings: StudySettings, trials: Sequence[Trial], tasks: Sequence[Task]) -> list[str]:
    """What will be searched, in lines; none where the trials are run as they are listed."""
    from dollartune.schedule.search_space import searched_in_words
    from dollartune.trials.expand import fitting

    if settings.search is None:
        return []
    limited = settings.budget is not None and settings.budget.limited
    raced = limited and settings.budget is not None and settings.budget.per != "method"
    own = " with its own budget" if limited else ""
    who = "All methods race for one sum" if raced else f"Each method searches{own}"
    return [
        f"\n{who}: settings are chosen by validation score, and the best of a method is run on its seeds. What is tried (as",
        "listed, without a search: `search: false`):",
        *(f"  {line}" for line in searched_in_words(settings.methods, trials, fitting(settings, tasks))),
    ]


def _as_stored(study: Path, data_root: Path | None) -> tuple[StudySettings, Store]:
    """Settings and folder of a study that has run, given its folder (what `tune` leaves has no other file)."""
    from dollartune.study_file import load_study
    from dollartune.trials.store import find_study

    store = find_study(study)
    root = store.root
    settings = load_study(
        root / "study.yaml", name=root.name, output=str(root.parent), data_root=str(data_root) if data_root else None
    )
    return settings, store


def _train_again(settings: StudySettings, store: Store, trial: str, json: bool) -> None:
    """Says whether the recorded steps lead to the stored adapter; exit status 1 where they do not."""
    from dataclasses import asdict

    from dollartune.cli.output import print_json
    from dollartune.study.again import run_again

    repeated = run_again(store, settings, trial)
    if json:
        print_json({"equal": repeated.equal, **asdict(repeated)})
    else:
        print(repeated.sentence)
    if not repeated.equal:
        raise typer.Exit(1)


def check(
    study: StudyPath,
    seeds: Seeds = None,
    methods: Methods = None,
    scales: Scales = None,
    budget: Budget = None,
    sets: Sets = None,
    full: Annotated[
        bool,
        typer.Option("--full", help="Also open every picture and build every trial, without weights."),
    ] = False,
    data_root: DataRoot = None,
    price: Price = None,
    json: Json = False,
    shrunk: Shrink = False,
) -> None:
    """Check a study file and its data, and list the trials it would run. Nothing is trained.

    Exit status 1 where a method of the study can run on none of its backbones.
    """
    from dollartune.budget.study_budget import ledger_for
    from dollartune.cli.output import collect_rarely, command, print_json, print_note, print_table
    from dollartune.study.precheck import check_names

    collect_rarely()
    # what needs no PyTorch first: a misspelt name is said in half a second
    told = overrides(seeds, methods, scales, budget, sets)
    settings = study_settings(study, data_root, price, None, shrunk, **told)
    check_names(settings)
    from dollartune.trials.expand import absent_methods, plan

    trials, tasks, notes = plan(settings)
    # These two for their refusals alone: dollars without a price, data that cannot be read.
    ledger_for(settings, trials, None)
    for task in tasks:
        for scale in settings.scales:
            task.splits(scale, settings.data_seed, settings.evaluation.rows)
    if full:
        from dollartune.study.full_check import full_check

        trials, more = full_check(settings, trials, tasks)
    else:
        from dollartune.planner.asked_rows import asked_notes

        more = asked_notes(settings, trials, tasks)
    notes += more
    rows = [
        {"task": t.task, "rows": t.scale or "all", "method": t.variant.label, "seed": t.seed, "trial": t.identifier}
        for t in trials
    ]
    if json:
        print_json({"trials": rows, "search": settings.search is not None, "notes": notes})
        if absent_methods(settings, trials):
            raise typer.Exit(1)
        return
    for note in notes:
        print_note(note)
    print_table(rows)
    for line in searched(settings, trials, tasks):
        print(line)
    absent = absent_methods(settings, trials)
    state = f"{', '.join(absent)} cannot run here (see the notes)" if absent else "the study file is fine"
    print(f"\n{len(rows)} trials; {state}. Next: {command('run', study)}")
    if absent:
        raise typer.Exit(1)


def demo(
    output: Output = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Delete an earlier demo first.")] = False,
    json: Json = False,
) -> None:
    """A study in minutes, without data files: a real instruct model where it was fetched, and the backbones of the package."""
    from dollartune.cli.output import QUIET, print_json
    from dollartune.engines.display import Display
    from dollartune.study.api import Study
    from dollartune.study.demo import absent_backbones, demo_settings, told

    study = Study({**demo_settings(), "output": str(output or "studies")})
    if json:
        outcome = study.run(fresh=fresh, display=Display())
        board = outcome.leaderboard().to_dict("records")
        print_json(
            {"study": study.store.root, "leaderboard": board, "sentences": told(outcome), "report": report_of(outcome)}
        )
        return
    print(
        "What does tuning add to a model, and which way of tuning gives most for the money? Three tasks made of this machine's"
    )
    print("documentation and one of digits. This takes a few minutes.")
    if absent := absent_backbones():
        print(
            f"Small backbones of the package stand for {', '.join(absent)} (dollartune backbones get {' '.join(absent)})."
        )
    print()
    outcome = study.run(fresh=fresh, display=Display() if QUIET.get() else None)
    show_results(outcome)
    print()
    for sentence in told(outcome):
        print(sentence)
    print(f"report: {report_of(outcome)}")
