"""Trials: grids, combinations and ablations unfold; a trial's name depends on what decides its result."""

from typing import Any

import pytest

from dollartune.config import AblationSettings
from dollartune.errors import UserError
from dollartune.study_file import load_study
from dollartune.trials.trial import Trial, ablated, plan_trials, variants

GOOD: dict[str, Any] = {"backbone": "tiny-decoder", "task": "boolq", "methods": ["lora"], "scales": [10], "seeds": 1}


def labels(entries: list[Any]) -> list[str]:
    return [variant.label for variant in variants(entries)]


def trials(**changes: Any) -> list[Trial]:
    return plan_trials(load_study({**GOOD, **changes}), [(0, 0, "language", False)], ["boolq"])


def names(**changes: Any) -> list[str]:
    return [trial.identifier for trial in trials(**changes)]


def test_lists_of_values_unfold_into_every_combination() -> None:
    found = variants([{"lora": {"rank": [2, 4], "where": ["self_attn.q", "attention"]}}])
    settings = [(m.config.rank, m.config.where) for v in found for m in v.build()]
    assert settings == [(2, "self_attn.q"), (2, "attention"), (4, "self_attn.q"), (4, "attention")]
    assert {variant.group for variant in found} == {"lora"}
    assert labels(["lora(rank=[2, 4])"]) == ["lora(rank=2)", "lora(rank=4)"]


def test_labels_say_only_what_differs_from_the_default() -> None:
    assert labels(["lora", {"lora": {"rank": 2}}, "full", {"ia3": None}]) == ["lora", "lora(rank=2)", "full", "ia3"]


def test_a_list_of_methods_is_one_combination() -> None:
    (variant,) = variants([["lora(rank=2)", "bitfit"]])
    assert variant.group == "lora + bitfit"
    assert variant.label == "lora(rank=2) + bitfit"
    assert [method.name for method in variant.build()] == ["lora", "bitfit"]
    assert labels([["lora(rank=[2, 4])", "bitfit"]]) == ["lora(rank=2) + bitfit", "lora(rank=4) + bitfit"]


@pytest.mark.parametrize(
    "entry",
    [
        {"lora": {"rank_pattern": {"self_attn.q": 2, "self_attn.v": 4}}},
        {"lora": {"alpha_pattern": {"self_attn.q": 2.0}}},
        {"prompt": {"tokens": 2}},
        {"adapter_fusion": {"adapters": ["one", "two"]}},
    ],
)
def test_settings_with_lists_and_mappings_survive(entry: dict[str, Any]) -> None:
    (variant,) = variants([entry])
    ((name, settings),) = entry.items()
    (method,) = variant.build()
    assert method.name == name
    for key, value in settings.items():
        assert getattr(method.config, key) == value
    assert hash(variant) == hash(variants([entry])[0])


@pytest.mark.parametrize(
    ("entries", "sentence"),
    [
        (["lorra"], "unknown method 'lorra'. Did you mean 'lora'"),
        ([{"lora": {"rnak": 2}}], "no setting 'rnak'. Did you mean 'rank'"),
        ([{"lora": {"rank": "two"}}], "setting 'rank'"),
        ([{"lora": {"rank": []}}], "the list of values is empty"),
        ([{"lora": 8}], "takes a mapping of settings, got 8"),
        ([{"lora": {}, "ia3": {}}], "one name with its settings"),
        (["lora", "lora"], "'lora' appears twice"),
        (["lora", {"lora": {"rank": [8, 8]}}], "appears twice"),
        (["lora(rank="], "is not understood"),
    ],
)
def test_mistakes_in_methods(entries: list[Any], sentence: str) -> None:
    with pytest.raises(UserError) as caught:
        variants(entries)
    assert sentence in str(caught.value)


def test_whole_numbers_stand_for_numbers() -> None:
    (variant,) = variants([{"lora": {"lr": 1, "rank": 2}}])
    assert variant.build()[0].config.lr == 1.0


def test_a_name_depends_on_everything_that_decides_the_result() -> None:
    base = names()
    changed = [
        names(training={"epochs": 2}), names(evaluation={"rows": 7}), names(data_seed=1), names(scales=[11]),
        names(seeds=[1]), names(methods=["lora(rank=2)"]), names(task={"preset": "boolq", "prompt": "{question}"}),
        names(backbone="other"), names(backbone={"name": "tiny-decoder", "random_weights_seed": 1}),
    ]  # fmt: skip
    assert len({*base, *(name for found in changed for name in found)}) == len(changed) + 1


