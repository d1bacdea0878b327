"""Names of methods and of their settings, read off the source without importing PyTorch: in some 50 ms in place of two seconds.

A misspelt study file, a completion in a shell and `dir(dollartune.methods)` need the names and nothing else.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from dollartune.errors import UserError, nearest, unknown_name


@dataclass(frozen=True)
class NamedMethod:
    """What the source says of one method."""

    class_name: str
    name: str
    aliases: tuple[str, ...]
    settings: Mapping[str, str]
    """Keys of its settings class, inherited ones first, and what each means."""


def normalized(name: str) -> str:
    """A method's name as it is registered: `P-Tuning` is `p_tuning`."""
    return name.strip().lower().replace("-", "_").replace(" ", "_")


def parse_call(text: str) -> tuple[str, dict[str, Any]]:
    """Splits `lora(rank=8)` into its name and settings; values are Python literals.

    Raises:
        UserError: the text is no such call.
    """
    try:
        node = ast.parse(text.strip(), mode="eval").body
    except SyntaxError:
        raise UserError(
            f"method {text!r} is not understood. Write for example lora or lora(rank=8, where='self_attn.q')."
        ) from None
    if isinstance(node, ast.Name):
        return node.id, {}
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and not node.args:
        try:
            return node.func.id, {str(word.arg): ast.literal_eval(word.value) for word in node.keywords}
        except ValueError:
            raise UserError(
                f"method {text!r}: settings must be literals, for example lora(rank=8, where='self_attn.q')."
            ) from None
    raise UserError(f"method {text!r} is not understood. Write for example lora or lora(rank=8, where='self_attn.q').")


@cache
def named_methods() -> tuple[NamedMethod, ...]:
    """The methods of this package, in alphabetical order; those of other packages are not among them."""
    classes: dict[str, ast.ClassDef] = {}
    for path in sorted(Path(__file__).parent.glob("*.py")):
        for node in ast.parse(path.read_text(encoding="utf8")).body:
            if isinstance(node, ast.ClassDef):
                classes[node.name] = node
    named = []
    for node in classes.values():
        values = _literals(node)
        if isinstance(values.get("name"), str) and (config := _config(node, classes)) is not None:
            named.append(
                NamedMethod(node.name, values["name"], tuple(values.get("aliases", ())), _fields(config, classes))
            )
    return tuple(sorted(named, key=lambda one: one.name))


def check_spelling(spec: Any, elsewhere: Mapping[str, str] | None = None) -> None:
    """Refuses an entry of `methods:` whose name, or one of whose settings, is not known.

    Args:
        elsewhere: keys that belong to no method -> the key of a study file that they stand under.

    Raises:
        UserError: with the nearest name. Nothing is said where another package offers methods, as theirs are not known here.
    """
    # Another package's methods are known once they are imported, which this module must not do.
    if entry_points(group="dollartune.methods"):
        return
    if isinstance(spec, list):
        for one in spec:
            check_spelling(one, elsewhere)
        return
    if isinstance(spec, str):
        name, settings = parse_call(spec)
    elif isinstance(spec, Mapping) and "method" in spec:
        name, settings = str(spec["method"]), {key: value for key, value in spec.items() if key != "method"}
    elif isinstance(spec, Mapping) and len(spec) == 1:
        name, given = next(iter(spec.items()))
        settings = dict(given) if isinstance(given, Mapping) else {}
    else:
        return  # what is wrong with it, `registry.build_method` says
    method = next((one for one in named_methods() if normalized(str(name)) in (one.name, *one.aliases)), None)
    if method is None:
        known = [alias for one in named_methods() for alias in (one.name, *one.aliases)]
        names = [one.name for one in named_methods()]
        raise unknown_name("method", str(name), known, hint="dollartune methods ls", listed=names)
    for key in settings:
        if key not in method.settings:
            meant = nearest(str(key), method.settings)
            if place := (elsewhere or {}).get(str(key)):
                meant = f" It stands under `{place}:`, not in a method."
            elif others := [one.name for one in named_methods() if key in one.settings]:
                meant = f" It is one of {', '.join(others)}."
            raise UserError(
                f"method {method.name!r} has no setting {key!r}.{meant} It has {', '.join(method.settings)}.",
                hint=f"dollartune methods show {method.name}",
            )


def _literals(node: ast.ClassDef) -> dict[str, Any]:
    """A class's name and aliases, where its body sets them."""
    return {name: ast.literal_eval(value) for name, value in _set(node) if name in ("name", "aliases")}


def _set(node: ast.ClassDef) -> Iterator[tuple[str, ast.expr]]:
    """What a class body sets."""
    for line in node.body:
        if isinstance(line, ast.AnnAssign) and isinstance(line.target, ast.Name) and line.value is not None:
            yield line.target.id, line.value
        elif isinstance(line, ast.Assign) and isinstance(line.targets[0], ast.Name):
            yield line.targets[0].id, line.value


def _config(node: ast.ClassDef, classes: Mapping[str, ast.ClassDef]) -> ast.ClassDef | None:
    """The settings class of a method: what its own `Method[...]` names, else what `Config` is set to, else its parent's."""
    # `Method[LoRAConfig]` comes first: it is what pydantic and mypy read as well.
    for base in node.bases:
        if isinstance(base, ast.Subscript) and isinstance(base.slice, ast.Name):
            return classes.get(base.slice.id)
    for name, value in _set(node):
        if name == "Config" and isinstance(value, ast.Name):
            return classes.get(value.id)
    for base in node.bases:
        if (
            isinstance(base, ast.Name)
            and base.id in classes
            and (config := _config(classes[base.id], classes)) is not None
        ):
            return config
    return None


def _fields(node: ast.ClassDef, classes: Mapping[str, ast.ClassDef]) -> dict[str, str]:
    """Fields of a settings class with their docstrings; one that it states anew keeps its parent's where it has none."""
    said_of: dict[str, str] = {}
    for base in node.bases:
        if isinstance(base, ast.Name) and base.id in classes:
            said_of |= _fields(classes[base.id], classes)
    # A docstring of a field is the statement behind it.
    for line, after in zip(node.body, [*node.body[1:], None], strict=True):
        if not isinstance(line, ast.AnnAssign) or not isinstance(line.target, ast.Name):
            continue
        # Of the class and no setting.
        if "ClassVar" in ast.dump(line.annotation):
            continue
        said = after.value.value if isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant) else ""
        said_of[line.target.id] = " ".join(str(said).split()) or said_of.get(line.target.id, "")
    return said_of
