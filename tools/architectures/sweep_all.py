"""Every architecture by `sweep.py`, one after the other in one process, and a table at the end.

    python tools/architectures/sweep_all.py [--models FOLDER] [--results FOLDER] [--table FILE] [NAME ...]

Without a folder of models they are made first, in a temporary one. A folder of results keeps each architecture's as soon as it is
judged, and what is there is not judged again: a run that was ended goes on, and one is judged anew by deleting its file.
Exit code 0 if there is no fault.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from make_models import RECIPES, make
from sweep import METHODS, Report, judge, quiet


def kept(folder: Path | None, name: str) -> Report | None:
    """The result of an earlier run, if there is one."""
    file = folder and folder / f"{name}.json"
    return Report(name, [tuple(row) for row in json.loads(file.read_text())]) if file and file.exists() else None


def table(reports: list[Report]) -> str:
    """Markdown: one row per architecture, one column per method."""
    checks = [
        "kind",
        "inputs",
        "reach",
        *METHODS,
        "head",
        "probe",
        "labels",
        "few-shot",
        "texts",
        "server",
        "generate, bare",
    ]
    lines = ["| model | " + " | ".join(checks) + " |", "|---" * (len(checks) + 1) + "|"]
    marks = {"ok": "yes", "refused": "refused", "WRONG": "WRONG", "CRASH": "CRASH", "known": "known fault"}
    for report in reports:
        results = {check: marks[result] for check, result, _ in report.rows}
        lines.append(f"| {report.name} | " + " | ".join(results.get(check, "-") for check in checks) + " |")
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help="default: all")
    parser.add_argument("--models", type=Path, help="where make_models.py wrote them")
    parser.add_argument("--results", type=Path, help="where each architecture's is kept, and found again")
    parser.add_argument("--table", type=Path, help="where the table goes, in Markdown")
    given = parser.parse_args()
    quiet()
    reports = []
    with tempfile.TemporaryDirectory() as room:
        root = given.models or Path(room)
        for name in given.names or RECIPES:
            if (report := kept(given.results, name)) is None:
                if not (root / name).is_dir():
                    make(RECIPES[name], root / name)
                report = judge(root / name)
                if given.results:
                    given.results.mkdir(parents=True, exist_ok=True)
                    (given.results / f"{name}.json").write_text(json.dumps(report.rows, indent=1))
            reports.append(report)
            state = f"{report.count('ok')} right, {report.count('refused')} refused, {len(report.faults)} wrong"
            print(f"{name:22s} {state}", flush=True)
            for check, result, detail in report.faults:
                print(f"    {check:24s} {result:6s} {detail}"[:260], flush=True)
    if given.table:
        given.table.write_text(table(reports))
    clean = sum(not report.faults for report in reports)
    listed = sum(report.count("known") for report in reports)
    print(f"\n{clean} of {len(reports)} architectures without a fault; {listed} known faults")
    return int(clean < len(reports))


if __name__ == "__main__":
    sys.exit(main())
