"""`docs`: the pages that are made from the program itself."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def docs(
    out: Annotated[Path, typer.Option(help="Folder for methods/*.md, study-file.md and results.md.")] = Path("docs"),
) -> None:
    """Write the documentation that is made from the program: a page per method, the study file, measured results."""
    from dollartune.pages import write_pages

    print(f"wrote {len(write_pages(out))} pages under {out}")
