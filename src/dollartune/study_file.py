"""Reads a study file: YAML, checked against the schema in `config`, each mistake told in one sentence.

study.yaml ──> YAML ──> paths counted from the file's folder ──> StudySettings
               line of the mistake                               nearest valid key, what was wanted and given
"""

from __future__ import annotations

import os
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
from dollartune.errors import UserError, nearest, should_be
from dollartune.methods.spelling import named_methods
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

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except ValueError as error:  # of Python's own `date` and `int`, for what looks like a date or a number
            problem = f"{node.value!r} is read as a date or a number and is none ({error}); a text is written in quotes"
            raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark) from None


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
    except (yaml.YAMLError, RecursionError) as error:
        raise UserError(f"{where}, {_why_no_yaml(error)}.") from None
    except UserError as error:
        raise UserError(f"{where}, {error.message}") from None
    if not isinstance(data, dict):
        what = {type(None): "it is empty", list: "it holds a list"}.get(type(data), f"it holds {str(data)[:40]!r}")
        raise UserError(f"{where} must hold `key: value` lines; {what}.", hint="dollartune init data.csv")
    return data


def _why_no_yaml(error: Exception) -> str:
    """Where and why a text is no YAML."""
    mark, problem = getattr(error, "problem_mark", None), str(getattr(error, "problem", None) or error)
    if isinstance(error, yaml.reader.ReaderError):
        problem = f"it holds the character #x{error.character:04x}, which no text file has"
    if "'\\t'" in problem:
        problem += "; indent by spaces, not by tabs"
    return f"{f'line {mark.line + 1}' if mark else 'somewhere'}: not valid YAML: {problem}"


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
        path = Path(source).expanduser()
        if path.is_dir():
            raise _no_file_but_folder(path)
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
    overrides, data = _paths_as_texts(overrides), _paths_as_texts(data)
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


def _paths_as_texts(value: Any) -> Any:
    """Paths of a program's (`task=Path("rows.csv")`) as a study file writes them."""
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, Mapping):
        return {key: _paths_as_texts(one) for key, one in value.items()}
    if not isinstance(value, list | tuple):
        return value
    texts = [_paths_as_texts(one) for one in value]
    return tuple(texts) if isinstance(value, tuple) else texts


def _no_file_but_folder(folder: Path) -> UserError:
    """The error for a folder in place of a study file; names the file that was meant where one is in it."""
    if (folder / "trials").is_dir():
        return UserError(
            f"{str(folder)!r} is the folder of a study that has run; its study file is wanted here.",
            hint=f"What it found: dollartune results {folder}",
        )
    inside = sorted(path.name for path in folder.iterdir() if path.suffix.lower() in (".yaml", ".yml"))
    hint = f"In it: {', '.join(inside[:5])}" if inside else f"A study file for data in it: dollartune init {folder}"
    return UserError(f"{str(folder)!r} is a folder; a study file (YAML) is wanted.", hint=hint)


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
    """Paths in a study file count from the file's folder: the backbone, the data, the data root, the text on forgetting."""
    data = dict(data)

    def full(path: str) -> str:
        return str((folder / Path(path).expanduser()).resolve())

    for key in ("data_root", "begin_with"):
        if isinstance(data.get(key), str):
            data[key] = full(data[key])
    evaluation = data.get("evaluation")
    if isinstance(evaluation, dict) and isinstance(evaluation.get("general_text"), str):
        data["evaluation"] = {**evaluation, "general_text": full(evaluation["general_text"])}
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
            meant = _elsewhere(path[-1]) or nearest(path[-1], fields)
            lines[f"{where}: unknown key {name!r}.{meant} Known here: {', '.join(fields)}."] = None
        elif problem["type"] == "missing":
            lines[f"{where}: the key {name!r} is missing."] = None
        elif problem["type"] == "value_error":
            lines[f"{where}: {name}: {problem['ctx']['error']}."] = None
        # A mistake inside the mapping is the one that was meant; that the mapping is no name either is left out.
        elif not any(other[: len(path)] == path and len(other) > len(path) for other in paths):
            kinds.setdefault(name, ([], problem["input"]))[0].append(problem["msg"])
    for name, (messages, given) in kinds.items():
        lines[f"{where}: {should_be(name, messages, given)}"] = None
    return list(lines), next(iter(hints), None)


