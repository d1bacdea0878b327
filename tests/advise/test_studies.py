"""Advice from studies that were run with DollarTune, and from one's own with several tasks and settings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from dollartune.advise import advise, advisor
from dollartune.advise.boards import by_task, overall
from dollartune.advise.from_studies import ranking_from_studies
from dollartune.advise.own_study import measured
from dollartune.evidence import RecordedStudy, StudyRow


def row(
    method: str, score: float, best: bool, task: str = "digits", kind: str = "image_classification", scale: int = 1000,
    seconds: float = 10.0, trainable: int = 100,
) -> StudyRow:  # fmt: skip
    return StudyRow(
        task, kind, scale, method, method, "accuracy", score, score - 0.02, score + 0.02, best, 3, trainable, seconds,
        seconds / 2, trainable * 1000, trainable * 4,
    )  # fmt: skip


def study(rows: Sequence[StudyRow], key: str = "small") -> RecordedStudy:
    return RecordedStudy(
        key, "a small study", "tiny-vit", 1_000_000, "1 thread of a CPU", "torch 2", "dollartune run", tuple(rows)
    )


IMAGES = study(
    [
        row("houlsby", 0.90, True, seconds=30.0, trainable=900), row("lora", 0.89, True, seconds=12.0, trainable=500),
        row("prompt", 0.70, False, seconds=5.0), row("head", 0.60, False, seconds=2.0, trainable=50),
        row("lora", 0.80, True, "letters"), row("houlsby", 0.79, True, "letters", trainable=900),
        row("prompt", 0.5, False, "letters"),
    ]
)  # fmt: skip


@pytest.fixture
def evidence(monkeypatch: pytest.MonkeyPatch) -> Any:
    def use(*found: RecordedStudy) -> None:
        monkeypatch.setattr(advisor, "studies", lambda: {one.key: one for one in found})

    return use


def test_where_no_source_measured_our_studies_lead(evidence: Any) -> None:
    evidence(IMAGES)
    answer = advise(1000, "image_classification", "quality")
    assert set(answer.recommended) == {"lora", "houlsby"}
    assert all(one.basis == "study" and one.citations for one in answer.ranking)
    assert "DollarTune" in answer.rests_on
    assert any("no source compares" in gap and "1 M parameters" in gap for gap in answer.does_not_know)
    assert "on digits with 1,000 rows on tiny-vit" in answer.text()


def test_a_priority_chooses_among_the_good_ones(evidence: Any) -> None:
    evidence(IMAGES)
    assert advise(1000, "image_classification", "time").recommended == ("lora",)
    assert advise(1000, "image_classification", "serving").recommended == ("lora",)


def test_other_scales_and_kinds_do_not_count() -> None:
    assert ranking_from_studies({"a": IMAGES}, "image_classification", 100, "quality") == []
    assert ranking_from_studies({"a": IMAGES}, "generation", 1000, "quality") == []
    assert ranking_from_studies({"a": IMAGES}, "image_classification", 2000, "quality")


def test_beside_published_tables_studies_add_reasons_and_candidates(evidence: Any) -> None:
    text = study(
        [
            row("houlsby", 0.9, True, "ag_news", "classification"), row("lora", 0.8, False, "ag_news", "classification"),
            row("full", 0.7, False, "ag_news", "classification"),
        ]
    )  # fmt: skip
    evidence()
    alone = advise(1000, "classification", "quality")
    evidence(text)
    answer = advise(1000, "classification", "quality")
    assert answer.recommended == alone.recommended  # the published framework still decides
    lora = next(one for one in answer.ranking if one.method == "lora")
    assert any("0.800 on ag_news with 1,000 rows" in reason for reason in lora.reasons)
    assert text.citation in lora.citations
    other = next(one for one in answer.ranking if one.method == "houlsby")
    assert not other.recommended
    assert "worth trying" in " ".join(other.reasons)
    assert any("whom to believe" in gap and "houlsby" in gap for gap in answer.does_not_know)


def test_own_studies_with_several_tasks_are_ranked_by_place_not_by_mean_score() -> None:
    """A task with large scores must not outweigh the others: lora is first on two of three."""
    rows = [
        {"task": task, "method": method, "score": score, "n_examples": 100, "may_be_best": best}
        for task, method, score, best in (
            ("a", "lora", 0.30, True), ("a", "full", 0.20, False), ("b", "lora", 0.31, True), ("b", "full", 0.21, False),
            ("c", "lora", 0.40, False), ("c", "full", 0.99, True),
        )
    ]  # fmt: skip
    order = overall(by_task(rows), "quality")
    assert [one.method for one in order] == ["lora", "full"]
    assert order[0].place == pytest.approx(1 / 3)
    answer = advise(100, "classification", study_results=rows)
    assert answer.recommended == ("lora",)
    assert any("most like the next one" in gap for gap in answer.does_not_know)


def test_a_method_stands_with_the_setting_that_validation_chose() -> None:
    rows = [
        {"method": "lora", "label": f"lora(rank={rank})", "score": score, "validation_score": validation, "seed": seed}
        for rank, score, validation in ((2, 0.9, 0.5), (8, 0.8, 0.7))
        for seed in range(3)
    ]
    (found,) = measured(rows, "quality")
    assert (found.label, found.seeds) == ("lora(rank=8)", 3)
    assert found.score == pytest.approx(0.8)


def test_prompting_takes_no_training_time() -> None:
    rows = [
        {"method": "zero_shot", "score": 0.80, "trainable": 0, "seconds_to_best": None},
        {"method": "lora", "score": 0.801, "trainable": 100, "seconds_to_best": 20.0},
    ]
    first, second = measured(rows, "time")
    assert (first.method, first.cost, second.cost) == ("zero_shot", 0.0, 20.0)
