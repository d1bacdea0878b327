"""Verbs that use a tuned adapter: predict, evaluate."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

AdapterPath = Annotated[Path, typer.Argument(help="Folder of a tuned adapter.")]
DataPath = Annotated[str, typer.Argument(help="A data file, or a task's name.")]
Json = Annotated[bool, typer.Option("--json", help="Print data as JSON.")]
DataRoot = Annotated[Path | None, typer.Option(help="Folder with local copies of presets' data.")]
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
    data: Annotated[Path, typer.Argument(help="A csv, jsonl or parquet file with the columns that the prompt names.")],
    out: Annotated[
        Path | None, typer.Option(help="Where to write predictions (jsonl); by default standard output.")
    ] = None,
    batch_size: Batch = 32,
    limit: Annotated[int | None, typer.Option(help="Only the first rows.", min=1)] = None,
    device_map: DeviceMap = None,
) -> None:
    """Predict for the rows of a file, with probabilities. Run it again to go on after an interruption."""
    from dollartune.backbones.device_map import parse_device_map
    from dollartune.evaluate.predict import predict_file, read_rows
    from dollartune.export.opening import open_adapter

    rows = read_rows(data)[:limit]  # before the backbone is loaded: what is wrong with a file is said at once
    predict_file(open_adapter(adapter, parse_device_map(device_map)), rows, data, out, batch_size)


def evaluate(
    adapter: AdapterPath,
    data: DataPath,
    rows: Annotated[int, typer.Option(help="Most test rows.", min=1)] = 2500,
    batch_size: Batch = 32,
    data_root: DataRoot = None,
    device_map: DeviceMap = None,
    json: Json = False,
) -> None:
    """Score an adapter on the test rows of a task or data file."""
    from dollartune.backbones.device_map import parse_device_map
    from dollartune.cli.output import print_json
    from dollartune.evaluate.predict import evaluate_adapter
    from dollartune.export.opening import open_adapter
    from dollartune.tasks.registry import load_task

    task = load_task(data, data_root)  # before the backbone is loaded: a misspelt name is said at once
    found = evaluate_adapter(open_adapter(adapter, parse_device_map(device_map)), task, rows, batch_size)
    if json:
        print_json(found)
        return
    for name, score in found["scores"].items():
        low, high = found["intervals"].get(name, (None, None))
        print(f"{name}: {score:.4f}" + (f"  (95 %: {low:.4f} to {high:.4f})" if low is not None else ""))
    if found["breakdown"]:
        print("predicted: " + ", ".join(f"{label} {count}" for label, count in found["breakdown"].items()))
    print(f"{found['examples']} rows in {found['seconds']:.1f} s")
