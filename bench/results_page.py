"""Writes a study's leaderboard as a page for docs/results: tables and sentences, no row of the data.

python bench/results_page.py STUDY_FOLDER "Title" "how it was made" [docs/results/HEAT_MAP.svg] > docs/results/NAME.md

A study with ablations also gets their table, and a heat map where a file for it is named.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from pathlib import Path

from dollartune.cli.output import text
from dollartune.report import ablations as heat_map
from dollartune.report import tables
from dollartune.report.ablation import ablations
from dollartune.report.contents import collect
from dollartune.report.markdown import table_as_markdown
from dollartune.study.api import open_study
from dollartune.study.compare import unsearched_rates
from dollartune.study.results import Results
from dollartune.study.status import status_of


def main() -> None:
    folder, title, command = sys.argv[1:4]
    results = open_study(folder)
    rows = results.leaderboard().to_dict("records")
    compared = results.comparisons
    environment = results.records[0].environment
    versions = ", ".join(f"{name} {version}" for name, version in environment.versions.items())
    print(
        f"# {title}\n\nMade by `{command}` ({versions}; {environment.threads} threads of a CPU). Seconds are of a busy"
    )
    print("machine and include evaluation; scores with their 95 % intervals over test rows and seeds.\n")
    boards = defaultdict(list)
    for row in rows:
        scale = row["scale"] if row["scale"] == row["scale"] else None
        boards[row["task"], scale].append(row)
    for (task, scale), mine in boards.items():
        print(f"## {task}, {int(scale):,} training rows\n" if scale else f"## {task}, all training rows\n")
        if unsearched := unsearched_rates(results, (task, None if scale is None else int(scale))):
            print(f"{unsearched}\n")
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
    print_ablations(results, Path(sys.argv[4]) if len(sys.argv) > 4 else None)
    state = status_of(results.store)
    if state.spent_of_budget:
        print("## Spent of the budget\n")
        for line in state.spent_of_budget:
            print(f"- {line.sentence}")
        print()
    if state.decisions:
        print("## How settings were chosen\n")
        for sentence in state.decisions:
            print(f"- {sentence}")
        print()
    for record in results.failed():
        print(f"- failed: {record.trial.label} on {record.trial.task}: {record.error.message.splitlines()[0]}")


def print_ablations(results: Results, figure: Path | None) -> None:
    """The change of the score when a method is put at fewer places; nothing without ablations."""
    table = tables.ablation(ablations(collect(results)))
    if table is None:
        return
    print("## What each part is worth\n")
    if figure is not None:
        import vl_convert

        figure.write_text(vl_convert.vegalite_to_svg(heat_map(results).properties(background="white").to_dict()))
        print(
            "The top row is the score of the whole method; below, what each change did to it. Orange: worse, so what is"
        )
        print("missing matters. Blue: better without. Bold: the 95 % interval does not reach over 0.\n")
        print(f"![Change of the score by what was changed and method]({figure.name})\n")
    print(table_as_markdown(table) + "\n")


if __name__ == "__main__":
    main()
