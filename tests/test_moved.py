"""Modules and names of 0.1: the old name says the new one, over the whole table, and nothing of ours still uses it."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

import dollartune
from dollartune._moved import MOVED, PACKAGE, RENAMED

ROOT = Path(__file__).parents[1]
NEEDS = {"cli": "typer", "serve": "fastapi", "report": "altair", "engines.ray": "ray"}
"""Start of a module's path -> the library without which it cannot be imported."""


@pytest.fixture(autouse=True)
def forgotten() -> Iterator[None]:
    """Old modules are imported anew by each test, as in a fresh process."""

    def forget() -> None:
        for old in MOVED:
            sys.modules.pop(f"{PACKAGE}.{old}", None)

    forget()
    yield
    forget()


def today(new: str) -> object:
    for start, library in NEEDS.items():
        if new.startswith(start):
            pytest.importorskip(library)
    return importlib.import_module(f"{PACKAGE}.{new}")


@pytest.mark.parametrize(("old", "new"), MOVED.items(), ids=MOVED)
def test_an_old_module_names_the_new_one(old: str, new: str) -> None:
    module = today(new)
    name = next(name for name, value in vars(module).items() if getattr(value, "__module__", "") == module.__name__)
    if old.startswith("attach."):
        with pytest.raises(ModuleNotFoundError, match=f"{old.removeprefix('attach.')} -> "):
            importlib.import_module(f"{PACKAGE}.{old}")
        return
    with pytest.warns(DeprecationWarning, match=re.escape(f"{PACKAGE}.{new} now")):
        forwarded = importlib.import_module(f"{PACKAGE}.{old}")
    assert getattr(forwarded, name) is getattr(module, name)
    assert name in dir(forwarded)
    assert module.__name__ == module.__spec__.name == f"{PACKAGE}.{new}", "today's module is left as it was"


@pytest.mark.parametrize(
    ("new", "before", "now"),
    [(new, before, now) for new, names in RENAMED.items() for before, now in names.items()],
)
def test_an_old_name_gives_the_new_class(new: str, before: str, now: str) -> None:
    elsewhere, _, now = now.rpartition(":")
    home = today(elsewhere or new)
    old = next(old for old, target in MOVED.items() if target == new)
    with pytest.warns(DeprecationWarning, match=re.escape(f"{elsewhere or new}.{now} now")):
        assert getattr(importlib.import_module(f"{PACKAGE}.{old}"), before) is getattr(home, now)
    assert elsewhere or not hasattr(home, before), "the old name is reached through the old module alone"


@pytest.mark.parametrize(("before", "now"), [("Study", "RecordedStudy"), ("Table", "PublishedTable")])
def test_renamed_classes_of_evidence_are_forwarded(before: str, now: str) -> None:
    evidence = importlib.import_module("dollartune.evidence")
    with pytest.warns(DeprecationWarning, match=f"{now} now"):
        assert getattr(evidence, before) is getattr(evidence, now)


def test_attach_stays_the_function() -> None:
    code = (
        "import importlib\n"
        "for name in ('attach', 'attach.attached', 'study.store'):\n"
        "    try:\n        importlib.import_module('dollartune.' + name)\n"
        "    except ImportError as error:\n        assert 'dollartune.attachment now' in str(error), error\n"
        "from dollartune import attach\n"
        "assert callable(attach) and attach.__module__ == 'dollartune.tunable', attach\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]


def test_the_warning_points_at_the_line_that_imports() -> None:
    with pytest.warns(DeprecationWarning, match=r"trials\.store now") as caught:
        exec(compile("from dollartune.study.store import Store", "users_script.py", "exec"), {})
    assert [warning.filename for warning in caught] == ["users_script.py"]


def test_a_module_that_never_was_is_still_not_there() -> None:
    with pytest.raises(ModuleNotFoundError, match=r"No module named 'dollartune\.nowhere'"):
        importlib.import_module("dollartune.nowhere")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        forwarded = importlib.import_module("dollartune.study.store")
    with pytest.raises(AttributeError, match="nothing_of_ours"):
        forwarded.nothing_of_ours  # noqa: B018


def test_old_and_new_names_do_not_meet() -> None:
    root = Path(dollartune.__file__).parent
    for old in MOVED:
        path = root.joinpath(*old.split("."))
        assert not path.with_suffix(".py").exists(), f"{old} exists again: take it out of the table"
        assert not (path / "__init__.py").exists(), f"{old} exists again: take it out of the table"


def test_nothing_of_ours_imports_an_old_name() -> None:
    old = re.compile(
        rf"\b{PACKAGE}\.({'|'.join(re.escape(name) for name in sorted(MOVED, key=len, reverse=True))})\b(?!\.)"
    )
    files = [
        path for folder in ("src", "bench", "tests", "examples", "pretrain") for path in (ROOT / folder).rglob("*.py")
    ]
    files += [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]
    own = {Path(__file__), ROOT / "src" / PACKAGE / "_moved.py", ROOT / "CHANGELOG.md"}
    users = {
        str(path.relative_to(ROOT)): sorted(set(old.findall(path.read_text(encoding="utf8"))))
        for path in files
        if path not in own and old.search(path.read_text(encoding="utf8"))
    }
    assert not users
