"""How long until a command answers: from the shell, a process each time, wall clock.

    python bench/first_answers.py [--times 9] [--backbone tiny-encoder]

`--version` and `--help` should take less than 0.2 s, `check` of a wrong study file less than 0.5 s and of a right one less than
3 s, and `view` should show its first chart in less than 2 s: from the command to the chart in a browser that is open already
(Chromium; left out where there is none). The median counts; the quickest and slowest stand beside it. The first turn of each is
thrown away: it reads files from disk. Exit status 1 where a median is over its limit. Other programs on the machine count too.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import yaml

COMMAND = [sys.executable, "-m", "dollartune"]
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
ROWS = 1_000


def make_studies(folder: Path, backbone: str) -> tuple[Path, list[Path]]:
    """A right study file over 1,000 rows, and wrong ones: a key, a method, a setting, a column, a backbone."""
    words = ("train", "late", "good", "awful", "clean", "friendly", "never", "again", "window", "seat")
    data = folder / "reviews.csv"
    lines = [
        f"{' '.join(words[(n * 7 + k * (3 + n % 5)) % 10] for k in range(20))} {n},{'good' if n % 2 else 'bad'}"
        for n in range(ROWS)
    ]
    data.write_text("\n".join(["text,mood", *lines]) + "\n")
    right: dict[str, Any] = {
        "backbone": backbone,
        "task": {"data": str(data), "label": "mood"},
        "methods": ["full", "lora", "ia3"],
        "seeds": 3,
    }
    changes: list[dict[str, Any]] = [
        {"sceds": 3},
        {"methods": ["lorra"]},
        {"methods": [{"lora": {"rnak": 4}}]},
        {"task": {"data": str(data), "label": "mod"}},
        {"backbone": f"{backbone}x"},
    ]
    wrong = [_write(folder / f"wrong-{n}.yaml", {**right, **change}) for n, change in enumerate(changes)]
    return _write(folder / "right.yaml", right), wrong


def _write(path: Path, study: dict[str, Any]) -> Path:
    path.write_text(yaml.safe_dump(study, sort_keys=False))
    return path


def seconds_of(words: list[str], status: int) -> float:
    started = time.perf_counter()
    done = subprocess.run([*COMMAND, *words], capture_output=True, text=True)
    seconds = time.perf_counter() - started
    if done.returncode != status:
        raise SystemExit(f"dollartune {' '.join(words)}: exit status {done.returncode}\n{done.stdout}{done.stderr}")
    return seconds


def first_chart(browser: Any, study: Path) -> float:
    """From the command `view` to the first chart on the page."""
    context = browser.new_context(viewport={"width": 1400, "height": 900})
    page = context.new_page()
    started = time.perf_counter()
    server = subprocess.Popen(
        [*COMMAND, "view", str(study), "--json", "--no-browser"], stdout=subprocess.PIPE, text=True
    )
    try:
        assert server.stdout is not None
        page.goto(json.loads(server.stdout.readline())["address"], wait_until="commit")
        page.wait_for_selector("[data-drawn=yes] svg", timeout=30_000)
        return time.perf_counter() - started
    finally:
        server.terminate()
        server.wait()
        context.close()


def turns(name: str, limit: float, times: int, once: Callable[[], float]) -> bool:
    """Measures, prints a row, and says whether the limit holds."""
    once()
    seconds = [once() for _ in range(times)]
    middle = median(seconds)
    print(f"{name:32} {middle:6.2f} s  ({min(seconds):.2f} to {max(seconds):.2f})   limit {limit} s", flush=True)
    return middle <= limit


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--times", type=int, default=9, help="turns of each, after one that is thrown away")
    parser.add_argument("--backbone", default="tiny-encoder", help="of the study that is checked")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        right, wrong = make_studies(folder, options.backbone)
        kept = [
            turns("--version", 0.2, options.times, lambda: seconds_of(["--version"], 0)),
            turns("--help", 0.2, options.times, lambda: seconds_of(["--help"], 0)),
        ]
        for path, what in zip(wrong, ("key", "method", "setting", "column", "backbone"), strict=True):
            ask = ["check", str(path)]
            kept.append(turns(f"check, a wrong {what}", 0.5, options.times, lambda ask=ask: seconds_of(ask, 2)))
        kept.append(turns("check, right", 3.0, options.times, lambda: seconds_of(["check", str(right)], 0)))
        path = next((found for name in BROWSERS if (found := shutil.which(name))), None)
        if path is None:
            print("view: no Chromium on this machine")
        else:
            from playwright.sync_api import sync_playwright

            study = folder / "study"
            small = ["--set", "scales=[16]", "--seeds", "1", "--methods", "lora,ia3", "--set", "training.epochs=1"]
            seconds_of(["run", str(right), "--output", str(study), "-q", "--no-report", *small], 0)
            with sync_playwright() as playwright:
                browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-gpu"])
                kept.append(turns("view, the first chart", 2.0, options.times, lambda: first_chart(browser, study)))
                browser.close()
    sys.exit(0 if all(kept) else 1)


if __name__ == "__main__":
    main()
