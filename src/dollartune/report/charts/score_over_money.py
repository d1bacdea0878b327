"""Score against money as it was spent: what each trial scored on the validation rows, and the best until then as steps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import altair as alt

from dollartune import format as numbers
from dollartune.report.charts import style as look

if TYPE_CHECKING:
    from dollartune.report.score_over_money import MoneyPoint


def money_chart(points: Sequence[MoneyPoint], priced: bool) -> Any | None:
    """The best so far as steps over dollars (seconds without a price), a dot per trial."""
    if len(points) < 2:
        return None
    rows = [
        {"money": look.rounded(one.dollars if priced else one.seconds), "score": look.rounded(one.score),
         "shown": numbers.score(one.score),
         "spent": (numbers.dollars if priced else numbers.seconds)(one.dollars if priced else one.seconds),
         "best": look.rounded(one.best), "label": f"{one.label}, seed {one.seed}"}
        for one in points
    ]  # fmt: skip
    title = "dollars booked until then" if priced else "seconds booked until then"
    x = alt.X("money:Q", title=title, axis=alt.Axis(format="$~f" if priced else "~f", tickCount=5))
    domain = look.padded([one.score for one in points], 0.02)
    scale = alt.Scale(domain=domain, nice=False, zero=False)
    base = alt.Chart(alt.InlineData(values=rows)).encode(x=x)
    # A step: between two trials nothing better was there.
    steps = base.mark_line(interpolate="step-after", color=look.COLORS[0], strokeWidth=2)
    dots = base.mark_point(filled=True, size=40, opacity=0.8, color=look.CONTEXT)
    y = alt.Y("best:Q", title="validation score", scale=scale)
    tooltip = look.tooltip(label="trial", shown="validation score", spent=title)
    return alt.layer(steps.encode(y=y), dots.encode(y=alt.Y("score:Q", scale=scale), tooltip=tooltip)).properties(
        width="container", height=260
    )
