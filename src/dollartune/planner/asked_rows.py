"""What becomes of a study's rows when they turn into tokens, said by `check`: rows that are cut, labels that are one.

Nothing is loaded but configurations and tokenizers that are on this machine.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import torch

from dollartune.planner.dry_run import bare_backbone
from dollartune.planner.study_plan import local_processor
from dollartune.planner.text_lengths import at_hand
from dollartune.train.encoding import Encoder

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dollartune.config import StudySettings
    from dollartune.tasks.base import Task
    from dollartune.trials.trial import Trial

SAMPLE = 500
"""Training rows whose length is looked at: a share of rows is known to 4 points by them, in about a second."""


def asked_notes(settings: StudySettings, trials: Sequence[Trial], tasks: Sequence[Task]) -> list[str]:
    """Sentences on rows that `max_length` cuts, and on label words that the tokenizer hardly knows.

    Raises:
        UserError: two labels are the same tokens for a backbone that writes them.
    """
    notes: list[str] = []
    seen: set[tuple[int, int, str]] = set()
    for trial in trials:
        key = (trial.task_index, trial.backbone_index, trial.objective)
        task, wanted = tasks[trial.task_index], settings.backbones[trial.backbone_index]
        if key in seen or task.modality == "image" or trial.answers_alone:
            continue
        seen.add(key)
        classes = len(task.labels) if trial.objective == "classification" else 0
        bare = bare_backbone(wanted.name, trial.objective, torch.float32, "none", classes, wanted.trust_remote_code)
        bare.processor = local_processor(wanted)
        if bare.processor is None or bare.kind == "vision":
            continue
        encoder = Encoder(bare, settings.training.max_length)
        for part, rows in task.groups(task.load()["train"] if at_hand(settings, task) else ()):
            if part.kind == "classification" and trial.objective == "language":
                notes += [f"{wanted.name}, {part.name}: {note}" for note in encoder.label_notes(part)]
            # Seeded: two checks of one study say the same.
            sample = random.Random(0).sample(list(rows), min(SAMPLE, len(rows)))
            # The encoder counts on over tasks.
            before = encoder.shortened
            encoder.encode(task, sample)
            cut = encoder.shortened - before
            if cut:
                notes.append(
                    f"{wanted.name}, {part.name}: {cut} of {len(sample)} training rows looked at are longer than "
                    f"{encoder.max_length} tokens and are cut to them (training: {{max_length: ...}})"
                )
    return list(dict.fromkeys(notes))
