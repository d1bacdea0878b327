"""From what a study has recorded back to the trial that it was: to make it again, or to go on from it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from dollartune.errors import UserError
from dollartune.methods.registry import build_method
from dollartune.trials.trial import Trial, Variant

if TYPE_CHECKING:
    from dollartune.backbones.kind import Objective
    from dollartune.config import StudySettings
    from dollartune.trials.record import TrialRecord
    from dollartune.trials.store import Store


def record_named(store: Store, identifier: str) -> TrialRecord:
    if store.has(identifier):
        return store.read(identifier)
    fitting = [record for record in store.records() if identifier and record.id.startswith(identifier)]
    if len(fitting) == 1:
        return fitting[0]
    what = "several trials begin with" if fitting else "there is no trial"
    raise UserError(f"{what} {identifier!r} in {store.root}.", hint="dollartune results STUDY --trials")


def trial_of(record: TrialRecord, settings: StudySettings, planned: list[Trial]) -> Trial:
    """The trial that a record is of: one of the study's own, with the settings that a search may have chosen."""
    facts = record.trial
    ablation = (facts.ablation.of, facts.ablation.name) if facts.ablation is not None else None
    variant = Variant.of([build_method(dict(method)) for method in facts.methods], facts.group, ablation)
    for one in planned:
        if (one.backbone, one.task, one.scale) != (facts.backbone, facts.task, facts.scale):
            continue
        objective: Objective = "classification" if facts.objective == "classification" else "language"
        # Without a draw a record had the first one, which `once` gives to every seed: the identifier is the same.
        trial = replace(
            one, variant=variant, objective=objective, seed=facts.seed, fraction=facts.fraction, steps=facts.steps,
            length=facts.length, draws="once" if facts.draw is None else "each_seed", extends=facts.extends,
            averaged_with=facts.averaged_with,
        )  # fmt: skip
        more = facts.extends is not None or facts.averaged_with is not None
        trial = replace(trial, more=facts.label.removeprefix(trial.label) if more else "")
        # The identifier hashes data and weights too, so an equal one means that nothing has changed.
        if trial.identifier == record.id:
            return trial
    raise UserError(
        f"trial {record.id} ({facts.label}) was made with other settings, data or weights than the study has now, so it cannot "
        "be made again.",
        hint="The record's `conditions` say with which: "
        + str(Path(settings.output) / "..." / record.id / "record.json"),
    )
