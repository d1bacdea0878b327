"""Tables of settings from pydantic models, and the study file's reference."""

from __future__ import annotations

import re
import types
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo


def cell(text: str) -> str:
    """Text that is safe inside a Markdown table."""
    # A line break or a bar ends a cell of Markdown; `<` would begin HTML.
    return " ".join(text.split()).replace("|", r"\|").replace("<", "&lt;")


def type_words(annotation: Any) -> str:
    """A type in words: `list of text`, `number or none`, `linear, cosine or constant`."""
    if annotation is Any:
        return "anything"
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return type_words(arguments[0])
    if origin is Literal:
        return ", ".join(str(value) for value in arguments)
    if origin in (Union, types.UnionType):
        return " or ".join(dict.fromkeys(type_words(argument) for argument in arguments))
    if origin in (list, tuple):
        return f"list of {type_words(arguments[0])}" if arguments else "list"
    if origin is dict:
        return "mapping"
    plain = {str: "text", int: "whole number", float: "number", bool: "true or false", type(None): "none"}
    if annotation in plain:
        return plain[annotation]
    name = str(getattr(annotation, "__name__", annotation))
    return f"[{_spaced(name)}](#{_anchor(name)})" if name.endswith("Settings") else _spaced(name)


def _spaced(name: str) -> str:
    return re.sub(r"(?<!^)(?=[A-Z])", " ", name.removesuffix("Settings")).lower()


def _anchor(name: str) -> str:
    return _spaced(name).replace(" ", "-")


def settings_table(model: type[BaseModel]) -> str:
    """One row per field: name, type, default, what it means."""
    rows = [
        f"| `{name}` | {cell(type_words(field.annotation))} | {cell(_default(field))} | {cell(_meaning(model, name))} |"
        for name, field in model.model_fields.items()
    ]
    return "\n".join(["| setting | type | default | meaning |", "|---|---|---|---|", *rows, ""])


def _meaning(model: type[BaseModel], name: str) -> str:
    """A field's description, or that of the field which it overrides."""
    # A method that only changes a default inherits the meaning.
    fields = (base.model_fields.get(name) for base in model.__mro__ if issubclass(base, BaseModel))
    return next((field.description for field in fields if field is not None and field.description), "")


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "needed"
    if field.default_factory_takes_validated_data:  # it depends on other keys; the meaning says how
        return ""
    value = field.get_default(call_default_factory=True)
    if isinstance(value, BaseModel):
        return "see below"
    return "" if value in (None, [], {}, (), "") else f"`{as_written(value)}`"


def as_written(value: object) -> str:
    """A value as a study file has it: `true`, `[0, 1, 2]`."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(as_written, value))}]"
    return str(value)


def study_file_page() -> str:
    """Every key of a study file, from its schema."""
    from dollartune.config import StudySettings
    from dollartune.tasks.config import TaskConfig

    parts = [
        "# The study file\n",
        "Every key, made from the schema that checks the file. An unknown key is an error that names the nearest known one; "
        "paths count from the file's folder; `1e-4` is a number.\n",
        "## study\n",
        settings_table(StudySettings),
    ]
    for model in _nested(StudySettings):
        about = " ".join((model.__doc__ or "").split("\n\n")[0].split())
        parts += [f"## {_spaced(model.__name__)}\n", f"{about}\n", settings_table(model)]
    parts += ["## task\n", "`task:` as a mapping: a preset with changes, data of your own, or a mixture.\n"]
    parts.append(settings_table(TaskConfig))
    return "\n".join(parts)


def _nested(model: type[BaseModel]) -> list[type[BaseModel]]:
    """The models that a model's fields hold, each once, in the order in which they come."""
    models: dict[type[BaseModel], None] = {}

    def look(annotation: Any) -> None:
        for argument in get_args(annotation):
            look(argument)
        if isinstance(annotation, type) and issubclass(annotation, BaseModel) and annotation not in models:
            models[annotation] = None
            for field in annotation.model_fields.values():
                look(field.annotation)

    for field in model.model_fields.values():
        look(field.annotation)
    return list(models)
