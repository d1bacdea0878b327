"""Verbs that use a tuned adapter: predict, evaluate."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from dollartune import format as numbers
from dollartune.cli.options import DataRoot, Json

AdapterPath = Annotated[Path, typer.Argument(metavar="ADAPTER", help="Folder of a tuned adapter.")]
DataPath = Annotated[str, typer.Argument(help="A data file, or a task's name.")]
Batch = Annotated[int, typer.Option(help="Rows per forward pass.", min=1)]
DeviceMap = Annotated[
    str | None,
    typer.Option(
        help="Spread the backbone over all GPUs, the host's memory and disk: auto, balanced, balanced_low_0, sequential, "
        "or module to device, as in {model.layers.3: disk, '': 0}."
    ),
]


def predict(
    adapter: AdapterPath,
    data: Annotated[
        Path | None,
        typer.Argument(
            help="A csv, jsonl or parquet file with the columns that the prompt names; - reads texts, one a line."
        ),
    ] = None,
    text: Annotated[
        list[str] | None, typer.Option(help="A text in place of a file; may be given several times.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Where to write predictions: json lines, or csv beside the input's columns if the name ends in .csv; by "
            "default json lines on standard output."
        ),
    ] = None,
    batch_size: Batch = 32,
    limit: Annotated[int | None, typer.Option(help="Only the first rows.", min=1)] = None,
    restart: Annotated[bool, typer.Option("--restart", help="Replace what --out holds.")] = False,
    device_map: DeviceMap = None,
    json: Annotated[
        bool, typer.Option("--json", help="With --out: print the file and its number of rows as JSON.")
    ] = False,
) -> None:
    """Predict for the rows of a file, with probabilities. Run it again to go on after an interruption."""
    from dollartune.backbones.device_map import parse_device_map
    from dollartune.cli.output import command, print_json
    from dollartune.errors import UserError
    from dollartune.evaluate.predict import predict_file, read_rows, rows_of_texts
    from dollartune.export.opening import open_adapter

    if (data is None) == (not text):
        both = f"; got both {str(data)!r} and --text" if data is not None else ""
        raise UserError(
            f"predict takes a file or texts{both}.", hint=command("predict", adapter, "--text", "what a fine day")
        )
    if data is not None and data != Path("-") and " " in str(data).strip() and not _exists(data):
        raise UserError(
            f"there is no file {str(data)[:60]!r}.", hint=f"A text: {command('predict', adapter, '--text', data)}"
        )
    _in_order("predict", adapter, data)
    _need_other_file(out, data)
    if data == Path("-"):
        text = _lines_of_input()
    rows: Sequence[Mapping[str, Any]]
    # before the backbone is loaded: what is wrong with a file is said at once
    rows = [] if text or data is None else read_rows(data)
    tuned = open_adapter(adapter, parse_device_map(device_map))
    if text:
        rows = rows_of_texts(tuned.task, text)
    predict_file(tuned, rows, data or Path("texts"), out, batch_size, limit, restart)
    if json and out is not None:
        print_json({"file": out, "rows": len(rows[:limit])})


def evaluate(
    adapter: AdapterPath,
    data: DataPath,
    rows: Annotated[
        int | None, typer.Option(help="At most so many rows (default: all of a file, 2500 of a task).", min=1)
    ] = None,
    label: Annotated[str | None, typer.Option(help="Column of a file with the answers.")] = None,
    on_bad_row: Annotated[str, typer.Option(help="What a malformed row of a file does: stop or skip.")] = "stop",
    all_rows: Annotated[
        bool, typer.Option("--all-rows", help="Score rows too that the adapter was tuned on, which is no test.")
    ] = False,
    batch_size: Batch = 32,
    data_root: DataRoot = None,
    device_map: DeviceMap = None,
    json: Json = False,
) -> None:
    """Score an adapter, asked as it was tuned: on every row of a file but those it was tuned on, or on a task's test rows."""
    from dollartune.backbones.device_map import parse_device_map
    from dollartune.cli.output import print_json, print_note
    from dollartune.errors import UserError
    from dollartune.evaluate.labelled_rows import is_data_file, rows_of_file, rows_of_task, without_seen
    from dollartune.evaluate.predict import evaluate_rows
    from dollartune.export.opening import open_adapter
    from dollartune.tasks.registry import load_task

    if on_bad_row not in ("stop", "skip"):
        raise UserError(f"--on-bad-row is stop or skip; given: {on_bad_row!r}.")
    _in_order("evaluate", adapter, Path(data))
    whole = is_data_file(data)
    if not whole and (label is not None or on_bad_row == "skip"):
        option = "--label" if label is not None else "--on-bad-row"
        raise UserError(f"{option} is for a file of rows; {data!r} is a task, which knows its answers.")
    # Before the backbone is loaded: a misspelt name is said at once.
    task = None if whole else load_task(data, data_root)
    tuned = open_adapter(adapter, parse_device_map(device_map))
    if task is None:
        labelled = rows_of_file(tuned, Path(data).expanduser(), label, "skip" if on_bad_row == "skip" else "stop")
    else:
        labelled = rows_of_task(tuned, task, rows or 2500)  # as studies do
    labelled = without_seen(tuned, labelled, all_rows, data)
    if rows is not None and len(labelled.examples) > rows:
        note = f"the first {rows} of {len(labelled.examples)} rows are scored (--rows)"
        labelled = replace(labelled, examples=labelled.examples[:rows], notes=(*labelled.notes, note))
    scored = evaluate_rows(tuned, labelled, batch_size)
    if json:
        print_json(scored)
        return
    for name, score in scored["scores"].items():
        low, high = scored["intervals"].get(name, (None, None))
        between = f"  (95 %: {numbers.score(low, 4)} to {numbers.score(high, 4)})" if low is not None else ""
        print(f"{name}: {numbers.score(score, 4)}{between}")
    if scored["breakdown"]:
        print("predicted: " + ", ".join(f"{label} {count}" for label, count in scored["breakdown"].items()))
    for note in scored["notes"]:
        print_note(note)
    print(f"{scored['examples']} rows in {numbers.seconds(scored['seconds'])}")


