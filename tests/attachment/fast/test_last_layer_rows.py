"""The last layer computes only what is read: the same results and gradients, with less work."""

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from dollartune.attachment.attached import Attached
from dollartune.attachment.fast import cpu_attention
from dollartune.attachment.fast.kernels import fast_kernels
from dollartune.attachment.fast.last_layer_rows import LastLayerRows
from dollartune.attachment.routing import Assignment
from dollartune.methods.edits import Rows
from dollartune.methods.registry import build_method
from dollartune.testing.tiny import TinyBackbone, tiny_backbone
from dollartune.train.activation_checkpointing import recomputed_layers

CPU = torch.device("cpu")
CLASSIFIERS = ["bert/classification", "roberta/classification", "vit", "deit"]
LANGUAGE = ["opt", "gpt2", "gpt_neo", "bloom", "llama", "bert/language", "roberta/language"]
METHODS: list[Any] = [
    "lora",
    {"lora": {"where": "mlp.up mlp.down self_attn.o", "dropout": 0.0}},
    "adapter",
    "ia3",
    "bitfit",
    "full",
    "prefix",
    ["prompt", "lora"],
    {"reft": {"where": "mlp"}},
]


def asked(tiny: TinyBackbone, attached: Attached, tokens: int = 9) -> Tensor:
    """Logits of a batch: a language model's at one or two places of each row."""
    inputs = tiny.inputs(4, tokens)
    if tiny.objective == "classification":
        return attached(**inputs).logits
    rows, places = torch.tensor([0, 0, 1, 2, 3, 3]), torch.tensor([3, 8, 8, 0, 2, 6])
    return attached(keep=(rows, places), **inputs).logits[0]


def passed(
    tiny: TinyBackbone, methods: Any, skip_unused: bool, checkpointing: bool = False
) -> tuple[Tensor, list[Tensor]]:
    """Logits, and the gradients of everything trained."""
    attached = Attached(tiny.model, tiny.anatomy)
    torch.manual_seed(0)
    adapter = attached.add(
        "a", [build_method(one) for one in (methods if isinstance(methods, list) else [methods])], seed=1
    )
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    try:
        route = Assignment(adapter, slice(None), Rows(training=True, seed=5))
        with (
            attached.changed(skip_unused=skip_unused),
            attached.routed(route, batch_rows=4),
            recomputed_layers(attached, checkpointing),
        ):
            logits = asked(tiny, attached)
            (logits * torch.randn(logits.shape, generator=generator)).sum().backward()
        return logits.detach(), [p.grad for p in adapter.parameters() if p.grad is not None]
    finally:
        attached.detach()


@pytest.mark.parametrize("methods", METHODS, ids=str)
@pytest.mark.parametrize("name", [*LANGUAGE, *CLASSIFIERS])
def test_results_and_gradients_are_those_of_the_whole_layer(name: str, methods: Any) -> None:
    tiny = tiny_backbone(name)
    plain, narrow = (passed(tiny, methods, skip_unused) for skip_unused in (False, True))
    torch.testing.assert_close(narrow[0], plain[0], rtol=1e-4, atol=1e-5)
    assert len(narrow[1]) == len(plain[1])
    for mine, other in zip(narrow[1], plain[1], strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["llama", "gpt2", "bert/classification"])
def test_layers_that_run_again_in_the_backward_pass_are_narrowed_again(name: str) -> None:
    tiny = tiny_backbone(name)
    plain, again = passed(tiny, "adapter", False), passed(tiny, "adapter", True, checkpointing=True)
    torch.testing.assert_close(again[0], plain[0], rtol=1e-4, atol=1e-5)
    for mine, other in zip(again[1], plain[1], strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-4)


def products(tiny: TinyBackbone, methods: Any, skip_unused: bool) -> int:
    """Operations of a step."""
    with FlopCounterMode(display=False) as counter:
        passed(tiny, methods, skip_unused)
    return int(counter.get_total_flops())


@pytest.mark.parametrize("name", ["opt", "llama", "gpt2", "bloom", "vit", "bert/classification"])
def test_it_computes_less(name: str) -> None:
    tiny = tiny_backbone(name)
    assert products(tiny, "lora", True) < 0.9 * products(tiny, "lora", False)


@pytest.mark.parametrize(
    ("name", "methods"),
    [
        ("llama", {"reft": {"where": "mlp"}}),  # looks at all tokens of the prompt
        ("albert/classification", "lora"),  # its last layer is also its first
        ("t5", "lora"),  # a decoder on an encoder reads every place
        ("gpt2/classification", "lora"),  # where it reads depends on the ids
    ],
)
def test_where_other_places_matter_all_are_computed(name: str, methods: Any) -> None:
    tiny = tiny_backbone(name)
    attached = Attached(tiny.model, tiny.anatomy)
    adapter = attached.add("a", [build_method(methods)])
    attached.continue_under(replace(attached.state, skip_unused=True))
    seen = []
    handle = tiny.model.register_forward_pre_hook(lambda module, args: seen.append(attached.state.last_layer))
    inputs = tiny.inputs(4, 9)
    try:
        with attached.routed(Assignment(adapter, slice(None)), batch_rows=4):
            keep = None if tiny.objective == "classification" else (torch.arange(4), torch.zeros(4, dtype=torch.long))
            attached(keep=keep, **inputs)
    finally:
        handle.remove()
        attached.detach()
    assert seen == [None]


