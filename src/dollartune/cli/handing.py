"""Verbs that hand adapters over: export, import, serve."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dollartune.cli.using import AdapterPath

Out = Annotated[Path, typer.Option(help="Folder to write; it must not hold anything yet.")]
BackboneName = Annotated[str | None, typer.Option(help="Backbone, where it is not the one that the adapter names.")]


def export(
    adapter: AdapterPath,
    out: Out,
    format: Annotated[
        str, typer.Option(help="dollartune, peft, or merged (a whole transformers model).")
    ] = "dollartune",
    backbone: BackboneName = None,
    quantize: Annotated[str, typer.Option(help="none, or nf4 for adapters tuned on a 4-bit backbone.")] = "none",
    dtype: Annotated[str, typer.Option(help="Type of the backbone's weights: float32, bfloat16, float16.")] = "float32",
    examples: Annotated[
        Path | None, typer.Option(help="A data file on whose first rows a merged model is compared with the adapter.")
    ] = None,
    push: Annotated[str | None, typer.Option(help="Upload the result to this hub repository, owner/name.")] = None,
    public: Annotated[
        bool, typer.Option("--public", help="Make the repository public (it is private otherwise).")
    ] = False,
) -> None:
    """Write an adapter for others: checked after writing, with what can serve it."""
    from dollartune.export.handing import export_adapter

    handed = export_adapter(adapter, out, format, backbone, quantize, dtype, examples)
    for line in handed.lines:
        print(line)
    print(f"wrote {handed.folder}")
    if push is not None:
        from dollartune.export.hub import push as upload

        print(f"uploaded to {upload(out, push, private=not public)}")


def import_(
    source: Annotated[
        Path, typer.Argument(help="Folder of a peft adapter (adapter_config.json, adapter_model.safetensors).")
    ],
    out: Out,
    backbone: BackboneName = None,
    task: Annotated[str | None, typer.Option(help="Task whose prompt and label words it was tuned with.")] = None,
    data_root: Annotated[Path | None, typer.Option(help="Folder with local copies of presets' data.")] = None,
) -> None:
    """Read a peft adapter, so that it can be used, trained on, merged and served here."""
    from dollartune.export.handing import import_peft

    handed = import_peft(source, out, backbone, task, data_root)
    for line in handed.lines:
        print(line)
    print(f"wrote {handed.folder}")
