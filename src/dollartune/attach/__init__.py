"""Puts a method's edits into a backbone and takes them out again; rows of many adapters; merging."""

from dollartune.attach.adapter import Adapter
from dollartune.attach.attached import Assignment, Attached, attach

__all__ = ["Adapter", "Assignment", "Attached", "attach"]
