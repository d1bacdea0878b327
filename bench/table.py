"""Rows of the table, and where they are written."""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

Row = dict[str, Any]
COLUMNS = ("case", "ours", "peer", "ratio", "low", "high", "bar", "passed", "note")


def row(
    case: str, ours: float | None, peer: float | None, ratios: tuple[float, float, float] | None, bar: str,
    passed: bool | None, note: str = "",
) -> Row:  # fmt: skip
    """One comparison. `passed` is None where it could not be measured."""
    ratio, low, high = ratios or (None, None, None)
    return dict(zip(COLUMNS, (case, ours, peer, ratio, low, high, bar, passed, note), strict=True))


def versions() -> dict[str, str]:
    """Of everything that takes part, and the processor."""
    from importlib.metadata import version

    import torch

    names = ("torch", "transformers", "peft", "accelerate", "dollartune")
    found = {name: version(name) for name in names} | {"python": platform.python_version()}
    return found | {"threads": str(torch.get_num_threads()), "processor": _processor()}


def _processor() -> str:
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.is_file() else []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())


def show(rows: Sequence[Row]) -> None:
    """Prints the table."""
    from rich.console import Console
    from rich.table import Table

    table = Table("case", "ours", "peer", "ratio (low - high)", "bar", "", show_lines=False)
    for found in rows:
        spread = (
            ""
            if found["ratio"] is None
            else f"{found['ratio']:.3g} ({_number(found['low'])} - {_number(found['high'])})"
        )
        mark = {True: "[green]yes", False: "[red]no", None: "-"}[found["passed"]]
        case = found["case"] + (f"\n[dim]{found['note']}" if found["note"] else "")
        table.add_row(case, _number(found["ours"]), _number(found["peer"]), spread, str(found["bar"]), mark)
    Console(width=150).print(table)


def _number(value: Any) -> str:
    return (
        "" if value is None else f"{value:.3g}" if isinstance(value, float) and abs(value) < 1000 else f"{value:,.0f}"
    )


def merged(path: Path, rows: Sequence[Row]) -> list[Row]:
    """The rows of a file, those of the same case replaced by new ones; cases that it has not come last."""
    before: list[Row] = json.loads(path.read_text())["rows"] if path.is_file() else []
    new = {row["case"]: row for row in rows}
    return [new.pop(row["case"], row) for row in before] + list(new.values())


def write(path: Path, rows: Sequence[Row], about: dict[str, Any]) -> None:
    """Writes rows and circumstances as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {"when": time.strftime("%Y-%m-%d %H:%M", time.gmtime()), **about, "rows": list(rows)}
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(content, indent=1) + "\n")
    temporary.replace(path)
