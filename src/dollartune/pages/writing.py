"""Writes the pages that are made, for `dollartune docs` and `make docs`."""

from __future__ import annotations

import json
from pathlib import Path

from dollartune.files import write_atomically
from dollartune.methods.registry import methods
from dollartune.pages.method_page import method_page, methods_index
from dollartune.pages.reference import study_file_page
from dollartune.trials.record import record_schema


def write_pages(out: Path) -> list[Path]:
    """Writes all made pages under a folder and returns them; pages of methods that are gone are removed."""
    pages = {
        "methods/index.md": methods_index(),
        "study-file.md": study_file_page(),
        "results.md": results_index(out / "results"),
        "record.schema.json": json.dumps(record_schema(), indent=1) + "\n",
        **{f"methods/{name}.md": method_page(cls) for name, cls in methods().items()},
    }
    (out / "methods").mkdir(parents=True, exist_ok=True)
    for old in (out / "methods").glob("*.md"):
        if f"methods/{old.name}" not in pages:
            old.unlink()
    for name, text in pages.items():
        write_atomically(out / name, text.encode())
    return [out / name for name in pages]


def results_index(folder: Path) -> str:
    """A list of the pages with measured results, by their titles."""
    lines = [
        "# Measured here\n",
        "Each page was made by a command from records of a real run; it names the command, the versions and the machine.\n",
    ]
    for page in sorted(folder.glob("*.md")):
        title = next((line[2:] for line in page.read_text().splitlines() if line.startswith("# ")), page.stem)
        lines.append(f"- [{title}](results/{page.name})")
    return "\n".join(lines) + "\n"
