"""What the values of a study file mean, and that each is explained."""

from typing import Any

import pytest

from dollartune.budget.limit import BudgetSettings
from dollartune.config import BackboneSettings, EngineSettings, SearchSettings, StudySettings
from dollartune.errors import UserError
from dollartune.study_file import load_study

GOOD: dict[str, Any] = {"backbone": "tiny-decoder", "task": "boolq", "methods": ["lora"]}


@pytest.mark.parametrize(
    ("scales", "found"), [(["low", 1000, "high"], [100, 1000, 10_000]), ([7, "all"], [7, None]), (["medium"], [1000])]
)
def test_scales(scales: list[Any], found: list[int | None]) -> None:
    assert load_study({**GOOD, "scales": scales}).scales == tuple(found)


@pytest.mark.parametrize(
    ("scales", "sentence"),
    [(["lo"], "Did you mean 'low'"), ([0], "too few"), ([-5], "too few"), (["low", 100], "100 appears twice"),
     (["all", "all"], "all appears twice")],
)  # fmt: skip
def test_bad_scales(scales: list[Any], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        load_study({**GOOD, "scales": scales})


def test_seeds() -> None:
    assert load_study({**GOOD, "seeds": 3}).seeds == (0, 1, 2)
    assert load_study({**GOOD, "seeds": [5, 7]}).seeds == (5, 7)
    for bad in (0, [], [1, 1]):
        with pytest.raises(UserError, match="seeds:"):
            load_study({**GOOD, "seeds": bad})


def test_a_budget_searches_unless_the_study_says_otherwise() -> None:
    limited = {**GOOD, "budget": "$1"}
    assert load_study(limited).search == SearchSettings()
    assert load_study({**limited, "search": False}).search is None
    assert load_study({**limited, "ablations": {"layers": ["first 50%"]}}).search is None
    assert load_study(limited, search=4).search == SearchSettings(trials=4)
    assert load_study(GOOD).search is None


@pytest.mark.parametrize(
    ("key", "written", "attribute", "value"),
    [
        ("backbone", "a", "backbones", (BackboneSettings(name="a"),)),
        ("backbone", {"name": "a"}, "backbones", (BackboneSettings(name="a"),)),
        ("backbone", ["a", {"name": "b", "quantize": "nf4"}], "backbones",
         (BackboneSettings(name="a"), BackboneSettings(name="b", quantize="nf4"))),
        ("task", {"preset": "rte"}, "tasks", ({"preset": "rte"},)),
        ("tasks", ["rte", {"data": "x.csv"}], "tasks", ("boolq", "rte", {"data": "x.csv"})),
        ("budget", None, "budget", None),
        ("budget", "90 s each", "budget", BudgetSettings(seconds=90.0)),
        ("budget", "$5 per study", "budget", BudgetSettings(dollars=5.0, per="study")),
        ("budget", {"hours": 2, "per": "trial"}, "budget", BudgetSettings(seconds=7200.0, per="trial")),
        ("search", False, "search", None),
        ("search", True, "search", SearchSettings()),
        ("search", 4, "search", SearchSettings(trials=4)),
        ("search", {"sampler": "quasi"}, "search", SearchSettings(sampler="quasi")),
        ("budget", "$5 per study", "search", SearchSettings()),
        ("budget", "$5", "search", SearchSettings()),
        ("budget", "$5 per trial", "search", None),
        ("budget", {"price": "2/h"}, "search", None),
        ("engine", "ray", "engine", EngineSettings(name="ray")),
        ("engine", {"name": "ray", "cpus": 2}, "engine", EngineSettings(name="ray", cpus=2.0)),
    ],
)  # fmt: skip
def test_every_way_of_writing_is_one_value_and_survives_the_file_of_a_study(
    key: str, written: Any, attribute: str, value: Any
) -> None:
    settings = load_study({**GOOD, key: written, "scales": ["low", "all"], "seeds": 2})
    assert getattr(settings, attribute) == value
    assert StudySettings.model_validate_json(settings.model_dump_json()) == settings
    assert load_study(settings.model_dump()) == settings


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"search": 0}, "the study: search: 0 settings are too few."),
        ({"search": "yes"}, "search should be true or false or a whole number or a mapping; got 'yes'."),
        ({"budget": "soon"}, "the study: budget: 'soon' is not a length of time."),
        ({"budget": "$1 per trail"}, "unknown budget 'per' 'trail'."),
        ({"engine": "rai"}, "got 'rai'. Did you mean 'ray'?"),
        ({"task": 3}, "a task is a text (a preset's name or a data file) or a mapping; got 3."),
        ({"task": ["a", "b"]}, "Several tasks are written as `tasks: [...]`."),
        ({"tasks": "rte"}, "tasks should be a list; got 'rte'."),
        ({"backbones": ["a"]}, "unknown key 'backbones'. Did you mean 'backbone'?"),
        ({"seeds": True}, "seeds should be a whole number or a list of whole numbers; got True."),
    ],
)  # fmt: skip
def test_a_value_that_cannot_be_read_is_told_when_the_file_is_read(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError) as caught:
        load_study({**GOOD, **changes})
    assert sentence in caught.value.message


def test_every_setting_is_explained() -> None:
    def walk(model: Any) -> None:
        for name, field in model.model_fields.items():
            assert field.description, f"{model.__name__}.{name}"

    for model in (StudySettings, *(type(v) for v in (load_study(GOOD).training, load_study(GOOD).evaluation))):
        walk(model)
