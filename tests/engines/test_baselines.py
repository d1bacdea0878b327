"""Majority class, tf-idf and the untuned model stand beside every classification study."""

from __future__ import annotations

import sys
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import Command

from dollartune import Study
from dollartune.methods.baseline import LabelledTexts
from dollartune.methods.registry import build_method
from dollartune.methods.tfidf import Tfidf
from dollartune.study.results import Results
from dollartune.study_file import load_study
from dollartune.trials.expand import plan


@pytest.fixture
def results(study_of: Any) -> Results:
    """Of a study of one method, with its baselines."""
    evaluation = {"rows": 8, "free_generation": False, "forgetting": False}
    return Study(**study_of(methods=["bitfit"], baselines=True, scales=[16], evaluation=evaluation)).run()


def test_they_are_recorded_like_any_trial(results: Results, moods: Any) -> None:
    records = {record.trial.label: record for record in results.done()}
    assert set(records) == {"majority", "tfidf", "zero_shot", "bitfit"}
    assert [label for label, record in records.items() if not record.trial.baseline] == ["bitfit"]
    splits = moods.splits(16, 0, 8)
    (common, _), *_ = Counter(sorted(row.label for row in splits.train)).most_common()
    right = sum(row.label == common for row in splits.test) / len(splits.test)
    majority = records["majority"]
    assert majority.test.score == pytest.approx(right)
    predictions = results.predictions(majority.id)
    assert {row["predicted"] for row in predictions} == {common}
    assert [row["expected"] for row in predictions] == [row.label for row in splits.test]
    for name in ("majority", "tfidf"):
        record = records[name]
        assert record.cost.seconds > 0
        assert record.inference is not None
        assert record.inference.seconds is not None
        assert record.inference.alone_seconds is not None
        assert record.data.train == 16
        assert record.parameters.total == 0


def test_tfidf_answers_as_scikit_learn_does(results: Results, moods: Any) -> None:
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression

    record = next(record for record in results.done() if record.trial.label == "tfidf")
    splits = moods.splits(16, 0, 8)
    vectors = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, token_pattern=r"\w+")
    counted = vectors.fit_transform([row.fields["text"] for row in splits.train])
    C = record.parameters.reported["tfidf"]["C"]
    model = LogisticRegression(C=C, max_iter=100).fit(counted, [row.label for row in splits.train])
    wanted = model.predict_proba(vectors.transform([row.fields["text"] for row in splits.test]))
    stored = results.predictions(record.id)
    assert np.allclose([[row["probabilities"][label] for label in model.classes_] for row in stored], wanted, atol=1e-4)
    assert record.parameters.trainable == counted.shape[1] + 1


def test_other_trials_keep_their_identifiers(study_of: Any) -> None:
    def identifiers(baselines: bool) -> list[str]:
        trials = plan(load_study(study_of(baselines=baselines)))[0]
        return [trial.identifier for trial in trials if not trial.baseline]

    assert identifiers(True) == identifiers(False)


def test_what_the_study_lists_is_not_added_again(study_of: Any) -> None:
    settings = load_study(study_of(methods=["zero_shot", "tfidf", "bitfit"], baselines=True))
    found = [(trial.variant.label, trial.baseline) for trial in plan(settings)[0]]
    assert found == [("majority", True), ("zero_shot", False), ("tfidf", True), ("bitfit", False)]


def test_with_several_backbones_words_are_counted_once(study_of: Any, local_backbone: Any) -> None:
    backbones = [str(local_backbone("llama")), str(local_backbone("gpt2"))]
    settings = load_study(study_of(backbone=backbones, methods=["bitfit"], baselines=True))
    added = [trial.label for trial in plan(settings)[0] if trial.baseline]
    assert added == ["majority", "tfidf", "zero_shot @ llama", "zero_shot @ gpt2"]


def test_pictures_have_the_majority_alone() -> None:
    settings = load_study({"backbone": "tiny-vit", "task": "demo_digits", "methods": ["head"], "baselines": True})
    assert [t.variant.label for t in plan(settings, read_rows=False)[0] if t.baseline] == ["majority"]


