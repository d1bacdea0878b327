"""Colors and shapes that mean the same method in every chart, readable on white and on black and without color vision.

The colors are of similar lightness, with at least 3:1 contrast on both grounds; as people who confuse hues would
confuse them, each method has a shape too. Hues follow Okabe and Ito, "Color universal design", 2008, darkened where
they were too light; the tints of label cells follow Paul Tol's light scheme, made for dark text on top.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import Any, overload

COLORS = ("#0072b2", "#d55e00", "#009e73", "#b4589a", "#a87f00", "#6d5fd0", "#3d9bc9", "#7a7f87")
SHAPES = ("circle", "square", "triangle-up", "diamond", "cross", "triangle-down", "triangle-right", "triangle-left")
TINTS = (
    "#77aadd", "#ee8866", "#eedd88", "#ffaabb", "#44bb99", "#bbcc33",
    "#99ddff", "#c8b6e2", "#e3b98f", "#9fc9c0", "#aaaa00", "#e5a3a3",
)  # fmt: skip
OTHER_TINT = "#c9c9c9"
ON_TINT = "#1c1c1c"
"""Text on a tint, on either ground."""
CONTEXT = "#9aa0a6"
"""Lines that are there for comparison; visible on white and on black."""


def color(methods: Sequence[str], method: str) -> str:
    """The color of a method, by its place in the study."""
    return COLORS[methods.index(method) % len(COLORS)]


def shape(methods: Sequence[str], method: str) -> str:
    """Its shape; after eight methods colors repeat, with another shape."""
    index = methods.index(method)
    # Shifted by one for each round, so that a ninth method has the first color and the second shape.
    return SHAPES[(index + index // len(COLORS)) % len(SHAPES)]


def scales(methods: Sequence[str], present: Sequence[str]) -> tuple[Any, Any]:
    """altair scales of color and shape for the methods that a chart shows."""
    import altair

    shown = [method for method in methods if method in set(present)]
    return (
        altair.Scale(domain=shown, range=[color(methods, method) for method in shown]),
        altair.Scale(domain=shown, range=[shape(methods, method) for method in shown]),
    )


def tooltip(**titles: str) -> list[Any]:
    """What is shown over a mark: a line for each of a row's texts, column -> title.

    Examples:
        >>> tooltip(label="method", took="best after")
    """
    import altair

    return [altair.Tooltip(f"{column}:N", title=title) for column, title in titles.items()]


def choice(chart: str, *parts: object) -> Any:
    """A click on the legend singles a method out; named after the chart, as several may stand in one figure."""
    import altair

    # crc32, as Python's own hash differs from run to run, and the same study should give the same page.
    name = f"{chart}_{zlib.crc32(repr(parts).encode()):08x}"
    return altair.selection_point(fields=["method"], bind="legend", name=name)


def padded(values: Sequence[float], least: float, bounds: tuple[float, float] | None = None) -> list[float]:
    """A range around values with a margin of 8 %, at least `least` wide, within `bounds`."""
    low, high = min(values), max(values)
    # Widened about its middle, so that equal scores stand in the middle of the chart.
    if high - low < least:
        middle = (low + high) / 2
        low, high = middle - least / 2, middle + least / 2
    # Room for half a mark and for the ends of the intervals.
    margin = 0.08 * (high - low)
    low, high = low - margin, high + margin
    if bounds is not None:
        low, high = max(low, bounds[0]), min(high, bounds[1])
    return [low, high]


def logarithmic(values: Sequence[float], at: float = 8) -> bool:
    """Whether positive values spread so far that equal ratios should be equal distances."""
    positive = [value for value in values if value > 0]
    # A single zero rules it out: it would have no place.
    return bool(positive) and len(positive) == len(values) and max(positive) / min(positive) > at


def steps(low: float, high: float) -> list[float]:
    """Values for a logarithmic axis: powers of ten, or 1, 2, 5 and their tenfolds where those are fewer than three."""
    # From a billionth of a dollar to a trillion parameters.
    powers = [10.0**power for power in range(-9, 13)]
    for factors in ((1,), (1, 3), (1, 2, 5)):
        ticks = [factor * power for power in powers for factor in factors if low <= factor * power <= high]
        if len(ticks) >= 3:
            return ticks
    return ticks


@overload
def rounded(value: float, digits: int = 4) -> float: ...
@overload
def rounded(value: float | None, digits: int = 4) -> float | None: ...
def rounded(value: float | None, digits: int = 4) -> float | None:
    """A number with as many digits as a chart can show; keeps the page small."""
    # Four digits are a tenth of a pixel.
    return None if value is None else float(f"{value:.{digits}g}")
