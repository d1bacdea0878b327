"""Offsets per class make a measure of rare classes better, and leave alone what is right already."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn import functional

from dollartune.evaluate.class_offsets import HeldOutOffsets, answers, choose_offsets, held_out_offsets, prior_offsets
from dollartune.evaluate.predict import predict_rows
from dollartune.export.opening import open_adapter
from dollartune.serve.limits import Limits
from dollartune.serve.run import build_service
from dollartune.study.api import Study


def rows(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probabilities of a model that knows how rare class 1 is, and labels: one row in ten is of it."""
    generator = torch.Generator().manual_seed(seed)
    labels = (torch.rand(count, generator=generator) < 0.1).long()
    signal = 1.2 * functional.one_hot(labels, 2) + torch.randn(count, 2, generator=generator)
    return (signal + torch.tensor([0.9, 0.1]).log()).log_softmax(-1), labels


def balanced_accuracy(labels: torch.Tensor, found: torch.Tensor) -> float:
    return sum(float((found[labels == c] == c).double().mean()) for c in (0, 1)) / 2


def test_rare_classes_gain_on_rows_that_chose_nothing() -> None:
    scored, labels = rows(600, 0)
    offsets = choose_offsets(scored, lambda found: balanced_accuracy(labels, found))
    fresh, fresh_labels = rows(4000, 1)
    before = balanced_accuracy(fresh_labels, answers(fresh, torch.zeros(2)))
    after = balanced_accuracy(fresh_labels, answers(fresh, offsets))
    assert before < 0.65
    assert after > before + 0.08


def test_what_cannot_get_better_stays() -> None:
    labels = torch.tensor([0, 1, 2, 0])
    right = (4.0 * functional.one_hot(labels, 3)).log_softmax(-1)
    offsets = choose_offsets(right, lambda found: float((found == labels).double().mean()))
    assert offsets.tolist() == [0.0, 0.0, 0.0]
    assert answers(right, offsets).tolist() == labels.tolist()


@pytest.mark.parametrize("wanted", [0, 1])
def test_the_recall_of_one_class(wanted: int) -> None:
    scored, labels = rows(300, 2)
    offsets = choose_offsets(scored, lambda found: float((found[labels == wanted] == wanted).double().mean()))
    assert (answers(scored, offsets)[labels == wanted] == wanted).all()


@pytest.mark.parametrize("metric", ["macro_f1", "balanced_accuracy", "recall:rare", "f1:rare"])
def test_offsets_are_taken_where_held_out_halves_gain(metric: str) -> None:
    scored, labels = rows(600, 3)
    found = held_out_offsets(scored, labels.tolist(), ("common", "rare"), metric)
    assert found.worth_it
    chosen = answers(scored, found.offsets)
    assert 0 < int((chosen == 1).sum()) < 400, "one class alone is no answer, whatever its recall"
    assert (chosen[labels == 1] == 1).double().mean() > (scored.argmax(1)[labels == 1] == 1).double().mean() + 0.1


def test_what_offsets_gain_on_their_own_rows_alone_is_not_counted() -> None:
    fitted, held_out = [], []
    for seed in range(12):
        generator = torch.Generator().manual_seed(seed)
        labels = torch.randint(2, (40,), generator=generator)
        noise = torch.randn(40, 2, generator=generator).log_softmax(-1)
        found = held_out_offsets(noise, labels.tolist(), ("a", "b"), "balanced_accuracy")
        fitted.append(balanced_accuracy(labels, answers(noise, found.offsets)) - found.before)
        held_out.append(found.after - found.before)
    assert sum(fitted) / 12 > 0.03
    assert sum(held_out) / 12 < sum(fitted) / 24


def test_what_is_likely_by_itself_is_taken_off_where_other_rows_gain() -> None:
    scored, labels = rows(600, 4)
    balanced = torch.cat([(labels == 1).nonzero()[:, 0], (labels == 0).nonzero()[: int((labels == 1).sum()), 0]])
    leaning = scored + torch.tensor([0.0, -3.0])  # a model that hardly ever says class 1
    found = prior_offsets(leaning[balanced], leaning[balanced], labels[balanced].tolist(), ("a", "b"), "accuracy")
    assert found.worth_it
    assert found.after > found.before + 0.1
    assert float(found.offsets[1]) > float(found.offsets[0])
    none = prior_offsets(torch.zeros(5, 2), leaning, labels.tolist(), ("a", "b"), "accuracy")
    assert not none.worth_it


@pytest.mark.parametrize(
    ("backbone", "method"),
    [
        ("tiny-encoder", "linear_probe"),
        ("tiny-encoder", "lora(rank=2)"),
        ("tiny-encoder", "full"),
        ("tiny-decoder", "lora(rank=2)"),  # label words are scored: there is no bias to take them
    ],
)
@pytest.mark.parametrize("chosen_by", ["validation", "training_rows"])
def test_offsets_are_part_of_the_adapter_wherever_it_is_used(
    backbone: str, method: str, chosen_by: str, study_of: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    testclient = pytest.importorskip("fastapi.testclient")
    from dollartune.serve.app import create_app

    monkeypatch.setattr("dollartune.engines.trial_scores.LEAST_FOR_OFFSETS", 1)
    for name in ("held_out_offsets", "prior_offsets"):
        monkeypatch.setattr(
            f"dollartune.engines.trial_scores.{name}",
            lambda scored, *others: HeldOutOffsets(torch.tensor([0.0, 90.0]), 0.1, 0.2),
        )
    given = study_of()
    training = {"epochs": 1, "batch_size": 8, "class_offsets": chosen_by, "cohort_size": 1}
    settings = study_of(
        backbone=backbone, methods=[method], keep_adapters="all", baselines=False, training=training,
        task={**given["task"], "metric": "macro_f1"},
    )  # fmt: skip
    study = Study(settings)
    (record,) = study.run().done()
    assert record.class_offsets == (0.0, 90.0)
    assert record.validation_score == 0.2
    assert {label for label, rows in record.test.breakdown.items() if rows} == {record.labels[1]}
    tuned = open_adapter(study.store.folder(record.id) / "adapter")
    asked = [{"text": text} for text in ("a good film", "a bad film", "dull")]
    assert {one.predicted for one in predict_rows(tuned, asked)} == {record.labels[1]}
    service = build_service(backbone, {"mine": study.store.folder(record.id) / "adapter"}, Limits(), None)
    with testclient.TestClient(create_app(service)) as client:
        served = client.post("/v1/classify", json={"model": "mine", "input": [row["text"] for row in asked]}).json()
    assert {row["label"] for row in served["data"]} == {record.labels[1]}
    assert study.again(record.id).equal
