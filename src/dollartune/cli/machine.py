"""Verbs about this machine and this program: doctor, schema, cache."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dollartune.cli.options import Json


def doctor(json: Json = False) -> None:
    """What this machine has for tuning, and what is missing: versions, devices, bf16, cache, extras.

    Exit status 1 where something will go wrong; what is optional and not there is no fault.
    """
    from dataclasses import asdict

    from dollartune.cli.output import print_json
    from dollartune.planner.doctor import examine

    parts = examine()
    if json:
        print_json([asdict(one) for one in parts])
    else:
        width = max(len(one.what) for one in parts)
        for one in parts:
            mark = {"ok": "ok ", "missing": "-  ", "warning": "!! "}[one.state]
            print(f"{mark} {one.what:{width}}  {one.found}" + (f"  ({one.next})" if one.next else ""))
    if any(one.state == "warning" for one in parts):
        raise typer.Exit(1)


def schema(
    out: Annotated[Path | None, typer.Option(help="File to write; by default it is printed.")] = None,
    json: Json = False,
) -> None:
    """The JSON schema of study files: completion and mistakes in an editor.

    `dollartune init` writes the line that editors with a YAML language server look for.
    """
    from json import dumps

    from dollartune.cli.output import answer
    from dollartune.files import write_atomically
    from dollartune.study.file_schema import study_schema

    text = dumps(study_schema(), indent=1)
    if out is None:
        print(text)  # JSON, asked for or not
        return
    write_atomically(out, f"{text}\n".encode())
    answer(json, {"file": out}, f"wrote {out}. In a study file: # yaml-language-server: $schema={out}")


def cache_ls(json: Json = False) -> None:
    """What is kept between runs, how large it is, and what it is for."""
    from dollartune.cache import cache_directory
    from dollartune.cached_parts import cached_parts
    from dollartune.cli.output import print_json, print_table

    rows = [
        {"name": one.name, "size_bytes": one.size_bytes, "files": one.files, "what": one.what} for one in cached_parts()
    ]
    if json:
        print_json({"folder": str(cache_directory()), "parts": rows})
        return
    print(f"{cache_directory()}\n")
    if rows:
        print_table(rows, {"name": "name", "size_bytes": "size", "files": "files", "what": "what it is"})
        print("\nIt can be deleted at any time: dollartune cache clean [NAME]")
    else:
        print("nothing is kept yet.")


def cache_clean(
    names: Annotated[list[str] | None, typer.Argument(help="Names of `cache ls`; by default all of them.")] = None,
    json: Json = False,
) -> None:
    """Delete what is kept between runs: it is made again when it is needed."""
    from dollartune import format as numbers
    from dollartune.cached_parts import clear_cache
    from dollartune.cli.output import answer

    freed = clear_cache(names or None)
    answer(json, {"deleted_bytes": freed}, f"deleted {numbers.size(freed)}.")
