"""What a model's forward pass takes."""

from __future__ import annotations

import functools
import inspect
from typing import Any


def takes(model: Any, name: str) -> bool:
    """Whether a model's forward pass takes an input of that name."""
    model_type: Any = type(model)
    return name in _inputs_of(model_type)


@functools.cache  # a server asks at every step, and reading a signature would take a hundredth of it
def _inputs_of(model_type: Any) -> frozenset[str]:
    return frozenset(inspect.signature(model_type.forward).parameters)
