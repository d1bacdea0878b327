"""What the driver puts into Ray's object store, each thing once, for all machines."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from dollartune.config import StudySettings
from dollartune.engines.payload import backbone_files, packed_splits
from dollartune.engines.ray_worker import Goods
from dollartune.tasks.base import Splits, Task
from dollartune.trials.trial import Trial


class Warehouse:
    """Rows and backbones of a study. The driver owns them, so that no machine takes one with it when it is lost.

    Args:
        ray: the module.
        tasks: of the study, by index.
    """

    def __init__(self, ray: Any, settings: StudySettings, tasks: Sequence[Task]) -> None:
        self.ray, self.settings, self.tasks = ray, settings, tasks
        self._splits: dict[tuple[int, int | None], tuple[Splits, Any]] = {}
        self._backbones: dict[int, tuple[dict[str, Any], str | None]] = {}

    def goods(self, trial: Trial) -> Goods:
        """References to what a trial needs."""
        files, revision = self._backbone(trial.backbone_index)
        return Goods(self.rows(trial)[1], files, revision)

    def rows(self, trial: Trial) -> tuple[Splits, Any]:
        """The rows of a trial's task and scale, and the reference under which machines find them."""
        key = (trial.task_index, trial.scale)
        if key not in self._splits:
            task = self.tasks[trial.task_index]
            splits = task.splits(trial.scale, self.settings.data_seed, self.settings.evaluation.rows)
            self._splits[key] = splits, self.ray.put(packed_splits(splits))
        return self._splits[key]

    def _backbone(self, index: int) -> tuple[dict[str, Any], str | None]:
        """References to a backbone's files, and its commit on the hub."""
        if index not in self._backbones:
            files, revision = backbone_files(self.settings.backbones[index])
            # arrays, because all processes of a machine read them out of its shared memory without a copy
            sent = {name: self.ray.put(np.fromfile(path, dtype=np.uint8)) for name, path in files.items()}
            self._backbones[index] = sent, revision
        return self._backbones[index]
