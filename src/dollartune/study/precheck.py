"""What is wrong with a study file, as far as that can be said without PyTorch: names, columns, labels, rows. In half a second."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from dollartune.backbones.checkpoint_files import NF4_PACKAGES, weights_problem
from dollartune.backbones.locate import resolve
from dollartune.budget.study_budget import machine_price, require_price
from dollartune.errors import UserError, need_package
from dollartune.methods.spelling import check_spelling
from dollartune.study_file import places_of_keys
from dollartune.tasks.registry import load_task

if TYPE_CHECKING:
    from dollartune.config import StudySettings


def check_names(settings: StudySettings, read_data: bool = True) -> None:
    """Refuses a study whose methods, tasks or backbones are not there, or whose data cannot be read.

    Args:
        read_data: also read the data; a run does so anyway, and pays for it.

    Raises:
        UserError: with the nearest name; the first thing that is wrong.
    """
    if settings.engine.name == "local":  # the machines of a cluster have prices of their own
        require_price(settings.budget, machine_price(settings))
    places = places_of_keys()
    for spec in settings.methods:
        check_spelling(spec, places)
    for key, named, kind in (
        ("data_root", settings.data_root, "folder"),
        ("evaluation.general_text", settings.evaluation.general_text, "file"),
    ):
        if named is not None and not (Path(named).is_dir() if kind == "folder" else Path(named).is_file()):
            raise UserError(f"{key}: there is no {kind} {named!r}.")
    for backbone in settings.backbones:
        folder = Path(resolve(backbone.name))
        here = settings.engine.name == "local" and folder.is_dir()  # on a cluster weights may lie on its machines alone
        if here and backbone.random_weights_seed is None and (problem := weights_problem(folder)) is not None:
            raise UserError(
                f"backbone {backbone.name!r} cannot be loaded: {problem}.",
                hint="Fetch or copy the model's files again, or take another: dollartune backbones ls",
            )
        if here and backbone.quantize != "none":
            for package in NF4_PACKAGES:
                need_package(package, f"quantize: {backbone.quantize}")
    root = Path(settings.data_root) if settings.data_root else None
    for task in settings.tasks if read_data else ():
        load_task(task, root)
