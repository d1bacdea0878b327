"""Verbs that hand adapters over: export, import, serve."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

import typer

from dollartune.cli.options import DataRoot, Json
from dollartune.cli.predict import AdapterPath, DeviceMap

Out = Annotated[Path, typer.Option(help="Folder to write; it must not hold anything yet.")]
MOST_RANK = 64
"""Largest rank of what is written as a LoRA, unless another is given."""
BackboneName = Annotated[str | None, typer.Option(help="Backbone, where it is not the one that the adapter names.")]


def export(
    adapter: AdapterPath,
    out: Out,
    format: Annotated[
        str,
        typer.Option(
            help="dollartune, peft, lora (any change of linears as a LoRA), merged (a whole model), gguf (the same as a file "
            "for llama.cpp), or head (a solved probe for scikit-learn and torch)."
        ),
    ] = "dollartune",
    backbone: BackboneName = None,
    quantize: Annotated[str, typer.Option(help="none, or nf4 for adapters tuned on a 4-bit backbone.")] = "none",
    dtype: Annotated[str, typer.Option(help="Type of the backbone's weights: float32, bfloat16, float16.")] = "float32",
    examples: Annotated[
        Path | None,
        typer.Option(
            help="A data file: a merged model is compared on its first rows, a LoRA scored on its labelled ones."
        ),
    ] = None,
    rank: Annotated[
        int | None, typer.Option(help=f"Largest rank of --format lora (default: {MOST_RANK}).", min=1)
    ] = None,
    base_model: Annotated[
        str | None, typer.Option(help="The backbone's name on the hub, where the adapter knows a folder only.")
    ] = None,
    license: Annotated[str | None, typer.Option(help="Licence that the card names, such as apache-2.0.")] = None,
    push: Annotated[str | None, typer.Option(help="Upload the result to this hub repository, owner/name.")] = None,
    public: Annotated[
        bool, typer.Option("--public", help="Make the repository public (it is private otherwise).")
    ] = False,
    json: Json = False,
) -> None:
    """Write an adapter for others: checked after writing, with what can serve it."""
    from dollartune.errors import UserError
    from dollartune.export.handover import FORMATS_OF, export_adapter

    _refuse_idle("format", format, {"examples": examples, "rank": rank}, FORMATS_OF)
    if public and push is None:
        raise UserError("--public is for --push; without it nothing is uploaded.", hint="--push OWNER/NAME --public")
    handed = export_adapter(
        adapter, out, format, backbone, quantize, dtype, examples, rank or MOST_RANK, base_model, license,
        published=push is not None,
    )  # fmt: skip
    address = None
    if not json:
        # Before the upload, which may fail: what lies on the disk is told in any case.
        for line in handed.lines:
            print(line)
        print(f"wrote {handed.folder}")
    if push is not None:
        from dollartune.export.hub import push as upload

        address = upload(out, push, private=not public)
    if json:
        from dollartune.cli.output import print_json

        print_json(
            {"folder": str(handed.folder), "format": format, "notes": list(handed.lines), "uploaded_to": address}
        )
    elif address is not None:
        print(f"uploaded to {address}")


def _refuse_idle(by: str, chosen: str, given: Mapping[str, object], uses: Mapping[str, Sequence[str]]) -> None:
    """Refuses options that do nothing with what the option `by` chooses.

    Args:
        uses: option -> the choices with which it does something.
    """
    from dollartune.errors import UserError

    for option, value in given.items():
        if value is not None and chosen not in uses[option]:
            raise UserError(
                f"--{option} is for --{by} {' or '.join(uses[option])}; with --{by} {chosen} it would do nothing."
            )


def merge_adapters(
    adapters: Annotated[list[Path], typer.Argument(help="Folders of two adapters or more, of one backbone.")],
    out: Out,
    weights: Annotated[
        list[float] | None, typer.Option("--weight", help="Weight of each adapter, in their order (default: 1 each).")
    ] = None,
    how: Annotated[str, typer.Option(help="linear, ties or dare.")] = "linear",
    density: Annotated[
        float | None, typer.Option(help="Share of values that ties and dare keep (default: 0.5).")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Of the values that dare drops (default: 0).")] = None,
    rank: Annotated[int, typer.Option(help="Largest rank of the result.", min=1)] = MOST_RANK,
    rows: Annotated[
        list[Path] | None,
        typer.Option(help="A file of labelled rows for each adapter, on which it and the result are scored."),
    ] = None,
    backbone: BackboneName = None,
    json: Json = False,
) -> None:
    """Add up the changes of several adapters as one LoRA, and score it on each one's task."""
    from dollartune.cli.output import answer
    from dollartune.export.arithmetic import merge_adapters as add_up
    from dollartune.export.updates import WAYS_WITH

    _refuse_idle("how", how, {"density": density, "seed": seed}, WAYS_WITH)
    given = weights or [1.0] * len(adapters)
    kept = 0.5 if density is None else density
    lines = add_up(adapters, out, given, how, kept, seed or 0, rank, backbone, rows or ())  # type: ignore[arg-type]
    answer(json, {"folder": out, "notes": lines}, *lines, f"wrote {out}")


