"""Writes a study's leaderboard as a page for docs/results: tables and sentences, no row of the data.

python bench/results_page.py STUDY_FOLDER "Title" "how it was made" > docs/results/NAME.md
"""

from __future__ import annotations

import sys
from collections import defaultdict

from dollartune.cli.output import text
from dollartune.study.api import open_study
from dollartune.study.compare import comparisons


def main() -> None:
    folder, title, command = sys.argv[1:4]
    results = open_study(folder)
    rows = results.leaderboard().to_dict("records")
    compared = comparisons(results)
    environment = results.records[0]["environment"]
    versions = ", ".join(f"{name} {version}" for name, version in environment["versions"].items())
    print(
        f"# {title}\n\nMade by `{command}` ({versions}; {environment['threads']} threads of a CPU). Seconds are of a busy"
    )
    print("machine and include evaluation; scores with their 95 % intervals over test rows and seeds.\n")
    boards = defaultdict(list)
    for row in rows:
        scale = row["scale"] if row["scale"] == row["scale"] else None
        boards[row["task"], scale].append(row)
    for (task, scale), mine in boards.items():
        print(f"## {task}, {int(scale):,} training rows\n" if scale else f"## {task}, all training rows\n")
        print(f"| method | {mine[0]['metric']} | 95 % interval | may be best | seeds | trained parameters | seconds |")
        print("|---|---:|---:|---|---:|---:|---:|")
        for row in mine:
            interval = (
                f"{row['low']:.3f} to {row['high']:.3f}" if row["low"] == row["low"] and row["low"] is not None else "-"
            )
            best = "-" if row["may_be_best"] is None else text(bool(row["may_be_best"]))
            print(
                f"| {row['label']} | {row['score']:.3f} | {interval} | {best} | {row['seeds']} "
                f"| {row['trainable']:,} | {row['seconds']:.0f} |"
            )
        comparison = compared.get((task, scale))
        if comparison is not None:
            print(f"\n{comparison.sentence}\n")
            for warning in comparison.warnings:
                print(f"- {warning}")
        print()
    failed = [record for record in results.records if record["status"] == "failed"]
    for record in failed:
        print(
            f"- failed: {record['trial']['label']} on {record['trial']['task']}: {record['error']['message'].splitlines()[0]}"
        )


if __name__ == "__main__":
    main()
