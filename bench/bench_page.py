"""Writes the comparison with peft and the Trainer as a page: `python bench/bench_page.py > docs/results/side_by_side.md`.

Reads bench/results/bench.json, which `make bench` writes, and bench/results/where.json, which `python bench/where.py` writes.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results" / "bench.json"
WHERE = RESULTS.with_name("where.json")
CASES = {
    "first": "OPT-125m, LoRA on q, v",
    "ag_news": "MiniLM, LoRA on q, v",
    "alone": "tiny-decoder, eight methods, one after another",
    "cohort": "the same in one pass",
}


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
        "grouped by length, and the same batch. A bar that does not hold says so. Rows of one file of `bench` come from one "
        "run; a file may have been run again on its own since (`python -m bench --only FILE`).\n"
    )
    print("| case | DollarTune | peft + Trainer | ratio | bar | held |\n|---|---:|---:|---:|---|---|")
    for row in found["rows"]:
        print(line(row))
    if WHERE.is_file():
        print_profile(json.loads(WHERE.read_text()))


def print_profile(found: dict[str, Any]) -> None:
    """Where the time goes: why bars about single steps do not hold."""
    ceiling = found["ceiling"]["bf16"]
    print(
        "\n## Where the time goes\n\nMade by `python bench/where.py`: shares of a training step's processor time in bf16. "
        f"*Frozen products at* is how fast the backbone's own matrix products run inside a step; alone, again and again on the "
        f"same numbers, this machine reaches {ceiling:.0f} GFLOP/s with {found['versions']['threads']} threads (the ceiling). "
        "*Least* is the share of a step that these products would take at the ceiling: nothing that computes them can be "
        "faster than that.\n"
    )
    parts = list(found["rows"][0]["shares"])
    print("| part | " + " | ".join(CASES[row["case"]] for row in found["rows"]) + " |")
    print("|---|" + "---:|" * len(found["rows"]))
    for part in parts:
        print(f"| {part} | " + " | ".join(f"{row['shares'][part]:.0%}" for row in found["rows"]) + " |")
    cells = {
        "ms per 1,000 tokens": [f"{row['milliseconds_per_1000_tokens']:.0f}" for row in found["rows"]],
        "frozen products at, GFLOP/s": [f"{row['products_gflops']:.0f}" for row in found["rows"]],
        "least": [f"{row['floor_share']:.0%}" for row in found["rows"]],
    }
    for name, values in cells.items():
        print(f"| {name} | " + " | ".join(values) + " |")
    print(
        "\nThe last two columns are why a cohort of the tiny decoder gains little by sharing passes: eight rows of a single "
        "trial keep the products as busy as they get, and the larger tensors of a shared pass leave the cache. Two cores "
        "gain more by passing half of the trials each (lanes), which is what the table above measures; what is left is "
        "Python, of which one thread runs at a time."
    )


if __name__ == "__main__":
    main()
