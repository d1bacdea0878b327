"""How long a task's inputs are for a backbone: from its data, from what is known of it, or as the user says."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from dollartune.backbones.positions import position_limit
from dollartune.errors import UserError
from dollartune.planner.batches import TaskShape, spread_lengths
from dollartune.tasks.hub import fetched
from dollartune.tasks.registry import presets
from dollartune.tasks.typical import CHARACTERS_PER_TOKEN, typical
from dollartune.train.encoding import Encoder

if TYPE_CHECKING:
    from dollartune.backbones.loading import Backbone
    from dollartune.config import StudySettings
    from dollartune.tasks.base import Example, Task

SAMPLE = 240
"""Rows whose lengths stand for all: 15 batches of 16, so that the mean batch is known to some percent, encoded in a tenth of a
second."""
LONGEST_SUPPOSED = 512
"""Tokens to which inputs are cut where neither the study nor the backbone has a limit (T5, for one, has no positions)."""
ALL_ROWS = 10**9
"""Training rows of a task that nobody knows: more than any study's scales ask for, so that the scale decides."""


@dataclass(frozen=True)
class StatedLengths:
    """Lengths that the user states, in tokens."""

    prompt: int
    answer: int = 2
    """A label word of one token and its end mark."""

    @classmethod
    def parse(cls, text: str) -> StatedLengths:
        """From `300` or `300+40` (prompt + answer).

        Raises:
            UserError: anything else.
        """
        parts = [part.strip() for part in text.split("+")]
        if not all(part.isdigit() and int(part) for part in parts) or len(parts) > 2:
            raise UserError(f"{text!r} is no number of tokens.", "Write the prompt's, or prompt + answer: 300, 300+40.")
        return cls(*map(int, parts))


def task_shape(
    task: Task, backbone: Backbone, settings: StudySettings, reserve: int, stated: StatedLengths | None = None
) -> tuple[TaskShape, list[str]]:
    """A task in numbers, and notes on what had to be supposed.

    Args:
        backbone: with its tokenizer where there is one; else lengths are judged by characters.
        reserve: positions kept free for virtual tokens.
        stated: lengths to use instead of the data's.

    Raises:
        UserError: there is no data, and nothing is known of the task.
    """
    notes: list[str] = []
    known = typical(task.name)
    try:
        # What is known of a preset does for a plan: nothing is fetched for it.
        rows = {} if known is not None and not at_hand(settings, task) else task.load()
    except UserError as error:
        if known is None and stated is None:
            raise UserError(
                f"{error.message} To plan without the data, say how long its rows are.",
                "dollartune plan ... --tokens 300+5",
            ) from error
        rows = {}
    if not rows:
        notes.append(f"{task.name}: planned without its data, from lengths that are known of it.")
    counts = (
        [len(rows[split]) for split in ("train", "validation", "test")] if rows else list(known.rows) if known else []
    )
    if not counts:
        counts = [ALL_ROWS, settings.evaluation.rows, settings.evaluation.rows]
        notes.append(f"{task.name}: supposed to have as many rows as the study asks for.")
    positions = position_limit(backbone.model.config)
    limit = settings.training.max_length or LONGEST_SUPPOSED
    limit = limit if positions is None else min(limit, positions - reserve)
    classifies = backbone.objective == "classification"
    label_tokens: tuple[int, ...] = (1,) * len(task.labels)
    source = "the data"
    if backbone.kind == "vision":
        lengths: list[tuple[int, int]] = [
            (1, 0)
        ]  # patches are the model's affair: every image is as long as the others
    elif stated is not None:
        lengths, source = list(spread_lengths(stated.prompt, stated.answer)), "--tokens"
    elif rows and backbone.processor is not None:
        encoder = Encoder(backbone, settings.training.max_length, reserve)
        sample = _sample(rows["train"])
        lengths = [(len(e.prompt), len(e.answer)) for e in encoder.encode(task, sample)]
        label_tokens = (
            tuple(len(a) for a in encoder.label_answers(task)) if task.labels and not classifies else label_tokens
        )
    elif rows:
        sample = _sample(rows["train"])
        lengths = [(_tokens(len(task.prompt(e))), _tokens(len(task.answer(e)))) for e in sample]
        source = "the data's characters"
    else:
        assert known is not None
        pairs = zip(known.prompt_characters, known.answer_characters, strict=True)
        lengths, source = [(_tokens(p), _tokens(a)) for p, a in pairs], "the preset"
    lengths = [_within(prompt, 0 if classifies else answer, limit) for prompt, answer in lengths]
    train, validation, test = counts
    shape = TaskShape(
        task.kind, train, validation, test, tuple(lengths), label_tokens, task.max_answer_tokens, limit, source
    )
    return shape, notes


def at_hand(settings: StudySettings, task: Task) -> bool:
    """Whether a preset's rows are on this machine: in the study's data folder, or fetched from the hub before."""
    preset = presets().get(task.name)
    if preset is None:
        return True
    if settings.data_root is not None and preset.local_folder(Path(settings.data_root)) is not None:
        return True
    return preset.hub is not None and fetched(preset.hub)


def _sample(rows: Sequence[Example]) -> list[Example]:
    # Always the same rows, so that two plans of a study say the same; drawn, as files are often sorted by label or length.
    return random.Random(0).sample(list(rows), min(SAMPLE, len(rows)))


def _tokens(characters: int) -> int:
    return int(characters / CHARACTERS_PER_TOKEN) + 2  # with its start or end mark


def _within(prompt: int, answer: int, limit: int) -> tuple[int, int]:
    # As `train.encoding` cuts: an answer keeps half of the positions at most, then the prompt has what is left.
    answer = min(answer, max(1, limit // 2)) if answer else 0
    return max(1, min(prompt, limit - answer)), answer
