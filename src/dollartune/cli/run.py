"""Verbs that run a study and show what it found: demo, check, run, status, results, report."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from dollartune import format as numbers

StudyPath = Annotated[Path, typer.Argument(help="The study file (YAML).")]
FolderPath = Annotated[Path, typer.Argument(help="The study's folder or its YAML file.")]
Json = Annotated[bool, typer.Option("--json", help="Print data as JSON.")]
DataRoot = Annotated[Path | None, typer.Option(help="Folder with local copies of presets' data.")]
Price = Annotated[str | None, typer.Option(help="Price of this machine, for example 2.49/h.")]
Output = Annotated[Path | None, typer.Option(help="Folder in which the study's folder is made (default: studies).")]
Engine = Annotated[str | None, typer.Option(help="Where trials are run: local (this process) or ray (a Ray cluster).")]
Address = Annotated[str | None, typer.Option(help="Of the Ray cluster: HOST:6379, ray://HOST:10001 or auto.")]
Shrink = Annotated[
    bool, typer.Option("--shrink", help="The same study in minutes: embedded backbones, less of everything.")
]


def _settings(study: Path, data_root: Path | None, price: str | None, output: Path | None, shrunk: bool = False) -> Any:
    from dollartune.budget.limit import BudgetSettings
    from dollartune.study_file import load_study

    settings = load_study(
        study, data_root=str(data_root) if data_root else None, output=str(output) if output else None
    )
    if price is not None:
        budget = settings.budget or BudgetSettings()
        settings = settings.model_copy(update={"budget": budget.model_copy(update={"price": price})})
    if shrunk:
        from dollartune.study.downscale import shrink

        settings = shrink(settings)
    return settings


def _on_engine(settings: Any, engine: str | None, address: str | None) -> Any:
    """The study on the engine that the command line names; an address is one of Ray's."""
    from dollartune.errors import unknown_name

    if engine is None and address is None:
        return settings
    known = ("local", "ray")
    if engine is not None and engine not in known:
        raise unknown_name("engine", engine, known)
    chosen = settings.engine.model_copy(update={"name": engine or "ray"})
    if address is not None:
        chosen = chosen.model_copy(update={"address": address})
    return settings.model_copy(update={"engine": chosen})


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
    with_report: Annotated[bool, typer.Option("--report/--no-report", help="Write the report at the end.")] = True,
    again: Annotated[
        str | None,
        typer.Option("--again", metavar="TRIAL", help="Train a recorded trial again by its steps, and compare."),
    ] = None,
) -> None:
    """Run a study: tune every method, evaluate, report. Run it again to go on after an interruption."""
    if again is not None:
        _train_again(_settings(study, data_root, price, output, shrunk), study, again, json)
        return
    from dollartune.study.startup import seconds_since_start, starting
    from dollartune.study.torchrun import side_by_side

    settings = _on_engine(_settings(study, data_root, price, output, shrunk), engine, address)
    root = Path(settings.output) / (settings.name or study.stem)
    with side_by_side(settings, root) as own:
        with starting(own, Path(own.output) / root.name, seconds_since_start(), fresh):
            from dollartune.engines.display import Display
            from dollartune.study.api import Study

            found = Study(own)
        follows = own.output != settings.output
        quiet = Display() if json or follows else None
        outcome = found.run(fresh=fresh, display=quiet, seconds_before=seconds_since_start())
    if follows:
        return  # one of several processes, and not the one that keeps the records
    if json:
        from dollartune.cli.output import print_json

        print_json({"study": str(found.store.root), "leaderboard": outcome.leaderboard().to_dict("records")})
    else:
        show_results(outcome)
    if with_report and outcome.done():
        path = _write_report(outcome)
        if not json:
            print(f"\nreport: {path}")
            _say_adapter(outcome)
    if found.absent:
        print(f"\nnot run: {', '.join(found.absent)}; `dollartune check {study}` says why.", file=sys.stderr)
        raise typer.Exit(1)


def _train_again(settings: Any, study: Path, trial: str, json: bool) -> None:
    """Says whether the recorded steps lead to the stored adapter; exit status 1 where they do not."""
    from dataclasses import asdict

    from dollartune.cli.output import print_json
    from dollartune.study.again import run_again
    from dollartune.trials.store import Store

    found = run_again(Store(Path(settings.output) / (settings.name or study.stem)), settings, trial)
    if json:
        print_json({"equal": found.equal, **asdict(found)})
    else:
        print(found.sentence)
    if not found.equal:
        raise typer.Exit(1)


def check(
    study: StudyPath, data_root: DataRoot = None, price: Price = None, json: Json = False, shrunk: Shrink = False
) -> None:
    """Check a study file and its data, and list the trials it would run. Nothing is trained."""
    from dollartune.budget.study_budget import ledger_for
    from dollartune.cli.output import print_json, print_table
    from dollartune.planner.asked_rows import asked_notes
    from dollartune.trials.expand import absent_methods, plan

    settings = _settings(study, data_root, price, None, shrunk)
    trials, tasks, notes = plan(settings)
    ledger_for(settings, trials, None)
    notes += asked_notes(settings, trials, tasks)
    for task in tasks:
        for scale in settings.scales:
            task.splits(scale, settings.data_seed, settings.evaluation.rows)
    rows = [
        {"task": t.task, "rows": t.scale or "all", "method": t.variant.label, "seed": t.seed, "trial": t.identifier}
        for t in trials
    ]
    if json:
        print_json({"trials": rows, "notes": notes})
        if absent_methods(settings, trials):
            raise typer.Exit(1)
        return
    for note in notes:
        print(f"note: {note}")
    print_table(rows)
    if settings.search is not None:
        print(
            "\nThese are the settings as they are written; the search decides which are run, and how many seeds each."
        )
    absent = absent_methods(settings, trials)
    state = f"{', '.join(absent)} cannot run here (see the notes)" if absent else "the study file is fine"
    print(f"\n{len(rows)} trials; {state}. Next: dollartune run {study}")
    if absent:
        raise typer.Exit(1)


