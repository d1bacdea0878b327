"""This working tree beside an earlier one, in turns: are the suite, the bench and the demo as quick as they were?

    python bench/before.py [--revision 6ce6f61] [--only training,scoring,suite] [--out bench/results/before.json]

The default revision is the first round's last one. Both run in this environment, each in its own folder; the order turns round
each time, so that both meet the same machine. A ratio is how many times as fast it is now.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import peers
import table
from contest import contestants, in_turns, ratios

HERE = Path(__file__).resolve().parents[1]
FIRST_ROUND = "6ce6f61"
NOISE = 0.9
"""Two runs of one tree differ by so much on a shared machine."""
SUITE_BAR = 1 / 0.6
Trees = tuple[Path, Path]
"""Now, before."""


@contextmanager
def tree_of(revision: str) -> Iterator[Path]:
    """A checkout of a revision, for so long."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "before"
        subprocess.run(["git", "worktree", "add", "--quiet", "--detach", path, revision], cwd=HERE, check=True)
        try:
            yield path
        finally:
            subprocess.run(["git", "worktree", "remove", "--force", path], cwd=HERE, check=True)


def rates(case: str, trees: Trees, spec: dict[str, Any], turns: int, steps: int, folder: Path) -> list[dict[str, Any]]:
    """Tokens per second of each of the spec's methods."""
    rows = []
    with contestants([spec, spec], folder, trees) as workers:
        for number, method in enumerate(spec["methods"]):
            answers = in_turns(workers, turns, "steps", steps)
            now, before = ([one["tokens"] / one["seconds"] for one in own] for own in answers)
            rows.append(row(f"{case}, {method}: tokens/s", now, before, ratios(now, before)))
            if number + 1 < len(spec["methods"]):
                for worker in workers:
                    worker.ask("next")
    return rows


def row(
    case: str, now: list[float], before: list[float], ratio: tuple[float, float, float], bar: float = NOISE
) -> dict[str, Any]:
    middle = statistics.median(now), statistics.median(before)
    return table.row(case, *middle, ratio, f">= {bar:.2g}x", ratio[0] >= bar)


def training(trees: Trees, folder: Path) -> list[dict[str, Any]]:
    """LoRA r=8 on q, v of OPT-125m's shape, 64 rows of BoolQ's lengths, batches of eight."""
    shape = {"task": "train", "side": "ours", "shape": "opt-125m", "rows": 64, "batch": 8}
    return rates("OPT-125m shape, BoolQ lengths", trees, {**shape, "methods": [peers.OURS["lora"]]}, 4, 2, folder)


def methods(trees: Trees, folder: Path) -> list[dict[str, Any]]:
    """Each other method that peft has: a step of eight rows."""
    lengths = [60, 85, 100, 115, 130, 150, 180, 240]
    shape = {"task": "train", "side": "ours", "shape": "opt-125m", "rows": 8, "batch": 8, "lengths": lengths}
    others = [ours for name, ours in peers.OURS.items() if name != "lora"]
    return rates("OPT-125m shape", trees, {**shape, "methods": others}, 4, 2, folder)


def scoring(trees: Trees, folder: Path) -> list[dict[str, Any]]:
    """Label words after prompts of four examples."""
    spec = {"task": "score", "side": "ours", "prompts": 32, "new_tokens": 3}
    with contestants([spec, spec], folder, trees) as workers:
        now, before = ([one["seconds"] for one in own] for own in in_turns(workers, 6, "score", None))
    return [row("label scoring of 32 BoolQ prompts of four examples, s", now, before, ratios(before, now))]


def ag_news(trees: Trees, folder: Path) -> list[dict[str, Any]]:
    """From the model's file to test predictions."""
    spec = {"task": "ag_news", "side": "ours", "rows": 1000, "test": 1000, "epochs": 5, "lr": 1e-3, "batch": 16}
    seconds: list[list[float]] = [[], []]
    for turn in range(2):
        with contestants([spec, spec], folder, trees) as workers:
            for index in (0, 1) if turn % 2 == 0 else (1, 0):
                seconds[index].append(workers[index].ask("run")["seconds"])
    now, before = seconds
    return [row("AG News, MiniLM, LoRA, 1,000 rows x 5 epochs, s", now, before, ratios(before, now))]


