"""Advice: from published tables, from one's own study, and where it does not know."""

from __future__ import annotations

import json
from typing import Any

import pytest

from dollartune.advise import advise
from dollartune.errors import UserError

GIB = 2**30


def study(**scores: list[float]) -> list[dict[str, Any]]:
    seconds = {"full": 300.0, "lora": 100.0, "bitfit": 80.0, "prompt": 400.0}
    return [
        {
            "method": method, "score": score, "seed": seed, "n_examples": 100, "seconds": seconds[method],
            "peak_bytes": int(seconds[method] * 1e6), "trainable_parameters": int(seconds[method]),
        }
        for method, values in scores.items()
        for seed, score in enumerate(values)
    ]  # fmt: skip


OWN = study(full=[0.80, 0.81, 0.79], lora=[0.85, 0.86, 0.84], bitfit=[0.845, 0.855, 0.85], prompt=[0.5, 0.7, 0.6])


@pytest.mark.parametrize(
    ("examples", "priority", "recommended"),
    [
        (100, "quality", ("bitfit", "lora")),
        (1000, "quality", ("lora", "bitfit", "ia3")),
        (10_000, "quality", ("full",)),
        (100, "time", ("full",)),
        (10_000, "time", ("bitfit", "ia3", "lora")),
        (100, "memory", ("bitfit", "ia3")),
        (10_000, "memory", ("ia3",)),
    ],
)
def test_published_framework(examples: int, priority: Any, recommended: tuple[str, ...]) -> None:
    answer = advise(examples, "generation", priority)
    assert answer.recommended == recommended
    assert all(one.citations and one.reasons for one in answer.ranking)
    assert answer.does_not_know
    assert "reference 001" in answer.rests_on


def test_many_adapters_at_once_are_small_and_good() -> None:
    answer = advise(1000, "classification", "serving")
    assert answer.recommended[0] == "ia3"
    assert "full" not in answer.recommended
    assert "prompt" not in answer.recommended  # small, but too far behind at this scale
    text = answer.text()
    assert "mix tasks" in text
    assert "933,888" in text


def test_very_few_examples_bring_prompting_in() -> None:
    answer = advise(10, "classification", "quality")
    assert answer.recommended[:2] == ("few_shot", "zero_shot")
    assert answer.ranking[0].basis == "statement"
    assert any("outside" in gap for gap in answer.does_not_know)


def test_no_examples_no_tuning() -> None:
    answer = advise(0, "classification")
    assert answer.recommended == ("zero_shot",)
    assert "no measurement" in answer.rests_on


@pytest.mark.parametrize("kind", ["image_classification", "regression", "other"])
def test_it_says_when_it_does_not_know(kind: str) -> None:
    assert any("no source compares" in gap for gap in advise(1000, kind).does_not_know)


def test_own_study_wins_over_evidence() -> None:
    answer = advise(100, "classification", "quality", study_results=OWN)
    assert set(answer.recommended) == {"lora", "bitfit"}
    assert all(one.basis == "own study" for one in answer.ranking if one.recommended)
    # published bests that were not tried are listed behind, never recommended
    others = [one for one in answer.ranking if one.basis == "published"]
    assert {one.method for one in others} == {"ia3"}
    assert "not tried" in " ".join(others[0].reasons)
    assert "your own study" in answer.rests_on


def test_own_study_contradicts_the_tables_and_wins() -> None:
    """Published: full tuning is fastest on little data. Here it was slower and worse."""
    assert advise(100, "classification", "time").recommended == ("full",)
    answer = advise(100, "classification", "time", study_results=OWN)
    assert answer.recommended[0] == "bitfit"
    assert "full" not in answer.recommended


@pytest.mark.parametrize("priority", ["memory", "serving", "time"])
def test_among_good_enough_methods_the_priority_decides(priority: Any) -> None:
    assert advise(100, "classification", priority, study_results=OWN).recommended == ("bitfit", "lora")


