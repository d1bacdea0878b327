"""Tuning methods, one file each. `registry.methods()` lists them; `base.Method` is the contract.

Classes can be imported from here by name (`from dollartune.methods import LoRA`); they are looked up in the registry on
first use, so that there is no list to keep.
"""

from __future__ import annotations

from typing import Any


def __dir__() -> list[str]:
    """Names of the method classes, so that completion finds them; nothing is imported for it."""
    from dollartune.methods.spelling import named_methods

    return sorted([*globals(), *(method.class_name for method in named_methods())])


def __getattr__(name: str) -> Any:
    if name.startswith("_") and name != "__all__":
        raise AttributeError(name)
    if name == "__all__":
        from dollartune.methods.spelling import named_methods

        return [method.class_name for method in named_methods()]
    from dollartune.methods.registry import methods

    for method in methods().values():
        if method.__name__ == name:
            return method
    raise AttributeError(f"module {__name__!r} has no method class {name!r}; see `dollartune methods ls`")