def scripts(trees: Trees, words: list[str], turns: int) -> list[dict[str, Any]]:
    """A script of bench/ that prints its rows: what `ours` took, or weighed, in each of them."""
    found: list[list[list[dict[str, Any]]]] = [[], []]
    for turn in range(turns):
        for index in (0, 1) if turn % 2 == 0 else (1, 0):
            printed = run(trees[index], [str(trees[index] / "bench" / words[0]), *words[1:]], trees[index])
            found[index].append(json.loads(printed[printed.index("[\n") :]))
    rows = []
    for number, one in enumerate(found[0][0]):
        now, before = ([answer[number]["ours"] for answer in answers] for answers in found)
        rows.append(row(f"{one['case']}: ours", now, before, ratios(before, now)))
    return rows


def commands(case: str, trees: Trees, words: list[str], turns: int, bar: float = NOISE) -> list[dict[str, Any]]:
    """Seconds of a command by the clock."""
    seconds: list[list[float]] = [[], []]
    for turn in range(turns):
        for index in (1, 0) if turn % 2 == 0 else (0, 1):
            with tempfile.TemporaryDirectory() as folder:
                started = time.perf_counter()
                run(trees[index], words, trees[index] if "pytest" in words else Path(folder))
                seconds[index].append(time.perf_counter() - started)
                print(
                    f"  {case}: {'before' if index else 'now'} {seconds[index][-1]:.0f} s", file=sys.stderr, flush=True
                )
    now, before = seconds
    return [row(f"{case}, s", now, before, ratios(before, now), bar)]


def run(tree: Path, words: list[str], folder: Path) -> str:
    """What Python prints of a tree's package; a suite that fails is timed all the same, and says so."""
    environment = {**os.environ, "PYTHONPATH": str(tree / "src"), "TOKENIZERS_PARALLELISM": "false"}
    done = subprocess.run([sys.executable, *words], cwd=folder, env=environment, capture_output=True, text=True)
    if done.returncode and "pytest" not in words:
        raise RuntimeError(f"{' '.join(words)} in {tree} ended with {done.returncode}: {done.stderr[-1500:]}")
    if "pytest" in words:
        print(f"  {done.stdout.splitlines()[-1]}", file=sys.stderr, flush=True)
    return done.stdout


CASES: dict[str, Callable[[Trees, Path], list[dict[str, Any]]]] = {
    "training": training,
    "methods": methods,
    "scoring": scoring,
    "ag_news": ag_news,
    "cohorts": lambda trees, _: scripts(trees, ["cohorts.py", "--only", "tiny"], 2),
    "mixed_rows": lambda trees, _: scripts(trees, ["mixed_rows.py"], 2),
    "activations": lambda trees, _: scripts(trees, ["activations.py", "--quick"], 1),
    "demo": lambda trees, _: commands("`dollartune demo`", trees, ["-m", "dollartune", "demo"], 1),
    "suite": lambda trees, _: commands(
        "tests", trees, ["-m", "pytest", "-n", "2", "--dist", "loadgroup"], 1, SUITE_BAR
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--revision", default=FIRST_ROUND)
    parser.add_argument(
        "--only", help=f"some of {', '.join(CASES)}, with commas between them; other rows stay in the file"
    )
    parser.add_argument("--out", type=Path, default=HERE / "bench" / "results" / "before.json")
    arguments = parser.parse_args()
    names = arguments.only.split(",") if arguments.only else list(CASES)
    if unknown := [name for name in names if name not in CASES]:
        parser.error(f"there is no {unknown[0]!r}; there are {', '.join(CASES)}")
    with tree_of(arguments.revision) as before:
        for name in names:
            print(f"{name} ...", file=sys.stderr, flush=True)
            with tempfile.TemporaryDirectory() as folder:
                rows = CASES[name]((HERE, before), Path(folder))
            table.show(rows)
            about = {"versions": table.versions(), "revision": arguments.revision}
            table.write(arguments.out, table.merged(arguments.out, rows), about)


if __name__ == "__main__":
    main()