def test_a_task_that_asks_for_text_has_none() -> None:
    settings = load_study({"backbone": "tiny-decoder", "task": "demo_summary", "methods": ["lora"], "baselines": True})
    assert not [trial for trial in plan(settings, read_rows=False)[0] if trial.baseline]


def test_they_are_the_default() -> None:
    code = (
        "from dollartune.study_file import load_study\n"
        "from dollartune.trials.expand import plan\n"
        "settings = load_study({'backbone': 'tiny-encoder', 'task': 'demo_library', 'methods': ['lora']})\n"
        "print(*[t.variant.label for t in plan(settings, read_rows=False)[0] if t.baseline])"
    )
    exit_code, out, error = Command(program=partial(exec, code, {})).ended(300)
    assert exit_code == 0, error
    assert out.split() == ["majority", "tfidf"]  # an encoder cannot be asked without tuning


def test_a_class_with_one_row_and_one_without_any() -> None:
    texts, labels = ["red apple", "red cherry", "blue sky"], np.array([0, 0, 2])
    answer = build_method("tfidf").fit(LabelledTexts(texts, labels, 4)).log_probabilities(["red", "blue sky", ""])
    assert answer.shape == (3, 4)
    assert np.isneginf(answer[:, [1, 3]]).all()
    assert answer[1].argmax() == 2
    assert np.allclose(np.exp(answer).sum(1), 1)


def test_rows_without_a_word_are_answered_with_the_shares() -> None:
    answer = build_method("tfidf").fit(LabelledTexts(["", "..."], np.array([1, 1]), 2)).log_probabilities(["?"])
    assert np.exp(answer).tolist() == [[0.0, 1.0]]


def test_a_small_budget_leaves_the_baselines_out_and_not_the_methods(study_of: Any) -> None:
    settings = study_of(methods=["bitfit"], baselines=True, budget={"seconds": 60.0, "per": "study"})
    results = Study(**settings).run()
    assert "bitfit" in {record.trial.label for record in results.done()}
    spent = [r.cost.seconds for r in results.records if r.trial.baseline and r.trial.label != "zero_shot"]
    assert len(spent) == 2
    assert max(spent) < 0.06 * 60


def test_a_search_gets_them_too(study_of: Any, tmp_path: Path) -> None:
    settings = study_of(methods=["bitfit"], baselines=True, search=2, seeds=1)
    results = Study(**settings).run()
    assert {record.trial.label for record in results.done() if record.trial.baseline} == {
        "majority", "tfidf", "zero_shot"
    }  # fmt: skip


def test_a_baseline_keeps_to_a_budget_of_memory(study_of: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dollartune.methods.tfidf.LIBRARY_BYTES", 1 << 40)
    monkeypatch.delitem(sys.modules, "sklearn.linear_model", raising=False)
    evaluation = {"rows": 8, "free_generation": False, "forgetting": False}
    budget = {"seconds": 600, "memory": "200 GiB"}
    study = Study(
        **study_of(methods=["bitfit"], baselines=True, scales=[16], evaluation=evaluation, budget=budget, search=False)
    )
    study.run()
    records = {record.trial.label: record for record in study.store.records()}
    assert records["tfidf"].error.kind == "out_of_memory"
    assert "fitting tfidf takes about 1" in records["tfidf"].error.message
    assert records["majority"].status == records["bitfit"].status == "done"


def test_tfidf_says_what_its_fit_takes() -> None:
    def needed(words: int, classes: int, **settings: Any) -> int:
        texts = [" ".join(f"w{row * words + word}" for word in range(words)) for row in range(100)]
        rows = LabelledTexts(texts, np.arange(100) % classes, classes)
        return Tfidf(**settings).fit_bytes(rows)

    # 25 vectors of a weight for each feature and class; no more features than are kept.
    most = needed(2000, 50, features=1000, C=1.0)
    assert most - needed(2000, 25, features=1000, C=1.0) == 25 * 8 * 1000 * 25
    assert needed(2000, 50, C=1.0) > 5 * most
