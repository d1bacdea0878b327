"""`init`: from a data file to a study file."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from dollartune.cli.options import Json

Label = Annotated[
    str | None, typer.Option(help="Column with the class label or, with `target:COLUMN`, the text to write.")
]
Text = Annotated[
    list[str] | None, typer.Option(help="Column with the input; give it once for each column to be shown.")
]
Prompt = Annotated[
    str | None,
    typer.Option(help="The prompt, with columns in braces: 'Mood of {text}:'. By default it is made of the columns."),
]
OnBadRow = Annotated[
    str | None, typer.Option(help="What a malformed row does: stop (with its line) or skip (left out and counted).")
]


def told_columns(
    label: str | None, text: list[str] | None, prompt: str | None, on_bad_row: str | None
) -> dict[str, Any]:
    """What the user said of a data file's columns, as fields of a study's `task:` entry."""
    target = label.removeprefix("target:") if label is not None and label.startswith("target:") else None
    return {
        "label": None if target is not None else label,
        "target": target,
        "text": None if not text else text[0] if len(text) == 1 else list(text),
        "prompt": prompt,
        "on_bad_row": on_bad_row,
    }


FIRST_SECONDS = 120.0
"""For each method: a first answer over coffee."""


def _first_budget(machine: str | None, price: str | None) -> dict[str, str | float | None]:
    """The budget of a new study: in dollars where the machine's price is known, else in seconds.

    Raises:
        UserError: there is no such machine, or the price is none.
    """
    from dollartune.budget.prices import find_price, machine_here

    here = machine_here() if machine is None and price is None else None
    row = here.name if here is not None else machine
    per_hour = find_price(price, row)
    if not per_hour:
        return {"seconds": FIRST_SECONDS, "per": "method"}
    whose = {"machine": row} if price is None else {"price": price}
    # two digits: what is read at a glance
    return {"dollars": float(f"{per_hour * FIRST_SECONDS / 3600:.2g}"), "per": "method", **whose}


def init(
    data: Annotated[
        str, typer.Argument(help="A data file (csv, jsonl, parquet), a folder or zip of images, or a hub id.")
    ],
    out: Annotated[Path, typer.Option(help="Where to write the study file.")] = Path("study.yaml"),
    backbone: Annotated[str, typer.Option(help="Pretrained model.")] = "",
    label: Label = None,
    text: Text = None,
    prompt: Prompt = None,
    on_bad_row: OnBadRow = None,
    machine: Annotated[
        str | None,
        typer.Option(
            help="This machine's row of `dollartune machines ls`, for its price; by default as its system says."
        ),
    ] = None,
    price: Annotated[str | None, typer.Option(help="Price of this machine, for example 2.49/h.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite an existing file.")] = False,
    json: Json = False,
) -> None:
    """Write a study file for a data file: columns, label words and prompt are guessed and spelled out to be changed."""
    from dollartune.backbones.locate import resolve
    from dollartune.cli.output import command, print_json, print_note
    from dollartune.defaults import defaults
    from dollartune.errors import UserError
    from dollartune.files import write_atomically
    from dollartune.study.file_schema import kept_schema
    from dollartune.study.new_file import study_text
    from dollartune.tasks.suggest import suggest_task

    if out.exists() and not force:
        raise UserError(f"{str(out)!r} exists already.", hint=f"dollartune init {data} --out OTHER.yaml, or --force")
    if backbone:
        resolve(backbone)  # what is misspelt is said now, not in the file
    entry, task = suggest_task(data, told=told_columns(label, text, prompt, on_bad_row))
    if (given := Path(data)).exists() and not given.is_absolute():
        # paths in a study file count from its folder
        entry["data"] = os.path.relpath(given, out.parent.resolve())
    for note in task.notes if not json else ():
        print_note(note)
    image = task.modality == "image"
    chosen = backbone or ("tiny-vit" if image else "tiny-decoder")
    train = len(task.load()["train"])
    methods = list(defaults().init.image if image else defaults().init.text)
    study = {
        "backbone": chosen,
        "task": entry,
        "methods": methods,
        # The low and the medium scale of reference 001; they are one for a file of up to 100 training rows.
        "scales": sorted({min(100, train), min(1000, train)}),
        # The fewest seeds with which an interval over seeds is of any use (Student's factor: 12.7 with two, 4.3 with three).
        "seeds": 3,
        "budget": _first_budget(machine, price),
        "search": True,
    }
    head = f"Written by `dollartune init {data}`; every line may be changed. What may stand where: dollartune schema"
    write_atomically(out, study_text(study, head, kept_schema()).encode())
    if json:
        print_json(
            {"file": str(out), "kind": task.kind, "training_rows": train, "task": entry, "notes": list(task.notes)}
        )
        return
    print(f"wrote {out}: {task.kind}, {train} training rows. Next: {command('check', out)}")
