"""Outputs of the frozen prefix, computed once: outputs and gradients are the plain pass's, from memory and from the file."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from dollartune.attachment.adapter import Adapter
from dollartune.attachment.attached import Assignment, Attached
from dollartune.methods.edits import Rows
from dollartune.methods.registry import build_method
from dollartune.testing.practice import loss, perturb
from dollartune.testing.tiny import FAMILIES, TinyBackbone, select, tiny_backbone
from dollartune.train.frozen_prefix_cache import FrozenPrefixCache, _keys

CLASSIFIERS = (
    "opt/classification",
    "gpt2/classification",
    "bert/classification",
    "bart/classification",
    "t5/classification",
)
BACKBONES = (*FAMILIES, *CLASSIFIERS)


def adapter_of(backbone: TinyBackbone, *methods: str, seed: int = 0) -> Adapter:
    adapter = Adapter([build_method(method) for method in methods], backbone.anatomy, backbone.model, seed)
    perturb(adapter, 0.1, seed)
    return adapter


@pytest.fixture
def attach(request: Any) -> Iterator[Any]:
    made: list[Attached] = []

    def attach(backbone: TinyBackbone, adapter: Adapter, cache: FrozenPrefixCache | None, name: str = "a") -> Attached:
        attached = Attached(backbone.model, backbone.anatomy)
        made.append(attached)
        attached.put(name, adapter)
        attached.use_frozen_prefix(cache)
        return attached

    yield attach
    for attached in made:
        attached.detach()


def remembering(**settings: Any) -> FrozenPrefixCache:
    cache = FrozenPrefixCache(**settings)
    cache.reuse = True
    return cache


def value_and_gradients(
    backbone: TinyBackbone, attached: Attached, adapter: Adapter, inputs: dict[str, Tensor]
) -> tuple[Tensor, list[Tensor]]:
    adapter.zero_grad()
    with attached.routed(Assignment(adapter, slice(None), Rows(training=True, seed=3))):
        value = loss(backbone, attached, inputs)
        value.backward()
    return value.detach(), [p.grad.clone() for p in adapter.trainable().values() if p.grad is not None]


def lowest_trained(backbone: TinyBackbone) -> str:
    """The last layer of every stack; of the decoder alone where an edited encoder would leave the decoder no frozen prefix."""
    if backbone.name == "albert":  # its layers share their weights: either all are frozen or none is
        return "head"
    stacks = (
        ", stacks='decoder'" if backbone.anatomy.kind == "encoder_decoder" and backbone.objective == "language" else ""
    )
    return f"lora(rank=2, dropout=0.1, layers='last 1'{stacks})"


def umt5() -> TinyBackbone:
    """T5 with a position bias in each layer; it is in no other test, so it has no place among the tiny models."""
    import transformers

    from dollartune.backbones.loading import anatomy_of

    config = transformers.UMT5Config(
        vocab_size=99, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4, decoder_start_token_id=0
    )
    torch.manual_seed(0)
    model = transformers.UMT5ForConditionalGeneration(config).eval().requires_grad_(False)
    return TinyBackbone("umt5", model, anatomy_of(model), "language")


@pytest.mark.parametrize("name", [*BACKBONES, "umt5"])
def test_outputs_and_gradients_equal_the_plain_pass(name: str, attach: Any) -> None:
    backbone = umt5() if name == "umt5" else tiny_backbone(name)
    adapter = adapter_of(backbone, lowest_trained(backbone))
    cache = remembering()
    plain, fast = attach(backbone, adapter, None), attach(backbone, adapter, cache, "b")
    inputs = backbone.inputs(rows=5)
    plain_value, plain_gradients = value_and_gradients(backbone, plain, adapter, inputs)
    plain.detach()
    for _ in range(2):
        value, gradients = value_and_gradients(backbone, fast, adapter, inputs)
        torch.testing.assert_close(value, plain_value, rtol=1e-5, atol=1e-6)
        assert len(gradients) == len(plain_gradients)
        for mine, wanted in zip(gradients, plain_gradients, strict=True):
            torch.testing.assert_close(mine, wanted, rtol=1e-4, atol=2e-6)
    assert cache.computed_tokens == cache.reused_tokens > 0


@pytest.mark.parametrize("name", ["opt", "bert", "t5"])
def test_states_do_not_depend_on_the_batch_they_came_from(name: str, attach: Any) -> None:
    backbone = tiny_backbone(name)
    adapter = adapter_of(backbone, lowest_trained(backbone))
    cache = remembering()
    attached = attach(backbone, adapter, cache)
    inputs = backbone.inputs(rows=4)
    with torch.no_grad(), attached.routed("a"):
        short = backbone.logits(attached, select(inputs, slice(3, 4)))  # the padded row, alone and without its padding
        computed = cache.computed_tokens
        whole = backbone.logits(attached, inputs)
        backbone.logits(attached, select(inputs, slice(1, 3)))
        attached.use_frozen_prefix(None)
        torch.testing.assert_close(whole, backbone.logits(attached, inputs), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(short, backbone.logits(attached, select(inputs, slice(3, 4))), rtol=1e-5, atol=1e-5)
    assert computed > 0
    rows = {"opt": 4 * 7 - 2, "bert": 4 * 7 - 2, "t5": 4 * 7 - 2 + 4 * 4}[name]
    assert cache.computed_tokens == rows  # each token of each stack once


@pytest.mark.parametrize("memory_bytes", [0, 2000])
def test_what_does_not_fit_in_memory_is_kept_in_a_file(memory_bytes: int, attach: Any, tmp_path: Path) -> None:
    backbone = tiny_backbone("llama")
    adapter = adapter_of(backbone, "lora(rank=2, layers='last 1')")
    cache = remembering(memory_bytes=memory_bytes, folder=tmp_path / "cache")
    plain, fast = attach(backbone, adapter, None), attach(backbone, adapter, cache, "b")
    inputs = backbone.inputs(rows=6)
    with torch.no_grad(), plain.routed("a"), fast.routed("b"):
        wanted = backbone.logits(plain, inputs)
        for _ in range(2):
            torch.testing.assert_close(backbone.logits(fast, inputs), wanted, rtol=1e-5, atol=1e-5)
    size = 32 * 4
    assert cache.memory_used + cache.disk_used == (6 * 7 - 2) * size
    assert cache.memory_used <= memory_bytes
    assert cache.reused_tokens == cache.computed_tokens == 6 * 7 - 2
    assert not list((tmp_path / "cache").iterdir())  # it has no name, so nothing of it can be left behind
    cache.clear()
    assert cache.memory_used == cache.disk_used == 0


def test_bf16_states_survive_the_file(attach: Any, tmp_path: Path) -> None:
    cache = FrozenPrefixCache(0, tmp_path)
    states = torch.randn(5, 8).bfloat16()
    cache._store(b"key", states, 0.5, "a booking")
    assert torch.equal(cache._read(b"key"), states)


def test_without_room_states_are_computed_again(attach: Any) -> None:
    backbone = tiny_backbone("llama")
    adapter = adapter_of(backbone, "lora(rank=2, layers='last 1')")
    cache = remembering(memory_bytes=0)
    plain, fast = attach(backbone, adapter, None), attach(backbone, adapter, cache, "b")
    inputs = backbone.inputs()
    with torch.no_grad(), plain.routed("a"), fast.routed("b"):
        for _ in range(2):
            torch.testing.assert_close(backbone.logits(fast, inputs), backbone.logits(plain, inputs))
    assert cache.reused_tokens == 0
    assert cache.computed_tokens == 2 * (4 * 7 - 2)


@pytest.mark.parametrize(
    ("methods", "depth"),
    [
        (["lora(layers='last 1')"], 2),
        (["lora(layers='last 1')", "bitfit(layers='last 2')"], 1),
        (["lora"], 0),
        (["prompt(tokens=3)"], 0),
        (["prefix(tokens=3, layers='last 1')"], 0),
        (["lora(layers='last 1')", "prompt(tokens=3)"], 0),
        (["norm(where='norm.final')"], 3),
        (["layer_freezing(train='last 1')"], 2),
        (["layer_freezing(train='last 1', embeddings=True)"], 0),
        (["full"], 0),
    ],
)
def test_depth_of_the_frozen_prefix(methods: list[str], depth: int, attach: Any) -> None:
    backbone = tiny_backbone("opt")
    assert adapter_of(backbone, *methods).untouched(backbone.anatomy) == {"decoder": depth}


@pytest.mark.parametrize(
    ("methods", "encoder", "decoder"),
    [
        (["lora(where='all_linear', stacks='decoder')"], 2, 0),
        (["lora(where='self_attn.q', stacks='decoder', layers='last 1')"], 2, 1),
        (["lora(where='self_attn.q', stacks='encoder', layers='last 1')"], 1, 0),
        (["lora(where='self_attn.q', layers='last 1')"], 1, 0),
        (["prompt(tokens=3)"], 0, 0),
    ],
)
def test_depth_in_encoder_decoder_models(methods: list[str], encoder: int, decoder: int) -> None:
    backbone = tiny_backbone("t5")
    adapter = adapter_of(backbone, *methods)
    assert adapter.untouched(backbone.anatomy) == {"encoder": encoder, "decoder": decoder}


@pytest.mark.parametrize("train", ["last 1", "1-2"])
def test_layer_freezing_trains_above_the_frozen_prefix(train: str, attach: Any) -> None:
    """A method that replaces parameters in the model itself, with the layers below replaced too."""
    backbone = tiny_backbone("gpt2")
    adapter = adapter_of(backbone, f"layer_freezing(train='{train}')")
    plain, fast = attach(backbone, adapter, None), attach(backbone, adapter, remembering(), "b")
    inputs = backbone.inputs()
    wanted, gradients = value_and_gradients(backbone, plain, adapter, inputs)
    found, mine = value_and_gradients(backbone, fast, adapter, inputs)
    torch.testing.assert_close(found, wanted)
    torch.testing.assert_close(mine, gradients, rtol=1e-4, atol=1e-6)
    assert type(backbone.model.transformer.h[0]).__name__ == "GPT2Block"


def test_a_prompt_is_found_in_the_row_that_begins_with_it(attach: Any) -> None:
    """Label scoring asks for prompts whose states training has computed with the answer behind them."""
    backbone = tiny_backbone("opt")
    adapter = adapter_of(backbone, "lora(rank=2, layers='last 1')")
    cache = remembering()
    attached = attach(backbone, adapter, cache)
    ids = backbone.inputs(rows=3)["input_ids"][:, :7]
    mask = torch.ones_like(ids)
    with torch.no_grad(), attached.routed("a"):
        attached(input_ids=ids, attention_mask=mask, prompt_lengths=torch.tensor([4, 4, 5]))
        computed = cache.computed_tokens
        found = attached(input_ids=ids[:2, :4], attention_mask=mask[:2, :4]).logits
        assert cache.computed_tokens == computed
        attached.use_frozen_prefix(None)
        torch.testing.assert_close(found, attached(input_ids=ids[:2, :4], attention_mask=mask[:2, :4]).logits)


def test_rows_that_pass_once_are_not_kept(attach: Any) -> None:
    backbone = tiny_backbone("opt")
    cache = FrozenPrefixCache()
    attached = attach(backbone, adapter_of(backbone, "lora(rank=2, layers='last 1')"), cache)
    with torch.no_grad(), attached.routed("a"):
        backbone.logits(attached, backbone.inputs())
    assert cache.computed_tokens == cache.memory_used == 0


def test_inputs_that_the_key_does_not_cover_are_passed_plainly(attach: Any) -> None:
    backbone = tiny_backbone("opt")
    cache = remembering()
    attached = attach(backbone, adapter_of(backbone, "lora(rank=2, layers='last 1')"), cache)
    inputs = backbone.inputs()
    left = {"input_ids": inputs["input_ids"].flip(1), "attention_mask": inputs["attention_mask"].flip(1)}
    with torch.no_grad(), attached.routed("a"):
        attached(**inputs, use_cache=True)
        attached(**left)
        backbone.model.train()
        attached(**inputs)
        backbone.model.eval()
        with attached.routed(None):
            attached(**inputs)
    assert cache.computed_tokens == 0


@pytest.mark.parametrize("name", ["opt", "bert/classification", "t5"])
def test_nothing_below_the_lowest_trained_layer_is_saved_or_differentiated(name: str, attach: Any) -> None:
    backbone = tiny_backbone(name)
    adapter = adapter_of(backbone, lowest_trained(backbone))
    attached = attach(backbone, adapter, None)
    depths = adapter.untouched(backbone.anatomy)
    ran: dict[str, bool] = {}
    handles = []
    for stack, count in backbone.anatomy.layer_counts.items():
        for site in backbone.anatomy.at("layer", stack):

            def hook(module: Any, args: Any, output: Any, where: str = f"{stack}/{site.layer}") -> None:
                ran[where] = (output[0] if isinstance(output, tuple) else output).requires_grad

            handles.append(backbone.model.get_submodule(site.exit).register_forward_hook(hook))
        assert count
    saved: list[int] = []

    def pack(tensor: Tensor) -> Tensor:
        saved.append(sum(ran.values()))  # layers with a gradient that have run when something is saved
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        value_and_gradients(backbone, attached, adapter, backbone.inputs())
    for handle in handles:
        handle.remove()
    assert any(ran.values())
    for where, differentiated in ran.items():
        stack, layer = where.split("/")
        assert differentiated == (int(layer) >= depths[stack] and not (stack == "encoder" and depths["encoder"] == 2))


def test_a_pooler_drawn_with_the_head_leaves_all_layers_frozen(tmp_path: Path) -> None:
    import transformers

    from dollartune.backbones.loading import load_backbone
    from dollartune.export.scoring import sample_inputs

    torch.manual_seed(3)
    config = transformers.BertConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64, vocab_size=99, pad_token_id=1
    )
    transformers.BertForMaskedLM(config).save_pretrained(tmp_path)
    backbone = load_backbone(str(tmp_path), "classification", labels=("a", "b", "c"))
    adapter = Adapter([build_method("head")], backbone.anatomy, backbone.model, 0)
    perturb(adapter, 0.1, 0)
    assert len(backbone.anatomy.heads) == 2
    assert adapter.untouched(backbone.anatomy) == {"encoder": 2}
    cache, inputs = remembering(), sample_inputs(backbone)
    plain, fast = Attached(backbone.model, backbone.anatomy), Attached(backbone.model, backbone.anatomy)
    plain.put("a", adapter)
    with torch.no_grad(), plain.routed("a"):
        expected = plain(**inputs).logits
    plain.detach()
    fast.put("a", adapter)
    fast.use_frozen_prefix(cache)
    for _ in range(2):
        with torch.no_grad(), fast.routed("a"):
            torch.testing.assert_close(fast(**inputs).logits, expected, rtol=1e-5, atol=1e-6)
    fast.detach()
    assert cache.reused_tokens > 0


def test_pixels_in_bf16_have_keys() -> None:
    pixels = torch.stack([torch.zeros(3, 4, 4), torch.ones(3, 4, 4)]).bfloat16()
    first, second = _keys({"pixel_values": pixels}, {"encoder": 1}, "vision")["encoder"]
    assert first != second


@pytest.mark.parametrize("when", ["before", "meanwhile"])
def test_states_that_find_no_place_on_the_disk_are_computed_again(
    attach: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    backbone = tiny_backbone("llama")
    adapter = adapter_of(backbone, "lora(rank=2, layers='last 1')")
    cache = remembering(memory_bytes=0, folder=tmp_path / "cache")
    if when == "before":
        (tmp_path / "cache").write_text("a file is in the way")
    plain, fast = attach(backbone, adapter, None), attach(backbone, adapter, cache, "b")
    inputs = backbone.inputs(rows=6)
    with torch.no_grad(), plain.routed("a"), fast.routed("b"):
        wanted = backbone.logits(plain, inputs)
        if when == "meanwhile":
            torch.testing.assert_close(backbone.logits(fast, inputs), wanted, rtol=1e-5, atol=1e-5)
            assert cache._file is not None
            cache._file.close()
            cache._file = open("/dev/full", "r+b", buffering=0)  # noqa: SIM115
            cache._stored.clear()
            cache._prefixes.clear()
        for _ in range(2):
            torch.testing.assert_close(backbone.logits(fast, inputs), wanted, rtol=1e-5, atol=1e-5)
    assert cache.folder is None
    assert not cache._stored
    cache.clear()


@pytest.mark.parametrize("name", ["llama", "bert", "t5"])
def test_what_states_took_is_noted_for_the_adapters_that_begin_with_them(name: str, attach: Any) -> None:
    """Each row of each stack once, for whoever reads it, by the booking under which it was computed; nothing for others."""
    backbone = tiny_backbone(name)
    cache = remembering()
    attached = attach(backbone, adapter_of(backbone, lowest_trained(backbone)), cache, "first")
    attached.put("second", adapter_of(backbone, lowest_trained(backbone), seed=1))
    attached.put("whole", adapter_of(backbone, "ia3"))
    inputs = backbone.inputs(rows=5)

    def pass_of(adapter: str, rows: slice) -> None:
        with torch.no_grad(), attached.routed(adapter):
            backbone.logits(attached, select(inputs, rows))

    def noted(booking: str, *passes: tuple[str, slice]) -> dict[str, list[str]]:
        with cache.noting(lambda: booking) as read:
            for one in passes:
                pass_of(*one)
        return {adapter: sorted(states.booking for states in known) for adapter, known in read.items()}

    stacks = 2 if name == "t5" else 1
    pass_of("first", slice(0, 1))  # unpaid, as a look at what a method costs
    assert noted("a", ("first", slice(0, 3)), ("first", slice(1, 3))) == {"first": [""] * stacks + ["a"] * 2 * stacks}
    again = noted("b", ("second", slice(0, 4)), ("whole", slice(None)), ("first", slice(0, 1)))
    assert again == {"second": [""] * stacks + ["a"] * 2 * stacks + ["b"] * stacks, "first": [""] * stacks}
    with cache.noting(lambda: "c") as read:
        pass_of("second", slice(0, 4))
    assert all(states.seconds > 0 for states in read["second"])
    pass_of("first", slice(None))
    assert len(read["first"]) == 0, "and outside nothing is noted"


def test_a_prompt_whose_row_found_no_room_is_computed_again(attach: Any) -> None:
    backbone = tiny_backbone("llama")
    adapter = adapter_of(backbone, "lora(rank=2, layers='last 1')")
    cache = remembering(memory_bytes=0)
    plain, fast = attach(backbone, adapter, None), attach(backbone, adapter, cache, "b")
    ids = torch.randint(0, 90, (2, 7))
    prompt = {"input_ids": ids[:, :4], "attention_mask": torch.ones(2, 4, dtype=torch.long)}
    with torch.no_grad(), plain.routed("a"), fast.routed("b"):
        fast(prompt_lengths=torch.tensor([4, 4]), input_ids=ids, attention_mask=torch.ones(2, 7, dtype=torch.long))
        wanted, given = backbone.logits(plain, prompt), backbone.logits(fast, prompt)
    torch.testing.assert_close(given, wanted, rtol=1e-5, atol=1e-5)