def test_many_places_of_a_row_are_not_worth_picking() -> None:
    tiny = tiny_backbone("llama")
    attached = Attached(tiny.model, tiny.anatomy)
    assert attached.last_layer is not None
    places = torch.arange(5)
    some = LastLayerRows(attached, attached.last_layer, (torch.zeros(5, dtype=torch.long), places))
    assert some.places(2, 9, CPU) is None
    assert some.places(2, 10, CPU) is not None
    attached.detach()


def test_read_places_come_first_and_no_place_comes_twice() -> None:
    tiny = tiny_backbone("llama")
    attached = Attached(tiny.model, tiny.anatomy)
    assert attached.last_layer is not None
    keep = torch.tensor([0, 0, 0, 2]), torch.tensor([7, 2, 9, 4])
    found = LastLayerRows(attached, attached.last_layer, keep).places(3, 12, CPU)
    assert found is not None
    assert found.shape == (3, 3)
    assert found[0].tolist() == [2, 7, 9]
    assert found[2, 0] == 4
    assert all(len(set(row.tolist())) == 3 for row in found)
    attached.detach()


def test_a_trials_dropout_is_the_same_beside_others() -> None:
    tiny = tiny_backbone("llama")
    attached = Attached(tiny.model, tiny.anatomy)
    wide = {"lora": {"where": "mlp.up mlp.down self_attn.o", "dropout": 0.5}}
    adapters = [attached.add(name, [build_method(wide)], seed=n) for n, name in enumerate("ab")]
    with torch.no_grad():
        for adapter in adapters:
            for parameter in adapter.parameters():
                parameter += 0.1 * torch.randn_like(parameter)
    attached.continue_under(replace(attached.state, skip_unused=True))
    ids = tiny.inputs(4, 12)["input_ids"]
    rows, places = torch.tensor([0, 1, 2, 2, 3]), torch.tensor([5, 6, 3, 7, 7])
    contexts = [Rows(training=True, seed=seed) for seed in (5, 6)]
    route = [Assignment(adapters[0], slice(0, 2), contexts[0]), Assignment(adapters[1], slice(2, 4), contexts[1])]
    with attached.routed(*route, batch_rows=4):
        together = attached(keep=(rows, places), input_ids=ids).logits[0]
    with attached.routed(Assignment(adapters[0], slice(None), contexts[0]), batch_rows=2):
        alone = attached(keep=(rows[:2], places[:2]), input_ids=ids[:2]).logits[0]
    torch.testing.assert_close(together[:2], alone, rtol=1e-4, atol=1e-5)
    attached.detach()


@pytest.mark.parametrize("masked", ["no", "causal", "padding", "numbers"])
def test_attention_at_places_is_that_of_all_places(masked: str) -> None:
    torch.manual_seed(0)
    q, k, v = (torch.randn(3, 4, 9, 8, dtype=torch.bfloat16, requires_grad=True) for _ in range(3))
    places = torch.tensor([[4, 0], [8, 3], [1, 2]])
    mask: Tensor | None = None
    if masked == "padding":
        mask = torch.rand(3, 1, 1, 9) > 0.3
    elif masked == "numbers":
        mask = torch.randn(1, 4, 9, 9)
    whole = cpu_attention.attend(q, k, v, mask, masked == "causal")
    some = cpu_attention._attend_at(places, q, k, v, mask, masked == "causal", None)
    at = places[:, :, None, None].expand(-1, -1, 4, 8)
    torch.testing.assert_close(some.gather(1, at), whole.gather(1, at), rtol=1e-2, atol=1e-2)
    assert int((some.abs().sum((2, 3)) > 0).sum()) == places.numel()
    weight = torch.randn(at.shape)
    gradients = [torch.autograd.grad((found.gather(1, at) * weight).sum(), (q, k, v)) for found in (whole, some)]
    for mine, other in zip(*gradients, strict=True):
        torch.testing.assert_close(mine, other, rtol=2e-2, atol=2e-2)


def test_in_bf16_with_this_packages_kernels_too(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    at_places = cpu_attention._attend_at
    monkeypatch.setattr(cpu_attention, "_attend_at", lambda p, *more: seen.append(p.shape[1]) or at_places(p, *more))
    tiny = tiny_backbone("bert/classification")
    attached = Attached(copy.deepcopy(tiny.model).bfloat16(), tiny.anatomy)
    adapter = attached.add("a", [build_method("lora")])
    with fast_kernels(attached), attached.routed(Assignment(adapter, slice(None)), batch_rows=4):
        narrow = attached(**tiny.inputs(4, 9)).logits
        with attached.changed(whole_last_layer=True):
            plain = attached(**tiny.inputs(4, 9)).logits
    assert seen == [1]
    torch.testing.assert_close(narrow, plain, rtol=2e-2, atol=2e-2)


def test_the_model_is_left_as_it_was() -> None:
    tiny = tiny_backbone("opt")
    attached = Attached(tiny.model, tiny.anatomy)
    attached.continue_under(replace(attached.state, skip_unused=True))
    attached(keep=(torch.arange(4), torch.zeros(4, dtype=torch.long)), **tiny.inputs(4, 9))
    assert attached.state.last_layer is None
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in tiny.model.modules())
    assert not any(cpu_attention.READ in m.__dict__ for m in tiny.model.modules())
    attached.detach()
