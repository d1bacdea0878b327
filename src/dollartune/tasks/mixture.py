"""Several tasks in one training run (instruction tuning), each evaluated by itself, held-out tasks included.

A mixture is a `Task` whose examples say which task they come from. Prompts and answers are that task's own, so training
sees one stream of (prompt, answer) pairs; evaluation asks `groups` for each task with its rows and scores it with its
own labels and measures.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal

from dollartune.errors import UserError, unknown_name
from dollartune.tasks.base import Example, SplitName, Splits, Task, Template, left_behind

if TYPE_CHECKING:
    from dollartune.tasks.config import TaskConfig

MEAN_OVER_TASKS = "mean_over_tasks"
"""A mixture's primary score: the mean of its tasks' primary scores, held-out tasks left out."""


@dataclass(frozen=True)
class Mixture(Task):
    """A task made of tasks.

    Its kind is `generation`, because one model learns all of it as text; its parts keep their own kinds.
    """

    parts: tuple[Task, ...] = ()
    """Tasks to train on."""
    held_out: tuple[Task, ...] = ()
    """Tasks to test on only."""
    weights: Mapping[str, float] = field(default_factory=dict)
    """Part -> how often it comes up, relative to the others; empty means by its number of rows."""

    def without_rows(self) -> Task:
        """The mixture and all of its tasks without their rows."""
        parts, held_out = (tuple(task.without_rows() for task in tasks) for tasks in (self.parts, self.held_out))
        return replace(self, load=left_behind, parts=parts, held_out=held_out)

    def owner(self, example: Example) -> Task:
        """The task that an example comes from."""
        for task in (*self.parts, *self.held_out):
            if task.name == example.task:
                return task
        raise unknown_name("task of an example", example.task, [task.name for task in (*self.parts, *self.held_out)])

    def prompt(self, example: Example, template: Template | None = None) -> str:
        """The prompt of the example's own task."""
        return self.owner(example).prompt(example, template)

    def answer(self, example: Example) -> str:
        """The answer of the example's own task."""
        return self.owner(example).answer(example)

    def groups(self, examples: Sequence[Example]) -> list[tuple[Task, tuple[Example, ...]]]:
        """Each task with its examples, in the mixture's order; tasks without examples are left out."""
        grouped = []
        for task in (*self.parts, *self.held_out):
            of_task = tuple(example for example in examples if example.task == task.name)
            if of_task:
                grouped.append((task, of_task))
        return grouped

    def splits(self, scale: int | None = None, seed: int = 0, cap: int = 2500, draw: int | None = None) -> Splits:
        """Cuts the mixture to `scale` training rows, drawn by weight; smaller scales are prefixes of larger ones.

        Validation shares its cap among the parts; test gives every part, and every held-out task, its own cap.
        A part that runs out of rows is left out from there on; without a scale all rows are used, and weights only set
        the order.
        """
        cuts = {task.name: task.splits(None, seed, cap, draw) for task in (*self.parts, *self.held_out)}
        # By rows where nothing is stated: then every row is seen once in an epoch.
        weights = self.weights or {task.name: float(len(cuts[task.name].train)) for task in self.parts}
        train = interleave({task.name: cuts[task.name].train for task in self.parts}, weights, scale)
        # Validation runs many times in a training, so the parts share its cap; the test runs once, and each part has its own.
        share = max(1, cap // len(self.parts))
        return Splits(
            tuple(_marked(name, example) for name, example in train),
            tuple(_marked(task.name, row) for task in self.parts for row in cuts[task.name].validation[:share]),
            tuple(_marked(task.name, row) for task in (*self.parts, *self.held_out) for row in cuts[task.name].test),
        )


@dataclass(frozen=True)
class MixedRows:
    """All rows of a mixture, unweighted (`Task.load`); held-out tasks have test rows only."""

    parts: tuple[Task, ...]
    held_out: tuple[Task, ...]

    def __call__(self) -> Mapping[SplitName, Sequence[Example]]:
        """Returns the rows of the parts one after the other, each marked with its task."""
        return {
            "train": [_marked(task.name, row) for task in self.parts for row in task.load()["train"]],
            "validation": [_marked(task.name, row) for task in self.parts for row in task.load()["validation"]],
            "test": [_marked(task.name, row) for task in (*self.parts, *self.held_out) for row in task.load()["test"]],
        }


def make_mixture(config: TaskConfig, parts: tuple[Task, ...], held_out: tuple[Task, ...]) -> Mixture:
    """Builds the mixture that a `TaskConfig` names.

    Args:
        parts: its tasks, loaded.
        held_out: those that are only tested.

    Raises:
        UserError: an image task, a task both trained on and held out, or a weight for none of them.
    """
    names = [task.name for task in (*parts, *held_out)]
    for task in (*parts, *held_out):
        if task.modality != "text":
            raise UserError(f"task {task.name!r} is about images; a mixture takes text tasks only.")
        if names.count(task.name) > 1:
            raise UserError(f"task {task.name!r} appears twice in the mixture and its held_out list.")
    return Mixture(
        name=config.name or "+".join(task.name for task in parts),
        kind="generation",
        load=MixedRows(parts, held_out),
        metric=MEAN_OVER_TASKS,
        # The longest of all: positions are reserved for what any part may write.
        max_answer_tokens=max(task.max_answer_tokens for task in (*parts, *held_out)),
        description=f"mixture of {', '.join(task.name for task in parts)}"
        + (f"; tested also on {', '.join(task.name for task in held_out)}" if held_out else ""),
        source=" ".join(task.source for task in (*parts, *held_out)),
        leaks=" ".join(f"{task.name}: {task.leaks}" for task in (*parts, *held_out) if task.leaks),
        notes=tuple(f"{task.name}: {note}" for task in (*parts, *held_out) for note in task.notes),
        parts=parts,
        held_out=held_out,
        weights=_weights(config.weights, [task.name for task in parts]),
    )


def _weights(given: Literal["equal", "proportional"] | dict[str, float], names: Sequence[str]) -> dict[str, float]:
    if given == "equal":
        return dict.fromkeys(names, 1.0)
    if given == "proportional":
        return {}
    assert isinstance(given, dict)
    for name, weight in given.items():
        if name not in names:
            raise unknown_name("task in the weights of the mixture", name, names)
        if not weight > 0:
            raise UserError(f"the weight of {name!r} should be above 0; given: {weight}.")
    missing = [name for name in names if name not in given]
    if missing:
        raise UserError(
            f"the mixture's weights leave out {', '.join(missing)}.", "Give every task of the mixture a weight."
        )
    return {name: given[name] for name in names}


def interleave(
    rows: Mapping[str, Sequence[Example]], weights: Mapping[str, float], limit: int | None
) -> list[tuple[str, Example]]:
    """Merges the rows of several tasks so that every prefix keeps the weights as closely as whole rows allow.

    Step t takes from the task with the lowest (taken + 1/2) / weight, ties to the first: the Webster (Sainte-Lague)
    order, in which a longer merge only ever adds to a shorter one.

    Args:
        rows: task -> its rows in order.
        weights: task -> positive number.
        limit: rows to take; None takes all.
    """
    taken = dict.fromkeys(rows, 0)
    total = sum(len(of_task) for of_task in rows.values())
    merged: list[tuple[str, Example]] = []
    for _ in range(total if limit is None else min(limit, total)):
        open_tasks = [name for name in rows if taken[name] < len(rows[name])]
        # The half makes the first row of a rare task come in the middle of its turn, and not at its end.
        name = min(open_tasks, key=lambda task: (taken[task] + 0.5) / weights[task])
        merged.append((name, rows[name][taken[name]]))
        taken[name] += 1
    return merged


def _marked(task: str, example: Example) -> Example:
    # Two tasks both have a `test/0`.
    return replace(example, id=f"{task}/{example.id}", task=task)


def mean_over_tasks(scores: Mapping[str, float], mixture: Mixture) -> float:
    """A mixture's primary score: the mean of the primary scores of the tasks it was trained on.

    Args:
        scores: task name -> its primary score; held-out tasks may be among them and do not count.
        mixture: says which tasks are parts.
    """
    return sum(scores[task.name] for task in mixture.parts) / len(mixture.parts)
