"""A tuned model in use: score against the cost of a request, and how much the loss on general text rose."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean
from typing import TYPE_CHECKING, Any, NotRequired, TypedDict

import altair as alt

from dollartune import format as numbers
from dollartune.report.charts import style as look
from dollartune.report.serving_cost import forgetting, requests

if TYPE_CHECKING:
    from dollartune.report.contents import Board


class _RequestBar(TypedDict):
    label: str
    method: str
    cost: float
    shown: str
    tokens: str
    alone: str


class _Forgotten(TypedDict):
    label: str
    method: str
    change: float
    """Of the loss on general text; the mean over seeds, or one of them."""
    shown: NotRequired[str]
    score: NotRequired[str]


def requests_chart(board: Board, methods: Sequence[str]) -> Any | None:
    """Dollars of 1,000 requests (milliseconds of one without a price), a bar per method; None where not measured."""
    entries = requests(board)
    # A single bar compares with nothing; the table has its number.
    if len(entries) < 2:
        return None
    priced = all(entry.request_dollars is not None for entry in entries)
    rows: list[_RequestBar] = []
    for entry in entries:
        seconds = entry.mean_measure("inference", "seconds") or 0.0
        cost = (entry.request_dollars or 0.0) if priced else seconds * 1000
        shown = numbers.dollars(cost) if priced else numbers.short_seconds(seconds)
        rows.append(
            {
                "label": entry.label, "method": entry.series, "cost": look.rounded(cost), "shown": shown,
                "tokens": numbers.count(entry.mean_measure("inference", "prompt_tokens")),
                "alone": numbers.short_seconds(entry.mean_measure("inference", "alone_seconds")),
            }
        )  # fmt: skip
    most = max(row["cost"] for row in rows)
    colors, _ = look.scales(methods, [row["method"] for row in rows])
    base = alt.Chart(alt.InlineData(values=rows)).encode(
        x=alt.X(
            "cost:Q",
            title="dollars for 1,000 requests" if priced else "milliseconds per request",
            # From 0, as lengths of bars are read; 40 % of room for the labels behind them.
            scale=alt.Scale(domain=[0, most * 1.4], nice=False),
            axis=alt.Axis(tickCount=5),
        ),
        y=alt.Y("label:N", sort=[row["label"] for row in rows], title=None, axis=alt.Axis(domain=False, ticks=False)),
    )
    bars = base.mark_bar(height={"band": 0.6}).encode(
        color=alt.Color("method:N", scale=colors, legend=None),
        tooltip=look.tooltip(label="method", shown="in batches", alone="one alone", tokens="tokens it reads"),
    )
    text = base.mark_text(align="left", dx=6, fontSize=11).encode(text="shown:N")
    return alt.layer(bars, text).properties(width="container", height=26 * len(rows))


def forgetting_chart(board: Board, methods: Sequence[str]) -> Any | None:
    """Rise of the loss on general text: a point per method, seeds as faint dots; None where not measured."""
    entries = forgetting(board)
    if not entries:
        return None
    rows: list[_Forgotten] = []
    seeds: list[_Forgotten] = []
    for entry in entries:
        label, method, mean = entry.label, entry.series, fmean(entry.forgotten)
        rows.append(
            {
                "label": label, "method": method, "change": look.rounded(mean), "shown": numbers.change(mean),
                "score": numbers.score(entry.score),
            }
        )  # fmt: skip
        seeds += [{"label": label, "method": method, "change": look.rounded(value)} for value in entry.forgotten]
    # With 0, which is what the points are read against.
    values = [0.0, *(row["change"] for row in seeds)]
    order = [row["label"] for row in rows]
    colors, shapes = look.scales(methods, [row["method"] for row in rows])
    x = alt.X(
        "change:Q",
        title="rise of the loss (nats per token)",
        scale=alt.Scale(domain=look.padded(values, 0.05), nice=False),
        axis=alt.Axis(tickCount=5),
    )
    y = alt.Y("label:N", sort=order, title=None, axis=alt.Axis(grid=True))
    color = alt.Color("method:N", scale=colors, legend=None)
    nothing = alt.Chart(alt.InlineData(values=[{"change": 0}])).mark_rule(color=look.CONTEXT, strokeDash=[4, 3])
    faint = alt.Chart(alt.InlineData(values=seeds)).mark_point(filled=True, size=26, opacity=0.4)
    points = alt.Chart(alt.InlineData(values=rows)).mark_point(filled=True, size=90, opacity=1)
    return alt.layer(
        nothing.encode(x=x),
        faint.encode(x=x, y=y, color=color),
        points.encode(
            x=x, y=y, color=color, shape=alt.Shape("method:N", scale=shapes, legend=None),
            tooltip=look.tooltip(label="method", shown="rise of the loss", score=board.metric),
        ),
    ).properties(width="container", height=26 * len(order))  # fmt: skip
