"""Verbs that list what there is: methods, tasks, machines; and count parameters."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from dollartune import format as numbers
from dollartune.cli.options import Json


def methods_ls(json: Json = False) -> None:
    """List all tuning methods."""
    from dollartune.cli.output import print_json, print_table
    from dollartune.methods.registry import methods

    rows = [
        {
            "name": cls.name,
            "branch": cls.branch.replace("_", "-"),
            "what": (cls.__doc__ or "").strip().splitlines()[0],
            "mergeable": cls.capabilities.mergeable,
            "peft": cls.capabilities.peft_type or "-",
            "aliases": list(cls.aliases),
        }
        for cls in methods().values()
    ]
    print_json(rows) if json else print_table([{k: v for k, v in row.items() if k != "aliases"} for row in rows])


def methods_show(name: Annotated[str, typer.Argument(help="Name or alias.")], json: Json = False) -> None:
    """Show one method: equation, settings with defaults, what is searched, what can serve it."""
    import inspect

    from dollartune.cli.output import print_json, print_table
    from dollartune.methods.registry import method_class
    from dollartune.methods.space import space_in_words
    from dollartune.methods.spelling import named_methods
    from dollartune.pages.method_page import what_it_can

    cls = method_class(name)
    # of a setting that the method states anew without a word, what its parent says
    said = next((one.settings for one in named_methods() if one.name == cls.name), {})
    fields: list[dict[str, object]] = [
        {
            "setting": key,
            "default": _default(field),
            "meaning": " ".join((field.description or said.get(key, "")).split()),
        }
        for key, field in cls.Config.model_fields.items()
    ]
    capabilities = dict(vars(cls.capabilities))
    search = {key: repr(space) for key, space in cls.search.items()}
    doc = inspect.cleandoc(cls.__doc__ or "")
    picture = inspect.cleandoc(inspect.getmodule(cls).__doc__ or "")
    if json:
        print_json({"name": cls.name, "aliases": cls.aliases, "branch": cls.branch, "description": doc,
                    "settings": fields,
                    "search": search, "capabilities": capabilities})  # fmt: skip
        return
    print(f"{cls.name}" + (f" (also {', '.join(cls.aliases)})" if cls.aliases else "") + f"\n\n{picture}\n\n{doc}\n")
    print_table(fields)
    told = (f"{key} {space_in_words(space)}" for key, space in cls.search.items())
    print("\nsearched: " + ("; ".join(told) or "nothing"))
    for what, value in what_it_can(cls).items():
        print(f"{what}: {value}")


def _default(field: Any) -> str:
    if field.default_factory is not None:
        return str(field.default_factory())
    return str(field.default)


def tasks_ls(json: Json = False) -> None:
    """List all ready-made tasks."""
    from dollartune.cli.output import print_json, print_table
    from dollartune.tasks.registry import describe_task, task_names

    rows = [describe_task(name) for name in task_names()]
    short = [{"name": r["name"], "kind": r["kind"], "metric": r["metric"], "what": r["description"]} for r in rows]
    print_json(rows) if json else print_table(short)


def tasks_show(name: Annotated[str, typer.Argument(help="Name or alias.")], json: Json = False) -> None:
    """Show one task: prompt, label words, metrics, source."""
    from dollartune.cli.output import print_json
    from dollartune.tasks.registry import describe_task

    facts = describe_task(name)
    if json:
        print_json(facts)
        return
    for key, value in facts.items():
        if value not in (None, [], {}, ""):
            shown = "\n    ".join(str(value).splitlines()) if isinstance(value, str) else value
            print(f"{key.replace('_', ' ')}: {shown}")


def machines_ls(
    json: Json = False,
    table: Annotated[str | None, typer.Option("--machines", help="Your own table of machines (YAML).")] = None,
) -> None:
    """List machines with their prices, dates and sources."""
    from dataclasses import asdict

    from dollartune.budget.prices import machines
    from dollartune.cli.output import print_json, print_table

    rows = [asdict(machine) for machine in machines(table).values()]
    columns = {"name": "name", "dollars_per_hour": "$/h", "device": "device", "devices": "n",
               "device_memory_bytes": "memory",
               "as_of": "as of", "source": "source"}  # fmt: skip
    print_json(rows) if json else print_table(rows, columns)


def count(
    backbone: Annotated[str, typer.Argument(help="Embedded name, hub id, or a directory (a config.json is enough).")],
    method: Annotated[list[str], typer.Option("--method", "-m", help="For example 'lora(rank=8)'; repeat to combine.")],
    objective: Annotated[str | None, typer.Option(help="language or classification.")] = None,
    json: Json = False,
) -> None:
    """Count trainable parameters, from the config alone: no weights are loaded."""
    from dollartune.attachment.counting import count_parameters
    from dollartune.cli.output import print_json

    counted = count_parameters(backbone, method, objective)
    if json:
        print_json(counted)
        return
    trainable, total = counted["trainable_parameters"], counted["total_parameters"]
    print(f"{trainable:,} trainable of {total:,} ({numbers.percent(trainable / total)})")
    for role, entry in counted["by_role"].items():
        print(f"  {role}: {entry['parameters']:,} in {entry['sites']} places")
