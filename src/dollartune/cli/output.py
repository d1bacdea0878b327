"""Printing: JSON for programs, aligned tables for people."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any


def print_json(data: Any) -> None:
    """Data as JSON on standard output."""
    print(json.dumps(_plain(data), indent=1, ensure_ascii=False, allow_nan=False))


def _plain(value: Any) -> Any:
    """What JSON can hold: numpy's numbers as numbers, not-a-number as null, anything else as text."""
    if hasattr(value, "item"):
        value = value.item()
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(item) for item in value]
    return value if value is None or isinstance(value, str | int) else str(value)


def print_table(rows: Sequence[Mapping[Any, Any]], columns: Mapping[str, str] | None = None) -> None:
    """Rows as a table; numbers to the right. `columns` maps keys to headings and sets the order."""
    from rich.console import Console
    from rich.table import Table

    headings = columns or {key: key for key in (rows[0] if rows else {})}
    table = Table(box=None, pad_edge=False, header_style="bold")
    for key, heading in headings.items():
        number = any(isinstance(row.get(key), int | float) and not isinstance(row.get(key), bool) for row in rows)
        table.add_column(heading, justify="right" if number else "left", overflow="fold")
    for row in rows:
        table.add_row(*(text(row.get(key), key) for key in headings))
    console = Console()
    console.print(table) if console.is_terminal else Console(width=200).print(table)


def text(value: Any, key: str = "") -> str:
    """A value as people read it: 1,234 parameters, 0.842, $0.0012, 1.2 GB."""
    if value is None or (isinstance(value, float) and value != value):
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if key.endswith("bytes") and isinstance(value, int | float):
        return byte_size(value)
    if key == "dollars":
        return f"${value:.4f}"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return (
            f"{value:.1f}"
            if abs(value) >= 100
            else f"{value:.2f}"
            if abs(value) >= 10 or key == "seconds"
            else f"{value:.3f}"
        )
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def byte_size(count: float) -> str:
    """1536 -> 1.5 kB."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(count) < 1000 or unit == "GB":
            return f"{count:.0f} B" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} GB"
