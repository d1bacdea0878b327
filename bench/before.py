"""This working tree beside an earlier one, in turns: are the suite, the bench and the demo as quick as they were?

    python bench/before.py [--revision 6ce6f61] [--only training,scoring,suite] [--side now|before]

The default revision is the first round's last one. Both run in this environment, each in its own folder; the order turns round
each time, so that both meet the same machine. What each run took is added to the file, so that long cases may be run in several
sittings; the table compares medians of all runs. A ratio is how many times as good it is now.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import peers
import table
from contest import contestants, in_turns

HERE = Path(__file__).resolve().parents[1]
SHARED = HERE.parent / "shared"
FIRST_ROUND = "6ce6f61"
SIDES = ("now", "before")
NOISE = 0.9
"""Two runs of one tree differ by so much on a shared machine."""
BARS = {"tests, s": 1 / 0.6}
Runs = dict[str, dict[str, list[float]]]
"""Case -> side -> one figure per run."""


class Trees:
    """Both trees, and what their runs took.

    Args:
        roots: side -> working tree.
    """

    def __init__(self, roots: Mapping[str, Path], folder: Path) -> None:
        self.roots, self.folder = roots, folder
        self.runs: Runs = {}

    def note(self, case: str, side: str, figures: Sequence[float]) -> None:
        self.runs.setdefault(case, {}).setdefault(side, []).extend(figures)

    def turns(self, count: int) -> Iterator[str]:
        """Sides, the later one first in every other turn."""
        for turn in range(count):
            yield from list(self.roots) if turn % 2 == 0 else reversed(list(self.roots))

    def contest(self, spec: Mapping[str, Any]) -> Any:
        return contestants([spec] * len(self.roots), self.folder, list(self.roots.values()))

    def python(self, side: str, words: Sequence[str], folder: Path) -> subprocess.CompletedProcess[str]:
        """Runs Python with a tree's package."""
        environment = {
            **os.environ,
            "PYTHONPATH": str(self.roots[side] / "src"),
            "TOKENIZERS_PARALLELISM": "false",
            "DOLLARTUNE_SHARED": os.environ.get("DOLLARTUNE_SHARED", str(SHARED)),
        }
        return subprocess.run([sys.executable, *words], cwd=folder, env=environment, capture_output=True, text=True)


@contextmanager
def tree_of(revision: str) -> Iterator[Path]:
    """A checkout of a revision, for so long."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "before"
        if SHARED.is_dir():
            (path.parent / "shared").symlink_to(SHARED)  # both read the same data
        subprocess.run(["git", "worktree", "add", "--quiet", "--detach", path, revision], cwd=HERE, check=True)
        try:
            yield path
        finally:
            subprocess.run(["git", "worktree", "remove", "--force", path], cwd=HERE, check=True)


def rates(case: str, trees: Trees, spec: Mapping[str, Any]) -> None:
    """Tokens per second of each of the spec's methods."""
    with trees.contest(spec) as workers:
        for number, method in enumerate(spec["methods"]):
            answers = in_turns(workers, 3, "steps", 1)
            for side, own in zip(trees.roots, answers, strict=True):
                trees.note(f"{case}, {method}: tokens/s", side, [one["tokens"] / one["seconds"] for one in own])
            if number + 1 < len(spec["methods"]):
                for worker in workers:
                    worker.ask("next")


def training(trees: Trees) -> None:
    """LoRA r=8 on q, v of OPT-125m's shape, 64 rows of BoolQ's lengths, batches of eight."""
    shape = {"task": "train", "side": "ours", "shape": "opt-125m", "rows": 64, "batch": 8}
    rates("OPT-125m shape, BoolQ lengths", trees, {**shape, "methods": [peers.OURS["lora"]]})


def methods(trees: Trees) -> None:
    """Each other method that peft has: steps of eight rows."""
    lengths = [60, 85, 100, 115, 130, 150, 180, 240]
    shape = {"task": "train", "side": "ours", "shape": "opt-125m", "rows": 8, "batch": 8, "lengths": lengths}
    rates("OPT-125m shape", trees, {**shape, "methods": [ours for name, ours in peers.OURS.items() if name != "lora"]})


def scoring(trees: Trees) -> None:
    """Label words after prompts of four examples."""
    with trees.contest({"task": "score", "side": "ours", "prompts": 32, "new_tokens": 3}) as workers:
        for side, own in zip(trees.roots, in_turns(workers, 6, "score", None), strict=True):
            trees.note("label scoring of 32 BoolQ prompts of four examples, s", side, [one["seconds"] for one in own])