DOUBTS_HEADER = ("row", "given", "predicted", "doubt", "text")


def _exists(path: Path) -> bool:
    """Whether there is such a path; a text that is too long for one is none."""
    try:
        return path.exists()
    except OSError:
        return False


def _lines_of_input() -> list[str]:
    """The texts on standard input, one a line.

    Raises:
        UserError: there is none, or it is no text in UTF-8.
    """
    from dollartune.errors import UserError

    try:
        # by line ends alone: `splitlines` would cut a text at the form feeds and separators inside it as well
        lines = sys.stdin.read().split("\n")
    except UnicodeDecodeError as error:
        raise UserError(f"standard input is not a text in {error.encoding.upper()}: {error.reason}.") from None
    if not any(lines):
        raise UserError(
            "standard input holds no text.", hint="One text a line: dollartune predict ADAPTER - < texts.txt"
        )
    return lines if lines[-1] else lines[:-1]


def _in_order(verb: str, adapter: Path, data: Path | None) -> None:
    """Refuses an adapter in the data's place."""
    from dollartune.cli.output import command
    from dollartune.errors import UserError
    from dollartune.methods.stored_adapter import CONFIG

    if data is not None and _exists(data / CONFIG) and not _exists(adapter / CONFIG):
        raise UserError(f"{verb} takes the adapter first, then the data.", hint=command(verb, data, adapter))


def _need_other_file(out: Path | None, data: Path | None) -> None:
    """Refuses to write over the rows that are read."""
    from dollartune.errors import UserError

    if out is not None and data is not None and _exists(out) and _exists(data) and out.samefile(data):
        raise UserError(f"--out {str(out)!r} is the file that is read; it would be lost.", hint="Choose another --out.")


def _need_doubts_file(out: Path) -> None:
    """Refuses, before rows are asked, a place where their doubts cannot be written, or where something else lies."""
    from dollartune.errors import UserError

    if not out.parent.is_dir():
        raise UserError(f"--out {str(out)!r} cannot be made: there is no folder {str(out.parent)!r}.")
    if out.is_dir():
        raise UserError(f"--out {str(out)!r} is a folder.", hint="Name a file in it, such as doubts.csv.")
    if not out.is_file():
        return  # new, or a device
    with out.open(encoding="utf8", errors="replace") as file:
        if file.readline().rstrip("\n") not in ("", ",".join(DOUBTS_HEADER)):
            raise UserError(f"{out} exists, and holds no doubts.", hint="Choose another --out.")


def doubts(
    adapter: AdapterPath,
    data: Annotated[Path, typer.Argument(help="A csv, jsonl or parquet file; rows without a label are ranked apart.")],
    label: Annotated[str | None, typer.Option(help="Column with the label; by default the adapter's.")] = None,
    top: Annotated[int, typer.Option(help="Rows to print of each kind.", min=1)] = 10,
    out: Annotated[Path | None, typer.Option(help="Write all rows with their doubt to this csv file.")] = None,
    batch_size: Batch = 32,
    json: Json = False,
) -> None:
    """Rows to look at next: labels that the adapter doubts most, and rows without a label that it can least decide."""
    from dataclasses import asdict

    from dollartune.cli.output import print_json, print_note, print_table
    from dollartune.evaluate.doubts import doubts as rank
    from dollartune.evaluate.predict import read_rows
    from dollartune.export.opening import open_adapter

    _in_order("doubts", adapter, data)
    _need_other_file(out, data)
    rows = read_rows(data)
    if out is not None:
        _need_doubts_file(out)
    ranking = rank(open_adapter(adapter), rows, label, batch_size, data)
    if out is not None:
        import csv

        with out.open("w", encoding="utf8", newline="") as file:
            writer = csv.DictWriter(file, DOUBTS_HEADER)
            writer.writeheader()
            writer.writerows(asdict(one) for one in (*ranking.labelled, *ranking.unlabelled))
    if json:
        kinds = {"labelled": ranking.labelled, "unlabelled": ranking.unlabelled}
        first = {kind: [asdict(one) for one in ranked[:top]] for kind, ranked in kinds.items()}
        print_json({**first, "unknown_labels": list(ranking.unknown), "unread": list(ranking.unread)})
        return
    for title, ranked in (("labels that the adapter doubts most", ranking.labelled),
                          ("worth labelling next", ranking.unlabelled)):  # fmt: skip
        if ranked:
            print(f"\n{title} ({len(ranked)} rows):")
            # sixty letters tell a row; the whole of it is in --out
            print_table([{**asdict(one), "text": " ".join(one.text.split())[:60]} for one in ranked[:top]])
    if ranking.unread:
        print_note(
            f"{len(ranking.unread)} rows have nothing to read and are left out (the first is row {ranking.unread[0]})."
        )
    for unknown in ranking.unknown:
        print_note(f"the adapter knows no label {unknown!r}; such rows are left out.")
    if out is not None:
        print(f"\nwrote {out}")
