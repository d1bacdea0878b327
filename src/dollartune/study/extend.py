"""Goes on training where a finished trial ended, as a trial of its own beside it.

    record, its adapter ─> the same trial for more steps ─> a record beside the first: `lora, +60 steps`

Batches, optimizer and schedule begin again (a decayed rate cannot be taken back), so it is compared with the first trial and
not put in its place.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

from dollartune.errors import UserError
from dollartune.methods.stored_adapter import WEIGHTS
from dollartune.study.recorded import record_named, trial_of

if TYPE_CHECKING:
    from dollartune.config import StudySettings
    from dollartune.trials.store import Store
    from dollartune.trials.trial import Trial


def extension(
    store: Store,
    settings: StudySettings,
    planned: list[Trial],
    identifier: str,
    steps: int | None,
    epochs: float | None = None,
) -> Trial:
    """The trial that goes on where one ended.

    Args:
        planned: the study's trials.
        identifier: of the finished trial, or its beginning.
        steps: optimizer steps on top; by default as many as it has had.
        epochs: the same in passes over its training rows.

    Raises:
        UserError: there is no such trial, its adapter was not kept, or there is nothing to train further.
    """
    record = record_named(store, identifier)
    trained = record.training
    what = f"trial {record.id} ({record.trial.label})"
    if trained is None or not trained.steps:
        raise UserError(
            f"{what} was not trained in steps, so more of them change nothing.",
            hint=f"dollartune trials ls {store.root}",
        )
    if not (store.folder(record.id) / "adapter" / WEIGHTS).is_file():
        raise UserError(
            f"the adapter of {what} was not kept, so it cannot be trained further.",
            hint="keep_adapters: all keeps those of every trial; by default the best of each task and scale is kept.",
        )
    if epochs is not None:
        rows = record.data.train or 0
        # As `steps_for` counts: the short batch at the end of an epoch is a step, too.
        steps = math.ceil(epochs * math.ceil(rows / settings.training.batch_size))
    more = trained.steps if steps is None else steps
    if more < 1:
        raise UserError(f"{what} is trained further for one step at least; asked for {more}.")
    trial = trial_of(record, settings, planned)
    return replace(
        trial, extends=record.id, more=f"{trial.more}, +{more} steps", steps=more, fraction=1.0, length="settings"
    )
