"""`advise`: which method, for this task and these means."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer


def advise(
    examples: Annotated[int, typer.Option("--examples", "-n", help="Training examples you have.", min=1)],
    task: Annotated[str, typer.Option(help="classification or generation.")] = "classification",
    priority: Annotated[str, typer.Option(help="What matters most: quality, time, memory, serving.")] = "quality",
    study: Annotated[Path | None, typer.Option(help="Your own study; it counts more than published ones.")] = None,
    machine: Annotated[str | None, typer.Option(help="A machine of `dollartune machines ls`.")] = None,
    budget: Annotated[str | None, typer.Option(help="For example '$1' or '20 min'.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print data as JSON.")] = False,
) -> None:
    """Recommend a method, with reasons and what they rest on: your own study, else published results."""
    from dollartune.advise import advise as recommend
    from dollartune.cli.output import print_json
    from dollartune.study.api import open_study

    frame = None
    if study is not None:
        names = {"scale": "n_examples", "seconds_to_best": "convergence_seconds", "trainable": "trainable_parameters"}
        frame = open_study(study).frame().rename(columns=names)
    chosen: Any = priority  # checked there
    found = recommend(examples, task, chosen, study_results=frame, machine=machine, budget=budget)
    print_json(found.to_dict()) if json else print(found.text())
