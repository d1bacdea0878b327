"""Every registered method that trains something, with its default settings made small, through the public conformance
suite."""

from __future__ import annotations

from typing import Any

from dollartune.methods.registry import build_method, methods
from dollartune.testing import MethodSuite

SMALL: dict[str, dict[str, Any]] = {
    "lora": {"rank": 2, "dropout": 0.2},
    "dora": {"rank": 2, "dropout": 0.2},
    "vera": {"rank": 64, "dropout": 0.2},
    "adalora": {"rank": 4, "target_rank": 2, "dropout": 0.2},
    "intrinsic": {"dimension": 100},
    "diff_pruning": {"keep": 0.2, "lr": 0.02},
    "layer_freezing": {"train": "last 1"},
    "prompt": {"tokens": 3},
    "p_tuning": {"tokens": 3, "hidden": 16},
    "prefix": {"tokens": 3},
    "houlsby": {"reduction": 4},
    "pfeiffer": {"reduction": 4},
    "parallel": {"reduction": 4},
    "low_rank_adapter": {"reduction": 4, "rank": 2},
    "phm_adapter": {"reduction": 4},
    "compacter": {"reduction": 4},
    "adapter_drop": {"reduction": 4, "robust": True},
    "adapter_fusion": {"parts": ["pfeiffer(reduction=4)", "pfeiffer(reduction=8)"]},
    "reft": {"rank": 2, "first": 2, "last": 1},
}
"""Settings that suit models 32 wide; a method that is not here runs with its defaults."""

EXTRA_FAMILIES = {"head": ("opt/classification",)}
"""Families beside the usual ones, where the method has a meaning only there."""

OVERFIT_LR = {"ia3": 0.1, "vera": 0.1, "prompt": 0.3, "prefix": 0.2, "p_tuning": 0.05, "reft": 0.05}
"""Learning rates for a few steps on tiny models, where a method needs more than the suite's own."""

OVERFIT_DROP = {"prompt": 0.005, "p_tuning": 0.005}
"""Share of the loss to take away, where a method can do little to a model that has never been trained."""

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
            "overfit_lr": OVERFIT_LR.get(_name, MethodSuite.overfit_lr),
            "overfit_drop": OVERFIT_DROP.get(_name, MethodSuite.overfit_drop),
        },
    )
