"""Features and counted tokens solved together: scikit-learn's optimum, the same answers by both ways of solving it, and an
adapter that is stored, opened and served with what it counted."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression

from dollartune.attachment.attached import Attached
from dollartune.attachment.pooling import first_tokens, pooled_states
from dollartune.errors import UserError
from dollartune.methods import tfidf_probe
from dollartune.methods.features import LabelledFeatures, middle_layer, pools
from dollartune.methods.logistic import choose_C
from dollartune.methods.tfidf_probe import WORDS, TfidfProbe, TfidfProbeConfig, WordsAndFeatures, solve_both
from dollartune.methods.token_counts import NGrams
from dollartune.testing import tiny_backbone

CLASSES, WIDTH = 3, 8


def labelled(rows: int, seed: int = 0) -> LabelledFeatures:
    """Rows whose class shows in their features and in their tokens, each with noise."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, CLASSES, rows)
    features = rng.normal(size=(rows, 2 * WIDTH)) + 0.7 * np.eye(2 * WIDTH)[labels]
    tokens = [tuple(rng.choice(40, 12)) + ((100 + int(label),) if rng.random() < 0.5 else ()) for label in labels]
    return LabelledFeatures(torch.tensor(features, dtype=torch.float32), torch.tensor(labels), CLASSES, 0, tokens)


def solved(rows: LabelledFeatures, **settings: Any) -> WordsAndFeatures:
    readout = WordsAndFeatures(("mean", "mean@middle"), WIDTH, CLASSES)
    with torch.no_grad():
        solve_both(readout, rows, TfidfProbeConfig(**settings))
    return readout


def test_counts_are_scikit_learns_tf_idf() -> None:
    rows = labelled(30).tokens
    assert rows is not None
    ngrams = NGrams.of(rows, 10**6)
    counted = ngrams.counted(rows)
    found = np.zeros((30, len(ngrams.keys)))
    found[counted.row, counted.ngram] = counted.value
    texts = [" ".join(f"t{token}" for token in row) for row in rows]
    theirs = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, token_pattern=r"\S+").fit_transform(texts)
    np.testing.assert_allclose(found @ found.T, (theirs @ theirs.T).toarray(), atol=1e-9)


def test_the_solution_is_scikit_learns() -> None:
    rows = labelled(90)
    readout = solved(rows, C=2.0)
    assert rows.tokens is not None
    features = (rows.features.double().numpy() - readout.mean.numpy()) / readout.scale.numpy()
    counted = NGrams(readout.keys.numpy(), readout.idf.double().numpy()).counted(rows.tokens)
    counts = np.zeros((90, len(readout.keys)))
    counts[counted.row, counted.ngram] = np.sqrt(WORDS) * counted.value
    joined = np.hstack([features, counts])
    theirs = LogisticRegression(C=2.0, tol=1e-10, max_iter=10_000).fit(joined, rows.labels.numpy())
    with torch.no_grad():
        ours = readout.scores(rows.features, rows.tokens).softmax(-1).numpy()
    np.testing.assert_allclose(ours, theirs.predict_proba(joined), atol=2e-4)


@pytest.mark.parametrize("class_weight", ["none", "balanced"])
def test_many_rows_are_solved_in_the_features_with_the_same_answers(
    monkeypatch: pytest.MonkeyPatch, class_weight: str
) -> None:
    rows = labelled(120)
    whole = solved(rows, C=1.0, class_weight=class_weight)
    monkeypatch.setattr(tfidf_probe, "SOLVED_IN_ROWS", 60)
    parts = solved(rows, C=1.0, class_weight=class_weight)
    with torch.no_grad():
        one, other = (each.scores(rows.features, rows.tokens).softmax(-1) for each in (whole, parts))
    torch.testing.assert_close(one, other, atol=2e-3, rtol=0)


