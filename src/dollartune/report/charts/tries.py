"""The settings that a search tried: a line per try across its settings, and which settings mattered."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import altair as alt

from dollartune import format as numbers
from dollartune.report.charts import style as look
from dollartune.report.tries import FEWEST, in_words, places, tries_table

if TYPE_CHECKING:
    from dollartune.trials.record import TrialRecord


def tries_chart(records: Sequence[TrialRecord]) -> Any | None:
    """Parallel coordinates: each setting an upright axis from its lowest to its highest value, the score the last one."""
    rows = tries_table(records)
    axes = [
        key
        for key in dict.fromkeys(key for row in rows for key in row)
        if key not in ("seconds", "trial", "validation")
    ]
    if len(rows) < FEWEST or not axes:
        return None
    order = [*axes, "validation"]
    at = {key: places([row.get(key) for row in rows]) for key in order}
    points = [
        {"trial": row["trial"], "axis": key, "place": at[key][number], "value": in_words(row.get(key)),
         "score": look.rounded(row["validation"]), "shown": numbers.score(row["validation"])}
        for number, row in enumerate(rows) for key in order if at[key][number] is not None
    ]  # fmt: skip
    upright = alt.Axis(labelAngle=0, domain=False, tickSize=0, grid=True)
    base = alt.Chart(alt.InlineData(values=points)).encode(
        x=alt.X("axis:N", sort=order, title=None, axis=upright, scale=alt.Scale(type="point")),
        y=alt.Y(
            "place:Q", title="lowest to highest", axis=alt.Axis(labels=False, ticks=False),
            scale=alt.Scale(domain=[-0.04, 1.04]),
        ),
    )  # fmt: skip
    tooltip = look.tooltip(axis="setting", value="value", shown="validation score")
    # from orange for low to blue for high: told apart by people who confuse red and green
    color = alt.Color("score:Q", scale=alt.Scale(range=["#d55e00", "#a9a9a9", "#0072b2"]), title="validation score")
    lines = base.mark_line(strokeWidth=1.4, opacity=0.8).encode(detail="trial:N", color=color)
    return alt.layer(
        lines, base.mark_point(filled=True, size=36, opacity=1).encode(color=color, tooltip=tooltip)
    ).properties(width="container", height=240)


def importance_chart(shares: Mapping[str, float]) -> Any | None:
    """A bar per setting."""
    if not shares:
        return None
    values = [{"setting": key, "share": look.rounded(share)} for key, share in shares.items()]
    x = alt.X(
        "share:Q",
        title="share of the variance of the scores",
        scale=alt.Scale(domain=[0, 1]),
        axis=alt.Axis(format="%"),
    )
    bars = alt.Chart(alt.InlineData(values=values)).mark_bar(color=look.COLORS[0])
    tooltip = look.tooltip(setting="setting", share="share")
    return bars.encode(x=x, y=alt.Y("setting:N", sort=list(shares), title=None), tooltip=tooltip).properties(
        width="container", height=max(60, 28 * len(values))
    )
