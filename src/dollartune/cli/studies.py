"""Commands about studies that have run: compare two, merge several, list, extend and remove trials, view."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dollartune.cli.options import Budget, FolderPath, Json
from dollartune.cli.results import show_results


def compare(first: FolderPath, second: FolderPath, json: Json = False) -> None:
    """Hold two studies against each other, on each task and number of training rows that both have."""
    from dollartune.cli.output import print_json, print_note, print_table
    from dollartune.study.api import open_study
    from dollartune.study.several import compare_studies

    compared = compare_studies(open_study(first), open_study(second))
    if json:
        print_json(
            [
                {
                    "task": one.board[0],
                    "rows": one.board[1],
                    "variants": list(one.rows),
                    "sentence": one.comparison.sentence if one.comparison is not None else None,
                    "note": one.note,
                }
                for one in compared
            ]
        )
        return
    for one in compared:
        print(f"\n{one.board[0]}, {f'{one.board[1]:,}' if one.board[1] else 'all'} training rows:")
        print_table(one.rows)
        if one.comparison is not None:
            print(one.comparison.sentence)
        for note in filter(None, [one.note, *(one.comparison.warnings if one.comparison is not None else ())]):
            print_note(note)


def merge(
    studies: Annotated[list[Path], typer.Argument(metavar="STUDY...", help="Folders or YAML files of studies.")],
    out: Annotated[Path, typer.Option(help="Folder of the merged study; it must not be there yet.")],
    json: Json = False,
) -> None:
    """Merge studies of the same task and backbone into one, which can be reported and gone on with."""
    from dollartune.cli.output import answer, command
    from dollartune.errors import UserError
    from dollartune.study.several import merge_studies
    from dollartune.trials.store import find_study

    if len(studies) < 2:
        raise UserError("merging takes two studies or more.", hint="dollartune merge STUDY STUDY --out FOLDER")
    store = merge_studies([find_study(study) for study in studies], out)
    trials = store.planned() or []
    answer(
        json, {"study": out, "trials": trials}, f"wrote {out}: {len(trials)} trials. Next: {command('results', out)}"
    )


def trials_ls(study: FolderPath, json: Json = False) -> None:
    """List the trials of a study with their scores; the first column is what `trials rm` takes."""
    from dollartune.cli.results import print_trials
    from dollartune.study.api import open_study

    print_trials(open_study(study), json)


def trials_rm(
    study: FolderPath,
    trials: Annotated[list[str], typer.Argument(metavar="TRIAL...", help="Identifiers, or beginnings of them.")],
    json: Json = False,
) -> None:
    """Delete trials with all that they left; the next run of the study trains them again. What they cost stays booked."""
    from dollartune.cli.output import answer
    from dollartune.study.several import remove_trials
    from dollartune.trials.store import find_study

    gone = remove_trials(find_study(study), trials)
    answer(json, {"deleted": gone}, f"deleted {', '.join(gone)}.")


def trials_extend(
    study: FolderPath,
    trial: Annotated[str, typer.Argument(metavar="TRIAL", help="Identifier of a finished trial, or its beginning.")],
    steps: Annotated[
        int | None, typer.Option(help="Optimizer steps on top (default: as many as it has had).", min=1)
    ] = None,
    epochs: Annotated[float | None, typer.Option(help="The same as passes over its training rows.", min=0.01)] = None,
    budget: Budget = None,
    json: Json = False,
) -> None:
    """Train a finished trial further: its adapter goes on, with a schedule of its own, as a trial beside it.

    The study's budget pays for it; --budget stands in its place. The same command goes on after Ctrl-C.
    """
    from dollartune.cli.output import QUIET, print_json
    from dollartune.engines.display import Display
    from dollartune.errors import UserError
    from dollartune.study.api import Study
    from dollartune.study.status import settings_here
    from dollartune.trials.store import find_study

    if steps is not None and epochs is not None:
        raise UserError("--steps and --epochs say the same; give one of them.")
    known = Study(settings_here(find_study(study)), budget=budget)
    extended = known.extend(trial, steps, epochs, Display() if json or QUIET.get() else None)
    if json:
        print_json(extended.leaderboard().to_dict("records"))
    else:
        show_results(extended)


def view(
    study: FolderPath,
    port: Annotated[int, typer.Option(help="Port of the page; 0 takes a free one.", min=0, max=65535)] = 0,
    browser: Annotated[bool, typer.Option("--browser/--no-browser", help="Open it in the browser.")] = True,
    json: Json = False,
) -> None:
    """A local page over a study that runs or has run: score against money, curves, tries, predictions; end a trial.

    It listens on this machine alone. Ctrl-C ends it; the study is not touched.
    """
    import errno
    import webbrowser

    from dollartune.cli.output import print_json
    from dollartune.errors import UserError
    from dollartune.trials.store import find_study
    from dollartune.view.server import ViewServer

    try:
        server = ViewServer(find_study(study), port)
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            raise
        raise UserError(f"port {port} is in use.", hint=f"dollartune view {study} --port 0") from None
    if json:
        print_json({"address": server.address}, indent=None)
    else:
        # Flushed: a pipe would keep the address back until the server ends.
        print(f"{server.address}  (Ctrl-C ends it)", flush=True)
    if browser:
        # The socket listens since the server was made: a browser that is quick waits for the loop below.
        webbrowser.open(server.address)
    try:
        server.serve_forever()
    finally:
        server.server_close()
