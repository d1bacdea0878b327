"""What is wrong with a study file, as far as that can be said without PyTorch: names, columns, labels, rows. In half a second."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from dollartune.backbones.locate import resolve
from dollartune.budget.study_budget import machine_price, require_price
from dollartune.methods.spelling import check_spelling
from dollartune.tasks.registry import load_task

if TYPE_CHECKING:
    from dollartune.config import StudySettings


def check_names(settings: StudySettings) -> None:
    """Refuses a study whose methods, tasks or backbones are not there, or whose data cannot be read.

    Raises:
        UserError: with the nearest name; the first thing that is wrong.
    """
    if settings.engine.name == "local":  # the machines of a cluster have prices of their own
        require_price(settings.budget, machine_price(settings))
    for spec in settings.methods:
        check_spelling(spec)
    for backbone in settings.backbones:
        resolve(backbone.name)
    root = Path(settings.data_root) if settings.data_root else None
    for task in settings.tasks:
        load_task(task, root)
