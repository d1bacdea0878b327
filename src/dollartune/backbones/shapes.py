"""Configurations of well-known hub models, for work that needs shapes and no weights: checking, counting, planning."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

FILE = Path(__file__).parent / "shapes.yaml"


@cache
def _table() -> dict[str, dict[str, object]]:
    import yaml

    table: dict[str, dict[str, object]] = yaml.safe_load(FILE.read_text(encoding="utf8"))
    return table


def known_shape(name: str) -> Any | None:
    """The configuration of a hub model as transformers has it, from the table; None if it is not there.

    Sizes, roles and the number of parameters are the model's; generation settings and label names are not in the table.
    """
    settings = _table().get(name)
    if settings is None:
        return None
    from transformers import AutoConfig

    return AutoConfig.for_model(**settings)
