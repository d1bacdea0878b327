"""`docs`: the pages that are made from the program itself."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dollartune.cli.options import Json


def docs(
    out: Annotated[Path, typer.Option(help="Folder for methods/*.md, study-file.md and results.md.")] = Path("docs"),
    json: Json = False,
) -> None:
    """Write the documentation that is made from the program: a page per method, the study file, measured results."""
    from dollartune.cli.output import answer
    from dollartune.pages import write_pages

    written = write_pages(out)
    answer(json, {"files": written}, f"wrote {len(written)} pages under {out}")
