"""Verbs about pretrained models: which can be had here, fetching one, and what was read of its structure."""

from __future__ import annotations

from typing import Annotated

import typer

from dollartune.cli.catalog import Json


def ls(json: Json = False) -> None:
    """List the backbones that have a name here, and where they are."""
    from dollartune.backbones.catalog import NAMED
    from dollartune.backbones.embedded import embedded_names, embedded_path
    from dollartune.cli.output import print_json, print_table

    rows = [
        {
            "name": name,
            "where": "embedded",
            "parameters": _stored_parameters(embedded_path(name) / "model.safetensors"),
            "download_bytes": None,
            "licence": "Apache-2.0",
            "what": "ships with this package, for tests and demonstrations",
        }
        for name in embedded_names()
    ]
    rows += [
        {
            "name": one.name,
            "where": one.where,
            "parameters": one.parameters,
            "download_bytes": one.download_bytes,
            "licence": one.licence,
            "what": one.what,
        }
        for one in NAMED
    ]
    if json:
        print_json(rows)
        return
    columns = {"name": "name", "where": "where", "parameters": "parameters", "download_bytes": "download",
               "licence": "licence", "what": "what"}  # fmt: skip
    print_table(rows, columns)
    if any(row["where"] == "not here" for row in rows):
        print("\nfetch one: dollartune backbones get NAME")
    print("any other: a hub id, a directory, a .gguf file, or package:NAME/FOLDER")


def _stored_parameters(path: object) -> int:
    """Numbers in a safetensors file, from its header."""
    from math import prod

    from safetensors import safe_open

    with safe_open(str(path), "pt") as file:
        return sum(prod(file.get_slice(key).get_shape()) for key in file.keys())  # noqa: SIM118


def get(names: Annotated[list[str], typer.Argument(help="Names of `backbones ls`, or hub ids.")]) -> None:
    """Fetch backbones: from the Python index where they are packages, else from the hub; then unpack them."""
    from dollartune.backbones.fetch import fetch
    from dollartune.backbones.locate import source_notes

    for name in names:
        done = fetch(name)
        print(f"{name}: {done.how}, {done.path}")
        for note in source_notes(name):
            print(f"  {note.partition(': ')[2]}")
