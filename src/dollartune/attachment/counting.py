"""Counts parameters on the meta device: shapes from a config.json, no weights."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import TypedDict

from dollartune.errors import unknown_name


class RoleCount(TypedDict):
    """Sites of one role, and the parameters trained there."""

    sites: int
    parameters: int


class ParameterCounts(TypedDict):
    """What methods train: a count is always given with its modules, because one number can come about in several ways."""

    trainable_parameters: int
    total_parameters: int
    methods: list[str]
    by_role: dict[str, RoleCount]
    modules: dict[str, int]
    """Site -> count."""


def count_parameters(backbone: str, methods: Sequence[str], objective: str | None = None) -> ParameterCounts:
    """Trainable and total parameters of methods on a backbone."""
    import torch

    from dollartune.attachment.adapter import Adapter
    from dollartune.backbones.loading import anatomy_of, empty_model
    from dollartune.methods.registry import build_method

    if objective not in (None, "language", "classification"):
        raise unknown_name("objective", str(objective), ("language", "classification"))
    built = [build_method(spec) for spec in methods]
    if objective is None and any("head" in method.kinds for method in built):
        objective = "classification"
    model = empty_model(backbone, objective)  # type: ignore[arg-type]
    anatomy = anatomy_of(model)
    # shapes alone: counting for a 70B backbone takes seconds and no memory
    with torch.device("meta"):
        adapter = Adapter(built, anatomy, model)
    modules = adapter.modules_edited()
    roles: defaultdict[str, RoleCount] = defaultdict(lambda: {"sites": 0, "parameters": 0})
    role_of = {site.name: site.role for site, _ in adapter.items()}
    for name, count in modules.items():
        entry = roles[role_of.get(name, name)]
        entry["sites"] += 1
        entry["parameters"] += count
    return {
        "trainable_parameters": adapter.count(),
        "total_parameters": anatomy.at("model")[0].parameters,
        "methods": [repr(method) for method in built],
        "by_role": dict(roles),
        "modules": modules,
    }
