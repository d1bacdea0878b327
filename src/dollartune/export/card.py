"""The model card: README.md with the hub's metadata, written from what is stored with an adapter, with an example that runs."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dollartune import format as numbers
from dollartune.backbones.catalog import named_backbone, named_backbones
from dollartune.backbones.locate import resolve
from dollartune.export.card_examples import example

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
_DATASET = re.compile(r"([\w-]+/)?[\w.-]+", re.ASCII)
"""What the hub takes as the type of a dataset; it refuses an upload whose card has another."""


def hub_id(info: Mapping[str, Any]) -> str | None:
    """The backbone's name on the hub; None where only a folder or an embedded model is known."""
    name = str(info.get("backbone") or "")
    if name in named_backbones():
        return named_backbone(name).hub_id
    # A folder here may be called like a model of the hub.
    if not _HUB_ID.fullmatch(name) or resolve(name) != name or Path(name).exists():
        return None
    return name


def _pipeline(info: Mapping[str, Any], image: bool) -> str:
    """By what the model computes, not by the task: a language model that answers with label words has no classes."""
    if info.get("objective") == "classification":
        return "image-classification" if image else "text-classification"
    return "text-generation"


def write_card(info: Mapping[str, Any], title: str, form: str = "dollartune", serves: Sequence[str] = ()) -> str:
    """The text of a card.

    Args:
        info: what `adapter.json` holds, and of other formats than ours what `handover.asked_by_hand` adds.
        form: `dollartune`, `peft`, `merged`, `gguf` or `head`: the format of the directory that the card is for.
        serves: sentences on what can serve it.
    """
    lines = ["---", *_metadata(info, form), "---", "", f"# {title}", "", _summary(info), ""]
    lines += _scores(info) + _baselines(info) + _cost(info)
    lines += ["## Use", "", *example(info, form), ""]
    if serves:
        lines += ["## What can serve it", "", *(f"- {line}" for line in serves), ""]
    lines += ["## How it was made", "", *_methods(info), ""]
    return "\n".join(lines)


def _metadata(info: Mapping[str, Any], form: str) -> list[str]:
    """YAML front matter; every value is written as JSON, which YAML reads."""
    task = info.get("task") or {}
    # A task of images is the one that has no prompt.
    image = not task.get("prompt")
    fields: dict[str, object] = {
        "library_name": {"dollartune": "dollartune", "peft": "peft", "head": "sklearn"}.get(form, "transformers"),
        "license": info.get("license"),
        "base_model": hub_id(info),
        # The hub's words; it shows the model in the base model's tree by them.
        "base_model_relation": "finetune" if form in ("merged", "gguf") else "adapter",
        "tags": [
            "dollartune",
            *(["gguf"] if form == "gguf" else []),
            *dict.fromkeys(str(method["method"]) for method in info.get("methods", ())),
        ],
    }
    if task:
        scores = sorted(_known_scores(info).items())
        fields["pipeline_tag"] = _pipeline(info, image)
        fields["metrics"] = [name for name, _ in scores]
        fields["model-index"] = [
            {
                "name": str(task["name"]),
                "results": [
                    {
                        "task": {"type": fields["pipeline_tag"]},
                        "dataset": {"name": task["name"], "type": _dataset_type(str(task["name"]))},
                        "metrics": [{"type": name, "value": value} for name, value in scores],
                    }
                ],
            }
        ]
    return [
        # JSON is YAML, and quotes whatever a task's name may hold.
        f"{key}: {json.dumps(value, ensure_ascii=False)}"
        for key, value in fields.items()
        if value not in (None, [])
    ]


def _dataset_type(name: str) -> str:
    """A task's name as the hub takes it: `my-reviews` for `my reviews`."""
    return name if _DATASET.fullmatch(name) else re.sub(r"[^A-Za-z0-9_.]+", "-", name).strip("-") or "task"


def _known_scores(info: Mapping[str, Any]) -> dict[str, float]:
    """Without measures that had no value, as an AUC of rows of one class."""
    return {name: value for name, value in (info.get("scores") or {}).items() if value is not None}