def places_of_keys() -> dict[str, str]:
    """Key of a mapping inside a study file -> the key that the mapping stands under, where one place alone has it."""
    places: dict[str, list[str]] = {}
    for place, model in _INSIDE.items():
        for key in model.model_fields:
            places.setdefault(key, []).append(place)
    return {key: of_key[0] for key, of_key in places.items() if len(of_key) == 1}


def _elsewhere(key: str) -> str:
    """A clause on where a key belongs that is unknown where it stands: ` It stands under `training:`.`, or nothing."""
    if (place := places_of_keys().get(key)) is not None:
        return f" It stands under `{place}:`."
    if key in _keys_of(StudySettings):
        return " It stands at the top of the file."
    # as `lr`, which each method has of its own
    if any(key in method.settings for method in named_methods()):
        return f" It is a setting of methods: `- NAME: {{{key}: ...}}` under `methods:`."
    return ""


def _keys_on_the_way(location: tuple[int | str, ...]) -> tuple[str, ...]:
    """The keys on the way to a problem, without pydantic's names for the ways in which a value may be written."""
    # pydantic puts the branch of a union into the location: backbone.list[...].0.BackboneSettings.nmae.
    types = re.compile(r"(str|int|float|bool|constrained-\w+|\w+Settings|(list|dict|literal)\[.*\])")
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
    return _INSIDE.get(path[0], StudySettings) if path else StudySettings


_INSIDE: dict[str, type[BaseModel]] = {
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
"""Key -> what the mapping under it may say."""


def read_assignments(texts: Sequence[str]) -> dict[str, Any]:
    """`["training.batch_size=16"]` -> `{"training.batch_size": 16}`; values are read as YAML.

    Raises:
        UserError: there is no `=`, or the value is not YAML.
    """
    assignments: dict[str, Any] = {}
    for text in texts:
        key, sign, value = text.partition("=")
        key = key.strip()
        if not sign or not key:
            raise UserError(f"--set takes KEY=VALUE; got {text!r}.", hint="--set training.batch_size=16")
        if key in assignments:
            raise UserError(f"--set gives {key} twice: {assignments[key]!r} and {value!r}.")
        try:
            assignments[key] = yaml.load(value, Loader=_Loader)
        except (yaml.YAMLError, RecursionError) as error:
            raise UserError(
                f"--set {key}: {value!r} is not a value in YAML: {getattr(error, 'problem', None) or error}.",
                hint="--set 'scales=[100, all]'",
            ) from None
        except UserError as error:
            raise UserError(f"--set {key}: {error.message}") from None
    return assignments


def split_methods(text: str) -> list[str]:
    """`lora,full` or `lora(rank=8, alpha=16),full` -> its methods: commas inside brackets separate nothing."""
    parts = [part.strip() for part in re.split(r",(?![^(]*\))", text)]
    if not all(parts):
        raise UserError(f"--methods takes names with commas between; got {text!r}.", hint="--methods lora,full")
    return parts


def read_scales(text: str) -> list[int | str]:
    """`100,1000,all` -> [100, 1000, "all"].

    Raises:
        UserError: a number is cut by a comma, as in `1,000`.
    """
    parts = [part.strip() for part in text.split(",")]
    if any(re.fullmatch(r"0\d+", part) for part in parts):
        raise UserError(
            f"--scales {text}: a comma separates numbers, so write 1000 for 1,000.", hint="--scales 100,1000"
        )
    return [int(part) if part.isascii() and part.isdigit() else part for part in parts]


def read_seeds(text: str) -> int | list[int]:
    """`5` (that many) or `0,3,7` (these).

    Raises:
        UserError: it is neither.
    """
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not parts or not all(re.fullmatch(r"\d+", part) for part in parts):
        raise UserError(f"--seeds takes a number, or numbers with commas between; got {text!r}.", hint="--seeds 5")
    return int(parts[0]) if len(parts) == 1 and "," not in text else [int(part) for part in parts]
