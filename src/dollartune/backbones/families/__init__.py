"""Role maps, one file per family. A file that defines `FAMILY` is found by itself."""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache

from dollartune.backbones.anatomy import Family


@cache
def families() -> dict[str, Family]:
    """Every known `model_type` -> its family."""
    found: dict[str, Family] = {}
    for info in pkgutil.iter_modules(__path__):
        module = importlib.import_module(f"{__name__}.{info.name}")
        family = getattr(module, "FAMILY", None)
        if isinstance(family, Family):
            found.update(dict.fromkeys(family.model_types, family))
    return found
