"""The model card: README.md with the hub's metadata, written from what is stored with an adapter, with an example that runs."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from dollartune import format as numbers

_PIPELINES = {
    ("classification", "text"): "text-classification",
    ("classification", "image"): "image-classification",
    ("generation", "text"): "text-generation",
}


def write_card(info: Mapping[str, Any], title: str, form: str = "dollartune", serves: Sequence[str] = ()) -> str:
    """The text of a card.

    Args:
        info: what `adapter.json` holds.
        form: `dollartune`, `peft` or `merged`: the format of the directory that the card is for.
        serves: sentences on what can serve it.
    """
    lines = ["---", *_metadata(info, form), "---", "", f"# {title}", "", _summary(info), ""]
    lines += _scores(info) + _cost(info)
    lines += ["## Use", "", *_example(info, form), ""]
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
        "library_name": {"dollartune": "dollartune", "peft": "peft", "merged": "transformers"}[form],
        "base_model": info.get("backbone"),
        # The hub's words; it shows the model in the base model's tree by them.
        "base_model_relation": "finetune" if form == "merged" else "adapter",
        "tags": ["dollartune", *dict.fromkeys(str(method["method"]) for method in info.get("methods", ()))],
    }
    if task:
        fields["pipeline_tag"] = _PIPELINES.get((task["kind"], "image" if image else "text"))
        fields["metrics"] = sorted(info.get("scores") or {})
        fields["model-index"] = [
            {
                "name": str(task["name"]),
                "results": [
                    {
                        "task": {"type": fields["pipeline_tag"]},
                        "dataset": {"name": task["name"], "type": task["name"]},
                        "metrics": [
                            {"type": name, "value": value} for name, value in sorted((info.get("scores") or {}).items())
                        ],
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


def _summary(info: Mapping[str, Any]) -> str:
    names = " + ".join(str(method["method"]) for method in info.get("methods", ()))
    revision = f" (revision {info['revision']})" if info.get("revision") else ""
    text = f"`{info.get('backbone')}`{revision}, tuned by {names or 'nothing'}"
    if task := info.get("task"):
        text += f" for the task `{task['name']}`"
    if count := info.get("trainable_parameters"):
        text += f"; {count:,} trained parameters"
    return f"{text}."


def _scores(info: Mapping[str, Any]) -> list[str]:
    scores = {name: value for name, value in (info.get("scores") or {}).items() if value is not None}
    if not scores:
        return []
    return [
        "## Scores on test rows",
        "",
        "| measure | value |",
        "|---|---|",
        *(f"| {name} | {value:.4f} |" for name, value in scores.items()),
        "",
    ]


def _cost(info: Mapping[str, Any]) -> list[str]:
    cost = info.get("cost") or {}
    # Imported adapters have no cost that we know.
    if not cost.get("seconds"):
        return []
    price = cost.get("price_per_hour") or 0
    at = f" at {numbers.dollars(price)} per hour" if price else ""
    money = numbers.money(cost.get("dollars"), price)
    return [f"Tuning and evaluation took {numbers.seconds(cost['seconds'])}, {money}{at}.", ""]


def _example(info: Mapping[str, Any], form: str) -> list[str]:
    if form == "merged":
        return _merged_example(info)
    if form == "peft":
        return [
            "```python",
            "from peft import PeftModel",
            f"from transformers import {_auto_class(info)}",
            "",
            f"backbone = {_auto_class(info)}.from_pretrained({json.dumps(info.get('backbone'))}{_labels(info)})",
            'model = PeftModel.from_pretrained(backbone, ".")',
            "```",
        ]
    task = info.get("task") or {}
    row = json.dumps(dict.fromkeys(_columns(str(task.get("prompt") or "")), "..."), ensure_ascii=False)
    if not task.get("prompt"):
        row = '{"image": Image.open("picture.png")}'
    code = ["```python", "from pathlib import Path", ""]
    if not task.get("prompt"):
        code += ["from PIL import Image", ""]
    code += [
        "from dollartune import open_adapter",
        "from dollartune.evaluate.predict import predict_rows",
        "",
        'tuned = open_adapter(Path("."))',
    ]
    code += [f"print(predict_rows(tuned, [{row}])[0].predicted)", "```"]
    return code


def _merged_example(info: Mapping[str, Any]) -> list[str]:
    # Without a task a text model is supposed: pictures always have one.
    processor = "AutoTokenizer" if (info.get("task") or {}).get("prompt", "text") else "AutoImageProcessor"
    return [
        "```python",
        f"from transformers import {_auto_class(info)}, {processor}",
        "",
        f'model = {_auto_class(info)}.from_pretrained(".")',
        f'processor = {processor}.from_pretrained(".")',
        "```",
    ]


def _auto_class(info: Mapping[str, Any]) -> str:
    task = info.get("task") or {}
    if info.get("objective") == "classification":
        return (
            "AutoModelForImageClassification"
            if task and not task.get("prompt")
            else "AutoModelForSequenceClassification"
        )
    return "AutoModelForSeq2SeqLM" if info.get("kind") == "encoder_decoder" else "AutoModelForCausalLM"


def _labels(info: Mapping[str, Any]) -> str:
    labels = (info.get("task") or {}).get("label_words") or {}
    return f", num_labels={len(labels)}" if info.get("objective") == "classification" and labels else ""


def _columns(prompt: str) -> tuple[str, ...]:
    from dollartune.tasks.base import Template

    return Template(prompt).columns if prompt else ()


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
    versions = info.get("versions") or {}
    if versions:
        lines += ["", "Versions: " + ", ".join(f"{name} {version}" for name, version in versions.items()) + "."]
    return lines
