"""What the values of a study file mean, and that each is explained."""

from typing import Any

import pytest

from dollartune.config import StudySettings
from dollartune.errors import UserError
from dollartune.study_file import load_study

GOOD: dict[str, Any] = {"backbone": "tiny-decoder", "task": "boolq", "methods": ["lora"]}


@pytest.mark.parametrize(
    ("scales", "found"), [(["low", 1000, "high"], [100, 1000, 10_000]), ([7, "all"], [7, None]), (["medium"], [1000])]
)
def test_scales(scales: list[Any], found: list[int | None]) -> None:
    assert load_study({**GOOD, "scales": scales}).scale_list() == found


@pytest.mark.parametrize(
    ("scales", "sentence"),
    [(["lo"], "Did you mean 'low'"), ([0], "too few"), ([-5], "too few"), (["low", 100], "100 stands twice"),
     (["all", "all"], "all stands twice")],
)  # fmt: skip
def test_bad_scales(scales: list[Any], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        load_study({**GOOD, "scales": scales}).scale_list()


def test_seeds() -> None:
    assert load_study({**GOOD, "seeds": 3}).seed_list() == [0, 1, 2]
    assert load_study({**GOOD, "seeds": [5, 7]}).seed_list() == [5, 7]
    for bad in (0, [], [1, 1]):
        with pytest.raises(UserError, match="seeds:"):
            load_study({**GOOD, "seeds": bad}).seed_list()


def test_every_setting_is_explained() -> None:
    def walk(model: Any) -> None:
        for name, field in model.model_fields.items():
            assert field.description, f"{model.__name__}.{name}"

    for model in (StudySettings, *(type(v) for v in (load_study(GOOD).training, load_study(GOOD).evaluation))):
        walk(model)
