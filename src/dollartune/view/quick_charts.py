"""The two charts that are there first, written as Vega-Lite by hand: importing altair would take longer than drawing them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from dollartune.report.charts.style import CONTEXT, color, shape

if TYPE_CHECKING:
    from dollartune.view.state import Curve, LossPoint, SpentPoint

VegaLite = dict[str, Any]
"""A specification of Vega-Lite, or a part of one: its schema says what it may hold."""
SCHEMA = "https://vega.github.io/schema/vega-lite/v6.json"


def money_spec(points: Sequence[SpentPoint], order: Sequence[str]) -> VegaLite | None:
    """Validation score of each trial when it ended, over what had been spent by then; the best so far as steps. None before the
    first trial has ended.

    Args:
        order: of the variants, whose place decides their color.
    """
    if not points:
        return None
    priced = any(point["dollars"] for point in points)
    x = {
        "field": "dollars" if priced else "seconds", "type": "quantitative",
        "title": "dollars spent" if priced else "seconds spent", "axis": {"format": "$~f" if priced else "~f", "tickCount": 6},
    }  # fmt: skip
    scores = [point["score"] for point in points]
    # Room for half a mark; two hundredths where all scores are equal.
    margin = 0.06 * (max(scores) - min(scores)) or 0.02
    scale = {"domain": [min(scores) - margin, max(scores) + margin], "nice": False, "zero": False}
    labels = list(dict.fromkeys(point["label"] for point in points))
    steps = {
        "mark": {"type": "line", "interpolate": "step-after", "strokeDash": [4, 3], "color": CONTEXT},
        "encoding": {
            "x": x,
            "y": {"field": "best", "type": "quantitative", "scale": scale, "title": "validation score"},
        },
    }
    dots = {
        "mark": {"type": "point", "filled": True, "size": 80, "opacity": 1},
        "encoding": {
            "x": x, "y": {"field": "score", "type": "quantitative", "scale": scale, "title": "validation score"},
            **_marks(labels, order),
            "tooltip": [
                {"field": field, "type": "nominal", "title": "method" if field == "label" else field}
                for field in ("label", "seed", "score", "seconds", "dollars")
            ],
        },
    }  # fmt: skip
    return _whole(points, [steps, dots], 300)


def curves_spec(points: Sequence[LossPoint], order: Sequence[str], over: str = "epoch") -> VegaLite | None:
    """Validation loss of every trial, a line each; None before anything was trained."""
    if not points:
        return None
    labels = list(dict.fromkeys(point["label"] for point in points))
    field = "seconds" if over == "seconds" else "epoch"
    losses = sorted(point["loss"] for point in points)
    # one that diverged hides no other
    high = min(losses[-1], max(1.5 * losses[int(0.9 * (len(losses) - 1))], 1.2 * losses[0]))
    # As the report's curves: see `report.charts.curves` for the two factors.
    scale = {"domain": [losses[0], high], "zero": False, "clamp": True}
    base = {
        "x": {
            "field": field,
            "type": "quantitative",
            "title": "epochs" if field == "epoch" else "seconds of tuning",
            "axis": {"format": "~f", "tickCount": 10},
        },
        "y": {"field": "loss", "type": "quantitative", "scale": scale, "title": "validation loss"},
        "detail": {"field": "trial", "type": "nominal"},
    }
    tooltip = [{"field": f, "type": "nominal", "title": f} for f in ("label", "seed", field, "loss")]
    lines = {
        "mark": {"type": "line", "strokeWidth": 1.6},
        "encoding": {**base, "color": _marks(labels, order)["color"]},
    }
    dots = {
        "mark": {"type": "point", "filled": True, "size": 22, "opacity": 1},
        "encoding": {**base, **_marks(labels, order), "tooltip": tooltip},
    }
    return _whole(points, [lines, dots], 260)


def _marks(labels: Sequence[str], order: Sequence[str]) -> VegaLite:
    """Color and shape of each variant, as in the report."""
    known = [*order, *(label for label in labels if label not in order)]
    legend = {"title": None, "orient": "bottom", "labelLimit": 240}
    colors, shapes = [color(known, label) for label in labels], [shape(known, label) for label in labels]
    return {
        "color": {"field": "label", "type": "nominal", "scale": {"domain": labels, "range": colors}, "legend": legend},
        "shape": {"field": "label", "type": "nominal", "scale": {"domain": labels, "range": shapes}, "legend": legend},
    }


def _whole(values: Sequence[Curve], layers: list[VegaLite], height: int) -> VegaLite:
    return {"$schema": SCHEMA, "data": {"values": values}, "layer": layers, "width": "container", "height": height}
