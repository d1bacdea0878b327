"""Finds methods: every file of this package, and entry points `dollartune.methods` of other packages.

There is no list to keep: a class that derives from `Method` and has a `name` is registered by being there.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from dollartune.errors import UserError, unknown_name
from dollartune.methods.base import Method, Reference
from dollartune.methods.spelling import normalized, parse_call


@cache
def methods() -> dict[str, type[Method[Any]]]:
    """Registered name -> method class, in alphabetical order."""
    classes: dict[str, type[Method[Any]]] = {}
    here = pkgutil.iter_modules([str(Path(__file__).parent)])
    modules = [importlib.import_module(f"{__package__}.{info.name}") for info in here]
    candidates = [value for module in modules for value in vars(module).values()]
    candidates += [entry.load() for entry in entry_points(group="dollartune.methods")]
    for candidate in candidates:
        # a name of its own: what methods only share (`SolvedMethod`) has none
        if inspect.isclass(candidate) and issubclass(candidate, Method) and "name" in vars(candidate):
            other = classes.setdefault(candidate.name, candidate)
            if other is not candidate:
                raise UserError(
                    f"two methods are called {candidate.name!r}: {other.__module__} and {candidate.__module__}."
                )
    return dict(sorted(classes.items()))


def method_class(name: str) -> type[Method[Any]]:
    """The method of that name or alias.

    Raises:
        UserError: unknown name; the nearest one is suggested.
    """
    wanted = normalized(name)
    for candidate in methods().values():
        if wanted in (candidate.name, *candidate.aliases):
            return candidate
    known = [alias for candidate in methods().values() for alias in (candidate.name, *candidate.aliases)]
    raise unknown_name("method", name, known, hint="dollartune methods ls", listed=methods())


@cache
def reference(what: Reference) -> type[Method[Any]]:
    """The method that comparisons refer to so.

    Raises:
        UserError: none is registered.
    """
    for candidate in methods().values():
        if vars(candidate).get("reference") == what:  # its own, not one that it inherits
            return candidate
    raise UserError(f"no registered method is the comparison {what!r}.", hint="dollartune methods ls")


def with_head(chosen: Sequence[Method[Any]], objective: str) -> list[Method[Any]]:
    """A trial's methods: where classes are scored the head is tuned as well, unless one of them does so or tunes it all."""
    covered = any({"head", "model"} & set(method.kinds) for method in chosen)
    return [*chosen] if covered or objective != "classification" else [*chosen, reference("head")()]


def build_method(spec: str | Mapping[str, Any]) -> Method[Any]:
    """A method from `lora`, `lora(rank=8, where='self_attn.q')`, `{lora: {rank: 8}}` or `{method: lora, rank: 8}`."""
    if isinstance(spec, str):
        name, settings = parse_call(spec)
    elif "method" in spec:
        name, settings = str(spec["method"]), {k: v for k, v in spec.items() if k != "method"}
    elif len(spec) == 1:
        name, value = next(iter(spec.items()))
        if value is not None and not isinstance(value, Mapping):
            raise UserError(
                f"method {name!r} takes a mapping of settings, got {value!r}.", hint=f"dollartune methods show {name}"
            )
        settings = dict(value or {})
    else:
        raise UserError(
            f"a method is written as a name, name(setting=value) or {{name: {{setting: value}}}}; got {dict(spec)!r}."
        )
    cls = method_class(name)
    return cls(**{**cls.presets.get(normalized(name), {}), **settings})