def status(study: FolderPath, json: Json = False) -> None:
    """How far a study is, what failed, what was spent of the budget."""
    from dollartune.cli.output import print_json
    from dollartune.study.status import status_of
    from dollartune.trials.store import find_study

    facts = status_of(find_study(study))
    if json:
        print_json(facts)
        return
    tried = f", {facts['tried']} settings tried" if facts["tried"] else ""
    print(f"{facts['study']}: {facts['done']} of {facts['planned']} trials done, {facts['failed']} failed{tried}")
    spent = ", ".join(f"{name} {numbers.seconds(seconds)}" for name, seconds in facts["seconds_by_category"].items())
    money = numbers.dollars(facts["dollars"]) if facts["dollars"] else numbers.NO_PRICE
    print(f"spent {numbers.seconds(facts['seconds'])}, {money} ({spent})")
    for line in facts["spent_of_budget"]:
        print(line["sentence"])
    for sentence in facts["decisions"]:
        print(f"note: {sentence}")
    for failure in facts["failures"]:
        print(f"failed: {failure['trial']}, seed {failure['seed']}: {failure['class']}: {failure['message']}")


def results(
    study: FolderPath,
    trials: Annotated[bool, typer.Option("--trials", help="One row per trial instead of the leaderboard.")] = False,
    csv: Annotated[bool, typer.Option("--csv", help="Print as CSV.")] = False,
    json: Json = False,
) -> None:
    """The leaderboard with intervals, or one row per trial."""
    from dollartune.cli.output import print_json, print_table
    from dollartune.study.api import open_study

    found = open_study(study)
    frame = found.frame() if trials else found.leaderboard()
    if csv:
        print(frame.to_csv(index=False), end="")
    elif json:
        print_json(frame.to_dict("records"))
    elif trials:
        columns = ("trial", "task", "scale", "label", "seed", "status", "score", "seconds", "dollars", "trainable")
        print_table(frame.to_dict("records"), {name: name for name in columns if name in frame})
    else:
        show_results(found)


def report(
    study: FolderPath,
    out: Annotated[
        Path | None, typer.Option(help="Folder for the report (default: report/ in the study's folder).")
    ] = None,
) -> None:
    """Write the report: one HTML page, Markdown and CSV."""
    from dollartune.study.api import open_study

    print(_write_report(open_study(study), out))


def demo(
    output: Output = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Delete an earlier demo first.")] = False,
) -> None:
    """A study in minutes, without network or data files: three text tasks and digits, with embedded backbones."""
    from dollartune.study.api import Study
    from dollartune.study.demo import demo_settings

    study = Study({**demo_settings(), "output": str(output or "studies")})
    print("Which way of tuning gives most for the money? Three tasks made of this machine's documentation and one of")
    print("digits, on small pretrained backbones that ship with the package. This takes a few minutes.\n")
    outcome = study.run(fresh=fresh)
    show_results(outcome)
    print(f"\nreport: {_write_report(outcome)}")


def show_results(outcome: Any) -> None:
    """The leaderboard and what it means, in sentences."""
    from dollartune.cli.output import print_table
    from dollartune.report.baselines import baseline_sentences
    from dollartune.study.compare import boards
    from dollartune.study.status import status_of

    columns = {"label": "method", "score": "score", "low": "from", "high": "to", "may_be_best": "may be best",
               "seeds": "seeds",
               "trainable": "parameters", "seconds": "seconds", "dollars": "dollars"}  # fmt: skip
    rows = outcome.leaderboard().to_dict("records")
    compared = outcome.comparisons
    for board in boards(outcome):
        mine = [row for row in rows if (row["task"], row["scale"] if row["scale"] == row["scale"] else None) == board]
        scale = f"{board[1]} training rows" if board[1] else "all training rows"
        print(f"\n{board[0]}, {scale} ({mine[0]['metric']}):")
        print_table(mine, columns)
        if board not in compared:
            print("no intervals: the measure has no value per test row.")
            continue
        print(compared[board].sentence)
        for sentence in baseline_sentences(outcome, board):
            print(sentence)
        for warning in compared[board].warnings:
            print(f"note: {warning}")
    for line in status_of(outcome.store, outcome.everything)["spent_of_budget"]:
        print(line["sentence"])
    for record in outcome.failed():
        trial, error = record.trial, record.error
        print(f"failed: {trial.label}, seed {trial.seed}: {error.kind}: {error.message}")


def _write_report(outcome: Any, out: Path | None = None) -> Path:
    from dollartune.report import write_report

    return write_report(outcome, out or outcome.store.root / "report")


def _say_adapter(outcome: Any) -> None:
    best = outcome.best()
    if best is not None:
        folder = outcome.store.folder(best.id) / "adapter"
        print(f"best adapter by validation score ({best.trial.label}): {folder}")
