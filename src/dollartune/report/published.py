"""Published figures beside measured ones, where a study repeats a published one (`source:`)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dollartune import format as numbers
from dollartune.report.tables import Table

if TYPE_CHECKING:
    from dollartune.report.contents import Contents

TITLE = "Beside the published figures"


def published_table(contents: Contents) -> Table | None:
    """One row per figure that the source printed for a trial's setting; None where the study repeats no source."""
    if contents.settings is None or contents.settings.source is None:
        return None
    from dollartune.evidence import PublishedFigures

    figures = PublishedFigures(contents.settings)
    rows = [
        (
            f"{board.task}, {numbers.rows(board.scale)}",
            entry.label,
            board.metric,
            numbers.score(entry.score),
            numbers.span(entry.low, entry.high),
            numbers.score(one.finding.value),
            f"{one.finding.model}{', another model' if one.other_model else ''}",
            one.citation,
        )
        for board in contents.boards
        for entry in board.entries
        for one in figures.of(entry.records[0].trial, board.metric)
    ]
    if not rows:
        return None
    headings = ("Task", "Method", "Measure", "Here", "95 % interval", "Published", "Published for", "Where")
    notes: tuple[str, ...] = ()
    if contents.settings.source.uncut is not None:
        notes = (
            "This study was cut by --shrink: other, far smaller models, fewer rows and shorter trainings. The published "
            "figures are of the settings that the rows stand for, and the two do not compare.",
        )
    return Table(TITLE, headings, tuple(rows), frozenset({3, 4, 5}), notes=notes)