def ag_news(trees: Trees) -> None:
    """From the model's file to test predictions."""
    spec = {"task": "ag_news", "side": "ours", "rows": 1000, "test": 1000, "epochs": 5, "lr": 1e-3, "batch": 16}
    for _ in range(2):
        with trees.contest(spec) as workers:
            for side, worker in zip(trees.roots, workers, strict=True):
                trees.note("AG News, MiniLM, LoRA, 1,000 rows x 5 epochs, s", side, [worker.ask("run")["seconds"]])


def script(*words: str) -> Callable[[Trees], None]:
    """A script of bench/ that prints its rows: what `ours` took, or weighed, in each of them."""

    def measure(trees: Trees) -> None:
        for side in trees.turns(2):
            done = trees.python(side, [str(trees.roots[side] / "bench" / words[0]), *words[1:]], trees.roots[side])
            if done.returncode:
                raise RuntimeError(f"{' '.join(words)} {side}: {done.stderr[-1500:]}")
            for row in json.loads(done.stdout[done.stdout.index("[\n") :]):
                trees.note(f"{row['case']}: ours", side, [row["ours"]])

    return measure


def demo(trees: Trees) -> None:
    """The whole demonstration, which has two real models now."""
    for side in trees.turns(1):
        with tempfile.TemporaryDirectory() as folder:
            started = time.perf_counter()
            done = trees.python(side, ["-m", "dollartune", "demo"], Path(folder))
            trees.note("`dollartune demo`, s", side, [time.perf_counter() - started])
        if done.returncode:
            raise RuntimeError(f"demo {side}: {done.stderr[-1500:]}")


def suite(trees: Trees) -> None:
    """All tests; a suite that fails is timed all the same, and its last line says so."""
    for side in trees.turns(1):
        started = time.perf_counter()
        makefile = (trees.roots[side] / "Makefile").read_text()
        words = re.search(r"-m pytest .*", makefile)
        assert words is not None
        done = trees.python(side, words[0].split(), trees.roots[side])
        trees.note("tests, s", side, [time.perf_counter() - started])
        failed = [line for line in done.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
        print(f"  {side}:", *failed, done.stdout.splitlines()[-1], sep="\n  ", file=sys.stderr, flush=True)


CASES: dict[str, Callable[[Trees], None]] = {
    "training": training,
    "methods": methods,
    "scoring": scoring,
    "ag_news": ag_news,
    "cohorts": script("cohorts.py", "--only", "tiny"),
    "mixed_rows": script("mixed_rows.py"),
    "activations": script("activations.py", "--quick"),
    "demo": demo,
    "suite": suite,
}


def compared(runs: Runs) -> list[dict[str, Any]]:
    """Rows of the table."""
    rows = []
    for case, sides in runs.items():
        middle = [statistics.median(sides[side]) if sides.get(side) else None for side in SIDES]
        bar = BARS.get(case, NOISE)
        if None in middle:
            rows.append(table.row(case, *middle, None, f">= {bar:.2f}x", None, "one side alone"))
            continue
        more_is_better = case.endswith("tokens/s")
        now, before = (sides[side] for side in SIDES)
        ratios = sorted(a / b if more_is_better else b / a for a in now for b in before)
        ratio = middle[0] / middle[1] if more_is_better else middle[1] / middle[0]
        note = f"{len(now)} and {len(before)} runs"
        rows.append(table.row(case, *middle, (ratio, ratios[0], ratios[-1]), f">= {bar:.2f}x", ratio >= bar, note))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--revision", default=FIRST_ROUND)
    parser.add_argument("--only", help=f"some of {', '.join(CASES)}, with commas between them; none of them: the table")
    parser.add_argument("--side", choices=SIDES, help="one side alone: the other has its runs, or gets them later")
    parser.add_argument("--out", type=Path, default=HERE / "bench" / "results" / "before.json")
    arguments = parser.parse_args()
    names = list(CASES) if arguments.only is None else [name for name in arguments.only.split(",") if name]
    if unknown := [name for name in names if name not in CASES]:
        parser.error(f"there is no {unknown[0]!r}; there are {', '.join(CASES)}")
    runs: Runs = json.loads(arguments.out.read_text())["runs"] if arguments.out.is_file() else {}
    with tree_of(arguments.revision) as before, tempfile.TemporaryDirectory() as folder:
        roots = {"now": HERE, "before": before}
        chosen = {side: roots[side] for side in SIDES if arguments.side in (None, side)}
        for name in names:
            print(f"{name} ...", file=sys.stderr, flush=True)
            trees = Trees(chosen, Path(folder))
            trees.runs = runs
            CASES[name](trees)
            about = {"versions": table.versions(), "revision": arguments.revision, "runs": runs}
            table.write(arguments.out, compared(runs), about)
    table.show(compared(runs))


if __name__ == "__main__":
    main()
