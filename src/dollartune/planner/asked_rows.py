"""What becomes of a study's rows when they turn into tokens, said by `check`: rows that are cut, labels that are one.

Nothing is loaded but configurations and tokenizers that are on this machine. What was found is kept in the cache folder, as a
study file is checked again and again while it is written.
"""

from __future__ import annotations

import random
from importlib.metadata import version
from typing import TYPE_CHECKING

from dollartune.backbones.content_hash import of_backbone
from dollartune.memo import Memo, memo
from dollartune.trials.trial import room_for_virtual_tokens

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dollartune.config import StudySettings
    from dollartune.tasks.base import Example, Task
    from dollartune.trials.trial import Trial

SAMPLE = 500
"""Training rows whose length is looked at: a share of rows is known to 4 points by them, in about a second."""


def asked_notes(settings: StudySettings, trials: Sequence[Trial], tasks: Sequence[Task]) -> list[str]:
    """Sentences on rows that `max_length` cuts, and on label words that the tokenizer hardly knows.

    Raises:
        UserError: two labels are the same tokens for a backbone that writes them.
    """
    from dollartune.planner.text_lengths import at_hand

    notes: list[str] = []
    # As in the run: what one method's prompt takes is free in every method's rows.
    reserve = room_for_virtual_tokens(trial.variant for trial in trials)
    seen: set[tuple[int, int, str]] = set()
    for trial in trials:
        key = (trial.task_index, trial.backbone_index, trial.objective)
        task = tasks[trial.task_index]
        if key in seen or task.modality == "image" or trial.answers_alone:
            continue
        seen.add(key)
        rows = [
            # The same rows each time: what was found is kept by their contents.
            (part, random.Random(0).sample(list(rows), min(SAMPLE, len(rows))))
            for part, rows in task.groups(task.load()["train"] if at_hand(settings, task) else ())
        ]
        entry = _memo_of(settings, trial, rows, reserve)
        made = None if entry is None else entry.read()
        if made is None:
            made = _notes(settings, trial, task, rows, reserve)
            if entry is not None:
                entry.write(made)
        notes += made
    return list(dict.fromkeys(notes))


def _notes(
    settings: StudySettings, trial: Trial, task: Task, rows: Sequence[tuple[Task, Sequence[Example]]], reserve: int
) -> list[str]:
    # Imported here: the models of transformers take longer than all else that `check` does.
    import torch

    from dollartune.planner.dry_run import bare_backbone
    from dollartune.planner.study_plan import local_folder, local_processor
    from dollartune.train.encoding import Encoder

    notes: list[str] = []
    wanted = settings.backbones[trial.backbone_index]
    classes = len(task.labels) if trial.objective == "classification" else 0
    bare = bare_backbone(wanted.name, trial.objective, torch.float32, "none", classes, wanted.trust_remote_code)
    bare.processor = local_processor(wanted)
    if bare.kind == "vision" or (bare.processor is None and local_folder(wanted.name) is None):
        return notes
    encoder = Encoder(bare, settings.training.max_length, reserve)
    for part, sample in rows:
        if part.kind == "classification" and trial.objective == "language":
            notes += [f"{wanted.name}, {part.name}: {note}" for note in encoder.label_notes(part)]
        before = encoder.shortened
        encoder.encode(task, sample)
        cut = encoder.shortened - before
        if cut:
            notes.append(
                f"{wanted.name}, {part.name}: {cut} of {len(sample)} training rows looked at are longer than "
                f"{encoder.max_length} tokens and are cut to them (training: {{max_length: ...}})"
            )
    return notes


def _memo_of(
    settings: StudySettings, trial: Trial, rows: Sequence[tuple[Task, Sequence[Example]]], reserve: int
) -> Memo | None:
    """Where the notes on these rows are kept; None for a backbone from elsewhere, whose tokenizer is in no hash of ours."""
    contents = of_backbone(trial.backbone)
    if contents is None:
        return None
    asked = [
        (part.name, part.template and part.template.text, dict(part.label_words),
         [(row.fields, row.label, row.target, row.turns) for row in sample])
        for part, sample in rows
    ]  # fmt: skip
    decisive = (contents, trial.objective, trial.conditions, settings.training.max_length, reserve, asked)
    return memo("asked_rows", version("dollartune"), *decisive)
