"""What more data brings: score over scales, and time to the best validation loss at each scale."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NotRequired, TypedDict

import altair as alt

from dollartune import format as numbers
from dollartune.report.charts import style as look
from dollartune.report.learning_speed import converged

if TYPE_CHECKING:
    from dollartune.report.contents import Board


class ScaleRow(TypedDict):
    """A method on one number of training rows."""

    label: str
    method: str
    rows: int
    score: float | None
    shown: str
    """In words: a tooltip that rounds would make 0.9998 a perfect one."""
    low: float | None
    high: float | None
    interval: str


class ConvergenceRow(TypedDict):
    """When a method's validation loss was best."""

    label: str
    method: str
    scale: str
    seconds: float | None
    took: str
    epoch: str
    right: NotRequired[bool]
    """Whether the point lies in the right half, so that its note stands left of it."""


def scales_chart(boards: Sequence[Board], methods: Sequence[str]) -> Any | None:
    """Score over the number of training rows, a line per method; None with fewer than two scales."""
    # One scale is a column of points, which the Pareto chart shows already.
    if len(boards) < 2:
        return None
    rows: list[ScaleRow] = [
        {
            "label": entry.label, "method": entry.series, "rows": _size(board), "score": look.rounded(entry.score),
            "shown": numbers.score(entry.score), "low": look.rounded(entry.low), "high": look.rounded(entry.high),
            "interval": numbers.span(entry.low, entry.high),
        }
        for board in boards for entry in board.entries
    ]  # fmt: skip
    sizes = sorted({row["rows"] for row in rows})
    values = [value for row in rows for value in (row["score"], row["low"], row["high"]) if value is not None]
    x = alt.X(
        "rows:Q", title="training rows",
        # Scales grow tenfold, so equal ratios are equal distances; 15 % of room keeps the outer marks whole.
        scale=alt.Scale(type="log", domain=[sizes[0] / 1.15, sizes[-1] * 1.15], nice=False),
        axis=alt.Axis(values=sizes, format="~s", grid=False),
    )  # fmt: skip
    # At least five points high: noise must not look like a mountain. 1.02: the mark of a perfect score is not cut.
    domain = look.padded(values, 0.05, (-1.0, 1.02))
    y = alt.Y(
        "score:Q",
        title=boards[0].metric,
        scale=alt.Scale(domain=domain, nice=False, zero=False),
        axis=alt.Axis(tickCount=6),
    )
    colors, shapes = look.scales(methods, [row["method"] for row in rows])
    legend = alt.Legend(title=None, orient="bottom", symbolSize=90, symbolOpacity=1, labelLimit=240)
    chosen = look.choice("scales", boards[0].task)
    faded = alt.condition(chosen, alt.value(1), alt.value(0.12))
    base = alt.Chart(alt.InlineData(values=rows)).encode(
        x=x, color=alt.Color("method:N", scale=colors, legend=legend), opacity=faded, detail="label:N"
    )
    tooltip = [
        alt.Tooltip("label:N", title="method"), alt.Tooltip("rows:Q", title="training rows", format=","),
        alt.Tooltip("shown:N", title=boards[0].metric), alt.Tooltip("interval:N", title="95 % interval"),
    ]  # fmt: skip
    whiskers = (
        base.transform_filter("datum.low !== null")
        .mark_rule(strokeWidth=1.2)
        .encode(y=alt.Y("low:Q", title=boards[0].metric), y2="high:Q")
    )
    points = base.mark_point(filled=True, size=80).encode(
        y=y, shape=alt.Shape("method:N", scale=shapes, legend=legend), tooltip=tooltip
    )
    return alt.layer(base.mark_line(strokeWidth=1.6).encode(y=y), whiskers, points.add_params(chosen)).properties(
        width="container", height=280
    )


def convergence_chart(boards: Sequence[Board], methods: Sequence[str]) -> Any | None:
    """Seconds to the best validation loss, a dot per method and scale with the epoch beside it; None if nothing was tuned."""
    rows: list[ConvergenceRow] = [
        {
            "label": row.entry.label, "method": row.entry.series, "scale": _words(board), "seconds": look.rounded(row.seconds),
            "took": numbers.seconds(row.seconds), "epoch": f"epoch {row.epoch:.2g}",
        }
        for board in boards for row in converged(board)
    ]  # fmt: skip
    if not rows:
        return None
    times = [float(row["seconds"] or 0.0) for row in rows]
    order = list(dict.fromkeys(row["label"] for row in sorted(rows, key=lambda row: float(row["seconds"] or 0.0))))
    several = len({row["scale"] for row in rows}) > 1
    log = look.logarithmic(times)
    domain = [min(times) / 1.4 if log else 0.0, max(times) * (1.4 if log else 1.1)]
    for row, time in zip(rows, times, strict=True):  # notes of late points stand left of them
        # How far right, 0 to 1: a note on the right half would run out of the chart.
        along = math.log(time / domain[0]) / math.log(domain[1] / domain[0]) if log else time / domain[1]
        row["right"] = along > 0.5
    ticks: dict[str, object] = {"values": look.steps(*domain)} if log else {"tickCount": 5}
    x = alt.X(
        "seconds:Q", title="seconds until the loss was best",
        scale=alt.Scale(type="log" if log else "linear", domain=domain, nice=False),
        axis=alt.Axis(labelOverlap=True, **({"format": "~g"} if log else {}), **ticks),
    )  # fmt: skip
    y = alt.Y("label:N", sort=order, title=None, axis=alt.Axis(grid=True))
    colors, shapes = look.scales(methods, [row["method"] for row in rows])
    scale_order = list(dict.fromkeys(_words(board) for board in boards))
    offset = {"yOffset": alt.YOffset("scale:N", sort=scale_order)} if several else {}
    base = alt.Chart(alt.InlineData(values=rows)).encode(x=x, y=y, **offset)
    points = base.mark_point(filled=True, size=80, opacity=1).encode(
        color=alt.Color("method:N", scale=colors, legend=None),
        shape=alt.Shape("method:N", scale=shapes, legend=None),
        tooltip=look.tooltip(label="method", scale="training rows", took="best after", epoch="at"),
    )
    note = "datum.epoch + ', ' + datum.scale" if several else "datum.epoch"
    noted = base.transform_calculate(note=note).encode(text="note:N")
    texts = [
        noted.transform_filter("!datum.right").mark_text(align="left", dx=8, fontSize=10),
        noted.transform_filter("datum.right").mark_text(align="right", dx=-8, fontSize=10),
    ]
    # 16 pixels hold a mark and a line of 10-point text.
    height = len(order) * (16 * len(scale_order) + 6 if several else 22)
    return alt.layer(points, *texts).properties(width="container", height=height)


def _size(board: Board) -> int:
    """Training rows, as cut."""
    return int(board.data.train or board.scale or 1)


def _words(board: Board) -> str:
    return "all rows" if board.scale is None else f"{board.scale:,} rows"
