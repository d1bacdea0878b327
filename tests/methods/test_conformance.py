"""Every registered method that trains something, with its default settings made small, through the public conformance suite."""

from __future__ import annotations

from typing import Any

from dollartune.methods.registry import build_method, methods
from dollartune.testing import MethodSuite

SMALL: dict[str, dict[str, Any]] = {
    "lora": {"rank": 2, "dropout": 0.2},
    "prompt": {"tokens": 3},
}
"""Settings that suit models 32 wide; a method that is not here runs with its defaults."""

EXTRA_FAMILIES = {"head": ("opt/classification",)}
"""Families beside the usual ones, where the method has a meaning only there."""

for _name, _class in methods().items():
    if not _class.capabilities.trains:
        continue
    _suite = f"Test_{_name}"
    globals()[_suite] = type(
        _suite,
        (MethodSuite,),
        {
            "method": build_method({"method": _name, **SMALL.get(_name, {})}),
            "families": (*MethodSuite.families, *EXTRA_FAMILIES.get(_name, ())),
        },
    )
