"""Reads a study file: YAML, checked against the schema in `config`, each mistake told in one sentence.

study.yaml ──> YAML ──> paths counted from the file's folder ──> StudySettings
               line of the mistake                               nearest valid key, what was wanted and given
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from dollartune.budget.limit import BudgetSettings, parse_budget
from dollartune.budget.serving_limits import ServingLimits
from dollartune.config import (
    AblationSettings,
    BackboneSettings,
    EngineSettings,
    EvaluationSettings,
    SearchSettings,
    SourceSettings,
    StudySettings,
)
from dollartune.errors import UserError, nearest
from dollartune.train.settings import TrainingSettings


class _Loader(yaml.SafeLoader):
    """YAML in which 1e-4 is a number (YAML 1.1 reads it as text) and a repeated key is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: dict[Any, int] = {}
        for key_node, _ in node.value:
            line = key_node.start_mark.line + 1
            if not isinstance(key_node, yaml.ScalarNode):
                raise UserError(f"line {line}: a key must be one word, not a list or a mapping.")
            # `<<: *base` may stand beside keys that it repeats: that is what merging is for.
            if key_node.tag == "tag:yaml.org,2002:merge":
                continue
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                raise UserError(f"line {line}: the key {key!r} appears twice (first in line {seen[key]}).")
            seen[key] = line
        return super().construct_mapping(node, deep)


# YAML 1.1 wants a dot and a sign in the exponent (1.0e-4); people write 1e-4.
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d[\d_]*\.?[\d_]*|\.\d+)([eE][-+]?\d+)$"), list("-+0123456789.")
)


def read_yaml(text: str, where: str) -> dict[str, Any]:
    """Parses a study file's text.

    Raises:
        UserError: not YAML (with the line), or not a mapping.
    """
    try:
        data = yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where_in_file = f"line {mark.line + 1}" if mark else "somewhere"
        raise UserError(
            f"{where}, {where_in_file}: not valid YAML: {getattr(error, 'problem', None) or error}."
        ) from None
    except UserError as error:
        raise UserError(f"{where}, {error.message}") from None
    if not isinstance(data, dict):
        what = {type(None): "it is empty", list: "it holds a list"}.get(type(data), f"it holds {str(data)[:40]!r}")
        raise UserError(f"{where} must hold `key: value` lines; {what}.", hint="dollartune init data.csv")
    return data


def load_study(
    source: str | Path | Mapping[str, Any], sets: Mapping[str, Any] | None = None, **overrides: Any
) -> StudySettings:
    """Reads a study file (or a mapping) and checks every key.

    Args:
        sets: values in place of the file's, under dotted keys: `{"training.batch_size": 16}`.
        overrides: values of whole keys; None leaves what the file says.

    Raises:
        UserError: no such file, a misspelt key (with the nearest valid one), or a value of the wrong type.
    """
    if isinstance(source, Mapping):
        data, where = dict(source), "the study"
    else:
        path = Path(source)
        if not path.is_file():
            siblings = [p.name for p in path.parent.glob("*.y*ml")] if path.parent.is_dir() else []
            raise UserError(
                f"there is no study file {str(path)!r}.{nearest(path.name, siblings)}", hint="dollartune init data.csv"
            )
        try:
            text = path.read_text(encoding="utf8")
        except UnicodeDecodeError as error:
            raise UserError(f"{path} is not a text file in UTF-8: {error}.", hint="dollartune init data.csv") from None
        try:
            data, where = read_yaml(text, str(path)), str(path)
        except UserError:
            if path.suffix.lower() in (".yaml", ".yml", ".json"):
                raise
            # `run tickets.csv`: what is wrong with its YAML is not what its owner wants to hear
            raise UserError(f"{path} is no study file.", hint=f"A study file for it: dollartune init {path}") from None
        # Before overrides, so that `--name` still wins.
        data.setdefault("name", path.stem)
        data = _relative_to(data, path.parent)
    # None is a command-line option that was not given.
    stated = {key: value for key, value in overrides.items() if value is not None}
    one_list = {"task", "tasks"}  # either of them stands in place of both
    data = {key: value for key, value in data.items() if key not in one_list or not stated.keys() & one_list} | stated
    for key, value in (sets or {}).items():
        data = _with(data, key.split("."), value)
    try:
        settings = StudySettings.model_validate(data)
    except ValidationError as error:
        sentences, hint = _sentences(error, where, data)
        raise UserError("\n".join(sentences), hint=hint or "What may stand where: dollartune schema") from None
    if not settings.tasks:
        raise UserError(f"{where}: there is no `task:`.", hint="dollartune tasks ls")
    return settings


