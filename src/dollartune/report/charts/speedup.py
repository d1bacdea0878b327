"""By how much full tuning was sooner at its best than each method, by scale (reference 001, Figure 1)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypedDict

import altair as alt

from dollartune import format as numbers
from dollartune.report.charts import style as look
from dollartune.report.learning_speed import converged

if TYPE_CHECKING:
    from dollartune.report.contents import Board

LEAST = -1.0
"""Full tuning later by more than 100 % (twice the other's time) is drawn at the edge; the label says how much."""


class _Bar(TypedDict):
    label: str
    method: str
    scale: str
    bar: float
    shown: str
    took: str
    note: str
    """What stands beside it."""


def speedup_chart(boards: Sequence[Board], methods: Sequence[str]) -> Any | None:
    """A bar per method and scale, to the right where full tuning was sooner; None where full tuning was not run."""
    rows: list[_Bar] = [
        {
            "label": row.entry.label, "method": row.entry.series,
            "scale": "all rows" if board.scale is None else f"{board.scale:,} rows",
            "bar": look.rounded(max(LEAST, row.speed_up)), "shown": numbers.percent(row.speed_up),
            "took": numbers.seconds(row.seconds), "note": numbers.percent(row.speed_up),
        }
        for board in boards for row in converged(board) if row.speed_up is not None
    ]  # fmt: skip
    if not rows:
        return None
    scales = list(dict.fromkeys(row["scale"] for row in rows))
    several = len(scales) > 1
    for row in rows if several else ():
        row["note"] = f"{row['shown']}, {row['scale']}"
    order = list(dict.fromkeys(row["label"] for row in sorted(rows, key=lambda row: -row["bar"])))
    least = min(0.0, *(row["bar"] for row in rows))
    x = alt.X(
        "bar:Q",
        title="full tuning at its best sooner by",
        # To 1.3: no bar is longer than 1 (100 % sooner), and its label stands behind it.
        scale=alt.Scale(domain=[least * 1.05 - 0.02, 1.3], nice=False),
        axis=alt.Axis(format="%", values=[-1, -0.5, 0, 0.5, 1]),
    )
    y = alt.Y("label:N", sort=order, title=None, axis=alt.Axis(domain=False, ticks=False))
    offset = {"yOffset": alt.YOffset("scale:N", sort=scales)} if several else {}
    colors, _ = look.scales(methods, [row["method"] for row in rows])
    base = alt.Chart(alt.InlineData(values=rows)).encode(x=x, y=y, **offset)
    bars = base.mark_bar(height={"band": 0.8}).encode(
        color=alt.Color("method:N", scale=colors, legend=None),
        tooltip=look.tooltip(label="method", scale="training rows", took="best after", shown="full tuning sooner by"),
    )
    noted = base.encode(text="note:N")
    texts = [
        noted.transform_filter("datum.bar >= 0").mark_text(align="left", dx=5, fontSize=10),
        # Right of zero, where a bar to the left leaves the row empty.
        noted.transform_filter("datum.bar < 0").mark_text(align="left", dx=5, fontSize=10).encode(x=alt.datum(0)),
    ]
    height = len(order) * (15 * len(scales) + 6 if several else 24)
    return alt.layer(bars, *texts).properties(width="container", height=height)
