"""What is read off the source is what the registry holds."""

from __future__ import annotations

from typing import Any

import pytest

import dollartune.methods
from dollartune.errors import UserError
from dollartune.methods.registry import methods
from dollartune.methods.spelling import check_spelling, named_methods


def test_names_aliases_and_settings_are_those_of_the_classes() -> None:
    known = methods()
    ours = [name for name, cls in known.items() if cls.__module__.startswith("dollartune.")]
    assert [one.name for one in named_methods()] == ours
    for one in named_methods():
        cls = known[one.name]
        assert one.class_name == cls.__name__
        assert one.aliases == tuple(cls.aliases)
        assert set(one.settings) == set(cls.Config.model_fields)
        for key, field in cls.Config.model_fields.items():
            assert one.settings[key] == " ".join((field.description or one.settings[key]).split())


def test_completion_finds_the_classes() -> None:
    assert "LoRA" in dir(dollartune.methods)
    assert set(dollartune.methods.__all__) <= set(dir(dollartune.methods))
    assert dollartune.methods.LoRA is methods()["lora"]


@pytest.mark.parametrize(
    "spec",
    [
        "lora",
        {"P-Tuning": None},
        "lora(rank=8)",
        {"lora": {"rank": [2, 4]}},
        {"method": "ia3"},
        ["lora", "bitfit"],
        {"full": None},
    ],
)
def test_what_is_right_passes(spec: Any) -> None:
    check_spelling(spec)


@pytest.mark.parametrize(
    ("spec", "sentence"),
    [
        ("lorra", "unknown method 'lorra'. Did you mean 'lora'?"),
        ({"lora": {"rnak": 2}}, "method 'lora' has no setting 'rnak'. Did you mean 'rank'?"),
        (["bitfit", "ia2"], "unknown method 'ia2'."),
        ({"method": "dora", "alhpa": 2}, "no setting 'alhpa'. Did you mean 'alpha'?"),
    ],
)
def test_what_is_misspelt_has_its_nearest_name(spec: Any, sentence: str) -> None:
    with pytest.raises(UserError) as caught:
        check_spelling(spec)
    assert sentence in caught.value.message
