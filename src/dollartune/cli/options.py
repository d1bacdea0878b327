"""Options that several commands share, and the study that they name."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from dollartune.config import StudySettings
    from dollartune.trials.store import Store

StudyPath = Annotated[Path, typer.Argument(metavar="STUDY.yaml", help="The study file (YAML).")]
FolderPath = Annotated[Path, typer.Argument(metavar="STUDY", help="The study's folder or its YAML file.")]
Json = Annotated[bool, typer.Option("--json", help="Print data as JSON.")]
DataRoot = Annotated[Path | None, typer.Option(help="Folder with local copies of presets' data.")]
Price = Annotated[str | None, typer.Option(help="Price of this machine, for example 2.49/h.")]
Output = Annotated[Path | None, typer.Option(help="Folder in which the study's folder is made (default: studies).")]
Engine = Annotated[str | None, typer.Option(help="Where trials are run: local (this process) or ray (a Ray cluster).")]
Address = Annotated[str | None, typer.Option(help="Of the Ray cluster: HOST:6379, ray://HOST:10001 or auto.")]
Shrink = Annotated[
    bool, typer.Option("--shrink", help="The same study in minutes: embedded backbones, less of everything.")
]
Seeds = Annotated[str | None, typer.Option(help="In place of the file's: how many (5), or which (0,3,7).")]
Methods = Annotated[str | None, typer.Option(help="In place of the file's: lora,full or 'lora(rank=8),bitfit'.")]
Scales = Annotated[
    str | None, typer.Option(help="In place of the file's: numbers of training rows, as in 100,1000,all.")
]
Budget = Annotated[str | None, typer.Option(help="In place of the file's: '$2', '20 min', '$5 per study'.")]
Sets = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="KEY=VALUE", help="Any other key of the file, as in training.batch_size=16; repeat it."
    ),
]


def overrides(
    seeds: str | None, methods: str | None, scales: str | None, budget: str | None, sets: list[str] | None
) -> dict[str, Any]:
    """What the command line says in place of the file, for `study_settings`."""
    from dollartune.study_file import read_assignments, read_scales, read_seeds, split_methods

    return {
        "sets": read_assignments(sets or []),
        "seeds": None if seeds is None else read_seeds(seeds),
        "methods": None if methods is None else split_methods(methods),
        "scales": None if scales is None else read_scales(scales),
        "budget": budget,
    }


def study_settings(
    study: Path,
    data_root: Path | None,
    price: str | None,
    output: Path | None,
    shrunk: bool = False,
    fresh: bool = False,
    **told: Any,
) -> StudySettings:
    """The settings of a study file, with what the command line says in their place.

    Args:
        fresh: the study's folder is deleted first, and decides nothing.
        told: what `overrides` made of it.
    """
    from dollartune.budget.limit import BudgetSettings
    from dollartune.study_file import load_study

    settings = load_study(
        study, data_root=str(data_root) if data_root else None, output=str(output) if output else None, **told
    )
    if settings.source is not None:
        from dollartune.evidence.published import source_findings

        # A table that there is not is told now: the report, which reads it, comes after the money.
        source_findings(settings)
    if price is not None:
        budget = settings.budget or BudgetSettings()
        # A price alone is no limit: it only turns booked seconds into dollars.
        settings = settings.model_copy(update={"budget": budget.model_copy(update={"price": price})})
    # Before the folder is looked at: a shrunk study has a name of its own.
    if shrunk:
        from dollartune.study.downscale import shrink

        settings = shrink(settings)
    if study.name == "study.yaml":
        store_of(settings, study).need_other_file(study)
    # A study that has not begun decides nothing; what reads records takes a twentieth of a second to load.
    begun = not fresh and _folder_of(settings, study).exists()
    return store_of(settings, study).as_begun(settings) if begun else settings


def _folder_of(settings: StudySettings, study: Path) -> Path:
    return Path(settings.output) / (settings.name or study.stem)


def store_of(settings: StudySettings, study: Path) -> Store:
    """Where the study of a file keeps what it finds."""
    from dollartune.trials.store import Store

    return Store(_folder_of(settings, study))


def on_engine(settings: StudySettings, engine: str | None, address: str | None) -> StudySettings:
    """The study on the engine that the command line names; an address is one of Ray's."""
    from dollartune.errors import unknown_name

    if engine is None and address is None:
        return settings
    known = ("local", "ray")
    if engine is not None and engine not in known:
        raise unknown_name("engine", engine, known)
    chosen = settings.engine.model_copy(update={"name": engine or "ray"})
    if address is not None:
        chosen = chosen.model_copy(update={"address": address})
    return settings.model_copy(update={"engine": chosen})
