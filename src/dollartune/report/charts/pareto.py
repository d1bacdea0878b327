"""Score against what it costs (the Pareto front) and against how much is trained."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, NotRequired, TypedDict

import altair as alt

from dollartune import format as numbers
from dollartune.methods.registry import reference
from dollartune.report.charts import style as look

if TYPE_CHECKING:
    from dollartune.report.contents import Board, BoardEntry
    from dollartune.trials.record import Cost


class ParetoPoint(TypedDict):
    """A seed of a method."""

    label: str
    method: str
    cost: float | None
    score: float | None


class ParetoRow(ParetoPoint):
    """A method: means over its seeds, and how they are said."""

    name: str
    shown: str
    """The score in words: a tooltip that rounds would make 0.9998 a perfect one."""
    low: float | None
    high: float | None
    interval: str
    costs: str
    trained: str
    position: NotRequired[float | None]
    """On the axis of trained parameters."""
    grey: NotRequired[bool]
    """Of a baseline."""


def pareto_chart(board: Board, methods: Sequence[str]) -> Any:
    """Score against dollars (seconds without a price), intervals upright, each seed as a faint dot, the front as steps."""
    rows = [_row(board, entry) for entry in board.entries]
    seeds: list[ParetoPoint] = [
        {"label": e.label, "method": e.series, "cost": look.rounded(_cost(board, c)), "score": look.rounded(s)}
        for e in board.entries if len(e.records) > 1 for c, s in zip(e.costs, e.scores, strict=True)
    ]  # fmt: skip
    costs = [board.cost(entry) for entry in board.entries] + [float(row["cost"] or 0.0) for row in seeds]
    beside = [board.cost(entry) for entry in board.baselines]
    # A baseline may cost a thousandth of any method. The axis belongs to the methods: what is far cheaper stands at its left end,
    # with its cost in words.
    least = min([cost for cost in costs if cost > 0], default=0.0) / LEFT_OF_ALL
    costs += [max(cost, least) for cost in beside]
    kind = "log" if look.logarithmic(costs) else "linear"
    title = "dollars per trial" if board.priced else "seconds per trial"
    # More room on the right, where the names stand.
    shown_costs = look.padded(costs, 1e-9) if kind == "linear" else [min(costs) / 1.3, max(costs) * 1.5]
    ticks: dict[str, object] = {"values": look.steps(*shown_costs)} if kind == "log" else {"tickCount": 5}
    x = alt.X(
        "cost:Q",
        title=f"{title} (further left is cheaper)",
        # nice=False: Vega would round a logarithmic axis to whole decades, mostly empty.
        scale=alt.Scale(type=kind, domain=[max(0.0, shown_costs[0]), shown_costs[1]], nice=False),
        axis=alt.Axis(format="$~g" if board.priced else "~g", labelOverlap=True, **ticks),
    )
    y = _score_axis(board)
    front = [
        {"cost": look.rounded(board.cost(e)), "score": look.rounded(e.score), "label": e.label} for e in board.front
    ]
    steps = alt.Chart(alt.InlineData(values=front)).mark_line(
        # A step, not a slope: between two points of the front nothing can be had.
        interpolate="step-after", strokeDash=[4, 3], color=look.CONTEXT, strokeWidth=1.5
    ).encode(x=x, y=y)  # fmt: skip
    named = [
        *(ParetoRow(**_row(board, entry, least), grey=True) for entry in board.baselines),
        *(ParetoRow(**_row(board, entry), grey=False) for entry in board.front),
    ]
    names = [
        alt.Chart(alt.InlineData(values=group)).mark_text(
            align=place.align, dx=9 if place.align == "left" else -9, dy=place.dy, fontSize=10 if grey else 11, limit=180,
            **({"color": look.CONTEXT} if grey else {}),
        ).encode(x=x, y=y, text="name:N")
        for (place, grey), group in _placed(named, [*rows, *named], shown_costs, kind, _score_range(board)).items()
    ]  # fmt: skip
    layers = [
        steps,
        *_baselines(board, x, y, least),
        *_points(rows, seeds, methods, x, y, _tooltips(board), look.choice("pareto", board.task, board.scale)),
        *names,
    ]
    return alt.layer(*layers).properties(width="container", height=300)


def parameters_chart(board: Board, methods: Sequence[str]) -> Any:
    """Score against trained parameters, logarithmic; methods that train nothing stand left of a line."""
    rows = [_row(board, entry) for entry in board.entries]
    positive = [entry.trainable for entry in board.entries if entry.trainable > 0]
    least, most = (min(positive), max(positive)) if positive else (1, 10)
    # A logarithmic axis has no place for 0: a decade left of the least, behind a dashed line half-way.
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
    rows: list[ParetoRow],
    seeds: list[ParetoPoint],
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
    # 0.15 is still seen as being there, and no longer read as data.
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


LEFT_OF_ALL = 3.0
"""How many times cheaper than the cheapest method a baseline is drawn at most."""


class LabelPlace(NamedTuple):
    """Where a name stands beside its point."""

    align: Literal["left", "right"]
    dy: int
    """Pixels below the point."""


MARK = 5
"""Pixels from the middle of a mark to its edge."""
WIDTH, HEIGHT, LETTER, LINE = 430, 250, 6.2, 13
"""Pixels: of the plot in a column of a wide screen, of a letter and of a line of a name. Names move with their points."""


def _placed(
    rows: Sequence[ParetoRow],
    marks: Sequence[ParetoRow],
    costs: Sequence[float],
    kind: str,
    scores: Sequence[float],
) -> dict[tuple[LabelPlace, bool], list[ParetoRow]]:
    """Names above or below their points so that none lies on another; one on which there is no room is left to the tooltip.

    Args:
        rows: with `cost`, `score`, `name` and `grey`, the most important last.
        marks: everything that is drawn, with `cost` and `score`.
        costs: the axis's range, in which `kind` measures distances.
        scores: range of the other axis.
    """
    measure = math.log if kind == "log" else float
    low, high = (measure(max(cost, 1e-12)) for cost in costs)
    taken: list[tuple[float, float, float, float]] = []

    def at(row: Mapping[str, Any]) -> tuple[float, float]:
        across = WIDTH * (measure(max(float(row["cost"] or 0.0), 1e-12)) - low) / (high - low or 1.0)
        return across, HEIGHT * (scores[1] - float(row["score"] or 0.0)) / (scores[1] - scores[0] or 1.0)

    # marks too are in the way of a name
    taken += [(x - MARK, y - MARK, x + MARK, y + MARK) for x, y in map(at, marks)]
    groups: dict[tuple[LabelPlace, bool], list[ParetoRow]] = {}
    for row in reversed(rows):
        across, down = at(row)
        width = min(180.0, LETTER * len(str(row["name"])))
        for align, dy in itertools.product(
            ("left", "right") if across + width + 9 < WIDTH else ("right", "left"), (-9, 11, -23, 25)
        ):
            left = across + 9 if align == "left" else across - 9 - width
            box = (left, down + dy - LINE / 2, left + width, down + dy + LINE / 2)
            inside = box[0] >= 0 and box[2] <= WIDTH
            if inside and not any(box[0] < b[2] and b[0] < box[2] and box[1] < b[3] and b[1] < box[3] for b in taken):
                taken.append(box)
                groups.setdefault((LabelPlace(align, dy), bool(row["grey"])), []).append(row)  # type: ignore[arg-type]
                break
    return groups


def _baselines(board: Board, x: Any, y: Any, least: float) -> list[Any]:
    """What the methods are held against: grey crosses, apart from colors and legend."""
    rows = [_row(board, entry, least) for entry in board.baselines]
    if not rows:
        return []
    crosses = alt.Chart(alt.InlineData(values=rows)).mark_point(
        shape="cross", filled=True, size=70, color=look.CONTEXT, opacity=1
    )
    least_effort = [row for row in rows if row["method"] == reference("majority").name]
    # what no one should stay below, across the whole chart
    line = alt.Chart(alt.InlineData(values=least_effort)).mark_rule(strokeDash=[1, 3], color=look.CONTEXT)
    return [*([line.encode(y=y)] if least_effort else []), crosses.encode(x=x, y=y, tooltip=_tooltips(board))]


def _row(board: Board, entry: BoardEntry, least: float = 0.0) -> ParetoRow:
    """A point. What costs less than `least` stands there, and its name says what it costs."""
    cheaper = board.cost(entry) < least
    return {
        "label": entry.label,
        "name": f"{entry.label} ({board.cost_text(entry)})" if cheaper else entry.label,
        "method": entry.series,
        "score": look.rounded(entry.score),
        "shown": numbers.score(entry.score),
        "low": look.rounded(entry.low),
        "high": look.rounded(entry.high),
        "interval": numbers.span(entry.low, entry.high),
        "cost": look.rounded(max(least, board.cost(entry))),
        "costs": board.cost_text(entry),
        "trained": numbers.count(entry.trainable) if entry.trainable else "nothing",
    }


def _tooltips(board: Board) -> list[Any]:
    return [
        alt.Tooltip("label:N", title="method"),
        alt.Tooltip("shown:N", title=board.metric),
        alt.Tooltip("interval:N", title="95 % interval"),
        alt.Tooltip("costs:N", title="per trial"),
        alt.Tooltip("trained:N", title="trained parameters"),
    ]


def _score_range(board: Board) -> list[float]:
    values = [
        v
        for e in (*board.entries, *board.baselines)
        for v in (e.score, e.low, e.high, *(r.test.score for r in e.records))
        if v is not None
    ]
    return look.padded(values, 0.05, (-1.0, 1.02))


def _score_axis(board: Board) -> Any:
    return alt.Y(
        "score:Q",
        title=board.metric,
        scale=alt.Scale(domain=_score_range(board), nice=False, zero=False),
        axis=alt.Axis(tickCount=6),
    )


def _cost(board: Board, cost: Cost) -> float:
    return cost.dollars if board.priced else cost.seconds
