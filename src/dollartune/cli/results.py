"""Commands that show what a study found: status, results, report."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from dollartune import format as numbers
from dollartune.cli.options import FolderPath, Json


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

    outcome = open_study(study)
    if latex:
        from textwrap import wrap

        from dollartune.report.paper import citation, latex_tables, methods_paragraph

        print(latex_tables(outcome))
        print("\n".join(f"% {line}" for line in [*wrap(methods_paragraph(outcome), 100), "", *citation().splitlines()]))
        return
    if trials and not csv:
        print_trials(outcome, json)
        return
    frame = outcome.frame() if trials else outcome.leaderboard()
    if csv:
        print(frame.to_csv(index=False), end="")
    elif json:
        print_json(frame.to_dict("records"))
    else:
        show_results(outcome)


def print_trials(outcome: Any, json: bool) -> None:
    """One row per trial."""
    from dollartune.cli.output import print_json, print_table

    frame = outcome.frame()
    columns = ("trial", "task", "scale", "label", "seed", "status", "score", "seconds", "dollars", "trainable")
    rows = frame.to_dict("records")
    for row in rows:  # pandas has no whole numbers in a column where some are missing
        row.update({key: int(row[key]) for key in ("scale", "trainable") if key in row and row[key] == row[key]})
    if json:
        print_json(rows)
        return
    shown = [{**row, "scale": "all" if row["scale"] != row["scale"] else row["scale"]} for row in rows]
    print_table(shown, {name: name for name in columns if name in frame})


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
    json: Json = False,
) -> None:
    """Write the report: one HTML page, Markdown and CSV; with --figures the charts as files too."""
    from dollartune.cli.output import answer
    from dollartune.study.api import open_study

    outcome = open_study(study)
    folder = out or outcome.store.root / "report"
    page, drawn = report_of(outcome, folder, with_rows=not without_rows), []
    if figures:
        from dollartune.report.paper import write_figures

        drawn = write_figures(outcome, folder / "figures", figures)  # type: ignore[arg-type]  # checked there
    answer(json, {"report": page, "figures": drawn}, *map(str, [page, *drawn]))


def show_results(outcome: Any) -> None:
    """The leaderboard and what it means, in sentences."""
    from dollartune.cli.output import print_note, print_table
    from dollartune.report.baselines import baseline_sentences, nobody_above_chance
    from dollartune.report.contents import collect
    from dollartune.report.tables import over_boards
    from dollartune.report.text import headline
    from dollartune.study.compare import boards, unsearched_rates, why_not_compared
    from dollartune.study.status import failure_lines, status_of

    columns = {"label": "method", "score": "score", "sd": "sd", "low": "from", "high": "to", "may_be_best": "may be best",
               "probability_best": "probability",
               "seeds": "seeds",
               "trainable": "parameters", "seconds": "seconds", "dollars": "dollars"}  # fmt: skip
    rows = outcome.leaderboard().to_dict("records")
    compared = outcome.comparisons
    of_key = {(board.task, board.scale): board for board in collect(outcome).boards} if rows else {}
    for board, variants in boards(outcome).items():
        # pandas writes a missing scale as NaN, which does not equal itself.
        mine = [row for row in rows if (row["task"], row["scale"] if row["scale"] == row["scale"] else None) == board]
        scale = f"{board[1]} training rows" if board[1] else "all training rows"
        print(f"\n{board[0]}, {scale} ({mine[0]['metric']}):")
        if unsearched := unsearched_rates(outcome, board):
            print(unsearched)
        print_table(mine, columns)
        if board not in compared:
            reasons = filter(None, (why_not_compared(outcome, records) for records in variants.values()))
            print(f"no intervals: {numbers.listed(list(dict.fromkeys(reasons)))}.")
            continue
        shown = of_key[board]
        # As the report has it: a winner among methods that learned nothing is no finding.
        print(headline(shown) if nobody_above_chance(shown) else compared[board].sentence)
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


def report_of(outcome: Any, out: Path | None = None, with_rows: bool = True) -> Path:
    from dollartune.report import write_report

    return write_report(outcome, out or outcome.store.root / "report", with_rows)


def say_adapter(outcome: Any) -> None:
    from dollartune.report.handed_over import handed_over
    from dollartune.study.varying_settings import shown_labels

    best = outcome.best()
    if best is not None:
        folder = outcome.store.folder(best.id) / "adapter"
        print(f"adapter ({shown_labels(outcome.done())[best.trial.label]}, seed {best.trial.seed}): {folder}")
        reason = handed_over(outcome, best)
        if reason is not None:
            print(reason)
