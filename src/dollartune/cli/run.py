"""Verbs that run a study and show what it found: demo, check, run, status, results, report."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from dollartune import format as numbers

StudyPath = Annotated[Path, typer.Argument(metavar="STUDY.yaml", help="The study file (YAML).")]
FolderPath = Annotated[Path, typer.Argument(metavar="STUDY", help="The study's folder or its YAML file.")]
Json = Annotated[bool, typer.Option("--json", help="Print data as JSON.")]
DataRoot = Annotated[Path | None, typer.Option(help="Folder with local copies of presets' data.")]
Price = Annotated[str | None, typer.Option(help="Price of this machine, for example 2.49/h.")]
Output = Annotated[Path | None, typer.Option(help="Folder in which the study's folder is made (default: studies).")]
Engine = Annotated[str | None, typer.Option(help="Where trials are run: local (this process) or ray (a Ray cluster).")]
Address = Annotated[str | None, typer.Option(help="Of the Ray cluster: HOST:6379, ray://HOST:10001 or auto.")]
Shrink = Annotated[
    bool, typer.Option("--shrink", help="The same study in minutes: embedded backbones, less of everything.")
]
Seeds = Annotated[str | None, typer.Option(help="In place of the file's: how many (5), or which (0,3,7).")]
Methods = Annotated[str | None, typer.Option(help="In place of the file's: lora,full or 'lora(rank=8),bitfit'.")]
Scales = Annotated[
    str | None, typer.Option(help="In place of the file's: numbers of training rows, as in 100,1000,all.")
]
Budget = Annotated[str | None, typer.Option(help="In place of the file's: '$2', '20 min', '$5 per study'.")]
Sets = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="KEY=VALUE", help="Any other key of the file, as in training.batch_size=16; repeat it."
    ),
]


def _overrides(
    seeds: str | None, methods: str | None, scales: str | None, budget: str | None, sets: list[str] | None
) -> dict[str, object]:
    """What the command line says in place of the file, for `load_study`."""
    from dollartune.study_file import read_assignments, read_seeds, split_methods

    return {
        "sets": read_assignments(sets or []),
        "seeds": None if seeds is None else read_seeds(seeds),
        "methods": None if methods is None else split_methods(methods),
        "scales": None if scales is None else [int(s) if s.strip().isdigit() else s.strip() for s in scales.split(",")],
        "budget": budget,
    }


def _settings(
    study: Path, data_root: Path | None, price: str | None, output: Path | None, shrunk: bool = False, **overrides: Any
) -> Any:
    from dollartune.budget.limit import BudgetSettings
    from dollartune.study_file import load_study

    settings = load_study(
        study, data_root=str(data_root) if data_root else None, output=str(output) if output else None, **overrides
    )
    if price is not None:
        budget = settings.budget or BudgetSettings()
        # A price alone is no limit: it only turns booked seconds into dollars.
        settings = settings.model_copy(update={"budget": budget.model_copy(update={"price": price})})
    if shrunk:
        from dollartune.study.downscale import shrink

        settings = shrink(settings)
    from dollartune.trials.store import Store

    return Store(Path(settings.output) / (settings.name or study.stem)).as_begun(settings)


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
    told = _overrides(seeds, methods, scales, budget, sets)
    if again is not None:
        _train_again(_settings(study, data_root, price, output, shrunk, **told), study, again, json)
        return
    if dry_run:
        _list_trials(_settings(study, data_root, price, output, shrunk, **told), study, json)
        return
    from dollartune.cli.output import QUIET
    from dollartune.study.startup import seconds_since_start, starting
    from dollartune.study.torchrun import side_by_side

    settings = _on_engine(_settings(study, data_root, price, output, shrunk, **told), engine, address)
    root = Path(settings.output) / (settings.name or study.stem)
    with side_by_side(settings, root) as own:
        # Heavy imports happen inside, where the time that they take is told and booked.
        with starting(own, Path(own.output) / root.name, seconds_since_start(), fresh):
            from dollartune.engines.display import Display
            from dollartune.study.api import Study

            found = Study(own)
        follows = own.output != settings.output
        quiet = Display() if json or follows or QUIET.get() else None
        outcome = found.run(fresh=fresh, display=quiet, seconds_before=seconds_since_start())
    # Under torchrun every process runs this; one prints.
    if follows:
        return  # one of several processes, and not the one that keeps the records
    if json:
        from dollartune.cli.output import print_json

        print_json({"study": str(found.store.root), "leaderboard": outcome.leaderboard().to_dict("records")})
    else:
        show_results(outcome)
    if with_report and outcome.done():
        from dollartune.study.booked_report import booked_report

        with booked_report(own, outcome.store):
            path = _write_report(outcome)
        if not json:
            print(f"\nreport: {path}")
            _say_adapter(outcome)
    if found.absent:
        print(f"\nnot run: {', '.join(found.absent)}; `dollartune check {study}` says why.", file=sys.stderr)
    if broken := _without_score(outcome):
        print(f"\nno score: {', '.join(broken)}; every trial failed.", file=sys.stderr)
    if found.absent or broken:
        raise typer.Exit(1)


def _without_score(outcome: Any) -> list[str]:
    """Methods all of whose trials failed, other than for lack of money, of which the budget's sentence tells."""
    failed = {r.trial.group for r in outcome.failed() if r.error.kind != "budget"}
    return sorted(failed - {r.trial.group for r in outcome.done()})


