"""Label words of a backbone in bf16 are told apart: the head's product is computed in fp32, and what follows it is kept."""

import copy
from typing import Any

import pytest
import torch
from torch import nn

from dollartune.attachment.attached import Attached
from dollartune.attachment.exact_head import exact_head, fp32_product
from dollartune.backbones.loading import Backbone, anatomy_of
from dollartune.evaluate.labels import label_log_probabilities
from dollartune.methods.registry import build_method
from dollartune.testing import tiny_backbone
from dollartune.train.encoding import Encoded

SINGLE = tuple((token,) for token in range(5, 69))
SEVERAL = ((5, 6, 7), (5, 9), (11,), (5, 6))
SIZES: dict[str, Any] = {
    "vocab_size": 100, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 2, "head_dim": 16, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
AFTER_THE_HEAD = {
    "Gemma2": {"final_logit_softcapping": 30.0},
    "Cohere": {"logit_scale": 0.25},
    "Granite": {"logits_scaling": 4.0},
}


def in_bf16(name: str) -> Backbone:
    """A backbone of its own in bf16 whose logits lie where people's models have them: steps of an eighth."""
    import transformers

    torch.manual_seed(0)
    if name in AFTER_THE_HEAD:
        config = getattr(transformers, f"{name}Config")(**SIZES, **AFTER_THE_HEAD[name])
        model = getattr(transformers, f"{name}ForCausalLM")(config).eval()
    else:
        model = copy.deepcopy(tiny_backbone(name).model)
    head = model.get_output_embeddings()
    head.weight = nn.Parameter(head.weight.detach() * 20 / (head.weight.std() * head.in_features**0.5))
    model.to(torch.bfloat16).requires_grad_(False)
    return Backbone(name, model, None, anatomy_of(model), "language")


def with_fp32_head(backbone: Backbone) -> Backbone:
    """The same with a head that is fp32 itself and is given fp32 states: what is computed must be this."""
    model = copy.deepcopy(backbone.model)
    head = model.get_output_embeddings()
    head.weight = nn.Parameter(head.weight.detach().float(), requires_grad=False)
    head.register_forward_pre_hook(lambda module, args: (args[0].float(), *args[1:]))
    return Backbone(backbone.name, model, None, anatomy_of(model), "language")


def scores(backbone: Backbone, answers: Any, batch_size: int = 4, method: str | None = None) -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    rows = [Encoded(str(n), tuple(torch.randint(12, 99, (7,), generator=generator).tolist())) for n in range(8)]
    attached = Attached(backbone.model, backbone.anatomy)
    try:
        if method is not None:
            attached.add("mine", [build_method(method)])
        return label_log_probabilities(backbone, attached, "mine" if method else None, rows, answers, batch_size)
    finally:
        attached.detach()


@pytest.mark.parametrize("name", ["llama", "t5", "opt", *AFTER_THE_HEAD])
def test_label_words_in_bf16_do_not_tie_and_score_as_by_an_fp32_head(name: str) -> None:
    backbone = in_bf16(name)
    found = scores(backbone, SINGLE)
    assert all(len(row.unique()) == len(SINGLE) for row in found)
    reference = with_fp32_head(backbone)
    torch.testing.assert_close(found, scores(reference, SINGLE), atol=2e-5, rtol=2e-5)
    several = scores(backbone, SEVERAL)
    torch.testing.assert_close(several, scores(reference, SEVERAL), atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize("method", ["lora", "full", "bitfit"])
def test_adapters_too(method: str) -> None:
    backbone = in_bf16("opt")
    reference = scores(with_fp32_head(backbone), SINGLE, method=method)
    torch.testing.assert_close(scores(backbone, SINGLE, method=method), reference, atol=2e-5, rtol=2e-5)


def test_a_place_has_the_logits_that_it_has_alone_however_the_vocabulary_is_divided(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    generator = torch.Generator().manual_seed(1)
    x, weight, bias = (torch.randn(*size, generator=generator) for size in ((8, 16), (50, 16), (50,)))
    x, weight, bias = (20 * tensor.bfloat16() for tensor in (x, weight, bias))
    expected = (x.double() @ weight.double().T + bias.double()).float()
    monkeypatch.setattr("dollartune.attachment.exact_head._PIECE", 7 * 16)
    together = fp32_product(x, weight, bias)
    torch.testing.assert_close(together, expected)
    torch.testing.assert_close(torch.cat([fp32_product(row[None], weight, bias) for row in x]), together)


def test_the_model_is_as_before_and_heads_in_fp32_are_left_alone() -> None:
    for backbone in (in_bf16("llama"), with_fp32_head(in_bf16("llama"))):
        head = backbone.model.get_output_embeddings()
        attached = Attached(backbone.model, backbone.anatomy)
        with exact_head(attached):
            assert ("forward" in head.__dict__) == (head.weight.dtype == torch.bfloat16)
        attached.detach()
        assert "forward" not in head.__dict__