def import_(
    source: Annotated[
        Path, typer.Argument(help="Folder of a peft adapter (adapter_config.json, adapter_model.safetensors).")
    ],
    out: Out,
    backbone: BackboneName = None,
    task: Annotated[str | None, typer.Option(help="Task whose prompt and label words it was tuned with.")] = None,
    data_root: DataRoot = None,
    json: Json = False,
) -> None:
    """Read a peft adapter, so that it can be used, trained on, merged and served here."""
    from dollartune.cli.output import answer
    from dollartune.export.handover import import_peft

    handed = import_peft(source, out, backbone, task, data_root)
    answer(json, {"folder": handed.folder, "notes": handed.lines}, *handed.lines, f"wrote {handed.folder}")


def serve(
    backbone: Annotated[str, typer.Argument(help="Backbone: an embedded name, a hub id or a directory.")],
    adapter: Annotated[list[str] | None, typer.Option(help="An adapter as name=dir; give it once per adapter.")] = None,
    adapter_root: Annotated[
        Path | None, typer.Option(help="Folder from which adapters may be added while the server runs.")
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen at.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen at.", min=1, max=65535)] = 8000,
    api_key: Annotated[
        str | None, typer.Option(envvar="DOLLARTUNE_API_KEY", help="Key that clients must send as a bearer token.")
    ] = None,
    dtype: Annotated[
        str | None,
        typer.Option(help="float32, bfloat16 or float16; by default that in which the adapters were tuned."),
    ] = None,
    quantize: Annotated[str, typer.Option(help="none or nf4.")] = "none",
    device: Annotated[
        str | None, typer.Option(help="Where to run, for example cpu or cuda; by default on the GPU if there is one.")
    ] = None,
    device_map: DeviceMap = None,
    batch_rows: Annotated[int, typer.Option(help="Sequences that generate at the same time.", min=1)] = 32,
    queue: Annotated[int, typer.Option(help="Requests that may wait.", min=1)] = 256,
    request_seconds: Annotated[float, typer.Option(help="Maximum seconds of a request.", min=1)] = 120.0,
    new_tokens: Annotated[int, typer.Option(help="Maximum number of tokens of one answer.", min=1)] = 512,
    cors_origin: Annotated[
        list[str] | None, typer.Option(help="Web page whose scripts may ask; give it once per page, or * for all.")
    ] = None,
    body_bytes: Annotated[int, typer.Option(help="Largest request.", min=1000)] = 1_000_000,
    cache_bytes: Annotated[
        int | None,
        typer.Option(
            help="Memory for earlier prompts, which spares reading equal beginnings again; by default a tenth of what is free.",
            min=0,
        ),
    ] = None,
    json: Json = False,
) -> None:
    """Serve a backbone with many adapters at OpenAI's addresses, any methods mixed in one running batch."""
    from dollartune.backbones.device_map import parse_device_map
    from dollartune.cli.output import command, print_json, print_note
    from dollartune.errors import UserError
    from dollartune.export.handover import parse_named
    from dollartune.methods.stored_adapter import CONFIG, read_info
    from dollartune.serve.limits import Limits
    from dollartune.serve.run import build_service, dtype_notes
    from dollartune.serve.run import serve as run

    if (Path(backbone) / CONFIG).is_file():
        right = command("serve", read_info(Path(backbone))["backbone"], "--adapter", f"tuned={backbone}")
        raise UserError(f"{backbone!r} is an adapter, and is served with its backbone.", hint=right)
    limits = Limits(
        batch_rows=batch_rows,
        queue=queue,
        request_seconds=request_seconds,
        new_tokens=new_tokens,
        body_bytes=body_bytes,
        shared_bytes=cache_bytes,
    )
    placed = parse_device_map(device_map)
    named = parse_named(adapter or [])
    service = build_service(backbone, named, limits, adapter_root, dtype, quantize, device, placed)

    def listening(address: str, names: Sequence[str]) -> None:
        if json:
            print_json({"address": address, "models": names}, indent=None)
        else:
            print(f"serving {', '.join(names)} at {address}", flush=True)

    for note in dtype_notes(service, {name: read_info(folder) for name, folder in named.items()}):
        print_note(note)
    run(service, host, port, api_key, cors_origin or (), listening)
