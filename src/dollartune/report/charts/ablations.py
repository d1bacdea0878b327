"""Ablations as a heat map: a row per change, a column per method, task and scale, a cell for the change of the score.

    what was changed      lora        ia3         houlsby
    the whole method      0.812       0.790       0.801
    first 50%             -0.031      -0.102      -0.020
    drop attention        ...

Source: reference 001, Table 2, which has the scores themselves.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import altair as alt

from dollartune import format as numbers
from dollartune.report.charts import style as look

if TYPE_CHECKING:
    from dollartune.report.ablation import AblationRow

WORSE, SAME, BETTER = "#d9793b", "#f0f0f0", "#4f93c8"
"""Orange and blue, which nearly everybody tells apart."""
INK = "#1c1c1c"
WHOLE = "the whole method"


def ablations_chart(ablations: Sequence[AblationRow]) -> Any | None:
    """The heat map; bold changes are more than luck explains. None where there are no ablations."""
    if not ablations:
        return None
    several_boards, several_methods = (
        len({row.board.title for row in ablations}) > 1,
        len({row.of for row in ablations}) > 1,
    )
    settings = {row.of: row.whole.series for row in ablations}
    counts = Counter(settings.values())  # the settings are named only where they tell columns apart
    names = {label: method if counts[method] == 1 else label for label, method in settings.items()}
    rows: list[dict[str, object]] = []
    columns: dict[str, list[str]] = {}
    for row in ablations:
        words = [names[row.of]] if several_methods or not several_boards else []
        words += [_board(row)] if several_boards else []
        name = "\n".join(words)
        if name not in columns:
            columns[name] = words
            rows.append(
                {
                    "part": WHOLE, "column": name, "of": row.of, "board": _board(row), "change": None, "sure": False,
                    "shown": numbers.score(row.whole.score), "interval": numbers.NONE,
                    "score": numbers.score(row.whole.score), "trained": numbers.count(row.whole.trainable),
                }
            )  # fmt: skip
        rows.append(
            {
                "part": row.name, "column": name, "of": row.of, "board": _board(row), "change": round(row.change, 4),
                "sure": row.sure, "shown": numbers.change(row.change),
                "interval": numbers.change_span(row.low, row.high), "score": numbers.score(row.entry.score),
                "trained": numbers.count(row.entry.trainable),
            }
        )  # fmt: skip
    # Symmetric about 0, so that equal hues are equal changes; at least a point, or noise would glow.
    widest = max(0.01, *(abs(row.change) for row in ablations))
    scale = alt.Scale(domain=[-widest, 0, widest], range=[WORSE, SAME, BETTER], interpolate="rgb", clamp=True)
    parts = [WHOLE, *dict.fromkeys(row.name for row in ablations)]
    base = alt.Chart(alt.InlineData(values=rows)).encode(
        x=alt.X(
            "column:N",
            title=None,
            sort=list(columns),
            axis=alt.Axis(
                orient="top", labelAngle=0, labelLimit=170, domain=False, ticks=False, labelPadding=6,
                labelExpr="split(datum.label, '\\n')",
            ),
        ),
        y=alt.Y("part:N", title=None, sort=parts, axis=alt.Axis(domain=False, ticks=False, labelLimit=220)),
    )  # fmt: skip
    tooltip = look.tooltip(
        part="changed", of="method", board="on", shown="change", interval="95 % interval", score="score with the change",
        trained="trained parameters",
    )  # fmt: skip
    cells = (
        base.transform_filter("datum.change !== null")
        .mark_rect(stroke="#ffffff", strokeWidth=1.5)
        .encode(color=alt.Color("change:Q", scale=scale, legend=None), tooltip=tooltip)
    )
    whole = base.transform_filter("datum.change === null").mark_text(fontSize=11.5).encode(text="shown:N")
    text = base.transform_filter("datum.change !== null").mark_text(color=INK, fontSize=11.5).encode(text="shown:N")
    sure = text.transform_filter("datum.sure").mark_text(color=INK, fontSize=11.5, fontWeight="bold")
    luck = text.transform_filter("!datum.sure")
    # Pixels of a row with text of 11.5.
    height = 27 * len(parts)
    return alt.layer(cells, whole, luck, sure.encode(text="shown:N")).properties(width="container", height=height)


def _board(row: AblationRow) -> str:
    scale = "all rows" if row.board.scale is None else f"{row.board.scale:,} rows"
    return f"{row.board.task}, {scale}"
