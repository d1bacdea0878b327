"""Which class is taken for which, and whether a probability means what it says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import altair as alt

from dollartune.report.charts import style as look
from dollartune.report.class_scores import OTHER, calibration, confusion

MOST_CLASSES = 25
"""A matrix of more classes cannot be read; the table of classes has them all."""


def confusion_chart(rows: Sequence[Mapping[str, Any]], labels: Sequence[str]) -> Any | None:
    """Expected class down, predicted across, with counts; the shade is the share of the row. None without classes to show."""
    counts = confusion(rows)
    if not counts or not 2 <= len(labels) <= MOST_CLASSES:
        return None
    across = [*labels, *([OTHER] if any(predicted == OTHER for _, predicted in counts) else [])]
    totals = {label: sum(counts[label, other] for other in across) for label in labels}
    cells = [
        {
            "expected": label, "predicted": other, "rows": counts[label, other],
            "share": look.rounded(counts[label, other] / totals[label]) if totals[label] else 0.0,
        }
        for label in labels for other in across
    ]  # fmt: skip
    base = alt.Chart(alt.InlineData(values=cells)).encode(
        x=alt.X(
            "predicted:N", sort=across, title="predicted", axis=alt.Axis(labelAngle=-40, labelLimit=120, orient="top")
        ),
        y=alt.Y("expected:N", sort=list(labels), title="expected"),
    )
    shades = base.mark_rect().encode(
        color=alt.Color("share:Q", scale=alt.Scale(domain=[0, 1], range=["#e8f1f8", "#0b4f80"]), legend=None),
        tooltip=look.tooltip(expected="expected", predicted="predicted", rows="rows"),
    )
    dark = alt.condition("datum.share > 0.5", alt.value("#ffffff"), alt.value(look.ON_TINT))
    numbers = base.mark_text(fontSize=11).encode(text="rows:Q", color=dark)
    return alt.layer(shades, numbers).properties(width="container", height=max(90, 30 * len(labels)))


def calibration_chart(rows: Sequence[Mapping[str, Any]]) -> Any | None:
    """Accuracy over confidence; on the dashed line a probability of 0.8 is right in 8 of 10 rows. None without probabilities."""
    bins = calibration(rows)
    if not bins:
        return None
    values = [
        {"confidence": look.rounded(one.confidence), "accuracy": look.rounded(one.accuracy), "rows": one.rows}
        for one in bins
    ]
    x = alt.X("confidence:Q", title="probability of the predicted class", scale=alt.Scale(domain=[0, 1]))
    y = alt.Y("accuracy:Q", title="share that is right", scale=alt.Scale(domain=[0, 1]))
    ideal = alt.Chart(alt.InlineData(values=[{"confidence": 0, "accuracy": 0}, {"confidence": 1, "accuracy": 1}]))
    made = alt.Chart(alt.InlineData(values=values))
    dots = made.mark_point(filled=True, color=look.COLORS[0], opacity=1).encode(
        x=x, y=y, size=alt.Size("rows:Q", scale=alt.Scale(range=[30, 300]), legend=None),
        tooltip=look.tooltip(confidence="probability", accuracy="right", rows="rows"),
    )  # fmt: skip
    return alt.layer(
        ideal.mark_line(strokeDash=[4, 3], color=look.CONTEXT).encode(x=x, y=y),
        made.mark_line(color=look.COLORS[0], strokeWidth=1.2).encode(x=x, y=y),
        dots,
    ).properties(width="container", height=260)
