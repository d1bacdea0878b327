"""Ablations: the change of the score when a part of a method is left out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import altair as alt

from dollartune.report import numbers
from dollartune.report.ablation import Ablation

WORSE, SAME, BETTER = "#d9793b", "#f0f0f0", "#4f93c8"
"""Orange and blue, which nearly everybody tells apart."""


def ablations_chart(found: Sequence[Ablation]) -> Any | None:
    """A cell per part and board; orange: worse without it. None where there are no ablations."""
    if not found:
        return None
    rows = [
        {
            "part": f"{row.of}: {row.name}", "board": _board(row),
            "change": round(row.change, 4), "shown": numbers.change(row.change),
            "interval": numbers.change_span(row.low, row.high), "score": numbers.score(row.entry.score),
        }
        for row in found
    ]  # fmt: skip
    widest = max(0.01, *(abs(row.change) for row in found))
    scale = alt.Scale(domain=[-widest, 0, widest], range=[WORSE, SAME, BETTER], interpolate="rgb")
    base = alt.Chart(alt.InlineData(values=rows)).encode(
        x=alt.X(
            "board:N",
            title=None,
            sort=None,
            axis=alt.Axis(orient="top", labelAngle=0, labelLimit=150, domain=False, ticks=False),
        ),
        y=alt.Y("part:N", title=None, sort=None, axis=alt.Axis(domain=False, ticks=False)),
    )
    cells = base.mark_rect(stroke="#ffffff", strokeWidth=1).encode(
        color=alt.Color("change:Q", scale=scale, legend=None),
        tooltip=[
            alt.Tooltip("part:N"), alt.Tooltip("board:N", title="on"), alt.Tooltip("shown:N", title="change"),
            alt.Tooltip("interval:N", title="95 % interval"), alt.Tooltip("score:N", title="score with the change"),
        ],
    )  # fmt: skip
    text = base.mark_text(color="#1c1c1c", fontSize=11).encode(text="shown:N")
    return alt.layer(cells, text).properties(width="container", height=28 * len({row["part"] for row in rows}))


def _board(row: Ablation) -> str:
    scale = "all" if row.board.scale is None else f"{row.board.scale:,}"
    return f"{row.board.task}, {scale}"
