"""Fails where two things have one name: a class defined twice in the package, or modules side by side with names almost alike.

    python tools/check_names.py

Whoever searches for a name should meet one thing. Exceptions stand below, each with its reason.
"""

from __future__ import annotations

import ast
import difflib
import sys
from collections import defaultdict
from pathlib import Path

SOURCE = Path(__file__).parents[1] / "src" / "dollartune"
ALIKE = 0.8
"""From this share of common letters on (difflib's ratio) two names are taken for twins: checkpoints and checkpointing have
0.83, search and searching 0.8; export and expand, which nobody confuses, 0.67."""

SAME_CLASS: dict[str, str] = {
    "Study": "evidence's is a published study, the public one is `dollartune.Study`",
    "Engine": "both fields say engine: Ray's and vLLM's",
}
"""Class name -> why it may be there twice."""
SAME_STEM: dict[tuple[str, str], str] = {
    ("albert", "bert"): "two model families, called so by their authors",
    ("counting", "routing"): "alike in their ending alone",
}
"""Modules of one folder -> why their names may be almost alike."""


def twice() -> dict[str, list[str]]:
    """Class name -> modules, where more than one defines it at its top."""
    found: dict[str, list[str]] = defaultdict(list)
    for path in sorted(SOURCE.rglob("*.py")):
        for node in ast.parse(path.read_text(encoding="utf8")).body:
            if isinstance(node, ast.ClassDef):
                found[node.name].append(str(path.relative_to(SOURCE)))
    return {name: files for name, files in found.items() if len(files) > 1 and name not in SAME_CLASS}


def twins() -> list[tuple[str, str, str]]:
    """(folder, module, module) with names almost alike."""
    found = []
    for folder in sorted({path.parent for path in SOURCE.rglob("*.py")}):
        names = sorted(path.stem for path in folder.glob("*.py") if path.stem != "__init__")
        for i, one in enumerate(names):
            for other in names[i + 1 :]:
                alike = difflib.SequenceMatcher(None, one, other).ratio() >= ALIKE
                if alike and (one, other) not in SAME_STEM:
                    found.append((str(folder.relative_to(SOURCE)), one, other))
    return found


def main() -> int:
    classes, modules = twice(), twins()
    for name, files in sorted(classes.items()):
        print(f"class {name} is defined in {' and in '.join(files)}: rename one.")
    for folder, one, other in modules:
        print(f"{folder}/{one}.py and {other}.py are easily confused: rename one.")
    print(f"{len(classes)} class names twice, {len(modules)} modules almost alike")
    return int(bool(classes or modules))


if __name__ == "__main__":
    sys.exit(main())
