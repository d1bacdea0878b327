"""DollarTune side by side with the peft library and the transformers Trainer, in one run.

    python -m bench [--quick] [--only training,ag_news] [--out bench/results/bench.json]

    training.py      the same losses first; tokens/s, share of the ceiling, peak memory; every method of peft's
    ag_news.py       time to the same accuracy         scoring.py      label scoring against generating
    activations.py, cohorts.py, mixed_rows.py, compiled.py, gpu.py  what their names say
    contest.py       contestants in processes of their own, in turns: worker.py, ours.py, peers.py
    ceiling.py       what this machine's matrix products can do
    shapes.py        models of known shapes with random weights, rows with the lengths of BoolQ
    table.py         rows of the table, versions, JSON

Ratios are medians of turns, with the lowest and highest turn. `--quick` shows that everything runs; its figures mean little.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import sys
import time
import traceback
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))
FILES = ("training", "ag_news", "scoring", "activations", "cohorts", "mixed_rows", "compiled", "gpu")


def run(names: list[str], quick: bool) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """Rows of each file, and the seconds it took. A file that fails gives a row that says so."""
    import table

    rows: list[dict[str, Any]] = []
    seconds: dict[str, float] = {}
    for name in names:
        if importlib.util.find_spec(name) is None:
            rows.append(table.row(name, None, None, None, "", None, "not there"))
            continue
        started = time.perf_counter()
        print(f"{name} ...", file=sys.stderr, flush=True)
        try:
            rows += importlib.import_module(name).measure(quick=quick)
        except Exception as error:
            traceback.print_exc()
            rows.append(table.row(name, None, None, None, "", False, f"{type(error).__name__}: {error}"[:300]))
        seconds[name] = round(time.perf_counter() - started, 1)
        print(f"{name}: {seconds[name]:.0f} s", file=sys.stderr, flush=True)
    return rows, seconds


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--quick", action="store_true", help="a few steps each")
    parser.add_argument(
        "--only", help=f"some of {', '.join(FILES)}, with commas between them; other rows stay in the file"
    )
    parser.add_argument("--out", type=Path, default=HERE / "results" / "bench.json")
    arguments = parser.parse_args()
    names = arguments.only.split(",") if arguments.only else list(FILES)
    if unknown := [name for name in names if name not in FILES]:
        parser.error(f"there is no {unknown[0]!r}; there are {', '.join(FILES)}")
    import table

    rows, seconds = run(names, arguments.quick)
    table.show(rows)
    about = {"versions": table.versions(), "quick": arguments.quick, "seconds": seconds}
    print(about)
    table.write(arguments.out, table.merged(arguments.out, rows) if arguments.only else rows, about)
    print(f"wrote {arguments.out}")
    if any(row["passed"] is False for row in rows):
        print(f"{sum(row['passed'] is False for row in rows)} bars do not hold.")


if __name__ == "__main__":
    main()