def _with(data: Mapping[str, Any], path: Sequence[str], value: Any) -> dict[str, Any]:
    """A copy in which one value, perhaps inside mappings, is another.

    Raises:
        UserError: what should hold the key is no mapping.
    """
    first, rest = path[0], path[1:]
    if not rest:
        return {**data, first: value}
    inside = data.get(first)
    if first == "budget" and isinstance(inside, str):
        # `--budget '$2' --set budget.price=2/h`: the amount in one word has keys too
        inside = parse_budget(inside, per="method").model_dump(exclude_unset=True)
    if inside is not None and not isinstance(inside, Mapping):
        raise UserError(
            f"{'.'.join(path)} cannot be set: `{first}` is {inside!r}, which has no keys of its own.",
            hint=f"Set the whole of it: --set '{first}={{{rest[0]}: {value}}}'",
        )
    return {**data, first: _with(inside or {}, rest, value)}


def _relative_to(data: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Paths in a study file count from the file's folder: the backbone, the data and the data root."""
    data = dict(data)
    for key in ("data_root", "begin_with"):
        if isinstance(data.get(key), str):
            data[key] = str((folder / Path(data[key]).expanduser()).resolve())
    backbone = data.get("backbone")
    data["backbone"] = (
        [_backbone_path(b, folder) for b in backbone]
        if isinstance(backbone, list)
        else _backbone_path(backbone, folder)
    )
    if data["backbone"] is None:
        del data["backbone"]
    if "task" in data:
        data["task"] = _task_paths(data["task"], folder)
    if isinstance(data.get("tasks"), list):
        data["tasks"] = [_task_paths(task, folder) for task in data["tasks"]]
    return data


def _task_paths(task: Any, folder: Path) -> Any:
    """A task with the full paths of its files, where they lie beside the study file; names stay as they are."""

    def full(value: Any) -> Any:
        # A bare word is a preset's name, even where a folder of that name lies beside the file.
        path = folder / value if isinstance(value, str) and (value.startswith(".") or Path(value).suffix) else None
        return str(path.resolve()) if path is not None and path.exists() else value

    if not isinstance(task, dict):
        return full(task)
    beside = ("validation", "test", "images")
    resolved = {**task, **{key: full(task[key]) for key in beside if key in task}}
    if isinstance(task.get("data"), str) and (folder / task["data"]).exists():
        resolved["data"] = str((folder / task["data"]).resolve())
    return resolved


def _backbone_path(backbone: Any, folder: Path) -> Any:
    """A backbone whose name is a path relative to the study file gets its full path."""
    if isinstance(backbone, dict) and isinstance(backbone.get("anatomy"), str):
        beside = folder / Path(backbone["anatomy"]).expanduser()
        backbone = {**backbone, "anatomy": str(beside)}
    name = backbone.get("name") if isinstance(backbone, dict) else backbone
    # Hub ids hold a slash too (`facebook/opt-125m`), so only a leading dot says that a path is meant.
    if not isinstance(name, str) or not name.startswith("."):
        return backbone
    resolved = str((folder / name).resolve())
    return {**backbone, "name": resolved} if isinstance(backbone, dict) else resolved


def _sentences(error: ValidationError, where: str, data: Mapping[str, Any]) -> tuple[list[str], str | None]:
    """One sentence per problem, with the nearest valid key; and the hint of the first that has one of its own.

    A key that may be written in several ways (a name or a mapping) is tried in each; what is said is about the way that
    was meant: where something inside a mapping is wrong, that the mapping is not a name is of no interest.
    """
    # A default that depends on other keys is not made where one of them is wrong, which is said of that key.
    problems = [problem for problem in error.errors() if problem["type"] != "default_factory_not_called"]
    paths = [_as_written(_keys_on_the_way(problem["loc"]), data) for problem in problems]
    lines: dict[str, None] = {}
    kinds: dict[str, tuple[list[str], Any]] = {}
    hints: list[str] = []
    for problem, path in zip(problems, paths, strict=True):
        name = ".".join(path)
        if problem["type"] == "sentence":  # a validator of `config` that names key, value and cure itself
            lines[f"{where}: {problem['ctx']['sentence']}"] = None
            hints += [hint] if (hint := problem["ctx"]["hint"]) else []
        elif problem["type"] == "extra_forbidden":
            fields = _keys_of(_model_at(path[:-1]))
            lines[f"{where}: unknown key {name!r}.{nearest(path[-1], fields)} Known here: {', '.join(fields)}."] = None
        elif problem["type"] == "missing":
            lines[f"{where}: the key {name!r} is missing."] = None
        # A mistake inside the mapping is the one that was meant; that the mapping is no name either is left out.
        elif not any(other[: len(path)] == path and len(other) > len(path) for other in paths):
            kinds.setdefault(name, ([], problem["input"]))[0].append(problem["msg"])
    for name, (messages, given) in kinds.items():
        wanted = [_PLAIN.get(re.sub(r"\w+Settings", "", message), message) for message in messages]
        text = " or ".join(dict.fromkeys(re.sub("^(Input should be|Value error,) ", "", message) for message in wanted))
        valid = re.findall(r"'(\w+)'", text)
        lines[f"{where}: {name} should be {text}; got {given!r}.{nearest(str(given), valid)}"] = None
    return list(lines), next(iter(hints), None)


_PLAIN = {
    "Input should be a valid string": "a text",
    "Input should be a valid integer": "a whole number",
    "Input should be a valid number": "a number",
    "Input should be a valid boolean": "true or false",
    "Input should be a valid list": "a list",
    "Input should be a valid dictionary": "a mapping",
    "Input should be a valid dictionary or instance of ": "a mapping",
    "Keys should be strings": "a key in letters",
    "List should have at least 1 item after validation, not 0": "a list with at least one entry",
}
"""pydantic's words -> ours."""


def _keys_on_the_way(location: tuple[int | str, ...]) -> tuple[str, ...]:
    """The keys on the way to a problem, without pydantic's names for the ways in which a value may be written."""
    # pydantic puts the branch of a union into the location: backbone.list[...].0.BackboneSettings.nmae.
    types = re.compile(r"(str|int|float|bool|\w+Settings|(list|dict|literal)\[.*\])")
    return tuple(str(part) for part in location if isinstance(part, int) or not types.fullmatch(part))


def _as_written(path: tuple[str, ...], data: Mapping[str, Any]) -> tuple[str, ...]:
    """Without the 0 that `config` puts in where a single backbone was written: backbone.0.nmae -> backbone.nmae."""
    single = path[:2] == ("backbone", "0") and not isinstance(data.get("backbone"), list)
    return ("backbone", *path[2:]) if single else path


def _keys_of(model: type[BaseModel]) -> list[str]:
    """The keys of a mapping as a file writes them: `backbone` for the attribute `backbones`, and both `task` and `tasks`."""
    keys = [field.alias or name for name, field in model.model_fields.items()]
    return [*keys, "task"] if model is StudySettings else keys


def _model_at(path: Sequence[str]) -> type[BaseModel]:
    """The settings class that a path of keys leads to."""
    known: dict[str, type[BaseModel]] = {
        "backbone": BackboneSettings,  # also inside a list: backbone.0.nmae
        "budget": BudgetSettings,
        "search": SearchSettings,
        "limits": ServingLimits,
        "training": TrainingSettings,
        "evaluation": EvaluationSettings,
        "ablations": AblationSettings,
        "source": SourceSettings,
        "engine": EngineSettings,
    }
    return known.get(path[0], StudySettings) if path else StudySettings


def read_assignments(texts: Sequence[str]) -> dict[str, Any]:
    """`["training.batch_size=16"]` -> `{"training.batch_size": 16}`; values are read as YAML.

    Raises:
        UserError: there is no `=`, or the value is not YAML.
    """
    assignments = {}
    for text in texts:
        key, sign, value = text.partition("=")
        if not sign or not key.strip():
            raise UserError(f"--set takes KEY=VALUE; got {text!r}.", hint="--set training.batch_size=16")
        try:
            assignments[key.strip()] = yaml.load(value, Loader=_Loader)
        except yaml.YAMLError:
            raise UserError(
                f"--set {key}: {value!r} is not a value in YAML.", hint="--set 'scales=[100, all]'"
            ) from None
    return assignments


def split_methods(text: str) -> list[str]:
    """`lora,full` or `lora(rank=8, alpha=16),full` -> its methods: commas inside brackets separate nothing."""
    parts = [part.strip() for part in re.split(r",(?![^(]*\))", text)]
    if not all(parts):
        raise UserError(f"--methods takes names with commas between; got {text!r}.", hint="--methods lora,full")
    return parts


def read_seeds(text: str) -> int | list[int]:
    """`5` (that many) or `0,3,7` (these).

    Raises:
        UserError: it is neither.
    """
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not parts or not all(re.fullmatch(r"\d+", part) for part in parts):
        raise UserError(f"--seeds takes a number, or numbers with commas between; got {text!r}.", hint="--seeds 5")
    return int(parts[0]) if len(parts) == 1 and "," not in text else [int(part) for part in parts]
