"""Answers of a backbone in half precision are those of each row alone, on processors that round by the shape of a product too."""

from __future__ import annotations

import copy
import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from dollartune.attachment.attached import Attached
from dollartune.attachment.fast import cpu_linear
from dollartune.attachment.fast.kernels import fast_linears
from dollartune.backbones.loading import Backbone, anatomy_of, load_backbone
from dollartune.errors import UserError
from dollartune.evaluate import fp32_passes, generation
from dollartune.evaluate.evaluation import Evaluator
from dollartune.evaluate.fp32_passes import in_fp32, rounds, surely_best
from dollartune.evaluate.generation import generate_texts
from dollartune.methods.registry import build_method, methods
from dollartune.tasks.base import Task
from dollartune.tasks.registry import load_task
from dollartune.testing import tiny_backbone
from dollartune.testing.practice import perturb
from dollartune.train.encoding import Encoder
from dollartune.train.features import FeatureStore

BATCHES = (1, 8, 32)
ROWS = 33
LABELS = (
    "good",
    "bad",
    "warm",
    "cold",
    "fast",
    "slow",
    "new",
    "old",
    "high",
    "low",
    "red",
    "blue",
    "open",
    "near",
    "dark",
    "soft",
)
FAMILIES = ("llama", "gpt_neo", "t5")


@pytest.fixture
def shapes_decide(monkeypatch: pytest.MonkeyPatch) -> None:
    """A processor that sums a product of another shape in another order: in half precision each result is rounded up or down by
    that, half a step at most."""
    plain: Callable[..., Tensor] = functional.linear

    def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        if x.dtype != torch.bfloat16:
            return plain(x, weight, bias)
        exact = plain(x.float(), weight.float(), None if bias is None else bias.float())
        draw = torch.Generator().manual_seed(x.shape[:-1].numel())
        return (exact * (1 + (torch.rand(exact.shape, generator=draw) - 0.5) * 2**-7)).to(torch.bfloat16)

    monkeypatch.setattr(functional, "linear", linear)


@pytest.fixture(scope="module")
def many_moods(tmp_path_factory: pytest.TempPathFactory) -> Task:
    """Texts of one to twelve words with sixteen labels, of which two are nearly as likely for some texts."""
    path = tmp_path_factory.mktemp("moods") / "moods.csv"
    words = ["the", "film", "was", "a", "long", "walk", "to", "our", "new", "book", "and", "song"]
    with path.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(("text", "mood"))
        rows.writerows(
            (" ".join([*words[n % 5 : n % 5 + 1 + n % 11], str(n)]), LABELS[n % len(LABELS)]) for n in range(160)
        )
    return load_task({"data": str(path), "prompt": "{text}. Mood:", "label": "mood"})


def half(folder: Path, objective: Any = None, labels: tuple[str, ...] = ()) -> Backbone:
    return load_backbone(str(folder), objective, labels, dtype=torch.bfloat16)


def answers(
    backbone: Backbone, task: Task, batch_size: int, names: tuple[str, ...] = (), rows: int = ROWS
) -> list[str | None]:
    attached = Attached(backbone.model, backbone.anatomy)
    built = [build_method(name) for name in names]
    try:
        if built:
            perturb(attached.add("mine", built), 0.2, 0)
        evaluator = Evaluator(backbone, attached, task, Encoder(backbone), (), False, batch_size)
        asked = task.splits(rows, 0, 1).train
        return [row.predicted for row in evaluator.evaluate("mine" if built else None, built, asked).predictions]
    finally:
        attached.detach()


@pytest.mark.parametrize("family", FAMILIES)
def test_labels_are_those_of_the_row_alone(
    local_backbone: Any, many_moods: Task, family: str, shapes_decide: None
) -> None:
    backbone = half(local_backbone(family))
    alone = answers(backbone, many_moods, 1)
    for size in BATCHES[1:]:
        assert answers(backbone, many_moods, size) == alone


def test_classes_and_tuned_weights_too(local_backbone: Any, many_moods: Task, shapes_decide: None) -> None:
    classifier = half(local_backbone("bert"), "classification", many_moods.labels)
    for backbone, names in (
        (classifier, ("bitfit", "head")),
        (classifier, ("linear_probe",)),
        (half(local_backbone("llama")), ("full",)),
        (half(local_backbone("gpt2")), ("prefix",)),
    ):
        assert answers(backbone, many_moods, 16, names, 16) == answers(backbone, many_moods, 1, names, 16), names


