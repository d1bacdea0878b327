"""Does a budget keep its word? Fifty small studies with random budgets, methods, tasks and backbones, as real processes.

    python bench/budgets.py [--studies 50] [--at-once 1] [--folder FOLDER] [--page FILE]

Budgets are log-uniform from 20 s to 5 min. Two of three studies are `tune` (one adapter, one sum), the others `run` (methods that
are compared, for each method or for the whole study, searched or not). For each:

- the wall clock of the whole process against what was promised (with a budget for each method: their sum), and the dearest
  account of the ledger against its promise;
- whether an adapter was handed over, and its validation score against that of the commonest class on the same rows;
- the most memory that the process took against the budget's (half of the studies have one, from 1 to 2 GiB), of the others
  the most that a training took against what `plan` says beforehand.

It may be stopped and started again: studies that have a row in the results are not run again.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

if TYPE_CHECKING:
    from dollartune.trials.record import TrialRecord

RESULTS = Path(__file__).parent / "results" / "budgets.json"
MOST_OVER = 0.02
"""Of what was promised."""
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
        "budget": {
            "seconds": round(math.exp(rng.uniform(math.log(20), math.log(300))), 1),
            "per": per,
            **({"memory": f"{1024 + 256 * (number // 2 % 5)} MiB"} if number % 2 else {}),
        },
        "training": {"max_length": 128, "validation_rows": 60, "cohort_size": rng.choice([1, 1, 2])},
        "evaluation": {"rows": rng.choice([60, 120]), "free_generation": rng.random() < 0.3},
    }


def is_tune(number: int) -> bool:
    """Whether a study is one of `tune`, which chooses its methods itself; else it is one of `run`."""
    return number % 3 != 2


def run(number: int, folder: Path) -> dict[str, Any]:
    """Runs a study as its user would, and reads what it left."""
    settings = study(number)
    whole = [sys.executable, "-c", "from dollartune.cli import main; main()"]
    if is_tune(number):
        root = folder / settings["name"] / "study"
        command = [*whole, "tune", settings["backbone"], settings["task"], "--budget", amount(settings),
                   "--rows", str(settings["scales"][0]), "--fresh", "--out", str(root.parent)]  # fmt: skip
    else:
        root, path = folder / settings["name"], folder / f"{settings['name']}.yaml"
        path.write_text(yaml.safe_dump(settings, sort_keys=False))
        command = [*whole, "run", str(path), "--no-report", "--fresh", "--output", str(folder)]
    began = time.monotonic()
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        process = subprocess.Popen(
            command, stdout=out, stderr=err, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
        )
        _, status, used = os.wait4(process.pid, 0)  # the kernel's own account of the process, its peak memory among it
        outside = round(time.monotonic() - began, 1)
        err.seek(0)
        return outcome(number, root, os.waitstatus_to_exitcode(status), err.read(), 1024 * used.ru_maxrss, outside)


def amount(settings: dict[str, Any]) -> str:
    """The budget of a study as it is typed."""
    memory = settings["budget"].get("memory")
    return f"{settings['budget']['seconds']} s" + (f", {memory}" if memory else "")


def outcome(number: int, root: Path, code: int, stderr: str, highest: int, outside: float) -> dict[str, Any]:
    """What a study has spent and ended with.

    Args:
        highest: most bytes that the process had in RAM.
    """
    from dollartune.budget.limit import parse_bytes
    from dollartune.budget.totals import read_totals
    from dollartune.trials.store import Store
    from dollartune.tuning import best_adapter

    settings, store = study(number), Store(root)
    totals, budget = read_totals(store.ledger), settings["budget"]
    per_method = budget["per"] == "method" and not is_tune(number)
    promised = budget["seconds"] * (len(settings["methods"]) if per_method else 1)
    records = list(store.records())
    words = [record.error.message for record in records if record.error is not None and record.error.kind == "budget"]
    words += [line for line in stderr.splitlines() if line.startswith("error:")]
    names = settings["methods"] if per_method else [None]
    spent = max(
        totals.seconds if name is None else totals.by_method.get(name, 0.0) + totals.shared_seconds / len(names)
        for name in names
    )
    best = best_adapter(store)
    common, needed = majority(root, best), promised_bytes(root)
    peak = max((record.memory.peak_bytes for record in records), default=0)
    if "memory" in budget:  # then the whole process was promised
        needed, peak = parse_bytes(budget["memory"]), highest
    return {
        "number": number, "verb": "tune" if is_tune(number) else "run",
        "backbone": settings["backbone"], "task": settings["task"],
        "methods": "by default" if is_tune(number) else ", ".join(settings["methods"]),
        "per": "method" if per_method else "study",
        "search": "anytime" if is_tune(number) else "yes" if settings["search"] else "no",
        "memory": budget.get("memory"), "promised": budget["seconds"],
        "wall": outside, "wall over": round(outside / promised - 1, 4),
        "account over": round(spent / budget["seconds"] - 1, 4),
        "adapter": None if best is None else best.trial.label, "validation": None if best is None else best.validation_score,
        "majority": common, "peak bytes": peak, "promised bytes": needed,
        "word": words[0] if words else None, "code": code,
        "stderr": stderr[-500:] if code not in (0, 2) else "",
    }  # fmt: skip


def majority(root: Path, record: TrialRecord | None) -> float | None:
    """What always answering the commonest class of the training rows scores on the validation rows of a record; None where there
    are no classes, or no adapter."""
    from dollartune.metrics import get
    from dollartune.study_file import load_study
    from dollartune.tasks.registry import load_task

    if record is None or not record.labels:
        return None
    settings = load_study(root / "study.yaml")
    splits = load_task(settings.tasks[0]).splits(
        record.trial.scale, settings.data_seed, settings.evaluation.rows, record.trial.draw
    )
    answer = Counter(example.label for example in splits.train).most_common(1)[0][0]
    rows = splits.validation[: settings.training.validation_rows]
    return get(record.metric).score([answer] * len(rows), [example.label for example in rows])


def promised_bytes(root: Path) -> int | None:
    """The most memory that `plan` says any trial of the study takes; None where nothing was begun."""
    from dollartune.planner.study_plan import plan_study
    from dollartune.study_file import load_study

    if not (root / "study.yaml").is_file():
        return None
    planned = plan_study(load_study(root / "study.yaml"), calibration=False).trials
    return max((one.estimate.peak_bytes for one in planned), default=None)


def table(rows: list[dict[str, Any]]) -> list[str]:
    """The studies as a Markdown table."""
    lines = [
        "| study | verb | backbone, task | methods | per | search | promised s | wall clock | account | adapter: validation "
        "(majority) | peak of promised memory | word |",
        "|---|---|---|---|---|---|---:|---:|---:|---:|---:|---|",
    ]
    for row in rows:
        word = (row["word"] or "").removeprefix("error: ") if row["adapter"] is None else ""
        scored = "none" if row["validation"] is None else f"{row['validation']:.3f}"
        scored += f" ({row['majority']:.3f})" if row["majority"] is not None else ""
        memory = (
            f"{row['peak bytes'] / row['promised bytes']:.0%}" if row["peak bytes"] and row["promised bytes"] else "-"
        )
        memory += f" of {row['memory']}" if row.get("memory") else ""
        lines.append(
            f"| {row['number']} | {row['verb']} | {row['backbone']}, {row['task']} | {row['methods']} | {row['per']} "
            f"| {row['search']} | {row['promised']} | {row['wall over']:+.1%} | {row['account over']:+.1%} | {scored} "
            f"| {memory} | {word if len(word) < 70 else word[:70] + '…'} |"
        )
    return lines


def summary(rows: list[dict[str, Any]]) -> str:
    """What the table comes to."""
    clock = [row for row in rows if row["wall over"] > MOST_OVER]
    account = [row for row in rows if row["account over"] > MOST_OVER]
    without = [row["number"] for row in rows if row["adapter"] is None]
    below = [row["number"] for row in rows if row["majority"] is not None and row["validation"] < row["majority"]]
    memory = [row for row in rows if row["promised bytes"] and row["peak bytes"] > row["promised bytes"]]
    return (
        f"{len(rows)} studies: {len(clock)} more than {MOST_OVER:.0%} over by the wall clock (worst "
        f"{max(row['wall over'] for row in rows):+.1%}), {len(account)} by an account of the ledger (worst "
        f"{max(row['account over'] for row in rows):+.1%}); {len(without)} without an adapter{_numbers(without)}, "
        f"{len(below)} with one below the majority class{_numbers(below)}; {len(memory)} took more memory than promised"
        f"{_numbers([row['number'] for row in memory])}; {sum(row['code'] not in (0, 1, 2) for row in rows)} crashed."
    )


def _numbers(studies: list[int]) -> str:
    return f" ({', '.join(map(str, studies))})" if studies else ""


def page(rows: list[dict[str, Any]]) -> str:
    """The table as a page of the site."""
    lines = [
        "# Budgets kept",
        "",
        "Made by `python bench/budgets.py --page docs/results/budgets_kept.md`: small studies with random backbones, methods,",
        "tasks and budgets (20 s to 5 min), as processes of their own. *Wall clock* is the whole process against what was",
        "promised (methods with a budget each: their sum), *account* the dearest account of the ledger. An adapter's validation",
        "score stands beside that of the commonest class on the same rows; *memory* is the most that the process took of what",
        "the budget allows; where it allows all, the most that a training took of what `plan` says beforehand.",
        "",
        f"**{summary(rows)}**",
        "",
        *table(rows),
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--studies", type=int, default=50)
    parser.add_argument("--at-once", type=int, default=1)
    parser.add_argument("--folder", type=Path, default=Path("studies/budgets"))
    parser.add_argument("--results", type=Path, default=RESULTS, help="where rows are kept between sittings")
    parser.add_argument("--only", type=int, nargs="*", help="numbers of the studies to run")
    parser.add_argument("--page", type=Path, help="also write the table as a page of the site")
    parser.add_argument("--again", type=int, nargs="*", default=[], help="numbers to run again")
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    arguments.results.parent.mkdir(parents=True, exist_ok=True)
    rows = json.loads(arguments.results.read_text()) if arguments.results.exists() else []
    # rows of before tell nothing of the wall clock
    rows = [row for row in rows if row["number"] not in arguments.again and "wall over" in row]
    wanted = arguments.only if arguments.only is not None else range(arguments.studies)
    todo = [number for number in wanted if number not in {row["number"] for row in rows}]
    with ThreadPoolExecutor(arguments.at_once) as pool:
        for row in pool.map(lambda number: run(number, arguments.folder), todo):
            rows = sorted([*rows, row], key=lambda one: int(one["number"]))
            arguments.results.write_text(json.dumps(rows, indent=1) + "\n")
            print("\n".join(table([row])[2:]), flush=True)
    print("\n".join(table(rows)))
    print("\n" + summary(rows))
    if arguments.page is not None:
        arguments.page.write_text(page(rows))


if __name__ == "__main__":
    main()
