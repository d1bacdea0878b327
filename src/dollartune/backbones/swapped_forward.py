"""Other functions in the place of modules' `forward`, for a while: the one way in which this package does that."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn


@contextmanager
def swapped_forward(functions: Iterable[tuple[nn.Module, Callable[..., Any]]]) -> Iterator[None]:
    """Within the block, calling each of these modules runs the function beside it; then what it ran before.

    Blocks may be nested, and several functions may be given for one module: the last one runs.
    """
    before: list[tuple[nn.Module, Any]] = []
    try:
        for module, function in functions:
            before.append((module, module.__dict__.get("forward")))
            # on the instance, so that hooks still run around it and the class is as it was; past nn.Module's own
            # __setattr__, which would register a compiled module as a child
            object.__setattr__(module, "forward", function)
        yield
    finally:
        for module, function in reversed(before):  # backwards, so that the first entry of a module counts
            if function is None:
                del module.__dict__["forward"]
            else:
                object.__setattr__(module, "forward", function)