def _list_trials(settings: Any, study: Path, json: bool) -> None:
    """Which trials a run would make, and which have their record already."""
    from dollartune.cli.output import command, print_json, print_note, print_table
    from dollartune.study.precheck import check_names
    from dollartune.trials.expand import plan
    from dollartune.trials.store import Store

    # Before `plan`, which opens data and configs.
    check_names(settings)
    trials, _, notes = plan(settings)
    store = Store(Path(settings.output) / (settings.name or study.stem))
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
    chosen = " The search decides which settings are run." if settings.search is not None else ""
    print(
        f"\n{todo} of {len(rows)} trials would be run, in {store.root}.{chosen} What they cost: {command('plan', study)}"
    )


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
    study: StudyPath,
    seeds: Seeds = None,
    methods: Methods = None,
    scales: Scales = None,
    budget: Budget = None,
    sets: Sets = None,
    full: Annotated[
        bool,
        typer.Option(
            "--full", help="Also open every picture, put rows into tokens and build every trial, without weights."
        ),
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
    from dollartune.cli.output import command, print_json, print_note, print_table
    from dollartune.study.precheck import check_names

    # what needs no PyTorch first: a misspelt name is said in half a second
    told = _overrides(seeds, methods, scales, budget, sets)
    settings = _settings(study, data_root, price, None, shrunk, **told)
    check_names(settings)
    from dollartune.trials.expand import absent_methods, plan

    trials, tasks, notes = plan(settings)
    ledger_for(settings, trials, None)
    for task in tasks:
        for scale in settings.scales:
            task.splits(scale, settings.data_seed, settings.evaluation.rows)
    if full:
        from dollartune.study.full_check import full_check

        trials, found = full_check(settings, trials, tasks)
        notes += found
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
        print_note(note)
    print_table(rows)
    if settings.search is not None:
        print(
            "\nThese are the settings as they are written; the search decides which are run, and how many seeds each."
        )
    absent = absent_methods(settings, trials)
    state = f"{', '.join(absent)} cannot run here (see the notes)" if absent else "the study file is fine"
    print(f"\n{len(rows)} trials; {state}. Next: {command('run', study)}")
    if absent:
        raise typer.Exit(1)


def status(study: FolderPath, json: Json = False) -> None:
    """How far a study is, what failed, what was spent of the budget."""
    from dollartune.cli.output import print_json, print_note
    from dollartune.study.status import status_of
    from dollartune.trials.store import find_study

    facts = status_of(find_study(study))
    if json:
        print_json(facts.to_json())
        return
    tried = f", {facts.tried} settings tried" if facts.tried else ""
    print(f"{facts.study}: {facts.done} of {facts.planned} trials done, {facts.failed} failed{tried}")
    spent = ", ".join(f"{name} {numbers.seconds(seconds)}" for name, seconds in facts.seconds_by_category.items())
    money = numbers.dollars(facts.dollars) if facts.dollars else numbers.NO_PRICE
    print(f"used {numbers.clock(facts.seconds)}, {money} ({spent})")
    for spending in facts.spent_of_budget:
        print(spending.sentence)
    for sentence in facts.decisions:
        print_note(sentence)
    for line in facts.failure_lines:
        print(line)


def results(
    study: FolderPath,
    trials: Annotated[bool, typer.Option("--trials", help="One row per trial instead of the leaderboard.")] = False,
    csv: Annotated[bool, typer.Option("--csv", help="Print as CSV.")] = False,
    latex: Annotated[
        bool,
        typer.Option(
            "--latex", help="Print tables for a paper (booktabs), a paragraph on the statistics and a citation."
        ),
    ] = False,
    json: Json = False,
) -> None:
    """The leaderboard with intervals, or one row per trial."""
    from dollartune.cli.output import print_json
    from dollartune.study.api import open_study

    found = open_study(study)
    if latex:
        from textwrap import wrap

        from dollartune.report.paper import citation, latex_tables, methods_paragraph

        print(latex_tables(found))
        print("\n".join(f"% {line}" for line in [*wrap(methods_paragraph(found), 100), "", *citation().splitlines()]))
        return
    if trials and not csv:
        print_trials(found, json)
        return
    frame = found.frame() if trials else found.leaderboard()
    if csv:
        print(frame.to_csv(index=False), end="")
    elif json:
        print_json(frame.to_dict("records"))
    else:
        show_results(found)


def print_trials(found: Any, json: bool) -> None:
    """One row per trial."""
    from dollartune.cli.output import print_json, print_table

    frame = found.frame()
    columns = ("trial", "task", "scale", "label", "seed", "status", "score", "seconds", "dollars", "trainable")
    rows = frame.to_dict("records")
    print_json(rows) if json else print_table(rows, {name: name for name in columns if name in frame})


def report(
    study: FolderPath,
    out: Annotated[
        Path | None, typer.Option(help="Folder for the report (default: report/ in the study's folder).")
    ] = None,
    without_rows: Annotated[
        bool,
        typer.Option("--without-rows", help="Show no rows of the data and no prediction, so that it can be passed on."),
    ] = False,
    figures: Annotated[
        list[str] | None,
        typer.Option(help="Also write every chart as a file: svg, pdf or png; give it once per format."),
    ] = None,
) -> None:
    """Write the report: one HTML page, Markdown and CSV; with --figures the charts as files too."""
    from dollartune.study.api import open_study

    found = open_study(study)
    folder = out or found.store.root / "report"
    print(_write_report(found, folder, with_rows=not without_rows))
    if figures:
        from dollartune.report.paper import write_figures

        for path in write_figures(found, folder / "figures", figures):  # type: ignore[arg-type]  # checked there
            print(path)


def demo(
    output: Output = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Delete an earlier demo first.")] = False,
) -> None:
    """A study in minutes, without data files: a real instruct model where it was fetched, and the backbones of the package."""
    from dollartune.study.api import Study
    from dollartune.study.demo import absent_backbones, demo_settings, told

    study = Study({**demo_settings(), "output": str(output or "studies")})
    print(
        "What does tuning add to a model, and which way of tuning gives most for the money? Three tasks made of this machine's"
    )
    print("documentation and one of digits. This takes a few minutes.")
    if absent := absent_backbones():
        print(
            f"Small backbones of the package stand for {', '.join(absent)} (dollartune backbones get {' '.join(absent)})."
        )
    print()
    outcome = study.run(fresh=fresh)
    show_results(outcome)
    print()
    for sentence in told(outcome):
        print(sentence)
    print(f"report: {_write_report(outcome)}")


def show_results(outcome: Any) -> None:
    """The leaderboard and what it means, in sentences."""
    from dollartune.cli.output import print_note, print_table
    from dollartune.report.baselines import baseline_sentences
    from dollartune.report.tables import over_boards
    from dollartune.study.compare import boards, unsearched_rates
    from dollartune.study.status import failure_lines, status_of

    columns = {"label": "method", "score": "score", "low": "from", "high": "to", "may_be_best": "may be best",
               "probability_best": "probability",
               "seeds": "seeds",
               "trainable": "parameters", "seconds": "seconds", "dollars": "dollars"}  # fmt: skip
    rows = outcome.leaderboard().to_dict("records")
    compared = outcome.comparisons
    for board, variants in boards(outcome).items():
        # pandas writes a missing scale as NaN, which does not equal itself.
        mine = [row for row in rows if (row["task"], row["scale"] if row["scale"] == row["scale"] else None) == board]
        scale = f"{board[1]} training rows" if board[1] else "all training rows"
        print(f"\n{board[0]}, {scale} ({mine[0]['metric']}):")
        listed = [record for members in variants.values() for record in members]
        if unsearched := unsearched_rates(listed):
            print(unsearched)
        print_table(mine, columns)
        if board not in compared:
            print("no intervals: the measure has no value per test row.")
            continue
        print(compared[board].sentence)
        for sentence in baseline_sentences(outcome, board):
            print(sentence)
        for warning in compared[board].warnings:
            print_note(warning)
    if (over := outcome.summary) is not None:
        table = over_boards(over)
        print(f"\n{table.caption}:")
        keys = [str(number) for number in range(len(table.headings))]
        print_table(
            [dict(zip(keys, row, strict=True)) for row in table.rows], dict(zip(keys, table.headings, strict=True))
        )
        print(over.sentence)
    for spending in status_of(outcome.store, outcome.everything).spent_of_budget:
        print(spending.sentence)
    for line in failure_lines(outcome.failed()):
        print(line)


def _write_report(outcome: Any, out: Path | None = None, with_rows: bool = True) -> Path:
    from dollartune.report import write_report

    return write_report(outcome, out or outcome.store.root / "report", with_rows)


def _say_adapter(outcome: Any) -> None:
    from dollartune.report.handed_over import handed_over
    from dollartune.study.varying_settings import shown_labels

    best = outcome.best()
    if best is not None:
        folder = outcome.store.folder(best.id) / "adapter"
        print(f"adapter ({shown_labels(outcome.done())[best.trial.label]}, seed {best.trial.seed}): {folder}")
        reason = handed_over(outcome, best)
        if reason is not None:
            print(reason)
