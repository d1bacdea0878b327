"""How the validation loss fell: one small chart per method, each seed a line, the others in grey behind it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import altair as alt

from dollartune.report.charts import style as look

if TYPE_CHECKING:
    from dollartune.report.contents import Board, BoardEntry

MOST_POINTS = 60
"""Of one line; longer histories are thinned evenly, the best point stays."""


def learning_curves_chart(
    board: Board, methods: Sequence[str], over: Literal["epoch", "seconds"] = "epoch", most_points: int = MOST_POINTS
) -> Any | None:
    """Validation loss over epochs or seconds; the best moment of each seed is marked. None where nothing was tuned.

    The data are the same for both, so that a page with both holds them once.
    """
    tuned = [entry for entry in board.entries if entry.trained]
    rows = [row for entry in tuned for row in _history(entry, most_points)]
    if not rows:
        return None
    losses = [row["loss"] for row in rows]
    # Logarithmic where losses spread 20-fold; clamp draws what lies outside at the edge instead of over the chart
    # above.
    y_scale = alt.Scale(
        type="log" if look.logarithmic(losses, 20) else "linear", domain=_range(losses), nice=False, clamp=True
    )
    x = alt.X(
        f"{over}:Q",
        title="epochs" if over == "epoch" else "seconds of tuning",
        scale=alt.Scale(domain=[0, max(row[over] for row in rows)], nice=False),
        axis=alt.Axis(tickCount=4),
    )
    y = alt.Y("loss:Q", title="validation loss", scale=y_scale, axis=alt.Axis(tickCount=4))
    colors, _ = look.scales(methods, [entry.series for entry in tuned])
    color = alt.Color("method:N", scale=colors, legend=None)
    data = alt.InlineData(values=rows)
    behind = alt.Chart(data).mark_line(color=look.CONTEXT, opacity=0.28, strokeWidth=0.8)
    base = alt.Chart().encode(x=x, y=y, color=color)
    tooltip = [
        alt.Tooltip("label:N", title="method"), alt.Tooltip("seed:N"),
        alt.Tooltip(f"{over}:Q", title="epoch" if over == "epoch" else "seconds", format=".3~g"),
        alt.Tooltip("loss:Q", title="validation loss", format=".4f"),
    ]  # fmt: skip
    layers = alt.layer(
        behind.encode(x=x, y=y, detail=["label:N", "seed:N"]),
        base.mark_line(strokeWidth=1.6).encode(detail="seed:N"),
        base.mark_point(filled=True, size=12, opacity=0.7).encode(tooltip=tooltip),
        base.mark_point(filled=True, size=70, opacity=1, shape="diamond").transform_filter("datum.best").encode(tooltip=tooltip),
    ).properties(width=190, height=120)  # fmt: skip
    order = [entry.label for entry in tuned]
    facet = alt.Facet(
        "label:N",
        title=None,
        sort=order,
        header=alt.Header(labelLimit=190, labelAnchor="start", labelFontWeight="bold"),
    )
    # Panels of 190: on the page its script sets as many in a row as fit, elsewhere three.
    return layers.properties(data=data).facet(facet=facet, columns=3, spacing=14)


def _history(entry: BoardEntry, most_points: int) -> list[dict[str, Any]]:
    rows = []
    for record in entry.records:
        if record.training is None:
            continue
        points = [point for point in record.training.history if point.validation_loss is not None]
        # Rounded up; 1 where there are no points at all.
        every = -(-len(points) // most_points) or 1
        for index, point in enumerate(points):
            best = point.step == record.training.best_step
            # The last point stays too: a line must end where training did.
            if index % every and not best and index < len(points) - 1:
                continue
            row = {
                "label": entry.label,
                "method": entry.series,
                "seed": record.trial.seed,
                "epoch": look.rounded(point.epoch, 3),
                "seconds": look.rounded(point.seconds, 3),
                "loss": look.rounded(point.validation_loss),
            }
            rows.append({**row, "best": True} if best else row)
    return rows


def _range(losses: list[float]) -> list[float]:
    """From the lowest loss to what nine in ten points stay below, and a half more: one that diverged hides no other."""
    ordered = sorted(losses)
    # The ninth decile: one run that diverged by orders of magnitude would press all others flat.
    usual = ordered[int(0.9 * (len(ordered) - 1))]
    # 1.2: curves that are all but flat get room above them, and noise stays small; beyond the highest loss there is nothing.
    high = min(ordered[-1], max(usual * 1.5, ordered[0] * 1.2))
    margin = 0.05 * (high - ordered[0]) or 0.05 * abs(high) or 1.0
    low = ordered[0] - margin
    # A logarithmic axis has no zero.
    return [low if low > 0 or ordered[0] <= 0 else ordered[0] * 0.9, high + margin]