def test_with_many_classes_c_is_chosen_on_fewer_rows_and_all_are_solved_on(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def choose(features: Any, labels: Any, *more: Any, **named: Any) -> Any:
        asked.append(len(labels))
        return choose_C(features, labels, *more, **named)

    monkeypatch.setattr(tfidf_probe, "choose_C", choose)
    monkeypatch.setattr(tfidf_probe, "CHOSEN_IN_NUMBERS", CLASSES * 60**2)
    rows = labelled(120)
    method = TfidfProbe(TfidfProbeConfig())
    readout = WordsAndFeatures(("mean", "mean@middle"), WIDTH, CLASSES)
    with torch.no_grad():
        C = solve_both(readout, rows, method.config)["C"]
        whole = solved(rows, C=C)
        one, other = (each.scores(rows.features, rows.tokens).softmax(-1) for each in (readout, whole))
    assert asked == [60]
    torch.testing.assert_close(one, other)
    # What is estimated knows it: tripling the classes costs next to nothing more where fewer rows are chosen on.
    more = method.solve_operations(1000, 0, 3 * CLASSES) / method.solve_operations(1000, 0, CLASSES)
    assert more < 2


@pytest.mark.parametrize("solved_in_rows", [10, 1000])
def test_rows_of_one_class_are_answered_by_it(monkeypatch: pytest.MonkeyPatch, solved_in_rows: int) -> None:
    monkeypatch.setattr(tfidf_probe, "SOLVED_IN_ROWS", solved_in_rows)
    rows = replace(labelled(40), labels=torch.ones(40, dtype=torch.long))
    readout = solved(rows)
    assert readout.scores(rows.features, rows.tokens).argmax(-1).tolist() == [1] * 40


def test_where_there_is_nothing_to_read_the_commonest_class_is_answered() -> None:
    labels = torch.tensor([0, 2, 2, 2, 1, 2])
    rows = LabelledFeatures(torch.zeros(6, 0), labels, CLASSES, 0, [()] * 6)
    readout = WordsAndFeatures((), WIDTH, CLASSES)
    with torch.no_grad():
        solve_both(readout, rows, TfidfProbeConfig(pooling="none", C=1.0))
    assert readout.scores(rows.features, rows.tokens).argmax(-1).tolist() == [2] * 6


def test_both_together_answer_more_than_either() -> None:
    rows, fresh = labelled(300), labelled(300, seed=1)
    blind = LabelledFeatures(torch.zeros_like(rows.features), rows.labels, CLASSES, 0, rows.tokens)
    mute = LabelledFeatures(rows.features, rows.labels, CLASSES, 0, None)

    def right(trained: LabelledFeatures, features: torch.Tensor, tokens: Any) -> float:
        with torch.no_grad():
            answers = solved(trained).scores(features, tokens).argmax(1)
        return float((answers == fresh.labels).float().mean())

    both = right(rows, fresh.features, fresh.tokens)
    assert both > right(blind, torch.zeros_like(fresh.features), fresh.tokens) + 0.02
    assert both > right(mute, fresh.features, None) + 0.02


def test_solved_again_with_more_rows_it_keeps_what_was_chosen() -> None:
    backbone = tiny_backbone("bert")
    attached = Attached(backbone.model, backbone.anatomy)
    adapter = attached.add("probe", [TfidfProbe()], 0)
    part: Any = adapter.parts[0]
    rows = labelled(60)
    assert adapter.readout is not None
    features = torch.randn(60, adapter.readout.mean.numel())
    part.method.solve(part, LabelledFeatures(features, rows.labels % 2, part.sites[0].out_features, 0, rows.tokens))
    C = part.method.report(part)["C"]
    before = adapter.tensors()
    part.method.solve(
        part,
        LabelledFeatures(features[:40], rows.labels[:40] % 2, part.sites[0].out_features, 0, (rows.tokens or [])[:40]),
    )
    assert part.method.report(part)["C"] == C
    assert any(before[name].shape != tensor.shape for name, tensor in adapter.tensors().items())


def test_the_middle_layer_is_read_in_the_same_pass() -> None:
    backbone = tiny_backbone("bert")
    attached = Attached(backbone.model, backbone.anatomy)
    inputs = backbone.inputs(4)
    found = pooled_states(attached, inputs, ("mean", "mean@middle"))
    attached.detach()
    # A copy: transformers leaves hooks of its own on the layers of a model that has once given all states.
    states = copy.deepcopy(backbone.model).base_model(**inputs, output_hidden_states=True).hidden_states
    middle = states[backbone.anatomy.layer_counts["encoder"] // 2]
    mask = inputs["attention_mask"][..., None]
    torch.testing.assert_close(found[:, middle.shape[-1] :], (middle * mask).sum(1) / mask.sum(1), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", ["bert", "opt/classification", "t5/classification", "vit"])
def test_deep_pooling_reads_twice_as_much_on_every_kind(family: str) -> None:
    backbone = tiny_backbone(family)
    parts = pools("deep", backbone.anatomy)
    assert middle_layer(backbone.anatomy) is not None
    assert parts[: len(parts) // 2] == pools("auto", backbone.anatomy)
    attached = Attached(backbone.model, backbone.anatomy)
    features = pooled_states(attached, backbone.inputs(3), parts)
    attached.detach()
    assert torch.isfinite(features).all()
    half = features.shape[1] // 2
    assert not torch.allclose(features[:, :half], features[:, half:])


def test_where_no_layer_is_in_the_middle_deep_is_auto() -> None:
    anatomy = tiny_backbone("albert").anatomy  # one layer, run again and again
    assert pools("deep", anatomy) == pools("auto", anatomy)
    with pytest.raises(UserError, match="in the middle"):
        pools("mean@middle", anatomy)


@pytest.mark.parametrize("left", [False, True])
def test_the_first_tokens_are_the_same_wherever_the_padding_is(left: bool) -> None:
    ids, mask = torch.tensor([[5, 6, 7, 8], [5, 9, 0, 0]]), torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
    if left:
        ids, mask = torch.tensor([[5, 6, 7, 8], [0, 0, 5, 9]]), torch.tensor([[1, 1, 1, 1], [0, 0, 1, 1]])
    cut = first_tokens({"input_ids": ids, "attention_mask": mask}, 3)
    assert cut["input_ids"].tolist()[0] == [5, 6, 7]
    assert cut["input_ids"][1][cut["attention_mask"][1] > 0].tolist() == [5, 9]


def test_weights_of_words_are_counted_and_come_back_from_a_file() -> None:
    readout = solved(labelled(40), C=1.0)
    words = len(readout.keys)
    assert words > 100
    assert sum(one.numel() for one in readout.parameters()) == CLASSES * (2 * WIDTH + 1 + words)
    again = WordsAndFeatures(("mean", "mean@middle"), WIDTH, CLASSES)
    again.fit(readout.state_dict())
    again.load_state_dict(readout.state_dict())
    assert torch.equal(again.words, readout.words)


def test_images_are_refused() -> None:
    backbone = tiny_backbone("vit")
    with pytest.raises(UserError, match="no tokens"):
        TfidfProbe().check(backbone.anatomy)


def test_an_opened_adapter_answers_as_the_study_did(tmp_path: Path) -> None:
    from dollartune.evaluate.predict import predict_rows
    from dollartune.export.opening import open_adapter
    from dollartune.study.api import Study
    from dollartune.tasks.registry import load_task

    results = Study(
        backbone="tiny-encoder", task="demo_library", methods=[{"tfidf_probe": {"first_tokens": 6}}], scales=[60], seeds=1,
        baselines=False, output=str(tmp_path), training={"train_on_validation": True},
        evaluation={"rows": 24, "free_generation": False, "forgetting": False, "inference_cost": False},
    ).run()  # fmt: skip
    (record,) = results.done()
    assert record.test is not None
    folder = results.store.folder(record.id) / "adapter"
    rows = load_task("demo_library").splits(60, 0, 24).test
    answers = [one.predicted for one in predict_rows(open_adapter(folder), [dict(row.fields) for row in rows])]
    right = sum(answer == row.label for answer, row in zip(answers, rows, strict=True))
    assert right / len(rows) == pytest.approx(record.test.score)
