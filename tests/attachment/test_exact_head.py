"""Label words and next tokens of a backbone in bf16 are told apart: the head's product, or that of the likeliest tokens, is
computed in fp32, and what follows it is kept."""

import copy
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from dollartune.attachment.attached import Attached
from dollartune.attachment.exact_head import exact_head, exact_likeliest, fp32_product, likeliest_in_fp32
from dollartune.backbones.loading import Backbone, anatomy_of, load_backbone
from dollartune.evaluate.generation import generate_texts
from dollartune.evaluate.labels import label_log_probabilities
from dollartune.methods.registry import build_method
from dollartune.serve.engine import kind_of_batch
from dollartune.serve.limits import Limits
from dollartune.serve.sequence import Sampling, Sequence
from dollartune.serve.service import Service
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


def texts(backbone: Backbone, method: str | None = None) -> list[list[int]]:
    """Greedy tokens, each row by itself."""
    generator = torch.Generator().manual_seed(5)
    attached = Attached(backbone.model, backbone.anatomy)
    if method is not None:
        attached.add("mine", [build_method(method)])
    written = []
    try:
        for prompt in torch.randint(12, 99, (24, 1, 7), generator=generator):
            given = {"input_ids": prompt, "attention_mask": torch.ones_like(prompt)}
            with attached.routed("mine" if method else None, batch_rows=1), exact_likeliest(attached):
                written.append(
                    attached.generate(**given, eos_token_id=-1, pad_token_id=0, max_new_tokens=8)[0].tolist()
                )
    finally:
        attached.detach()
    return written


@pytest.mark.parametrize(
    ("name", "method"),
    [("llama", None), ("t5", None), ("opt", "full"), ("opt", "prompt"), *((name, None) for name in AFTER_THE_HEAD)],
)
def test_the_next_token_is_the_likeliest_and_not_the_first_of_those_that_bf16_makes_equal(
    name: str, method: str | None
) -> None:
    backbone = in_bf16(name)
    assert texts(backbone, method) == texts(with_fp32_head(backbone), method)


def test_of_several_places_the_last_one_is_given_and_all_but_the_likeliest_are_rounded() -> None:
    backbone = in_bf16("opt")
    head, attached = backbone.model.get_output_embeddings(), Attached(backbone.model, backbone.anatomy)
    x = torch.randn(3, 5, head.in_features, generator=torch.Generator().manual_seed(0)).bfloat16()
    bias = torch.linspace(-4, 4, len(head.weight)).bfloat16()
    exact, found = fp32_product(x, head.weight, bias), likeliest_in_fp32(x, head.weight, bias)
    assert torch.equal(found.argmax(-1), exact.argmax(-1))
    assert ((found == exact).sum(-1) >= 16).all()
    torch.testing.assert_close(found, exact, rtol=2**-7, atol=2**-7)
    with exact_likeliest(attached):
        assert head(x).shape == (3, 1, len(head.weight))
    assert head(x).dtype == torch.bfloat16
    attached.detach()


def test_evaluation_and_server_write_the_likeliest(tmp_path: Path) -> None:
    backbone = load_backbone("tiny-decoder", dtype=torch.bfloat16)
    head = backbone.model.get_output_embeddings()
    head.weight = nn.Parameter(head.weight.detach() * 20, requires_grad=False)  # logits of a size where bf16 is coarse
    reference = replace(with_fp32_head(backbone), processor=backbone.processor)
    draw = torch.Generator().manual_seed(2)
    prompts = [tuple(torch.randint(5, 8000, (6,), generator=draw).tolist()) for _ in range(24)]

    def served(one: Backbone, folder: Path) -> list[list[int]]:
        service, written = Service(one, "base", Limits(), folder), []
        for prompt in prompts:
            row = Sequence(
                service.pool.acquire("base"), prompt, Sampling(max_tokens=6), lambda piece, reason: None, one.processor,
                time.monotonic() + 600,
            )  # fmt: skip
            row.streams = False
            batch = kind_of_batch(one)(service.pool, frozenset())
            batch.begin([row])
            batch.read(1000)
            while batch.rows:
                batch.step()
            written.append(row.tokens)
        return written

    def evaluated(one: Backbone) -> list[str]:
        attached = Attached(one.model, one.anatomy)
        rows = [Encoded(str(number), prompt) for number, prompt in enumerate(prompts)]
        try:
            return generate_texts(one, attached, None, rows, 6, batch_size=1)
        finally:
            attached.detach()

    assert evaluated(backbone) == evaluated(reference)
    assert served(backbone, tmp_path) == served(reference, tmp_path)
