"""Methods that are meant where a user names none, from `defaults.yaml`."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import yaml
from pydantic import BaseModel, ConfigDict


class MethodsByRows(BaseModel):
    """Methods of a command, by what its rows are."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    text: tuple[str, ...]
    image: tuple[str, ...]


class Defaults(BaseModel):
    """The file's content."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    init: MethodsByRows
    tune: MethodsByRows


@cache
def defaults() -> Defaults:
    """The methods that are meant where none is named."""
    text = Path(__file__).with_name("defaults.yaml").read_text(encoding="utf8")
    return Defaults.model_validate(yaml.safe_load(text))