def _summary(info: Mapping[str, Any]) -> str:
    names = " + ".join(str(method["method"]) for method in info.get("methods", ()))
    revision = f" (revision {info['revision']})" if info.get("revision") else ""
    seed = info.get("random_weights_seed")
    weights = "" if seed is None else f" with random weights (seed {seed}) in place of the pretrained ones"
    text = f"`{info.get('backbone')}`{revision}{weights}, tuned by {names or 'nothing'}"
    if task := info.get("task"):
        text += f" for the task `{task['name']}`"
    if count := info.get("trainable_parameters"):
        text += f"; {count:,} trained parameters"
    return f"{text}."


def _scores(info: Mapping[str, Any]) -> list[str]:
    scores = _known_scores(info)
    if not scores:
        return []
    return [
        "## Scores on test rows",
        "",
        "| measure | value |",
        "|---|---|",
        *(f"| {name} | {numbers.score(value, 4)} |" for name, value in scores.items()),
        "",
    ]


def _baselines(info: Mapping[str, Any]) -> list[str]:
    """Rows, seed and interval, and what the task's baselines reach: without them a score says little."""
    facts = info.get("study") or {}
    if not facts:
        return []
    rows = facts.get("rows") or {}
    interval = facts.get("interval")
    between = (
        f", 95 % interval {numbers.score(interval[0], 4)} to {numbers.score(interval[1], 4)} over the rows"
        if interval
        else ""
    )
    lines = [
        f"Tuned on {rows.get('train')} rows with seed {facts.get('seed')}, scored on {rows.get('test')} test rows{between}.",
        "",
    ]
    if facts.get("baselines"):
        # The money may have paid for fewer rows with the adapter than with what costs next to nothing.
        tested = rows.get("test")
        same = tested is not None and all(one.get("rows") == tested for one in facts["baselines"])
        which, column = ("baseline on the same test rows", "") if same else ("baseline", " test rows |")
        lines += [f"| {which} | {facts.get('metric')} |{column} dollars |", "|---|---|---|" + ("" if same else "---|")]
        for one in facts["baselines"]:
            asked = "" if same else _rows(one)
            lines.append(f"| {one['name']} | {numbers.score(one['score'], 4)} |{asked} {_dollars(one['dollars'])} |")
        lines += ["", "Scores and dollars are those of one trial, means where a baseline has several.", ""]
    return lines


def _dollars(value: float | None) -> str:
    return numbers.NO_PRICE if value is None else numbers.dollars(value)


def _rows(baseline: Mapping[str, Any]) -> str:
    """The cell of a table."""
    rows = baseline.get("rows")
    return f" {rows:,} |" if isinstance(rows, int) else " unknown |"


def _cost(info: Mapping[str, Any]) -> list[str]:
    cost = info.get("cost") or {}
    # Imported adapters have no cost that we know.
    if not cost.get("seconds"):
        return []
    price = cost.get("price_per_hour") or 0
    at = f" at {numbers.dollars(price)} per hour" if price else ""
    money = numbers.money(cost.get("dollars"), price)
    return [f"Tuning and evaluation took {numbers.seconds(cost['seconds'])}, {money}{at}.", ""]


def _methods(info: Mapping[str, Any]) -> list[str]:
    lines = []
    for method in info.get("methods", ()):
        settings = ", ".join(
            f"{key}={value!r}" for key, value in method.items() if key != "method" and value not in ({}, [], "", None)
        )
        lines.append(f"- `{method['method']}`: {settings}")
    if task := info.get("task"):
        if task.get("prompt"):
            lines += ["", "Prompt:", "", "```text", str(task["prompt"]), "```"]
        if task.get("chat_template"):
            system = f", after the system text {task['system']!r}" if task.get("system") else ""
            lines += ["", f"It is asked as a user turn of the chat template that `adapter.json` holds{system}."]
        if task.get("label_words"):
            lines += [
                "",
                "Labels and the words that stand for them: "
                + ", ".join(f"{k} = {v!r}" for k, v in task["label_words"].items())
                + ".",
            ]
        if offsets := info.get("label_offsets"):
            added = ", ".join(f"{label} {value:+.2f}" for label, value in offsets.items())
            lines += [
                "",
                "No part of the weights: what was added to the log-probability of each label's word where labels were scored "
                f"({added}). The example above adds it; whatever else computes with these files does not.",
            ]
    versions = info.get("versions") or {}
    if versions:
        lines += ["", "Versions: " + ", ".join(f"{name} {version}" for name, version in versions.items()) + "."]
    return lines
