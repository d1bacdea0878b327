"""Tasks: presets, files of your own, hub data sets and mixtures, all as one `Task`."""

from __future__ import annotations

from dollartune.tasks.base import Example, Splits, Task, Template
from dollartune.tasks.registry import describe_task, load_task, task_names

__all__ = ["Example", "Splits", "Task", "Template", "describe_task", "load_task", "task_names"]
