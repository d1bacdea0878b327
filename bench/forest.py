"""A forest plot as SVG: one line per estimate, with its interval, and zero (or another mark) as the line to be crossed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

LEFT, RIGHT, ROW = 330, 700, 24
LETTER = 7.2
"""Width of a letter at 13 pixels, generously: what a reader's font makes of it is not known."""


@dataclass(frozen=True)
class Estimate:
    """A value with its 95 % interval."""

    label: str
    value: float
    low: float
    high: float


def forest(rows: Sequence[Estimate], title: str, axis: str, mark: float = 0.0) -> str:
    """The plot; estimates whose interval does not hold `mark` are filled."""
    ends = [mark, *(row.low for row in rows), *(row.high for row in rows)]
    low, high = min(ends), max(ends)
    margin = 0.05 * (high - low or 1.0)
    low, high = low - margin, high + margin
    height = 64 + ROW * len(rows) + 30
    # Long names get room to the left of what would be the edge, and a long name of the axis to the right.
    room = max(0, round(max((len(row.label) for row in rows), default=0) * LETTER + 12 + 8 - LEFT))
    beyond = max(0, round(len(axis) * LETTER / 2 + 8 - (720 - (LEFT + RIGHT) / 2)))

    def x(value: float) -> float:
        return LEFT + (value - low) / (high - low) * (RIGHT - LEFT)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="{-room} 0 {720 + room + beyond} {height}" role="img" '
        f'aria-label="{escape(title)}" '
        'font-family="sans-serif" font-size="13" fill="#222">',
        f'<rect x="{-room}" width="{720 + room + beyond}" height="{height}" rx="6" fill="#fff"/>',
        f'<text x="{16 - room}" y="26" font-size="15" font-weight="600">{escape(title)}</text>',
        f'<line x1="{x(mark):.1f}" x2="{x(mark):.1f}" y1="42" y2="{height - 44}" stroke="#888" stroke-dasharray="4 3"/>',
    ]
    for index, row in enumerate(rows):
        y = 58 + ROW * index
        sure = row.low > mark or row.high < mark
        color = "#2b5fd9" if sure else "#777"
        parts += [
            f'<text x="{LEFT - 12}" y="{y + 4}" text-anchor="end">{escape(row.label)}</text>',
            f'<line x1="{x(row.low):.1f}" x2="{x(row.high):.1f}" y1="{y}" y2="{y}" stroke="{color}" stroke-width="2"/>',
            f'<circle cx="{x(row.value):.1f}" cy="{y}" r="5" stroke="{color}" stroke-width="2" '
            f'fill="{color if sure else "#fff"}"/>',
        ]
    bottom = height - 40
    parts.append(f'<line x1="{LEFT}" x2="{RIGHT}" y1="{bottom}" y2="{bottom}" stroke="#222"/>')
    for value in _ticks(low, high):
        parts.append(
            f'<text x="{x(value):.1f}" y="{bottom + 16}" text-anchor="middle" font-size="11">{value:.2g}</text>'
        )
    parts.append(f'<text x="{(LEFT + RIGHT) / 2}" y="{bottom + 32}" text-anchor="middle">{escape(axis)}</text></svg>\n')
    return "\n".join(parts)


def _ticks(low: float, high: float) -> list[float]:
    """Round numbers, about five of them: 1, 2 or 5 times a power of ten apart."""
    rough = (high - low) / 5
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(times * power for times in (1, 2, 5, 10) if times * power >= rough)
    return [number * step for number in range(math.ceil(low / step), math.floor(high / step) + 1)]
