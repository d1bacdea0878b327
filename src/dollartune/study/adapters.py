"""Which tuned adapters a study keeps, and what is stored with each."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from typing import Any

from dollartune.backbones.loading import Backbone
from dollartune.config import StudySettings
from dollartune.export.directory import tokenizer_hash
from dollartune.study.store import Store
from dollartune.study.trials import Trial
from dollartune.tasks.base import Task


def adapter_info(
    trial: Trial,
    task: Task,
    backbone: Backbone,
    settings: StudySettings,
    scores: Mapping[str, float],
    cost: Mapping[str, Any],
    reserved_places: int = 0,
) -> dict[str, Any]:
    """What is needed to use an adapter later: backbone, prompt, label words, and how it did."""
    return {
        "backbone": trial.backbone,
        "revision": backbone.revision,
        "objective": trial.objective,
        "tokenizer": tokenizer_hash(backbone.processor),
        "task": {
            "name": task.name,
            "kind": task.kind,
            "prompt": task.template.text if task.template else None,
            "label_words": dict(task.label_words),
            "metric": task.metric,
            "max_answer_tokens": task.max_answer_tokens,
        },
        "max_length": settings.training.max_length,
        "reserved_places": reserved_places,
        "quantize": settings.backbones()[trial.backbone_index].quantize,
        "dtype": str(backbone.dtype).removeprefix("torch."),
        "random_weights_seed": settings.backbones()[trial.backbone_index].random_weights_seed,
        "scores": dict(scores),
        "cost": dict(cost),
        "trial": trial.to_json(),
    }


def keep_best(store: Store, trials: Sequence[Trial]) -> None:
    """Deletes all adapters but the one with the best validation score of each backbone, task and scale."""
    found = [(trial, store.folder(trial.identifier) / "adapter") for trial in trials]
    found = [(t, folder) for t, folder in found if folder.is_dir() and store.has(t.identifier)]
    best: dict[tuple[Any, ...], tuple[float, str]] = {}
    for trial, _ in found:
        score = (store.read(trial.identifier).get("validation") or {}).get("score")
        rank = (float("-inf") if score is None else score, trial.identifier)
        key = (trial.backbone_index, trial.task_index, trial.scale)
        best[key] = max(best.get(key, rank), rank)
    keep = {name for _, name in best.values()}
    for trial, folder in found:
        if trial.identifier not in keep:
            shutil.rmtree(folder)
