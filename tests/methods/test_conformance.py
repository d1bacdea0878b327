"""Every registered method that trains something, with its settings for tiny models, through the public conformance suite."""

from __future__ import annotations

from typing import Any

from dollartune.methods.base import Method
from dollartune.methods.registry import methods
from dollartune.testing import MethodSuite


def families(cls: type[Method[Any]]) -> tuple[str, ...]:
    """The usual ones; a method of the head alone has a meaning on a decoder only where that classifies."""
    classifiers = ("opt/classification", "llama/classification", "t5/classification", "bart/classification")
    return (*MethodSuite.families, *classifiers) if "head" in cls.kinds else MethodSuite.families


for _name, _class in methods().items():
    if _class.capabilities.trains:
        _suite = f"Test_{_name}"
        globals()[_suite] = type(
            _suite, (MethodSuite,), {"method": _class(**_class.tiny), "families": families(_class)}
        )
