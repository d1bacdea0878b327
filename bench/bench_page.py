"""Writes the comparison with peft and the Trainer as a page: `python bench/bench_page.py > docs/results/side_by_side.md`.

Reads bench/results/bench.json, which `make bench` writes.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results" / "bench.json"


def number(value: float | None) -> str:
    """Three digits that matter."""
    if value is None:
        return ""
    if 0 < abs(value) < 1e-3:
        return f"{value:.1e}"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def line(row: dict[str, Any]) -> str:
    """One row of the table."""
    ratio = number(row["ratio"])
    if ratio and row["low"] != row["high"]:
        ratio += f" ({number(row['low'])} to {number(row['high'])})"
    held = {True: "yes", False: "**no**", None: ""}[row["passed"]]
    case = row["case"] + (f"<br>{row['note']}" if row["note"] else "")
    bar = row["bar"].replace(">= ", "at least ").replace("<= ", "at most ")
    return f"| {case} | {number(row['ours'])} | {number(row['peer'])} | {ratio} | {bar} | {held} |"


def main() -> None:
    found = json.loads(RESULTS.read_text())
    versions = ", ".join(f"{name} {value}" for name, value in found["versions"].items())
    print(
        "# Side by side with peft and the Trainer\n\n"
        f"Made by `make bench` on {found['when']}: {versions}. Both sides do the same work in turns, in processes of "
        "their own; ratios are medians of turns, with the lowest and the highest. Peft at its best means bf16, rows "
        "grouped by length, and the same batch. A bar that does not hold says so.\n"
    )
    print("| case | DollarTune | peft + Trainer | ratio | bar | held |\n|---|---:|---:|---:|---|---|")
    for row in found["rows"]:
        print(line(row))


if __name__ == "__main__":
    main()