def test_a_pandas_frame_will_do() -> None:
    pandas = pytest.importorskip("pandas")
    assert advise(100, "classification", study_results=pandas.DataFrame(OWN)).recommended[0] in {"lora", "bitfit"}


def test_own_study_at_another_scale_is_used_with_a_word() -> None:
    answer = advise(10_000, "classification", study_results=OWN)
    assert any("ran with 100 examples" in gap for gap in answer.does_not_know)


def test_few_seeds_are_named_and_failed_trials_left_out() -> None:
    rows = [
        *study(lora=[0.8], full=[0.7]),
        {"method": "prompt", "score": None},
        {"method": "ia3", "score": float("nan")},
    ]
    answer = advise(100, "classification", study_results=rows)
    assert any("fewer than three seeds" in gap for gap in answer.does_not_know)
    assert {one.method for one in answer.ranking if one.basis == "own study"} == {"lora", "full"}


def test_an_empty_study_falls_back_to_the_tables() -> None:
    assert advise(100, "classification", study_results=[]).recommended == ("bitfit", "lora")


def test_what_does_not_fit_is_not_recommended() -> None:
    answer = advise(10_000, "classification", "quality", memory_bytes=16 * GIB, backbone_parameters=3_000_000_000)
    assert "full" not in answer.recommended
    assert answer.recommended
    full = next(one for one in answer.ranking if one.method == "full")
    assert "44.7 GiB" in full.reasons[0]


def test_quantization_is_named_where_it_makes_it_fit() -> None:
    answer = advise(1000, "classification", memory_bytes=16 * GIB, backbone_parameters=13_000_000_000)
    assert any("nf4" in reason for one in answer.ranking for reason in one.reasons)


def test_a_dollar_on_a_machine_is_put_into_minutes() -> None:
    answer = advise(1000, "classification", machine="v100-n1", budget="$1")
    assert "20 min 44 s" in answer.question
    assert any("how large the backbone is" in gap for gap in answer.does_not_know)


def test_prints_and_serializes() -> None:
    answer = advise(100, "classification", study_results=OWN)
    assert json.loads(json.dumps(answer.to_dict()))["recommended"] == list(answer.recommended)
    assert "It does not know" not in answer.text() or answer.does_not_know


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((100, "clasification"), "Did you mean 'classification'"),
        ((100, "classification", "qality"), "Did you mean 'quality'"),
        ((-1, "classification"), "negative"),
    ],
)
def test_mistakes_are_named(arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises(UserError, match=message):
        advise(*arguments)


def test_results_without_columns_are_refused() -> None:
    with pytest.raises(UserError, match="'method' and 'score'"):
        advise(100, "classification", study_results=[{"accuracy": 0.5}])


def test_a_row_for_several_seeds_has_no_error_that_is_endless() -> None:
    """A leaderboard's row says how many seeds it is the mean of, and not how far they lie apart."""
    rows = [
        {"method": name, "score": score, "seeds": 3, "n_examples": 100}
        for name, score in (("lora", 0.9996), ("full", 0.5))
    ]
    text = advise(100, "classification", study_results=rows).text()
    assert "inf" not in text.replace("information", "")
    assert "score 0.9996 over 3 seeds" in text
    spread = [{**row, "score": row["score"] - 0.01 * seed, "seeds": None} for row in rows for seed in range(3)]
    assert "± 0.006 over 3 seeds" in advise(100, "classification", study_results=spread).text()


def test_one_seed_and_no_comparison_make_nothing_sure() -> None:
    rows = study(full=[0.80], lora=[0.85])
    text = advise(100, "classification", study_results=rows).text()
    assert "within 1 % of the best score, and how sure that is cannot be said" in text
    assert "more than 1 % below the best score, and how sure that is cannot be said" in text
    sure = advise(100, "classification", study_results=OWN).text()
    assert "below the best score by more than luck explains" in sure
    assert "cannot be said" not in sure
