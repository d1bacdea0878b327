"""Puts a method's edits into a backbone and takes them out again; routing of rows to adapters; merging.

The package is not called `attach`, so that `from dollartune import attach` always gives the function: importing a
package binds it to its parent under its own name. Fast paths, each tested against the plain one, are in `fast/`.
"""

from __future__ import annotations

from dollartune.attachment.adapter import Adapter
from dollartune.attachment.attached import Assignment, Attached, attach

__all__ = ["Adapter", "Assignment", "Attached", "attach"]
