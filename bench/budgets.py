"""Does a budget keep its word? Fifty small studies with random budgets, methods, tasks and backbones, as real processes.

    python bench/budgets.py [--studies 50] [--at-once 2] [--folder FOLDER] [--page FILE]

Budgets are log-uniform from 20 s to 3 min, for each method or for the whole study. For each study: seconds promised,
booked by the ledger and measured from outside (which includes what comes after the tuning: statistics and printing);
whether it ended with an evaluated adapter, and if not, the word that it ended with.

It may be stopped and started again: studies that have a row in bench/results/budgets.json are not run again.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import yaml

RESULTS = Path(__file__).parent / "results" / "budgets.json"
TEXT = {"tiny-decoder": ["demo_library", "demo_match"], "tiny-seq2seq": ["demo_library", "demo_summary"],
        "tiny-encoder": ["demo_library"], "tiny-vit": ["demo_digits_new"]}  # fmt: skip
TRAINED = ["lora", "bitfit", "ia3", "prompt", "prefix", "houlsby", "full", "adapter_bias", "norm", "dora"]
ON_ENCODERS = ["lora", "bitfit", "ia3", "head", "houlsby", "full", "norm"]


def study(number: int) -> dict[str, Any]:
    """The study of that number; always the same."""
    rng = random.Random(f"budgets {number}")
    backbone = rng.choice([*TEXT, "tiny-decoder", "tiny-decoder"])
    known = TRAINED if backbone in ("tiny-decoder", "tiny-seq2seq") else ON_ENCODERS
    per = rng.choice(["method", "study", "study"])
    count = rng.randint(1, 2) if per == "method" else rng.randint(2, 5)
    methods = rng.sample(known, count)
    if backbone == "tiny-decoder" and rng.random() < 0.4:
        methods = ["zero_shot", *methods[1:]] if per == "method" and count > 1 else ["zero_shot", *methods]
    return {
        "name": f"budget-{number:02d}",
        "backbone": backbone,
        "task": rng.choice(TEXT[backbone]),
        "methods": methods,
        "scales": [rng.choice([50, 100, 200, 400])],
        "seeds": rng.choice([1, 3, 3]),
        "search": rng.random() < 0.75,
        "budget": {"seconds": round(math.exp(rng.uniform(math.log(20), math.log(180))), 1), "per": per},
        "training": {"max_length": 128, "validation_rows": 60, "cohort_size": rng.choice([1, 1, 2])},
        "evaluation": {"rows": rng.choice([60, 120]), "free_generation": rng.random() < 0.3},
    }


def run(number: int, folder: Path) -> dict[str, Any]:
    """Runs a study as its user would, and reads what it left."""
    settings = study(number)
    path = folder / f"{settings['name']}.yaml"
    path.write_text(yaml.safe_dump(settings, sort_keys=False))
    command = [sys.executable, "-c", "from dollartune.cli import main; main()", "run", str(path), "--no-report",
               "--fresh", "--output", str(folder)]  # fmt: skip
    began = time.monotonic()
    process = subprocess.run(
        command, capture_output=True, text=True, timeout=1800, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=False
    )
    return {**outcome(number, folder, process), "seconds outside": round(time.monotonic() - began, 1)}


def outcome(number: int, folder: Path, process: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    """What a study has spent and ended with."""
    from dollartune.budget.totals import read_totals
    from dollartune.trials.store import Store

    settings = study(number)
    store = Store(folder / settings["name"])
    totals, budget = read_totals(store.ledger), settings["budget"]
    planned = store.planned() or []
    records = [store.read(name) for name in planned if store.has(name)]
    done = [record for record in records if record.status == "done"]
    words = [record.error.message for record in records if record.error is not None]
    if not records:
        words = [line for line in process.stderr.splitlines() if line.startswith("error:")]
    names = settings["methods"] if budget["per"] == "method" else [None]
    spent = {
        name or "study": totals.seconds if name is None
        else totals.by_method.get(name, 0.0) + totals.shared_seconds / len(names)
        for name in names
    }  # fmt: skip
    return {
        "number": number, "backbone": settings["backbone"], "task": settings["task"], "methods": settings["methods"],
        "per": budget["per"], "search": settings["search"], "promised": budget["seconds"],
        "spent": {name: round(seconds, 2) for name, seconds in spent.items()},
        "over": round(max(spent.values()) / budget["seconds"] - 1, 4),
        "evaluated": len(done), "tried": sum(record.status == "tried" for record in store.records()),
        "adapters": len(list(store.root.glob("trials/*/adapter"))),
        "word": words[0] if words else None, "code": process.returncode,
        "load": round(totals.by_category.get("load", 0.0), 1),
        "stderr": process.stderr[-500:] if process.returncode not in (0, 2) else "",
    }  # fmt: skip


def table(rows: list[dict[str, Any]]) -> list[str]:
    """The studies as a Markdown table."""
    lines = [
        "| study | backbone, task | methods | per | search | promised s | most spent s | over | evaluated | tried | word |",
        "|---|---|---|---|---|---:|---:|---:|---:|---:|---|",
    ]
    for row in rows:
        word = "" if row["evaluated"] else (row["word"] or "NONE").removeprefix("error: ")
        lines.append(
            f"| {row['number']} | {row['backbone']}, {row['task']} | {', '.join(row['methods'])} | {row['per']} "
            f"| {'yes' if row['search'] else 'no'} | {row['promised']} | {max(row['spent'].values())} | {row['over']:+.1%} "
            f"| {row['evaluated']} | {row['tried']} | {word if len(word) < 70 else word[:70] + '…'} |"
        )
    return lines


def summary(rows: list[dict[str, Any]]) -> str:
    """What the table comes to."""
    worst = max(row["over"] for row in rows)
    silent = [row["number"] for row in rows if not row["evaluated"] and not row["word"]]
    return (
        f"{len(rows)} studies: worst {worst:+.2%}, {sum(row['over'] > 0.02 for row in rows)} more than 2 % over; "
        f"{sum(row['evaluated'] > 0 for row in rows)} ended with an evaluated trial, the others with a word"
        + (f" but {silent}" if silent else "")
        + f"; {sum(row['code'] not in (0, 2) for row in rows)} crashed."
    )


def page(rows: list[dict[str, Any]]) -> str:
    """The table as a page of the site."""
    lines = [
        "# Budgets kept",
        "",
        "Made by `python bench/budgets.py --page docs/results/budgets_kept.md`: small studies with random backbones, methods,",
        "tasks and budgets (20 s to 3 min, for each method or for the whole study), as processes of their own on a machine that",
        "other work kept busy. *Over* is what the dearest account spent beyond its promise; *word* is what a study said that",
        "could not evaluate anything for its money.",
        "",
        f"**{summary(rows)}**",
        "",
        *table(rows),
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--studies", type=int, default=50)
    parser.add_argument("--at-once", type=int, default=2)
    parser.add_argument("--folder", type=Path, default=Path("studies/budgets"))
    parser.add_argument("--page", type=Path, help="also write the table as a page of the site")
    parser.add_argument("--again", type=int, nargs="*", default=[], help="numbers to run again")
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    rows = json.loads(RESULTS.read_text()) if RESULTS.exists() else []
    rows = [row for row in rows if row["number"] not in arguments.again]
    todo = [number for number in range(arguments.studies) if number not in {row["number"] for row in rows}]
    with ThreadPoolExecutor(arguments.at_once) as pool:
        for row in pool.map(lambda number: run(number, arguments.folder), todo):
            rows = sorted([*rows, row], key=lambda one: int(one["number"]))
            RESULTS.write_text(json.dumps(rows, indent=1) + "\n")
            print(
                f"{row['number']}: promised {row['promised']}, over {row['over']:+.1%}, evaluated {row['evaluated']}",
                flush=True,
            )
    print("\n".join(table(rows)))
    print("\n" + summary(rows))
    if arguments.page is not None:
        arguments.page.write_text(page(rows))


if __name__ == "__main__":
    main()
