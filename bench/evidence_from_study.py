"""Turns a finished study into an evidence file, which `dollartune advise` then knows.

python bench/evidence_from_study.py STUDY_FOLDER "title" "how it was made" > src/dollartune/evidence/studies/KEY.yaml
"""

from __future__ import annotations

import sys
from typing import Any

import yaml

from dollartune.evidence import from_study
from dollartune.study.api import open_study


def main() -> None:
    folder, title, command = sys.argv[1:4]
    found = from_study(open_study(folder), title, command)
    rows: list[list[Any]] = found.pop("rows")
    columns: list[str] = found.pop("columns")
    print(
        "# Written by bench/evidence_from_study.py: a study that was run with DollarTune, as evidence for its advice."
    )
    print(yaml.safe_dump(found, sort_keys=False, allow_unicode=True, width=120), end="")
    print(f"columns: {_inline(columns)}\nrows:")
    for row in rows:
        print(f"  - {_inline(row)}")


def _inline(values: list[Any]) -> str:
    return str(yaml.safe_dump(values, default_flow_style=True, allow_unicode=True, width=10**6)).strip()


if __name__ == "__main__":
    main()
