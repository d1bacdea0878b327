"""Score against what it costs (the Pareto front) and against how much is trained."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import altair as alt

from dollartune import format as numbers
from dollartune.report.charts import style as look

if TYPE_CHECKING:
    from dollartune.report.contents import Board, BoardEntry
    from dollartune.trials.record import DoneRecord


def pareto_chart(board: Board, methods: Sequence[str]) -> Any:
    """Score against dollars (seconds without a price), intervals upright, each seed as a faint dot, the front as steps."""
    rows = [_row(board, entry) for entry in board.entries]
    seeds: list[dict[str, Any]] = [
        {"label": e.label, "method": e.method, "cost": look.rounded(_cost(board, r)), "score": look.rounded(r.test.score)}
        for e in board.entries if len(e.records) > 1 for r in e.records
    ]  # fmt: skip
    costs = [board.cost(entry) for entry in (*board.entries, *board.baselines)] + [float(row["cost"]) for row in seeds]
    kind = "log" if look.logarithmic(costs) else "linear"
    title = "dollars per trial" if board.priced else "seconds per trial"
    shown_costs = look.padded(costs, 1e-9) if kind == "linear" else [min(costs) / 1.3, max(costs) * 1.5]
    ticks: dict[str, Any] = {"values": look.steps(*shown_costs)} if kind == "log" else {"tickCount": 5}
    x = alt.X(
        "cost:Q",
        title=f"{title} (further left is cheaper)",
        scale=alt.Scale(type=kind, domain=[max(0.0, shown_costs[0]), shown_costs[1]], nice=False),
        axis=alt.Axis(format="$~g" if board.priced else "~g", labelOverlap=True, **ticks),
    )
    y = _score_axis(board)
    front = [
        {"cost": look.rounded(board.cost(e)), "score": look.rounded(e.score), "label": e.label} for e in board.front
    ]
    steps = alt.Chart(alt.InlineData(values=front)).mark_line(
        interpolate="step-after", strokeDash=[4, 3], color=look.CONTEXT, strokeWidth=1.5
    ).encode(x=x, y=y)  # fmt: skip
    names = alt.Chart(alt.InlineData(values=_named(board))).mark_text(align="left", dx=9, dy=-9, fontSize=11, limit=180).encode(
        x=x, y=y, text="label:N"
    )  # fmt: skip
    layers = [
        steps,
        *_baselines(board, x, y),
        *_points(rows, seeds, methods, x, y, _tooltips(board), look.choice("pareto", board.task, board.scale)),
        names,
    ]
    return alt.layer(*layers).properties(width="container", height=300)


def parameters_chart(board: Board, methods: Sequence[str]) -> Any:
    """Score against trained parameters, logarithmic; methods that train nothing stand left of a line."""
    rows = [_row(board, entry) for entry in board.entries]
    positive = [entry.trainable for entry in board.entries if entry.trainable > 0]
    least, most = (min(positive), max(positive)) if positive else (1, 10)
    nothing = least / 10
    for row, entry in zip(rows, board.entries, strict=True):
        row["position"] = entry.trainable or look.rounded(nothing)
    has_nothing = len(positive) < len(board.entries)
    domain = [nothing / 2 if has_nothing else least / 2, most * 2]
    border = nothing * 10**0.5
    x = alt.X(
        "position:Q",
        title="trained parameters",
        scale=alt.Scale(type="log", domain=domain, nice=False),
        axis=alt.Axis(values=look.steps(border, domain[1]), format="~s", labelOverlap=True, grid=False),
    )
    y = _score_axis(board)
    layers = _points(rows, [], methods, x, y, _tooltips(board), look.choice("parameters", board.task, board.scale))
    if has_nothing:
        rule = alt.Chart(alt.InlineData(values=[{"position": look.rounded(border)}]))
        layers.insert(0, rule.mark_rule(strokeDash=[2, 3], color=look.CONTEXT).encode(x=x))
        note = alt.Chart(alt.InlineData(values=[{"position": look.rounded(nothing), "text": "nothing trained"}]))
        layers.append(
            note.mark_text(baseline="top", fontSize=10, dy=3).encode(x=x, y=alt.value(0), text="text:N")
        )  # fmt: skip
    return alt.layer(*layers).properties(width="container", height=260)


def _points(
    rows: list[dict[str, Any]],
    seeds: list[dict[str, Any]],
    methods: Sequence[str],
    x: Any,
    y: Any,
    tooltip: list[Any],
    chosen: Any,
) -> list[Any]:
    """Seeds as dots, intervals as lines, and a mark per method."""
    colors, shapes = look.scales(methods, [row["method"] for row in rows])
    legend = alt.Legend(title=None, orient="bottom", symbolSize=90, symbolOpacity=1, labelLimit=240)
    color = alt.Color("method:N", scale=colors, legend=legend)
    faded = alt.condition(chosen, alt.value(1), alt.value(0.15))
    layers = []
    if seeds:
        dots = alt.Chart(alt.InlineData(values=seeds)).mark_point(filled=True, size=14, opacity=0.45, shape="circle")
        layers.append(dots.encode(x=x, y=y, color=color))
    with_interval = [row for row in rows if row["low"] is not None]
    if with_interval:
        whiskers = alt.Chart(alt.InlineData(values=with_interval)).mark_rule(strokeWidth=1.6)
        layers.append(whiskers.encode(x=x, y=alt.Y("low:Q"), y2="high:Q", color=color, opacity=faded))
    marks = alt.Chart(alt.InlineData(values=rows)).mark_point(filled=True, size=110, opacity=1)
    shape = alt.Shape("method:N", scale=shapes, legend=legend)
    layers.append(marks.encode(x=x, y=y, color=color, shape=shape, opacity=faded, tooltip=tooltip).add_params(chosen))
    return layers


def _baselines(board: Board, x: Any, y: Any) -> list[Any]:
    """What the methods are held against: grey crosses with their names, apart from colors and legend."""
    rows = [_row(board, entry) for entry in board.baselines]
    if not rows:
        return []
    made = alt.Chart(alt.InlineData(values=rows))
    crosses = made.mark_point(shape="cross", filled=True, size=70, color=look.CONTEXT, opacity=1)
    names = made.mark_text(align="left", dx=8, fontSize=10, color=look.CONTEXT, limit=140)
    return [crosses.encode(x=x, y=y, tooltip=_tooltips(board)), names.encode(x=x, y=y, text="label:N")]


def _row(board: Board, entry: BoardEntry) -> dict[str, Any]:
    return {
        "label": entry.label,
        "method": entry.method,
        "score": look.rounded(entry.score),
        "low": look.rounded(entry.low),
        "high": look.rounded(entry.high),
        "interval": numbers.span(entry.low, entry.high),
        "cost": look.rounded(board.cost(entry)),
        "costs": board.cost_text(entry),
        "trained": numbers.count(entry.trainable) if entry.trainable else "nothing",
    }


def _tooltips(board: Board) -> list[Any]:
    return [
        alt.Tooltip("label:N", title="method"),
        alt.Tooltip("score:Q", title=board.metric, format=".3f"),
        alt.Tooltip("interval:N", title="95 % interval"),
        alt.Tooltip("costs:N", title="per trial"),
        alt.Tooltip("trained:N", title="trained parameters"),
    ]


def _score_axis(board: Board) -> Any:
    values = [
        v
        for e in (*board.entries, *board.baselines)
        for v in (e.score, e.low, e.high, *(r.test.score for r in e.records))
        if v is not None
    ]
    domain = look.padded(values, 0.05, (-1.0, 1.02))
    return alt.Y(
        "score:Q",
        title=board.metric,
        scale=alt.Scale(domain=domain, nice=False, zero=False),
        axis=alt.Axis(tickCount=6),
    )


def _named(board: Board) -> list[dict[str, Any]]:
    """Names beside the points of the front, the cheapest and the best; the legend and the tooltip name the others."""
    return [
        {"label": e.label, "cost": look.rounded(board.cost(e)), "score": look.rounded(e.score)} for e in board.front
    ]


def _cost(board: Board, record: DoneRecord) -> float:
    return record.cost.dollars if board.priced else record.cost.seconds
