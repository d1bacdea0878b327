"""Role maps, one file per family. A file that defines `FAMILY` is found by itself; other packages register theirs as entry
points `dollartune.families`, and a study names a file of its own (`backbone: {name: ..., anatomy: FILE}`)."""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path

from dollartune.backbones.anatomy import Family
from dollartune.errors import UserError

_FROM_FILES: dict[str, Family] = {}
"""model_type -> what a user's file says; it comes before everything else."""


def families() -> dict[str, Family]:
    """Every known `model_type` -> its family."""
    return {**_installed(), **_FROM_FILES}


@cache
def _installed() -> dict[str, Family]:
    known: dict[str, Family] = {}
    for info in pkgutil.iter_modules(__path__):
        module = importlib.import_module(f"{__name__}.{info.name}")
        family = getattr(module, "FAMILY", None)
        if isinstance(family, Family):
            known.update(dict.fromkeys(family.model_types, family))
    for entry in entry_points(group="dollartune.families"):
        family = entry.load()
        if not isinstance(family, Family):
            raise UserError(
                f"entry point {entry.name!r} of dollartune.families is a {type(family).__name__}, not a Family."
            )
        known.update(dict.fromkeys(family.model_types, family))
    return known


def use_file(path: Path) -> Family:
    """Takes a user's anatomy file for the model types that it names, in this process.

    Raises:
        UserError: it cannot be read, or is not understood.
    """
    from dollartune.backbones.anatomy_file import read_family

    return use_family(read_family(path))


def use_family(family: Family) -> Family:
    """Takes a family for the model types that it names, in this process; one equal to what is there changes nothing."""
    if family != _FROM_FILES.get(family.model_types[0]):
        _FROM_FILES.update(dict.fromkeys(family.model_types, family))
    return family


def forget_files() -> None:
    """Leaves only what is installed."""
    _FROM_FILES.clear()


def is_from_file(family: Family) -> bool:
    """Whether a user's file said it."""
    return any(family is known for known in _FROM_FILES.values())
