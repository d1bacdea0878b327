"""tools/code_numbers.py counts what it says it counts."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

TOOL = Path(__file__).parents[1] / "tools" / "code_numbers.py"
TEXT = '''"""A module."""

# why this number: measured
LIMIT: dict[str, Any] = {}  # fmt: skip


class Engine:
    """A docstring
    of two lines."""

    size: int = 3  # bytes
    """A field's docstring."""

    def go(self, found: int) -> None:
        found = found + 1
'''


@pytest.fixture(scope="module")
def tool():  # type: ignore[no-untyped-def]
    spec = importlib.util.spec_from_file_location("code_numbers", TOOL)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["code_numbers"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def test_a_file_is_counted(tool) -> None:  # type: ignore[no-untyped-def]
    numbers = tool.Numbers()
    tool.add(numbers, "a.py", TEXT)
    tool.add(numbers, "b.py", "class Engine: ...\n")
    assert (numbers.files, numbers.lines, numbers.blank, numbers.docstring) == (2, 16, 5, 4)
    assert (numbers.comment, numbers.comment_for_people) == (3, 2), "an order to a tool is no comment for people"
    assert numbers.code == 6
    assert (numbers.untyped_dicts, numbers.any_names, numbers.fillers["found"]) == (1, 1, 2)
    assert numbers.twice == {"Engine": ["a.py", "b.py"]}


def test_the_tree_is_counted(tool) -> None:  # type: ignore[no-untyped-def]
    numbers = tool.counted()
    assert numbers.files > 300
    assert numbers.lines == pytest.approx(numbers.blank + numbers.docstring + numbers.code + numbers.comment, rel=0.05)