def test_features_of_rounded_weights_are_kept_for_nobody(
    local_backbone: Any, many_moods: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A later study in fp32 looks for features in fp32 in the same folder."""
    monkeypatch.setattr(fp32_passes, "NEAR_NATS", float("inf"))
    backbone = half(local_backbone("bert"), "classification", many_moods.labels)
    attached, store = Attached(backbone.model, backbone.anatomy), FeatureStore("bert", tmp_path)
    methods = [build_method("linear_probe")]
    perturb(attached.add("mine", methods), 0.2, 0)
    evaluator = Evaluator(backbone, attached, many_moods, Encoder(backbone), (), False, 8, features=store)
    evaluator.evaluate("mine", methods, many_moods.splits(8, 0, 1).train)
    attached.detach()
    assert store.computed == 8
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("family", FAMILIES)
def test_texts_are_those_of_the_row_alone(
    local_backbone: Any, many_moods: Task, family: str, shapes_decide: None
) -> None:
    backbone = half(local_backbone(family))
    encoded = Encoder(backbone).encode(many_moods, many_moods.splits(ROWS, 0, 1).train)
    attached = Attached(backbone.model, backbone.anatomy)
    alone, eight, all_at_once = (generate_texts(backbone, attached, None, encoded, 6, size) for size in BATCHES)
    attached.detach()
    assert eight == alone
    assert all_at_once == alone


def test_without_them_neighbours_decide(
    local_backbone: Any, many_moods: Task, shapes_decide: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fp32_passes, "rounds", lambda attached: False)
    monkeypatch.setattr(generation, "rounds", lambda attached: False)
    backbone = half(local_backbone("llama"))
    assert answers(backbone, many_moods, 32) != answers(backbone, many_moods, 1)
    encoded = Encoder(backbone).encode(many_moods, many_moods.splits(ROWS, 0, 1).train)
    attached = Attached(backbone.model, backbone.anatomy)
    assert generate_texts(backbone, attached, None, encoded, 6, 32) != generate_texts(
        backbone, attached, None, encoded, 6, 1
    )
    attached.detach()


def test_rows_that_are_sure_are_asked_once_and_weights_are_as_before(local_backbone: Any) -> None:
    backbone = half(local_backbone("llama"))
    before = {name: one.clone() for name, one in backbone.model.named_parameters()}
    attached = Attached(backbone.model, backbone.anatomy)
    asked: list[list[int]] = []
    formats: set[torch.dtype] = set()

    def score(rows: Any) -> Tensor:
        asked.append(list(rows))
        formats.add(backbone.dtype)
        return torch.tensor([[9.0, 8.0]] * len(rows))

    scores = torch.tensor([[0.0, 1.0], [0.0, 0.1], [3.0, -1.0], [0.0, 0.0]])
    found = surely_best(attached, scores, score)
    assert asked == [[1, 3]]
    assert formats == {torch.float32}
    assert found.tolist() == [[0.0, 1.0], [9.0, 8.0], [3.0, -1.0], [9.0, 8.0]]
    with torch.inference_mode(), in_fp32(attached):
        assert not rounds(attached), "they are in fp32 now"
    for name, one in backbone.model.named_parameters():
        assert one.dtype == torch.bfloat16
        assert torch.equal(one, before[name])
        assert not one.is_inference()
    attached.detach()
    plain = load_backbone(str(local_backbone("llama")))
    attached = Attached(plain.model, plain.anatomy)
    assert surely_best(attached, scores, score) is scores, "nothing rounds"
    attached.detach()


@pytest.mark.parametrize("name", ["llama", "bert/classification"])
def test_every_method_computes_in_the_format_of_the_moment(name: str) -> None:
    """What an edit puts in the place of weights, or adds to states, is cast when it is used and not when it is made."""
    tiny = tiny_backbone(name)
    model = copy.deepcopy(tiny.model).to(torch.bfloat16).requires_grad_(False)
    attached, inputs = Attached(model, anatomy_of(model)), tiny.inputs()
    tried = []
    for method, cls in methods().items():
        if not cls.capabilities.trains or cls.capabilities.solved or cls.capabilities.baseline:
            continue
        try:
            perturb(attached.add(method, [cls(**cls.tiny)]), 0.1, 0)
        except UserError:  # it has no meaning here
            continue
        with torch.no_grad(), attached.routed(method, batch_rows=4):
            rounded = tiny.logits(attached, inputs)
            with in_fp32(attached):
                exact = tiny.logits(attached, inputs)
        assert (rounded.dtype, exact.dtype) == (torch.bfloat16, torch.float32), method
        torch.testing.assert_close(rounded.float(), exact, atol=0.3, rtol=0.1, msg=method)
        attached.remove(method)
        tried.append(method)
    attached.detach()
    assert {"lora", "dora", "ia3", "bitfit", "houlsby", "full", "layer_freezing", "norm", "prefix"} <= set(tried)


def test_kernels_that_a_processor_with_bf16_has_put_in_before(
    local_backbone: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a server has them; GPT-2's weights are stored transposed, of which a kernel keeps a view."""
    monkeypatch.setattr(cpu_linear, "cpu_has_bf16", lambda: True)
    monkeypatch.setattr(cpu_linear, "_WORTHWHILE", 0)
    backbone = half(local_backbone("gpt2"))
    attached = Attached(backbone.model, backbone.anatomy)
    ids = torch.arange(5, 15).view(2, 5)
    given = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    with torch.no_grad(), attached.routed(None, batch_rows=2):
        with in_fp32(attached):
            expected = attached(**given).logits
        with fast_linears(attached), in_fp32(attached):
            found = attached(**given).logits
    attached.detach()
    torch.testing.assert_close(found, expected)
