"""Which tuned adapters a study keeps, and what is stored with each."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dollartune.backbones.locate import from_anywhere
from dollartune.export.directory import tokenizer_hash
from dollartune.files import discard_folder
from dollartune.methods.registry import method_class
from dollartune.methods.stored_adapter import WEIGHTS, task_facts
from dollartune.tasks.rows_seen import rows_seen
from dollartune.train.averages import mean_of
from dollartune.train.head_start import shift_classes
from dollartune.trials.best import best_record
from dollartune.untrusted_files import read_tensors

if TYPE_CHECKING:
    from dollartune.attachment.adapter import Adapter
    from dollartune.backbones.loading import Backbone
    from dollartune.config import StudySettings
    from dollartune.tasks.base import Splits, Task
    from dollartune.trials.record import Cost, TrialRecord
    from dollartune.trials.store import Store
    from dollartune.trials.trial import Trial


def adapter_info(
    trial: Trial,
    task: Task,
    backbone: Backbone,
    settings: StudySettings,
    scores: Mapping[str, float],
    cost: Cost,
    reserved_places: int = 0,
    splits: Splits | None = None,
    on_validation: bool = False,
) -> dict[str, object]:
    """What is needed to use an adapter later: backbone, prompt, label words, how it did, and which rows it has seen.

    Args:
        on_validation: it was trained on the validation rows too.
    """
    seen = None
    if splits is not None:
        trained = [*splits.train, *splits.validation] if on_validation else splits.train
        seen = rows_seen(task, trained, [] if on_validation else splits.validation)
    return {
        "backbone": from_anywhere(settings.backbones[trial.backbone_index].name),
        "revision": backbone.revision,
        "weights_hash": backbone.weights_hash,
        "objective": trial.objective,
        "tokenizer": tokenizer_hash(backbone.processor),
        "task": task_facts(task, backbone),
        "max_length": settings.training.max_length,
        "reserved_places": reserved_places,
        "quantize": settings.backbones[trial.backbone_index].quantize,
        "dtype": str(backbone.dtype).removeprefix("torch."),
        "random_weights_seed": settings.backbones[trial.backbone_index].random_weights_seed,
        "anatomy": _anatomy_text(settings.backbones[trial.backbone_index].anatomy),
        "scores": dict(scores),
        "cost": cost.model_dump(),
        "trial": trial.to_json(),
        **({} if seen is None else {"rows_seen": seen.as_data()}),
    }


def average_with(adapter: Adapter, folder: Path, class_offsets: Sequence[float] | None, backbone: Backbone) -> None:
    """Averages an adapter with a stored one that began as it did (`train.averages`).

    Args:
        class_offsets: that the stored one has in its scores of classes, and the adapter has not yet.

    Raises:
        UserError: they are of different shape.
    """
    if class_offsets is not None:
        shift_classes(adapter, backbone, class_offsets)
    adapter.load(mean_of([adapter.tensors(), read_tensors(folder, WEIGHTS)]))


def keep_best(store: Store, trials: Collection[str], beside: Collection[str] = ()) -> None:
    """Deletes all adapters but the best one of each backbone, task and scale, by validation score.

    Of the study's own trials the best one stays. Until there is one, the best setting that a search has tried does, so
    that a study which is ended early leaves something; of solved and of trained ones each the best, as what is trained may
    still be averaged with another run.

    Args:
        trials: identifiers of the study's (final) trials.
        beside: of trials whose adapters stay as well.
    """
    cells: dict[tuple[str, ...], list[TrialRecord]] = {}
    for record in store.with_adapter():
        if record.status != "tried" and record.id not in trials:
            continue  # of an earlier version of the study
        trial = record.trial
        # Its settings too: in 4 bits it is another backbone under the same name.
        backbone = json.dumps(trial.conditions.get("backbone"), sort_keys=True)
        cells.setdefault((trial.backbone, backbone, trial.task, str(trial.scale)), []).append(record)
    for records in cells.values():
        final = sorted((record for record in records if record.id in trials), key=lambda record: record.id)
        kept = set()
        for solved in (True, False):
            # By identifier: ties must not depend on the order in which files are listed.
            alike = sorted((one for one in records if _solved(one) == solved), key=lambda record: record.id)
            best = best_record(final or alike)
            # what the best one was averaged with is needed to make it again
            kept |= set() if best is None else {best.id, best.trial.averaged_with}
        for record in records:
            if record.id not in kept and record.id not in beside:
                discard_folder(store.folder(record.id) / "adapter")


def _solved(record: TrialRecord) -> bool:
    return any(method_class(str(method["method"])).capabilities.solved for method in record.trial.methods)


def _anatomy_text(path: str | None) -> str | None:
    """A user's anatomy file as text: whoever opens the adapter reads the backbone as it was read when tuning."""
    return None if path is None else Path(path).expanduser().read_text(encoding="utf8")
