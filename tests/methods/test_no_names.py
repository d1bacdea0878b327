"""Nothing outside `methods/` names a method: what the rest of the system needs to know, a method says of itself.

A method is named by importing its module, or by its name or an alias as a whole string. Docstrings, help texts and data files
(evidence, defaults, the demo's study) may name them; code may not, since whoever adds a method would have to find it.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import dollartune
from dollartune.methods.registry import methods

SOURCE = Path(dollartune.__file__).parent
SHARED_BY_ALL = {
    "base",
    "baseline",
    "edits",
    "exchange",
    "features",
    "registry",
    "rules",
    "selection",
    "space",
    "spelling",
    "stored_adapter",
    "token_counts",
}
"""Modules of `methods/` that belong to no method."""
OTHER_MEANINGS = {
    "head": "a kind of site, and of an HTML element",
    "norm": "a kind of site",
    "bias": "a parameter of a module",
    "gate": "a role: the feed-forward's gate",
    "adapter": "what a trial trains: the folder, the route's name",
    "prompt": "the text before the answer",
    "prefix": "the beginning of a text",
    "probe": "where a trained head may begin",
    "sequential": "a device map of transformers",
    "parallel": "several at once",
    "baseline": "majority class and the like",
    "majority": "the commonest class, a standard comparison",
    "in_context": "a branch of methods",
    "layernorm": "a module of a family",
}
"""Names that mean something else as well, and are read so."""
FORMATS = {"lora"}
"""What `export --format` calls files that other servers load: whatever method was trained, `export/` means the format."""


def named(path: Path, names: set[str], modules: set[str]) -> Iterator[str]:
    """Places in a file where a method is named."""
    tree = ast.parse(path.read_text(encoding="utf8"))
    if path.parent.name == "export":
        names = names - FORMATS
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("dollartune.methods."):
            if (node.module or "").rsplit(".", 1)[-1] in modules:
                yield f"{path.relative_to(SOURCE)}:{node.lineno} imports {node.module}"
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value in names:
            yield f"{path.relative_to(SOURCE)}:{node.lineno} says {node.value!r}"


def test_no_file_outside_methods_names_one() -> None:
    names = {name for cls in methods().values() for name in (cls.name, *cls.aliases)} - set(OTHER_MEANINGS)
    modules = {path.stem for path in (SOURCE / "methods").glob("*.py")} - SHARED_BY_ALL
    files = [path for path in SOURCE.rglob("*.py") if path.parent.name != "methods"]
    assert len(files) > 200
    assert not [place for path in files for place in named(path, names, modules)]


def test_the_search_sees_a_name_and_an_import(tmp_path: Path) -> None:
    file = SOURCE / "methods" / "gates.py"  # it builds another method by name, as methods may
    assert list(named(file, {"lora"}, {"edits"}))


def test_words_with_other_meanings_are_names_of_methods() -> None:
    names = {name for cls in methods().values() for name in (cls.name, *cls.aliases)}
    assert set(OTHER_MEANINGS) - names == set()
