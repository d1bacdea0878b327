"""Small drawings in the page's tables: a method's mark, and a score with its interval."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from dollartune.report.charts import style as look
from dollartune.report.elements import Html, tag

if TYPE_CHECKING:
    from dollartune.report.contents import Board, BoardEntry

# Corners in a square of 16 with room for the widest; Vega's own shapes of the same names, so that table and chart
# agree. The circle is drawn as one.
_OUTLINES = {
    "square": "2,2 14,2 14,14 2,14",
    "triangle-up": "8,1 15,14 1,14",
    "triangle-down": "8,15 15,2 1,2",
    "triangle-right": "15,8 2,15 2,1",
    "triangle-left": "1,8 14,15 14,1",
    "diamond": "8,0 15,8 8,16 1,8",
    "cross": "6,1 10,1 10,6 15,6 15,10 10,10 10,15 6,15 6,10 1,10 1,6 6,6",
}


def mark_definitions(methods: Sequence[str]) -> Html:
    """Every method's mark, drawn once; `method_mark` refers to it."""
    symbols = []
    for index, method in enumerate(methods):
        # Each mark once in the page and referred to by `use`: a table of 100 rows would repeat them else.
        fill, outline = look.color(methods, method), _OUTLINES.get(look.shape(methods, method))
        circle = tag("circle", cx=8, cy=8, r=6.5, fill=fill)
        drawing = circle if outline is None else tag("polygon", points=outline, fill=fill)
        symbols.append(tag("symbol", drawing, id=f"mark-{index}", viewBox="0 0 16 16"))
    return tag("svg", symbols, class_="definitions", aria_hidden="true")


def method_mark(methods: Sequence[str], method: str) -> Html:
    """The shape and color that a method has in the charts."""
    return tag("svg", tag("use", href=f"#mark-{methods.index(method)}"), class_="mark", aria_hidden="true")


def score_range(board: Board, entry: BoardEntry, methods: Sequence[str]) -> Html:
    """The interval as a line and the score as a dot, on one scale for the whole board; a tick marks the best score. Baselines
    have no color of their own."""
    values = [v for e in (*board.entries, *board.baselines) for v in (e.score, e.low, e.high) if v is not None]
    # At least two hundredths wide: differences of a thousandth must not fill the cell.
    low, high = look.padded(values, 0.02)

    def at(value: float) -> str:
        # 4 units on both sides of 144, the dot's radius; a tenth of a unit is less than a pixel.
        return f"{4 + 136 * (value - low) / (high - low):.1f}"

    fill, best = "currentColor" if entry.baseline else look.color(methods, entry.series), at(board.best.score)
    parts = [tag("line", x1=best, x2=best, y1=0, y2=14, class_="best")]
    if entry.low is not None and entry.high is not None:
        parts.append(tag("line", x1=at(entry.low), x2=at(entry.high), y1=7, y2=7, stroke=fill, stroke_width=2))
    parts.append(tag("circle", cx=at(entry.score), cy=7, r=4, fill=fill))
    return tag("svg", parts, class_="range", viewBox="0 0 144 14", aria_hidden="true")