def test_a_name_does_not_depend_on_labels_money_or_company() -> None:
    base = names()
    same = [
        names(name="other"), names(budget="$1"), names(output="elsewhere"), names(keep_adapters="all"),
        names(backbone={"name": "tiny-decoder"}), names(evaluation={"batch_size": 3}), names(methods=["lora(rank=8)"]),
        names(methods=[{"LoRA": {}}]), names(seeds=3)[:1], names(scales=[10, 20])[:1],
    ]  # fmt: skip
    assert all(found == base for found in same)
    assert len(base[0]) == 12


def test_zero_shot_is_run_once_and_few_shot_with_every_seed() -> None:
    found = [(trial.variant.label, trial.seed) for trial in trials(methods=["zero_shot", "few_shot"], seeds=2)]
    assert found == [("zero_shot", 0), ("few_shot", 0), ("few_shot", 1)]


def test_trials_come_by_scale_then_method_then_seed() -> None:
    found = [(t.scale, t.variant.label, t.seed) for t in trials(methods=["lora", "ia3"], scales=[5, "all"], seeds=2)]
    assert found[:4] == [(5, "lora", 0), (5, "lora", 1), (5, "ia3", 0), (5, "ia3", 1)]
    assert {scale for scale, *_ in found[4:]} == {None}


def test_ablations_change_layers_or_places() -> None:
    whole = variants(["lora", "zero_shot", "bitfit"])
    wanted = AblationSettings(
        layers=["first 50%"], drop=["self_attn.q", "q o"], where=["self_attn.v"], methods=["lora"]
    )
    found = ablated(whole, wanted)
    assert [variant.label for variant in found] == [
        "lora: first 50%", "lora: drop self_attn.q", "lora: drop q o", "lora: only self_attn.v",
    ]  # fmt: skip
    configs = [variant.build()[0].config for variant in found]
    assert configs[0].layers == "first 50%"
    assert configs[1].where.endswith(" -self_attn.q")
    assert configs[2].where.endswith(" -q -o")
    assert configs[3].where == "self_attn.v"
    assert {variant.group for variant in found} == {"lora"}


def test_ablations_of_methods_that_are_not_there() -> None:
    with pytest.raises(UserError, match=r"unknown method in ablations 'lorra'\. Did you mean 'lora'"):
        ablated(variants(["lora"]), AblationSettings(methods=["lorra"], layers=["first 50%"]))
    with pytest.raises(UserError, match="none of the study's methods"):
        ablated(variants(["zero_shot"]), AblationSettings(layers=["first 50%"]))
    assert ablated(variants(["lora"]), None) == []


def test_a_backbone_can_be_for_some_methods_only() -> None:
    from dollartune.trials.expand import plan

    rest = {
        "task": "demo_library",
        "methods": ["zero_shot", "lora", "full"],
        "scales": [10],
        "seeds": 1,
        "baselines": False,
    }
    backbones = [{"name": "tiny-decoder", "methods": ["fine_tuning", "lora"]}, {"name": "tiny-seq2seq"}]
    found = {(trial.backbone, trial.variant.label) for trial in plan(load_study({"backbone": backbones, **rest}))[0]}
    small = {("tiny-decoder", label) for label in ("lora", "full")}
    assert found == small | {("tiny-seq2seq", label) for label in ("zero_shot", "lora", "full")}
    alone = plan(load_study({"backbone": "tiny-decoder", **rest}))[0]
    for trial in plan(load_study({"backbone": {"name": "tiny-decoder", "methods": ["lora"]}, **rest}))[0]:
        assert trial.identifier in {
            other.identifier for other in alone
        }  # what it is for does not change what it computes
    with pytest.raises(UserError, match=r"unknown method of backbone 'tiny-decoder' 'head'"):
        plan(load_study({"backbone": {"name": "tiny-decoder", "methods": ["head"]}, **rest}))


def test_a_backbone_can_be_for_some_tasks_only() -> None:
    from dollartune.trials.expand import plan

    backbones = [{"name": "tiny-decoder", "tasks": ["demo_library"]}, {"name": "tiny-encoder", "tasks": ["demo_match"]}]
    rest = {"tasks": ["demo_library", "demo_match"], "methods": ["lora"], "scales": [10], "seeds": 1}
    trials, tasks, _ = plan(load_study({"backbone": backbones, **rest}))
    found = {(trial.backbone, tasks[trial.task_index].name, trial.among_backbones) for trial in trials}
    assert found == {("tiny-decoder", "demo_library", False), ("tiny-encoder", "demo_match", False)}
    with pytest.raises(UserError, match=r"unknown task of backbone 'tiny-decoder' 'demo_libary'\. Did you mean"):
        plan(load_study({"backbone": {"name": "tiny-decoder", "tasks": ["demo_libary"]}, **rest}))
