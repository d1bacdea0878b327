"""Writes a report: `report.html`, `report.md`, `results.csv`, `leaderboard.csv`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from dollartune.files import write_atomically
from dollartune.report.contents import collect
from dollartune.report.markdown import render_markdown
from dollartune.report.notebook import require_altair
from dollartune.report.task_facts import task_facts

if TYPE_CHECKING:
    from dollartune.study.results import Results


def write_report(results: Results, folder: Path, with_rows: bool = True) -> Path:
    """Writes the report of a study into a folder, over an earlier one.

    Args:
        results: what the study found; it may still be running.
        folder: made if it is not there.
        with_rows: whether rows of the data and what was predicted for them are shown; without them a report on private data can
            be passed on. Names of tasks, columns and labels stay.

    Returns:
        The path of `report.html`, one page with everything in it: it opens without network or server.

    Raises:
        UserError: the extra `report` is not installed (the other three files are written first), or no trial has a record.
    """
    from pandas import DataFrame

    from dollartune.study.compare import standings

    contents = replace(collect(results), with_rows=with_rows)
    facts = task_facts(contents)
    # What needs no extra first: without altair these three are there all the same.
    write_atomically(folder / "results.csv", results.frame().to_csv(index=False).encode())
    compared = {
        (board.task, board.scale): board.comparison for board in contents.boards if board.comparison is not None
    }
    write_atomically(folder / "leaderboard.csv", DataFrame(standings(results, compared)).to_csv(index=False).encode())
    write_atomically(folder / "report.md", render_markdown(contents, facts).encode())
    require_altair()
    from dollartune.report.page import render_page

    path = folder / "report.html"
    write_atomically(path, render_page(contents, facts).encode())
    return path
