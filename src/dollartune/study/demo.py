"""The demo: real tasks from what is installed anyway, and a real instruct model where it was fetched."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

import yaml

from dollartune import format as numbers
from dollartune.backbones.catalog import named_backbone, named_backbones
from dollartune.backbones.gguf import is_gguf
from dollartune.methods.registry import methods

if TYPE_CHECKING:
    from dollartune.study.results import Results
    from dollartune.trials.record import DoneRecord

IN_PLACE = {"smollm2-135m": "tiny-decoder", "minilm-l6": "tiny-encoder"}
"""Real backbone -> what ships with the package and is of its kind."""


class BackboneEntry(TypedDict):
    """One of a study's `backbone:`, and what it is for."""

    name: str
    tasks: list[str]
    methods: list[str]


def demo_settings() -> dict[str, Any]:
    """The study that `dollartune demo` runs on this machine."""
    settings: dict[str, Any] = yaml.safe_load(Path(__file__).with_name("demo.yaml").read_text(encoding="utf8"))
    settings["backbone"] = merged(
        [BackboneEntry(
            name=IN_PLACE.get(one["name"], one["name"]) if _is_absent(one["name"]) else one["name"],
            tasks=one["tasks"], methods=one["methods"],
        ) for one in settings["backbone"]]
    )  # fmt: skip
    return settings


def absent_backbones() -> list[str]:
    """Real backbones of the demo that are not on this machine."""
    return [name for name in IN_PLACE if _is_absent(name)]


def merged(backbones: list[BackboneEntry]) -> list[BackboneEntry]:
    """Entries of the same backbone as one: it is for the tasks and methods of both."""
    by_name: dict[str, BackboneEntry] = {}
    for one in backbones:
        known = by_name.setdefault(one["name"], {"name": one["name"], "tasks": [], "methods": []})
        known["tasks"] += [task for task in one["tasks"] if task not in known["tasks"]]
        known["methods"] += [method for method in one["methods"] if method not in known["methods"]]
    return list(by_name.values())


def _is_absent(name: str) -> bool:
    """Whether a real backbone cannot be loaded here as things are."""
    if name not in named_backbones():
        return False
    backbone = named_backbone(name)
    path = backbone.installed_path
    if path is not None and is_gguf(path):
        # The file is there, and of no use without its reader.
        return importlib.util.find_spec("gguf") is None
    return backbone.where == "not here"


def told(results: Results) -> list[str]:
    """What the demo has shown, in sentences: the untuned model, with solved examples, tuned; the probe beside them."""
    by_task: dict[str, list[DoneRecord]] = {}
    for record in results.done():
        by_task.setdefault(record.trial.task, []).append(record)
    sentences = []
    for task, records in by_task.items():
        untuned = next((r for r in records if _reference(r) == "untuned"), None)
        if untuned is None:
            continue
        # Of one backbone: elsewhere the model would differ, and not the tuning alone.
        mine = [r for r in records if r.trial.backbone == untuned.trial.backbone]
        tuned = max((r for r in mine if _is_tuned(r)), key=lambda r: r.test.score, default=None)
        if tuned is None:
            continue
        words = [f"{untuned.trial.backbone} on {task}, {untuned.metric}: {numbers.score(untuned.test.score)} as it is"]
        shown = next((r for r in mine if _reference(r) == "examples"), None)
        if shown is not None:
            words.append(f"{numbers.score(shown.test.score)} with {shown.trial.label} in each prompt")
        paid = results.cost(tuned)
        cost = f"{numbers.dollars(paid.dollars)} ({numbers.seconds(paid.seconds)})"
        words.append(
            f"{numbers.score(tuned.test.score)} after {tuned.trial.label} on {tuned.trial.scale} rows for {cost}"
        )
        sentences.append(", ".join(words) + ".")
        probe = next((r for r in records if _reference(r) == "probe"), None)
        if probe is not None:
            paid = results.cost(probe)
            sentences.append(
                f"Beside it: {probe.trial.label} on {probe.trial.backbone}, solved in {numbers.seconds(paid.seconds)} for "
                f"{numbers.dollars(paid.dollars)}: {numbers.score(probe.test.score)}."
            )
    return sentences


def _reference(record: DoneRecord) -> str | None:
    """Which standard comparison a trial's method is."""
    return methods()[str(record.trial.methods[0]["method"])].reference


def _is_tuned(record: DoneRecord) -> bool:
    """Whether something was trained by steps."""
    able = methods()[str(record.trial.methods[0]["method"])].capabilities
    return able.trains and not able.solved
