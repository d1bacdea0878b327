"""Studies that were run with DollarTune, as evidence: the leaderboard of each, one YAML file in `studies/`.

    python bench/evidence_from_study.py STUDY KEY "title" > src/dollartune/evidence/studies/KEY.yaml

No row of any data set is in it, only scores, intervals and costs.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dollartune.study.results import Results
    from dollartune.trials.record import Environment, TrialRecord

FOLDER = Path(__file__).with_name("studies")


@dataclass(frozen=True)
class StudyRow:
    """One method with fixed settings on one task and scale, means over its seeds."""

    task: str
    task_kind: str
    """classification, generation, image_classification."""
    scale: int | None
    """Training rows; None is all."""
    method: str
    label: str
    metric: str
    score: float
    low: float | None
    high: float | None
    """95 % interval over test rows and seeds."""
    may_be_best: bool | None
    """Whether it cannot be told apart from the best of its board."""
    seeds: int
    trainable: int
    seconds: float
    """Of one trial: tuning, evaluation, export."""
    seconds_to_best: float | None = None
    peak_bytes: int | None = None
    adapter_bytes: int | None = None
    request_seconds: float | None = None
    forgetting: float | None = None
    """Rise of the loss on general text, nats per token."""


@dataclass(frozen=True)
class RecordedStudy:
    """A finished study."""

    key: str
    title: str
    backbone: str
    parameters: int
    """Of the backbone."""
    machine: str
    versions: str
    command: str
    """That makes it again."""
    rows: tuple[StudyRow, ...]

    @property
    def citation(self) -> str:
        return f"DollarTune study {self.key!r}: {self.title}"


@cache
def studies(folder: Path = FOLDER) -> dict[str, RecordedStudy]:
    """All studies by key."""
    import yaml

    recorded = {}
    for path in sorted(folder.glob("*.yaml")):
        raw = yaml.safe_load(path.read_text(encoding="utf8"))
        rows = tuple(StudyRow(**dict(zip(raw["columns"], row, strict=True))) for row in raw["rows"])
        about = {key: value for key, value in raw.items() if key not in ("columns", "rows")}
        recorded[path.stem] = RecordedStudy(path.stem, rows=rows, **about)
    return recorded


def from_study(results: Results, title: str, command: str) -> dict[str, object]:
    """A finished study as the mapping that its evidence file holds. Ablations are left out: they have a page of their own.

    Raises:
        UserError: the study has no result.
    """
    from dollartune.errors import UserError
    from dollartune.study.compare import boards, standings

    done = results.done()
    if not done:
        raise UserError(f"the study in {results.store.root} has no finished trial.", "dollartune run STUDY.yaml")
    records = {(b[0], b[1], label): of_label for b, by in boards(results).items() for label, of_label in by.items()}
    columns = [field.name for field in fields(StudyRow)]
    rows = []
    for row in standings(results):
        records_of_label = records[row["task"], row["scale"], row["label"]]
        # A method with a part left out is no method to advise.
        if records_of_label[0].trial.ablation is not None:
            continue
        sizes = [record.adapter.bytes for record in records_of_label if record.adapter is not None]
        facts = {
            **row,
            "task_kind": _task_kind(records_of_label[0]),
            "adapter_bytes": next((size for size in sizes if size), None),
            "peak_bytes": None if row["peak_trials"] > 1 else row["peak_bytes"] or None,
        }
        rows.append([_short(facts[name]) for name in columns])
    environment = done[0].environment
    return {
        "title": title,
        "backbone": ", ".join(dict.fromkeys(_name(record.trial.backbone) for record in done)),
        "parameters": max(record.parameters.total for record in done),
        "machine": f"{environment.threads} threads of a CPU" if not _on_gpu(environment) else environment.device,
        "versions": ", ".join(f"{name} {version}" for name, version in environment.versions.items()),
        "command": command,
        "columns": columns,
        "rows": rows,
    }


def _task_kind(record: TrialRecord) -> str:
    """What the task asks for; images where the backbone reads them."""
    from dollartune.backbones.kind import kind_of
    from dollartune.backbones.loading import read_config

    if not record.labels:
        return "generation"
    trial = record.trial
    vision = trial.objective == "classification" and kind_of(read_config(trial.backbone)) == "vision"
    return "image_classification" if vision else "classification"


def _on_gpu(environment: Environment) -> bool:
    return any(word in str(environment.device) for word in ("NVIDIA", "AMD Instinct", "Tesla", "GeForce"))


def _name(backbone: str) -> str:
    """A backbone's name without the folders of the machine."""
    return Path(backbone).name if backbone.startswith(("/", ".", "~")) else backbone


def _short(value: Any) -> Any:
    """Four digits that count, as plain Python values; not a number is None."""
    if isinstance(value, float):
        # value == value is false for NaN alone.
        return float(f"{value:.4g}") if value == value else None
    return value.item() if hasattr(value, "item") else value
