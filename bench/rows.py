"""Does a score rise with the rows, without a cliff? `dollartune tune` on 100, 300, 1,000, 1,001, 1,400 and 3,000 rows.

    python bench/rows.py [--seconds 60] [--data SET] [--draws 1] [--rows 100 300 ...]
    python bench/rows.py --page                 the page from all that was measured, runs nothing

The rows of a draw are nested: those of 300 hold those of 100. Scores are of 1,000 test rows that no run sees; the standard
error stands beside each, and a fall of more than two standard errors of the difference from fewer rows to more is said.
It may be stopped and started again: what stands in bench/results/rows.json is not run again.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import per_dollar as bench

SIZES = (100, 300, 1000, 1001, 1400, 3000)
HERE = Path(__file__).resolve().parent
RESULTS, PAGE = HERE / "results" / "rows.json", HERE.parent / "docs" / "results" / "rows.md"


def lay_out(data: str, rows: int, draw: int, root: Path, folder: Path) -> None:
    """The files of a cell with so many training rows."""
    bench.lay_out(bench.Cell(data, bench.MINILM, 0, draw), root, folder, rows)


def measure(data: str, rows: int, draw: int, seconds: int, root: Path, work: Path) -> dict[str, Any]:
    """One run of `tune`, scored on test rows that it has not seen."""
    folder = work / f"{data}-{rows}-{draw}"
    shutil.rmtree(folder, ignore_errors=True)
    lay_out(data, rows, draw, root, folder)
    found = bench.ours(bench.Cell(data, bench.MINILM, seconds, draw), folder, "fp32", None)
    return {**{key: found[key] for key in ("score", "seconds", "reached", "right")}, "load": os.getloadavg()[0]}


def table(results: dict[str, Any], data: str, seconds: int, draw: int, sizes: list[int]) -> str:
    """Scores by rows, and what falls."""
    lines = [
        f"{data}, {seconds} s, draw {draw}:",
        "",
        "| rows | score | standard error | seconds | what came out |",
        "|---:|---:|---:|---:|---|",
    ]
    before: dict[str, Any] | None = None
    for rows in sizes:
        one = results.get(key_of(data, rows, draw, seconds))
        if one is None or math.isnan(one["score"]):
            continue
        error = math.sqrt(one["score"] * (1 - one["score"]) / max(1, len(one["right"])))
        word = one["reached"].partition("(")[2].partition("; ")[0]
        if before is not None and before["score"] - one["score"] > 2 * bench.paired_error(before, one):
            word += ": a fall"
        lines.append(f"| {rows:,} | {one['score']:.3f} | {error:.3f} | {one['seconds']:.0f} | {word} |")
        before = one
    return "\n".join(lines)


def key_of(data: str, rows: int, draw: int, seconds: int) -> str:
    return f"{data} {rows} rows draw {draw} {seconds} s"


def page(results: dict[str, Any]) -> str:
    """All that was measured, a table for each set, sum of seconds and draw."""
    cells = sorted({(key.split()[0], int(key.split()[-2]), int(key.split()[4])) for key in results})
    lines = [
        "# Score over rows",
        "",
        "`dollartune tune` with MiniLM in fp32 on nested draws of training rows, scored on 1,000 test rows (CoLA: Matthews'",
        "correlation): `python bench/rows.py`. A fall from fewer rows to more by over two standard errors of the paired",
        "difference would be said. What is handed over changes with the rows: what can be trained in the time gets fewer epochs.",
        "",
    ]
    for data, seconds, draw in cells:
        lines += [table(results, data, seconds, draw, list(SIZES)), ""]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--data", default="sst2", choices=sorted(bench.SOURCES))
    parser.add_argument("--draws", type=int, default=1)
    parser.add_argument("--rows", type=int, nargs="*", default=list(SIZES))
    parser.add_argument("--root", type=Path, default=bench.DATA)
    parser.add_argument("--work", type=Path, default=Path("studies") / "rows")
    parser.add_argument("--page", action="store_true")
    given = parser.parse_args()
    results: dict[str, Any] = json.loads(RESULTS.read_text()) if RESULTS.is_file() else {}
    for draw in range(0 if given.page else given.draws):
        for rows in given.rows:
            key = key_of(given.data, rows, draw, given.seconds)
            if key not in results:
                results[key] = measure(given.data, rows, draw, given.seconds, given.root, given.work.resolve())
                RESULTS.write_text(json.dumps(results))
                print(f"{key}: {results[key]['score']:.3f}", file=sys.stderr, flush=True)
        print(table(results, given.data, given.seconds, draw, given.rows))
    PAGE.write_text(page(results))


if __name__ == "__main__":
    main()
