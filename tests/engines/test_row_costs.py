"""What evaluating a row takes: each way of asking has its own figure, and measuring it takes little of the money."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from dollartune.config import EvaluationSettings
from dollartune.engines.measure_cost import PROBE_SECONDS, PROBED_ROWS, probe
from dollartune.engines.trial_context import ContextCache, TrialContext
from dollartune.methods.few_shot import FewShot
from dollartune.study_file import load_study
from dollartune.trials.expand import plan


@pytest.fixture(scope="module")
def contexts() -> dict[str, TrialContext]:
    """By method and draw."""
    settings = load_study(
        {
            "backbone": "tiny-decoder",
            "tasks": ["demo_library"],
            "methods": ["zero_shot", {"few_shot": {"examples": 4}}, "lora"],
            "scales": [40],
            "seeds": [0, 1],
            "search": False,
            "evaluation": {"rows": 20},
        }
    )
    trials, tasks, _ = plan(settings)
    cache = ContextCache(settings, tasks, 0)
    made: dict[str, TrialContext] = {}
    for trial in (one for one in trials if not one.answers_alone):
        context = cache.context(trial)
        assert cache.context(trial) is context
        if context.row_costs.seconds_per_row is None:
            context.row_costs.note_test(
                *{"few_shot": (50.0, 10), "zero_shot": (1.0, 10)}.get(trial.variant.group, (2.0, 10))
            )
        made[f"{trial.variant.group} {trial.draw}"] = context
    return made


def test_what_prompts_with_solved_examples_take_is_not_what_others_are_thought_to_take(
    contexts: dict[str, TrialContext],
) -> None:
    assert {name: context.row_costs.seconds_per_row for name, context in contexts.items()} == {
        name: pytest.approx(5.0 if name.startswith("few_shot") else 0.1) for name in contexts
    }
    assert len(contexts) == 5, "zero-shot asks the same for all seeds; each seed of the others draws its own rows"


def test_all_ways_of_asking_share_backbone_and_rows(contexts: dict[str, TrialContext]) -> None:
    assert len({id(context.backbone) for context in contexts.values()}) == 1
    for draw in {name.split()[1] for name in contexts if not name.startswith("zero_shot")}:
        shown, trained = contexts[f"few_shot {draw}"], contexts[f"lora {draw}"]
        assert shown.train is trained.train


def test_validation_rows_are_encoded_once_for_all_trials(contexts: dict[str, TrialContext]) -> None:
    """Pictures would be decoded again for each."""
    for name, context in contexts.items():
        evaluator, rows = context.evaluator(False), context.splits.validation
        encoded = evaluator.encode([*context.splits.test[:2], *rows], None, 0)
        assert [id(row) for row in encoded[2:]] == [id(row) for row in context.validation]
        assert [row.example_id for row in encoded[:2]] == [example.id for example in context.splits.test[:2]]
        prompting = FewShot(examples=2).prompting
        if name.startswith("few_shot"):
            assert len(evaluator.encode(rows, prompting, 0)[0].prompt) > len(context.validation[0].prompt)


@pytest.mark.parametrize("seconds_per_row", [1e-4, 0.2, 3.0])
def test_a_row_is_timed_on_as_many_as_a_moment_pays_for(seconds_per_row: float) -> None:
    asked: list[int] = []

    def evaluate(adapter: None, methods: Any, rows: list[int], *_: Any) -> Any:
        asked.append(len(rows))
        setting_up = 2.0 if len(asked) == 1 else 0.0
        return SimpleNamespace(seconds=setting_up + len(rows) * seconds_per_row, examples=len(rows))

    noted: list[float] = []
    context: Any = SimpleNamespace(
        evaluate=evaluate,
        validation=[SimpleNamespace(length=5)] * 40,
        splits=SimpleNamespace(validation=list(range(40))),
        task=SimpleNamespace(kind="classification"),
        row_costs=SimpleNamespace(
            note_validation=lambda seconds, rows: noted.append(seconds / rows),
            note_test=lambda seconds, rows: noted.append(seconds / rows),
        ),
    )
    trial: Any = SimpleNamespace(trains=True, seed=0)
    probe(context, trial, EvaluationSettings(free_generation=False))
    assert noted == pytest.approx([seconds_per_row] * 2)
    if seconds_per_row < 0.1:
        assert asked[-1] == PROBED_ROWS
    else:
        # two rows to warm up and two more say it of a backbone that takes all of these seconds for them
        assert sum(asked) * seconds_per_row <= 2 * max(PROBE_SECONDS, 2 * seconds_per_row)
