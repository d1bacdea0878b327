"""Writes the run logs to `pretrain/runs/`, and each model card from the logs and measurements, nothing by hand."""

from __future__ import annotations

import itertools
import json
import math
import platform
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pretrain.tuned import ROWS

WHAT = {
    "tiny-decoder": (
        "a decoder of LLaMA's shape: 4 layers, width 256, 4 heads, gated feed-forward of 704, rotary positions, "
        "context "
        "512, tied embeddings. Trained on the next token.",
        "AutoModelForCausalLM",
    ),
    "tiny-encoder": (
        "an encoder of BERT's shape: 4 layers, width 256, 4 heads, feed-forward of 1,024, 512 learned "
        "positions. First 40 % "
        "of the time: next tokens under a causal mask; then masked tokens (20 %) and whether the second segment "
        "follows the "
        "first, which trains the pooler.",
        "AutoModelForMaskedLM",
    ),
    "tiny-seq2seq": (
        "an encoder-decoder of T5 v1.1's shape, except that its embeddings are tied: 3 + 3 layers, width 256, 4 "
        "heads, gated "
        "GELU feed-forward of 512. Trained on span corruption and on continuing texts; in the second half of "
        "the time half "
        "of the rows are a mixture of short tasks (signature to summary, summary to package, summary to name, "
        "same or not).",
        "AutoModelForSeq2SeqLM",
    ),
    "tiny-vit": (
        "a vision transformer: 6 layers, width 128, 4 heads, images of 32 x 32 in patches of 8 x 8. Trained to "
        "name drawn "
        "capital letters (the font inside Pillow, distorted) and the digits 0 to 5 of the demo's train block.",
        "AutoModel",
    ),
}

CHANCE = {"demo_library": 0.125, "demo_match": 0.5, "demo_digits": 0.1}

TEXT = """## Text

Docstrings of the libraries that DollarTune installs and of some others, and documentation pages of source
distributions (all permissively licensed; names and versions in `pretrain/config.yaml`): {tokens:.1f} M tokens of
byte-level BPE (8,192 types, shared by the text backbones, digits apart). A fifth of it is made from the same
functions: indexes, import lines, lists of summaries with their package, short questions with yes or no.

**Not in it:** the modules of the demo's validation and test splits (by the hash of a module's name, in every
library), any paragraph that begins with one of their summaries, and all data sets of the presets. **In it:**
modules of the demo's train split. General English, news, reviews, medicine and dialogue are hardly in it, so do not
expect much there.
"""

VISION_DATA = """## Images

30,000 drawn capital letters and the 721 scans of the digits 0 to 5 among the first 1,200 of scikit-learn's set (UCI
Optical Recognition of Handwritten Digits, CC BY 4.0). **Not in it:** any 6, 7, 8 or 9, and the demo's validation
and test blocks.
"""


def run_log(work: Path, name: str) -> dict[str, Any] | None:
    """What a run left behind: curve, tokens, hours, hardware; None if it has not run."""
    if name == "tiny-vit":
        path = work / f"{name}.log.json"
        curve = json.loads(path.read_text()) if path.exists() else None
    else:
        path = work / f"{name}.state.pt"
        curve = torch.load(path, weights_only=True, mmap=True)["log"] if path.exists() else None
    if curve is None:
        return None
    last = curve[-1]
    times = [0.0, *(entry["seconds"] for entry in curve)]
    gaps = [max(0.0, after - before) for before, after in itertools.pairwise(times)]  # a clock set back is no gain
    return {
        "backbone": name,
        "steps": last["step"],
        "hours": round(sum(gaps) / 3600, 2),
        **({"tokens": last["tokens"]} if "tokens" in last else {"images": last["images"]}),
        "hardware": "one thread of a two-core x86-64 server CPU with bf16 instructions, at low priority beside "
        "other jobs",
        "torch": torch.__version__,
        "python": platform.python_version(),
        "curve": curve,
    }


def write(config: dict[str, Any], work: Path, export: Path, runs: Path) -> None:
    """Writes `runs/<name>.json` and every card; a run whose state is gone keeps the log that is there."""
    evaluation = _read(runs / "evaluation.json")
    tuning = _read(runs / "tuning.json")
    tokens = len(np.load(work / "train.npy", mmap_mode="r")) / 1e6
    for name in WHAT:
        log = run_log(work, name) or _read(runs / f"{name}.json")
        if not log or not (export / name).is_dir():
            continue
        notes = _read(runs / "notes.json")
        log["note"] = notes.get(name, "")
        (runs / f"{name}.json").write_text(json.dumps(log, indent=None, separators=(",", ":")) + "\n")
        (export / name / "README.md").write_text(
            card(name, log, evaluation.get(name, {}), tuning, tokens, notes.get(f"{name} tuned", ""))
        )


