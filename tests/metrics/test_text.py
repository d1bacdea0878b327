"""Text measures against rouge-score and sacrebleu."""

from __future__ import annotations

import numpy
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rouge_score import rouge_scorer
from sacrebleu.metrics import BLEU, CHRF

from dollartune.metrics import get
from dollartune.metrics.rouge import Rouge, common_subsequence

words = st.sampled_from(
    ["the", "cat", "sat", "on", "a", "mat", "The", "Cat,", "dog's", "3.5", "über\n", "nice-looking", "..."]
)
text = st.lists(words, max_size=25).map(" ".join)
cases = st.lists(st.tuples(text, st.lists(text, min_size=1, max_size=3)), min_size=1, max_size=8)


@settings(max_examples=60, deadline=None)
@given(cases)
def test_rouge_agrees_with_rouge_score(rows: list[tuple[str, list[str]]]) -> None:
    scorer = rouge_scorer.RougeScorer(["rouge1", "rouge2", "rougeL"])
    for prediction, references in rows:
        theirs = scorer.score_multi(references, prediction)
        for name in ("rouge1", "rouge2", "rougeL"):
            mine = get(name)
            assert isinstance(mine, Rouge)
            assert mine.one(prediction, references) == pytest.approx(theirs[name].fmeasure)
            if len(references) == 1:  # with several, ties in F leave the choice of precision and recall open
                assert get(f"{name}_precision").per_example([prediction], references) == pytest.approx(
                    [theirs[name].precision]
                )
                assert get(f"{name}_recall").per_example([prediction], references) == pytest.approx(
                    [theirs[name].recall]
                )


@settings(deadline=None)
@given(st.lists(st.sampled_from("abcd"), max_size=40), st.lists(st.sampled_from("abcd"), max_size=40))
def test_common_subsequence_is_that_of_the_textbook(first: list[str], second: list[str]) -> None:
    table = [[0] * (len(second) + 1) for _ in range(len(first) + 1)]
    for i, one in enumerate(first):
        for j, other in enumerate(second):
            table[i + 1][j + 1] = table[i][j] + 1 if one == other else max(table[i][j + 1], table[i + 1][j])
    assert common_subsequence(first, second) == table[-1][-1]


@settings(max_examples=60, deadline=None)
@given(cases)
def test_bleu_and_chrf_agree_with_sacrebleu(rows: list[tuple[str, list[str]]]) -> None:
    predictions, references = [row[0] for row in rows], [row[1] for row in rows]
    streams = [[row[number] if number < len(row) else None for row in references] for number in range(3)]
    # sacrebleu wants the first reference of every example; shorter lists are filled with None.
    assert get("bleu").score(predictions, references) == pytest.approx(
        BLEU().corpus_score(predictions, streams).score / 100, abs=1e-9
    )
    assert get("chrf").score(predictions, references) == pytest.approx(
        CHRF().corpus_score(predictions, streams).score / 100, abs=1e-9
    )


def test_perfect_and_empty_texts() -> None:
    sentence = "the quick brown fox jumps over the lazy dog"
    for name in ("rouge1", "rouge2", "rougeL", "bleu", "chrf", "exact_match"):
        assert get(name).score([sentence], [sentence]) == pytest.approx(1.0)
        assert get(name).score([""], [sentence]) == 0.0
        assert get(name).score([None], [[sentence]]) == 0.0


@pytest.mark.parametrize("name", ["rouge2", "bleu", "chrf", "exact_match"])
def test_statistics_give_the_score_of_every_resample(name: str) -> None:
    generator = numpy.random.default_rng(1)
    vocabulary = ["a", "b", "c", "d", "e", "f"]
    references = [" ".join(generator.choice(vocabulary, 12)) for _ in range(40)]
    predictions = [" ".join(generator.choice(vocabulary, 10)) for _ in range(20)] + references[20:]
    metric = get(name)
    statistics = metric.statistics(predictions, references)
    assert statistics is not None
    draws = generator.integers(0, 40, (10, 40))
    counts = numpy.stack([numpy.bincount(draw, minlength=40) for draw in draws])
    slow = [metric.score([predictions[i] for i in draw], [references[i] for i in draw]) for draw in draws]
    assert statistics.score(counts @ statistics.values) == pytest.approx(slow)


def test_exact_match_forgives_case_and_punctuation_only() -> None:
    assert get("exact_match").per_example(["Paris.", "Paris, France"], ["paris", "Paris"]) == [1.0, 0.0]


def test_the_figures_of_reference_003_hang_together() -> None:
    """Its table for LoRA on T5 prints recall 0.63, precision 0.64, F 0.63 for ROUGE-1: F is their harmonic mean."""
    from dollartune.metrics.rouge import Overlap

    assert round(Overlap(precision=0.64, recall=0.63).fmeasure, 2) == 0.63
