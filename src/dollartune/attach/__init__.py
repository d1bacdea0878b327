"""Puts a method's edits into a backbone and takes them out again; rows of many adapters; merging.

The package can be called like its function `attach`: once it is imported, Python binds it to the name `dollartune.attach`, so
that `from dollartune import attach` may give either.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

from dollartune.attach.adapter import Adapter
from dollartune.attach.attached import Assignment, Attached, attach

__all__ = ["Adapter", "Assignment", "Attached", "attach"]


class _Callable(ModuleType):
    def __call__(self, *arguments: Any, **settings: Any) -> Attached:
        return attach(*arguments, **settings)


sys.modules[__name__].__class__ = _Callable