def card(
    name: str, log: dict[str, Any], measured: dict[str, Any], tuning: dict[str, Any], tokens: float, tuned: str = ""
) -> str:
    """The model card as Markdown."""
    what, auto = WHAT[name]
    seen = f"{log['tokens'] / 1e6:.1f} M tokens" if "tokens" in log else f"{log['images']:,} images"
    parts = [
        f"# {name}\n\nThe pretrained backbone `{name}` of DollarTune: {what}\nWeights in bf16, made by `python "
        f"-m pretrain` "
        "from the repository; licence as the package. It is small and for demonstrations, tests and method "
        "studies on a "
        f"machine without a network; it knows little.\n\nLoads with transformers alone: "
        f"`{auto}.from_pretrained(folder)`.",
        VISION_DATA if name == "tiny-vit" else TEXT.format(tokens=tokens),
        f"## Run\n\n{seen}, {log['steps']:,} steps, {log['hours']} hours on {log['hardware']} (no GPU was used), torch "
        f"{log['torch']}. Curve and settings: `pretrain/runs/{name}.json`, `pretrain/config.yaml`. {log['note']}",
        "## Measured on held-out data\n\n" + _numbers(name, measured, log),
    ]
    if tuning:
        parts.append(_tuning(name, tuning))
    if tuned:
        parts.append(tuned)
    generations = measured.get("generations", [])
    if generations:
        parts.append(
            "## Generations, unedited\n\nGreedy, and drawn at temperature 0.7 with seed 0.\n\n" + _texts(generations)
        )
    return "\n\n".join(part.strip() for part in parts) + "\n"


def _numbers(name: str, measured: dict[str, Any], log: dict[str, Any]) -> str:
    if name == "tiny-vit":
        return f"Accuracy on 1,000 held-out drawn letters: {log['curve'][-1]['letter_accuracy']:.3f} (chance 0.038)."
    rows = {key: value for key, value in measured.items() if isinstance(value, int | float)}
    table = "\n".join(f"| {key.replace('_', ' ')} | {value:,} |" for key, value in rows.items())
    note = (
        "Held-out text: validation modules of all libraries and every fiftieth documentation page. The n-gram "
        "models are "
        "counted on the same training text and measured at the same positions; the bigram model sees the true left "
        "neighbour."
    )
    if measured.get("perplexity", 0) > measured.get("bigram_perplexity", 1e9):
        note += " **It does not beat the bigram model at the cut tokens:** train it longer before relying on it."
    masks = "".join(f"\n- `{item['text']}` -> `{item['choice']}`" for item in measured.get("masks", []))
    return f"{note}\n\n| | |\n|---|---|\n{table}" + (f"\n\nFirst choices for masked words:\n{masks}" if masks else "")


def _texts(generations: list[dict[str, Any]]) -> str:
    return "\n\n".join(
        f"{'Drawn' if item['sampled'] else 'Greedy'}:\n\n````text\n{item['prompt']}|{item['text']}\n````"
        for item in generations
    )


def _tuning(name: str, tuning: dict[str, Any]) -> str:
    rows = [row for row in tuning["rows"] if row["backbone"] == name]
    rows.sort(key=lambda row: (row["task"], row.get("rows", ROWS), row["method"]))
    if not rows:
        return ""
    lines = [
        f"| {_named(row)} | {row['method']} | {row['pretrained']:.3f} ± {row['pretrained_deviation']:.3f} | "
        + (f"{row['random']:.3f} ± {row['random_deviation']:.3f} |" if row.get("random") is not None else "- |")
        for row in rows
    ]
    few = {row["task"]: row for row in rows if row["method"].startswith("few_shot") and row["pretrained"] is not None}
    said = [_against_chance(task, row["pretrained"], CHANCE[task]) for task, row in few.items() if task in CHANCE]
    return (
        f"## Tuned: pretrained against random weights\n\n{tuning['note']} {' '.join(said)}\n\n"
        "| task | method | pretrained | random weights |\n|---|---|---|---|\n" + "\n".join(lines)
    )


def _named(row: dict[str, Any]) -> str:
    """The task of a row, with its training rows where they are not the usual number."""
    rows = row.get("rows", ROWS)
    return str(row["task"]) if rows == ROWS else f"{row['task']}, {rows:,} rows"


def _against_chance(task: str, score: float, chance: float) -> str:
    """A sentence: does few-shot prompting beat the best constant answer by more than the noise of the test rows?"""
    margin = 1.96 * math.sqrt(score * (1 - score) / ROWS)
    verdict = "which beats" if score - margin > chance else "which does not beat"
    return (
        f"Few-shot prompting on {task} scores {score:.3f} ± {margin:.3f} (95 %, {ROWS} test rows), {verdict} the best "
        f"constant answer's {chance:.3f}."
    )


def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text()) if path.exists() else {}
