"""What `methods show` and the pages say of a method: every setting has a meaning, docstrings are whole."""

from __future__ import annotations

import inspect
import itertools
from typing import Any

import pytest
from typer.testing import CliRunner

from dollartune.cli.app import app
from dollartune.methods.base import Method, MethodConfig
from dollartune.methods.registry import methods, reference


@pytest.mark.parametrize("method", methods().values(), ids=methods())
def test_every_setting_says_what_it_means(method: type[Method[Any]]) -> None:
    blank = [name for name, field in method.Config.model_fields.items() if not field.description]
    assert not blank


def test_a_default_that_changes_keeps_its_meaning() -> None:
    class Config(MethodConfig):
        lr: float = 3.0

    assert Config.model_fields["lr"].description == MethodConfig.model_fields["lr"].description


@pytest.mark.parametrize("method", methods().values(), ids=methods())
def test_no_line_breaks_inside_a_sentence_of_a_docstring(method: type[Method[Any]]) -> None:
    """A short line followed by more of the same paragraph is a break that a reader sees."""
    lines = inspect.cleandoc(method.__doc__ or "").splitlines()
    pairs = itertools.pairwise(lines)
    broken = [(a, b) for a, b in pairs if a.strip() and b.strip() and not a.startswith(" ") and len(a) < 70]
    assert not broken


def test_the_terminal_says_what_a_method_can_do_in_words() -> None:
    shown = CliRunner().invoke(app, ["methods", "show", "lora"]).output
    assert "can be merged into the weights: exactly" in shown
    assert "mergeable True" not in shown


def test_each_comparison_is_one_method() -> None:
    for what in ("untuned", "examples", "everything", "head"):
        assert [m for m in methods().values() if vars(m).get("reference") == what] == [reference(what)]  # type: ignore[arg-type]


def test_settings_are_in_the_signature_for_editors_and_notebooks() -> None:
    from dollartune.methods import LoRA

    assert {"rank", "alpha", "where", "layers"} <= set(inspect.signature(LoRA).parameters)
    for cls in methods().values():
        assert set(cls.Config.model_fields) <= set(inspect.signature(cls).parameters), cls.name
