"""Mixtures: prompts and answers of each row's own task, weights kept at every scale, held-out tasks in test only."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dollartune.errors import UserError
from dollartune.tasks import Example, load_task
from dollartune.tasks.mixture import Mixture, interleave, mean_over_tasks

SPEC = {"mixture": ["ag_news", "e2e_nlg", "rte"], "held_out": ["cola"]}


@pytest.fixture
def mixture(shared: Path) -> Mixture:
    task = load_task(SPEC, shared / "data")
    assert isinstance(task, Mixture)
    return task


def test_rows_speak_for_their_own_task(mixture: Mixture, shared: Path) -> None:
    splits = mixture.splits(300, cap=60)
    assert Counter(example.task for example in splits.train) == {"ag_news": 100, "e2e_nlg": 100, "rte": 100}
    assert Counter(example.task for example in splits.validation) == {"ag_news": 20, "e2e_nlg": 20, "rte": 20}
    assert Counter(example.task for example in splits.test) == {"ag_news": 60, "e2e_nlg": 60, "rte": 60, "cola": 60}
    for example in splits.train[:9]:
        own = load_task(example.task, shared / "data")
        assert mixture.prompt(example) == own.prompt(example)
        assert mixture.answer(example) == own.answer(example)
        assert example.id.startswith(f"{example.task}/train/")


def test_each_task_is_evaluated_by_itself(mixture: Mixture) -> None:
    groups = mixture.groups(mixture.splits(30, cap=12).test)
    assert [(task.name, task.kind, len(rows)) for task, rows in groups] == [
        ("ag_news", "classification", 12),
        ("e2e_nlg", "generation", 12),
        ("rte", "classification", 12),
        ("cola", "classification", 12),
    ]
    scores = {"ag_news": 0.9, "e2e_nlg": 0.3, "rte": 0.6, "cola": 0.0}
    assert mean_over_tasks(scores, mixture) == pytest.approx(0.6)


def test_small_scales_begin_large_ones(mixture: Mixture) -> None:
    assert mixture.splits(200, cap=30).train[:50] == mixture.splits(50, cap=30).train


def test_all_rows_carry_their_task(mixture: Mixture) -> None:
    rows = mixture.load()
    assert Counter(example.task for example in rows["test"]) == {
        "ag_news": 2500,
        "e2e_nlg": 400,
        "rte": 277,
        "cola": 1039,
    }
    assert "cola" not in {example.task for example in rows["train"]}


@settings(deadline=None)
@given(
    st.dictionaries(st.sampled_from("abcd"), st.tuples(st.integers(0, 30), st.floats(0.1, 10)), min_size=1),
    st.integers(0, 60),
)
def test_every_prefix_keeps_the_weights(parts: dict[str, tuple[int, float]], limit: int) -> None:
    rows = {name: [Example(str(n), {}) for n in range(count)] for name, (count, _) in parts.items()}
    weights = {name: weight for name, (_, weight) in parts.items()}
    merged = interleave(rows, weights, None)
    assert Counter(name for name, _ in merged) == Counter({name: len(found) for name, found in rows.items() if found})
    assert interleave(rows, weights, limit) == merged[:limit]
    whole = min((len(rows[name]) / weights[name] for name in rows), default=0)  # until the first task runs out
    for size in range(int(whole * sum(weights.values()))):
        for name in rows:
            share = sum(taken == name for taken, _ in merged[:size])
            assert abs(share - size * weights[name] / sum(weights.values())) <= len(rows)


def test_weights(shared: Path) -> None:
    def drawn(weights: object) -> dict[str, int]:
        task = load_task({"mixture": ["sst2", "mnli"], "weights": weights}, shared / "data")
        return dict(Counter(example.task for example in task.splits(1000, cap=10).train))

    assert drawn("equal") == {"sst2": 500, "mnli": 500}
    assert drawn({"sst2": 1.0, "mnli": 3.0}) == {"sst2": 250, "mnli": 750}
    assert drawn("proportional") == {"sst2": 907, "mnli": 93}


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"mixture": ["ag_news", "rtee"]}, "unknown task 'rtee'. Did you mean 'rte'"),
        ({"mixture": ["ag_news", "pneumonia"]}, "'pneumonia' is about images"),
        ({"mixture": ["ag_news", "rte"], "held_out": ["rte"]}, "'rte' appears twice"),
        ({"mixture": ["rte", "rte"]}, "each once"),
        ({"mixture": []}, "at least one task"),
        ({"mixture": ["ag_news", "rte"], "weights": {"ag_news": 1.0}}, "leave out rte"),
        ({"mixture": ["ag_news", "rte"], "weights": {"ag_news": 1.0, "ret": 1.0}}, "Did you mean 'rte'"),
        ({"mixture": ["ag_news", "rte"], "weights": {"ag_news": 1.0, "rte": 0.0}}, "should be above 0"),
        ({"mixture": ["ag_news"], "metric": "f1"}, "'mixture' cannot be combined with 'metric'"),
    ],
)
def test_mistakes(spec: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_task(spec)
