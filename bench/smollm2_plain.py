"""Zero-shot by DollarTune and by plain transformers: the same rows, the same prompt, the same label words, row by row.

    dollartune run examples/smollm2/asked.yaml --data-root ../shared/data
    python bench/smollm2_plain.py studies/asked [--data-root ../shared/data] [--rows 300]

The other side knows nothing of ours: `apply_chat_template` renders the question, one forward pass per row and label gives the
log-probability of the label's tokens behind it, in fp32. Both accuracies are printed for each task, and on how many rows the two
choose the same label. Exit code 1 where ours lies below by more than two standard errors of the rows on which they differ.
"""

from __future__ import annotations

import argparse
import math
import sys
from pathlib import Path
from typing import Any

import torch

from dollartune.backbones.locate import resolve
from dollartune.study.api import open_study
from dollartune.study_file import load_study
from dollartune.tasks.registry import load_task


@torch.no_grad()
def plain_choices(model: Any, tokenizer: Any, task: Any, rows: list[Any]) -> list[str]:
    """The label with the largest log-probability behind the question, for each row."""
    chosen = []
    for row in rows:
        turns = [{"role": "user", "content": task.prompt(row)}]
        question = tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=True, return_dict=False)
        scores = []
        for word in task.label_words.values():
            answer = tokenizer(word, add_special_tokens=False).input_ids
            logits = model(input_ids=torch.tensor([[*question, *answer[:-1]]])).logits[0, len(question) - 1 :]
            scores.append(float(logits.log_softmax(-1).gather(1, torch.tensor(answer)[:, None]).sum()))
        chosen.append(task.labels[scores.index(max(scores))])
    return chosen


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", type=Path, help="folder of a study that has run examples/smollm2/asked.yaml")
    parser.add_argument("--data-root", type=Path, default=Path("../shared/data"))
    parser.add_argument("--rows", type=int, default=300, help="at most so many test rows of each task")
    given = parser.parse_args()
    from transformers import AutoModelForCausalLM, AutoTokenizer

    results = open_study(str(given.study))
    settings = load_study(given.study / "study.yaml")
    path = resolve(settings.backbones[0].name)
    tokenizer = AutoTokenizer.from_pretrained(path)
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    worse = False
    for spec in settings.tasks:
        task = load_task(spec, given.data_root)
        record = next(r for r in results.done() if r.trial.task == task.name and r.trial.label == "zero_shot")
        ours = {row["example_id"]: row for row in results.predictions(record.id)}
        rows = [row for row in task.splits(None, settings.data_seed, settings.evaluation.rows).test if row.id in ours]
        rows = rows[: given.rows]
        theirs = plain_choices(model, tokenizer, task, rows)
        right = [
            (ours[row.id]["predicted"] == row.label, choice == row.label)
            for row, choice in zip(rows, theirs, strict=True)
        ]
        same = sum(ours[row.id]["predicted"] == choice for row, choice in zip(rows, theirs, strict=True))
        mine, other = (sum(side) / len(rows) for side in zip(*right, strict=True))
        error = math.sqrt(sum((a - b) ** 2 for a, b in right)) / len(rows)
        worse |= mine < other - 2 * error
        print(
            f"{task.name}: {mine:.3f} by DollarTune, {other:.3f} by transformers, {same} of {len(rows)} labels the same"
        )
    return int(worse)


if __name__ == "__main__":
    sys.exit(main())
