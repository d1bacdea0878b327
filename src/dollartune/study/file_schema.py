"""The JSON schema of study files, for editors: completion, and mistakes shown while they are typed.

It says what a file may hold in every spelling that `config` takes; what it cannot say (which rows a file has, which sites a
backbone), `dollartune check` says. Imports no PyTorch, so that `dollartune init` writes it in passing.
"""

from __future__ import annotations

import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

from dollartune.backbones.catalog import named_backbones
from dollartune.backbones.embedded import embedded_names
from dollartune.cache import cache_directory, keep
from dollartune.config import NAMED_SCALES, StudySettings
from dollartune.methods.spelling import named_methods
from dollartune.tasks.config import TaskConfig
from dollartune.tasks.registry import task_names

DRAFT = "https://json-schema.org/draft/2020-12/schema"


def study_schema() -> dict[str, object]:
    """The schema as data (JSON schema, draft 2020-12)."""
    schema = StudySettings.model_json_schema(by_alias=True, ref_template="#/$defs/{model}")
    task = TaskConfig.model_json_schema(ref_template="#/$defs/{model}")
    schema["$defs"] |= {**task.pop("$defs", {}), "TaskConfig": task, "Method": _method()}
    keys: dict[str, Any] = schema["properties"]
    one_task = {"anyOf": [{"type": "string", "examples": task_names()}, {"$ref": "#/$defs/TaskConfig"}]}
    method = {"$ref": "#/$defs/Method"}
    backbone = {
        "anyOf": [
            {"type": "string", "examples": [*embedded_names(), *named_backbones()]},
            {"$ref": "#/$defs/BackboneSettings"},
        ]
    }
    whole = {"type": "integer", "minimum": 1}
    spellings: dict[str, dict[str, Any]] = {
        "backbone": {"anyOf": [*backbone["anyOf"], {"type": "array", "items": backbone, "minItems": 1}]},
        "task": one_task,
        "tasks": {"type": "array", "items": one_task, "minItems": 1},
        "methods": {"type": "array", "minItems": 1, "items": {"anyOf": [method, {"type": "array", "items": method}]}},
        "scales": {"type": "array", "minItems": 1, "items": {"anyOf": [whole, {"enum": [*NAMED_SCALES, "all", None]}]}},
        "seeds": {"anyOf": [whole, {"type": "array", "items": {"type": "integer"}, "minItems": 1}]},
        "budget": {"anyOf": [{"type": ["string", "null"]}, {"$ref": "#/$defs/BudgetSettings"}]},
        "search": {
            "anyOf": [{"type": "boolean"}, whole, {"enum": ["anytime", None]}, {"$ref": "#/$defs/SearchSettings"}]
        },
        "limits": {
            "anyOf": [
                {"type": ["string", "null"]},
                {"type": "array", "items": {"type": "string"}},
                {"$ref": "#/$defs/ServingLimits"},
            ]
        },
        "engine": {"anyOf": [{"enum": ["local", "ray"]}, {"$ref": "#/$defs/EngineSettings"}]},
    }
    for key, spelling in spellings.items():
        said = keys.get(key, {})
        keys[key] = {**{name: said[name] for name in ("description", "default") if name in said}, **spelling}
    keys["task"].setdefault("description", "The task: a preset, a data file, or a mapping that describes one.")
    budget = schema["$defs"]["BudgetSettings"]["properties"]
    budget |= {
        name: {"type": "number", "exclusiveMinimum": 0, "description": f"Time, in {name}."}
        for name in ("minutes", "hours")
    }
    return {
        "$schema": DRAFT,
        **schema,
        "title": "A study of DollarTune",
        "anyOf": [{"required": ["task"]}, {"required": ["tasks"]}],
    }


def _method() -> dict[str, object]:
    """A method: its name, a call such as `lora(rank=8)`, or a mapping from the name to settings, each a value or a list."""
    names = [name for method in named_methods() for name in (method.name, *method.aliases)]
    settings = {
        name: {
            "type": ["object", "null"],
            "properties": {key: {"description": meaning} for key, meaning in method.settings.items()},
            "additionalProperties": False,
        }
        for method in named_methods()
        for name in (method.name, *method.aliases)
    }
    return {
        "anyOf": [
            {"type": "string", "examples": names},
            # a package of its own may bring methods that are not named here
            {"type": "object", "minProperties": 1, "properties": settings},
        ]
    }


def kept_schema() -> Path | None:
    """The schema as a file in the cache folder, for the line that tells an editor where it is; written where it is not there.

    None where the folder cannot be written.
    """
    path = cache_directory() / f"study-{version('dollartune')}.schema.json"
    text = json.dumps(study_schema(), indent=1).encode()
    there = path.is_file() and path.read_bytes() == text
    return path if there or keep(path, text) else None
