"""Label scoring: the prompt computed once gives what the prompt computed for every label gives."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from dollartune.attachment.attached import Attached
from dollartune.backbones.loading import Backbone
from dollartune.evaluate import labels as module
from dollartune.evaluate.labels import class_log_probabilities, label_log_probabilities
from dollartune.methods.registry import build_method
from dollartune.testing import tiny_backbone
from dollartune.train.encoding import Encoded

ANSWERS = ((5, 6, 7), (5, 9), (11,), (5, 6))


def loaded(name: str) -> Backbone:
    tiny = tiny_backbone(name)
    return Backbone(name, tiny.model, None, tiny.anatomy, tiny.objective)


@pytest.fixture
def attached_to() -> Iterator[Any]:
    made: list[Attached] = []

    def attach(backbone: Backbone) -> Attached:
        made.append(Attached(backbone.model, backbone.anatomy))
        return made[-1]

    yield attach
    for attached in made:
        attached.detach()


def questions() -> list[Encoded]:
    generator = torch.Generator().manual_seed(3)
    lengths = (4, 9, 6, 5, 9)
    return [
        Encoded(str(n), tuple(torch.randint(12, 99, (length,), generator=generator).tolist()))
        for n, length in enumerate(lengths)
    ]


def by_hand(backbone: Backbone, question: Encoded, answer: tuple[int, ...]) -> float:
    """One prompt with one answer, without padding or caches."""
    if backbone.kind == "encoder_decoder":
        start = backbone.model.config.decoder_start_token_id
        inputs = {"input_ids": [question.prompt], "decoder_input_ids": [(start, *answer[:-1])]}
        at = slice(None)
    else:
        inputs = {"input_ids": [question.prompt + answer[:-1]]}
        at = slice(len(question.prompt) - 1, None)
    with torch.no_grad():
        logits = backbone.model(**{name: torch.tensor(ids) for name, ids in inputs.items()}).logits[0, at]
    return float(logits.log_softmax(-1)[torch.arange(len(answer)), torch.tensor(answer)].sum())


def stirred(attached: Attached, methods: list[str]) -> None:
    """An adapter whose tensors are away from their beginning, so that it does something."""
    adapter = attached.add("mine", [build_method(text) for text in methods], 0)
    generator = torch.Generator().manual_seed(1)
    for parameter in adapter.trainable().values():
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)


@pytest.mark.parametrize("name", ["opt", "llama", "gpt2", "gpt_neo", "bloom", "t5", "bart"])
def test_shared_prompts_equal_the_plain_way_and_scoring_by_hand(name: str, attached_to: Any) -> None:
    backbone = loaded(name)
    attached = attached_to(backbone)
    shared = label_log_probabilities(backbone, attached, None, questions(), ANSWERS, 2)
    plain = label_log_probabilities(backbone, attached, None, questions(), ANSWERS, 2, shared=False)
    torch.testing.assert_close(shared, plain, atol=1e-4, rtol=1e-4)
    expected = torch.tensor([[by_hand(backbone, question, answer) for answer in ANSWERS] for question in questions()])
    torch.testing.assert_close(plain, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", ["opt", "llama", "gpt_neo", "t5", "bart"])
@pytest.mark.parametrize("method", ["lora", "reft", "prompt(tokens=3)", "prefix(tokens=3)", "full", "pfeiffer", "ia3"])
def test_adapters_too(name: str, method: str, attached_to: Any) -> None:
    backbone = loaded(name)
    attached = attached_to(backbone)
    stirred(attached, [method])
    shared = label_log_probabilities(backbone, attached, "mine", questions(), ANSWERS, 3)
    plain = label_log_probabilities(backbone, attached, "mine", questions(), ANSWERS, 3, shared=False)
    alone = torch.cat(
        [label_log_probabilities(backbone, attached, "mine", [q], ANSWERS, 1, shared=False) for q in questions()]
    )
    bare = label_log_probabilities(backbone, attached, None, questions(), ANSWERS, 3)
    torch.testing.assert_close(shared, plain, atol=2e-4, rtol=2e-4)
    torch.testing.assert_close(plain, alone, atol=2e-4, rtol=2e-4)
    assert not torch.allclose(shared, bare, atol=1e-3)


@pytest.mark.parametrize("name", ["llama", "t5"])
def test_labels_of_one_token_need_one_pass(name: str, attached_to: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = loaded(name)
    attached = attached_to(backbone)
    single = ((5,), (6,), (7,))
    expected = label_log_probabilities(backbone, attached, None, questions(), ((5, 8), (6,), (7,)), 8)
    passes: list[int] = []
    original = module._pass
    monkeypatch.setattr(module, "_pass", lambda *a, **k: (passes.append(1), original(*a, **k))[1])
    found = label_log_probabilities(backbone, attached, None, questions(), single, 8)
    assert passes == [1]
    torch.testing.assert_close(found[:, 1:], expected[:, 1:], atol=1e-4, rtol=1e-4)
    assert (found.exp().sum(-1) < 1).all()


def test_rows_stay_in_their_order_whatever_the_batch_size(attached_to: Any) -> None:
    backbone = loaded("llama")
    attached = attached_to(backbone)
    first = label_log_probabilities(backbone, attached, None, questions(), ANSWERS, 1)
    for size in (2, 4, 100):
        again = label_log_probabilities(backbone, attached, None, questions(), ANSWERS, size)
        torch.testing.assert_close(first, again, atol=1e-4, rtol=1e-4)


def test_the_backbone_is_as_before(attached_to: Any) -> None:
    backbone = loaded("llama")
    before = {name: p.clone() for name, p in backbone.model.named_parameters()}
    attached = attached_to(backbone)
    stirred(attached, ["full"])
    label_log_probabilities(backbone, attached, "mine", questions(), ANSWERS)
    attached.detach()
    assert all(torch.equal(p, before[name]) for name, p in backbone.model.named_parameters())


def test_classes_of_a_head(attached_to: Any) -> None:
    backbone = loaded("bert")
    backbone.objective = "classification"
    attached = attached_to(backbone)
    found = class_log_probabilities(backbone, attached, None, questions(), 2)
    assert found.shape == (5, 3)
    torch.testing.assert_close(found.exp().sum(-1), torch.ones(5))
    for row, question in enumerate(questions()):
        with torch.no_grad():
            logits = backbone.model(input_ids=torch.tensor([question.prompt])).logits
        torch.testing.assert_close(found[row], logits[0].log_softmax(-1), atol=1e-5, rtol=1e-5)
