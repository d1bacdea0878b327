"""`tune`: a backbone and a task in, a tuned adapter out."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dollartune import format as numbers
from dollartune.cli.data import Label, OnBadRow, Prompt, Text, told_columns
from dollartune.cli.options import DataRoot, Json

if TYPE_CHECKING:
    from dollartune.trials.record import TrialRecord
    from dollartune.trials.store import Store
    from dollartune.tuned import OldAndNew


def tune(
    names: Annotated[
        list[str],
        typer.Argument(
            metavar="[BACKBONE] TASK",
            help="TASK: a preset's name or a data file. BACKBONE: a name of `backbones ls`, a hub id, a folder; without it the "
            "largest at hand that the budget pays for.",
        ),
    ],
    backbone: Annotated[str, typer.Option(help="The backbone, where only the task is given.")] = "",
    method: Annotated[
        list[str] | None,
        typer.Option(help="Method to tune with; may be given several times. By default those that suit."),
    ] = None,
    budget: Annotated[str, typer.Option(help="Time or money, all included: '60 s', '5 min', '$1'.")] = "5 min",
    out: Annotated[Path, typer.Option(help="Folder for the adapter, the study and its report.")] = Path("tuned"),
    price: Annotated[str | None, typer.Option(help="Price of this machine, for example 2.49/h.")] = None,
    rows: Annotated[
        int | None, typer.Option(help="Training rows (default: all that the budget pays to be read).", min=1)
    ] = None,
    seeds: Annotated[int, typer.Option(help="Maximum number of seeds of the best setting.", min=1)] = 3,
    trials: Annotated[
        int | None,
        typer.Option(help="Maximum number of settings to try per method (default: what the budget pays for).", min=1),
    ] = None,
    metric: Annotated[
        str | None,
        typer.Option(help="What is best: accuracy, macro_f1, balanced_accuracy, matthews, f1:LABEL, recall:LABEL ..."),
    ] = None,
    limit: Annotated[
        list[str] | None,
        typer.Option(
            help="The most that serving it may take: '20 ms' (a request), '500 MiB', '$0.10 per 1000'; repeat it."
        ),
    ] = None,
    data_root: DataRoot = None,
    label: Label = None,
    text: Text = None,
    prompt: Prompt = None,
    on_bad_row: OnBadRow = None,
    begin_with: Annotated[
        Path | None,
        typer.Option(
            help="Folder of an adapter to go on with, on more rows; then both are scored on the same test rows."
        ),
    ] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Delete an earlier attempt first.")] = False,
    with_report: Annotated[bool, typer.Option("--report/--no-report", help="Write the report at the end.")] = True,
    json: Json = False,
) -> None:
    """Tune one adapter: a good one early, a better one with each further second of the budget, all included.

    The best so far lies in OUT/adapter at every moment. Ctrl-C ends with it; the same command goes on.
    """
    from dollartune.budget.limit import priced_budget
    from dollartune.study.startup import report_seconds, seconds_since_start, whole_limit
    from dollartune.study_file import split_methods

    priced_budget(budget, price)  # a wrong budget is told before the libraries are loaded
    methods = [name for one in method or () for name in split_methods(one)]
    task, model = _task_and_backbone(names, backbone)
    _refuse_early(task, told_columns(label, text, prompt, on_bad_row), data_root)
    from dollartune.cli.output import QUIET, command, print_note
    from dollartune.engines.display import Display
    from dollartune.study.api import Study
    from dollartune.study.progress import display_for_here
    from dollartune.tuned import tuning_settings
    from dollartune.tuning import any_mistake, hand_over, nothing_handed_over, refuse_other_work, standings

    settings, notes = tuning_settings(
        task, model, budget, out, told_columns(label, text, prompt, on_bad_row), methods=methods, price=price, rows=rows,
        seeds=seeds, trials=trials, begin_with=begin_with, metric=metric, limit=limit or (), data_root=data_root, fresh=fresh,
    )  # fmt: skip
    display = Display() if QUIET.get() or json else display_for_here()
    for note in notes:
        display.note(note)  # which the study then does not say again
    study = Study(settings)
    if not fresh:
        refuse_other_work(study.store, study.settings)
    whole, stopped = whole_limit(study.settings), False
    after = report_seconds(whole) if with_report else None
    if with_report and after is None:
        display.note(
            f"no report, it would take too much of this budget; afterwards: {command('report', study.store.root)}"
        )
    try:
        outcome = study.run(
            fresh=fresh,
            display=display,
            seconds_before=seconds_since_start(),
            improved=lambda: hand_over(study.store, out / "adapter"),
            seconds_after=after or 0.0,
        )
    # Ctrl-C is a way to say that it is good enough: the best so far is handed over before the program ends.
    except KeyboardInterrupt:
        stopped, outcome = True, study.results()
    record = hand_over(study.store, out / "adapter")
    if record is None:
        reasons: dict[str, list[str]] = {}
        for failed in outcome.failed():
            if failed.error.kind != "limit":
                reasons.setdefault(failed.error.message, []).append(failed.trial.label)
        for why, labels in reasons.items():
            others = f" and {len(labels) - 1} more" if len(labels) > 1 else ""
            print(f"failed: {labels[0]}{others}: {why}", file=sys.stderr)
        # Nothing to hand over after Ctrl-C is no error of the budget.
        if stopped:
            raise KeyboardInterrupt
        raise nothing_handed_over(study.store, study.settings.limits, any_mistake(outcome.failed()))
    say = (lambda _: None) if json else print  # what people read
    # what came before may have taken longer than it should: the budget goes before the report
    if after is not None and outcome.done() and not stopped and seconds_since_start() + after <= whole:
        from dollartune.report import write_report
        from dollartune.study.booked_report import booked_report

        with booked_report(study.settings, study.store):
            page = write_report(outcome, out / "report")
        say(f"report: {page}")
    elif after is not None and not stopped:
        display.note(f"no time is left for the report; afterwards: {command('report', study.store.root)}")
    folder, beside = out / "adapter", None
    if record.test is not None and not stopped and outcome.done() and not json:
        from dollartune.report.handed_over import handed_over

        if (reason := handed_over(outcome, record)) is not None:
            print_note(reason)
    for line in [_on_adapter(folder, record), *standings(study.store, record)]:
        say(line)
    if begin_with is not None and not stopped:
        from dollartune.tuned import old_and_new

        beside = old_and_new(begin_with, folder, study)
        say("no test row is new to both adapters." if beside is None else beside.sentence)
        if beside is not None and beside.new < beside.old:
            say(f"the old one may be worth keeping: {begin_with}")
    following = next_commands(folder, out / "peft", task)
    say("next:")
    for line in following:
        say(f"  {line}")
    if json:
        from dollartune.cli.output import print_json

        print_json({**_as_data(folder, record, study.store, beside), "next": following})
    if stopped:
        print("stopped with the best so far; the same command goes on from here.", file=sys.stderr)
        # 130 all the same, so that a script can tell a stopped run from a finished one.
        raise typer.Exit(130)


EARLY_BYTES = 10_000_000
"""Up to this size a data file is read in a fraction of the second or more that the libraries take to load."""


def _refuse_early(task: str, told: dict[str, Any], data_root: Path | None) -> None:
    """A file that is not there, a column or a row that is wrong: told before the libraries are loaded.

    Raises:
        UserError: as later, when the task is made.
    """
    from dollartune.tasks.suggest import suggest_task

    path = Path(task)
    if path.suffix and not path.is_dir() and (not path.exists() or path.stat().st_size <= EARLY_BYTES):
        suggest_task(str(path.resolve()) if path.exists() else task, data_root, told)


def _task_and_backbone(names: list[str], backbone: str) -> tuple[str, str | None]:
    """What was given as `[BACKBONE] TASK`, or as TASK and `--backbone`; no backbone is one to be chosen."""
    from dollartune.cli.output import command
    from dollartune.errors import UserError
    from dollartune.tasks.files import file_format

    if len(names) > 2:
        raise UserError(f"tune takes a backbone and a task; got {' '.join(names)}.", hint="dollartune tune --help")
    if len(names) == 2 and file_format(Path(names[0])) is not None and Path(names[0]).is_file():
        raise UserError("tune takes the backbone first, then the task.", hint=command("tune", names[1], names[0]))
    if len(names) == 2 and backbone:
        raise UserError("the backbone is given twice.", hint=command("tune", backbone, names[1]))
    return names[-1], names[0] if len(names) == 2 else backbone or None


def _on_adapter(folder: Path, record: TrialRecord) -> str:
    """Where the adapter is and what it scored."""
    label, metric = record.trial.label, record.metric
    if record.test is None:
        validated = record.validation_score if record.validation_score is not None else float("nan")
        return f"adapter: {folder} ({label}; not tested, validation {metric} {numbers.score(validated)})"
    return (
        f"adapter: {folder} ({label}; {metric} {numbers.score(record.test.score)} on {record.test.examples} test rows)"
    )


def _as_data(folder: Path, record: TrialRecord, store: Store, beside: OldAndNew | None) -> dict[str, object]:
    """The same for programs."""
    from dataclasses import asdict

    test = record.test
    return {
        "adapter": str(folder), "method": record.trial.label, "metric": record.metric, "backbone": record.trial.backbone,
        "score": test.score if test is not None else None, "test_rows": test.examples if test is not None else None,
        "validation_score": record.validation_score, "study": str(store.root),
        "old_and_new": asdict(beside) if beside is not None else None,
    }  # fmt: skip


def next_commands(folder: Path, exported: Path, task: str) -> list[str]:
    """What can be done with an adapter: each of these works as it is printed.

    Args:
        task: what it was tuned on: a file to predict for, or a preset to be scored on.
    """
    from dollartune.cli.output import command
    from dollartune.export.targets import serving_targets
    from dollartune.methods.registry import build_method
    from dollartune.methods.stored_adapter import read_info

    info = read_info(folder)
    is_file = Path(task).is_file()
    lines = [command("predict" if is_file else "evaluate", folder, task)]
    lines.append(command("serve", info["backbone"], "--adapter", f"tuned={folder}"))
    possible = {
        target.name for target in serving_targets([build_method(m) for m in info["methods"]]) if target.possible
    }
    if "peft" in possible:
        lines.append(command("export", folder, "--format", "peft", "--out", exported))
    elif len(possible) > 1:
        lines.append(command("export", folder, "--format", "merged", "--out", exported.with_name("merged")))
    chooses = info["task"]["kind"] == "classification"
    return [*lines, command("doubts", folder, task)] if is_file and chooses else lines
