"""Each fast kernel beside its plain twin: frozen linears, bf16 attention, lean passes; and the model is left as it was."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from dollartune.attachment.attached import Assignment, Attached
from dollartune.attachment.fast import cpu_attention, cpu_linear
from dollartune.attachment.fast.kernels import fast_kernels
from dollartune.backbones.loading import Backbone, anatomy_of
from dollartune.methods.registry import build_method
from dollartune.testing import tiny_backbone
from dollartune.testing.practice import perturb
from dollartune.train.batching import Collator
from dollartune.train.encoding import Encoded
from dollartune.train.loss import trial_losses

DECODERS = ("opt", "gpt2", "llama", "bloom", "gpt_neo")


def rows() -> list[Encoded]:
    """Rows of three lengths."""
    return [Encoded(str(n), tuple(range(3, 3 + n)), (5 + n, 2)) for n in (4, 9, 6)]


@pytest.mark.parametrize("shape", [(6, 8), (2, 5, 8)])
@pytest.mark.parametrize("bias", [True, False])
def test_frozen_linear_equals_the_plain_one(shape: tuple[int, ...], bias: bool) -> None:
    torch.manual_seed(0)
    weight, b = torch.randn(7, 8), torch.randn(7) if bias else None
    found = []
    for product in (cpu_linear.frozen_linear, functional.linear):
        x = torch.linspace(-1, 1, 8 * 10).view(10, 8)[: torch.tensor(shape).prod() // 8].reshape(shape).requires_grad_()
        y = product(x, weight, b)
        y.square().sum().backward()
        found.append((y.detach(), x.grad))
    torch.testing.assert_close(found[0], found[1], rtol=1e-5, atol=1e-5)


def test_frozen_linear_keeps_no_input() -> None:
    saved: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        cpu_linear.frozen_linear(torch.randn(3, 8, requires_grad=True), torch.randn(7, 8), None)
    assert not saved


def test_a_linear_with_other_values_in_its_place_is_computed_plainly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_linear, "_WORTHWHILE", 0)
    monkeypatch.setattr(cpu_linear, "is_intel", lambda: False)
    module = nn.Linear(8, 7).requires_grad_(False)
    forward = cpu_linear.fast_forward(module)
    assert forward is not None
    other = torch.randn(7, 8, requires_grad=True)
    module._parameters["weight"] = other  # type: ignore[assignment]
    forward(torch.ones(2, 8)).sum().backward()
    assert other.grad is not None
    assert cpu_linear.fast_forward(nn.Linear(8, 7)) is None  # trained


@pytest.mark.parametrize(("queries", "keys"), [(6, 6), (3, 6)])
@pytest.mark.parametrize("mask", ["none", "causal", "padding", "numbers"])
@pytest.mark.parametrize("kept", [True, False])
def test_attention_equals_the_fused_one(
    queries: int, keys: int, mask: str, kept: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if mask == "causal" and queries != keys:
        pytest.skip("torch aligns a causal mask at the first key")
    monkeypatch.setattr(cpu_attention, "_KEPT_KEYS", 256 if kept else 0)
    monkeypatch.setattr(cpu_attention, "_CACHED_SCORES", 2 * 4 * queries * keys)  # two rows at a time
    torch.manual_seed(0)
    tensors = [torch.randn(3, n, 4, 8).transpose(1, 2) for n in (queries, keys, keys)]
    hidden: Any = {
        "padding": torch.arange(keys) < torch.tensor([6, 3, 5]).view(3, 1, 1, 1),
        "numbers": torch.randn(1, 4, queries, keys),
    }.get(mask)
    found = []
    for fused in (True, False):
        q, k, v = (t.detach().requires_grad_() for t in tensors)
        if fused:
            out = functional.scaled_dot_product_attention(
                q, k, v, None if hidden is None else hidden.expand(3, 4, -1, -1)
                if hidden.dtype != torch.bool else hidden.expand(-1, -1, queries, -1), is_causal=mask == "causal"
            ).transpose(1, 2)  # fmt: skip
        else:
            out = cpu_attention.attend(q, k, v, hidden, mask == "causal")
        (out * torch.linspace(0, 1, out.numel()).view(out.shape)).sum().backward()
        found.append((out.detach(), q.grad, k.grad, v.grad))
    torch.testing.assert_close(found[0], found[1], rtol=1e-5, atol=1e-5)


def tiny(family: str, dtype: torch.dtype = torch.float32) -> Backbone:
    """A tiny model of a family, of its own."""
    found = tiny_backbone(family)
    model = copy.deepcopy(found.model).to(dtype)
    return Backbone(family, model, None, anatomy_of(model), found.objective)


def losses(backbone: Backbone, method: str, fast: bool) -> tuple[Tensor, dict[str, Tensor]]:
    """Loss of one batch and the gradients."""
    attached = Attached(backbone.model, backbone.anatomy)
    adapter = attached.add("a", [build_method(method)])
    perturb(adapter, 0.1, 0)
    batch = Collator(backbone)(rows())
    try:
        route = [Assignment(adapter, slice(None))]
        if fast:
            with fast_kernels(attached):
                (loss,) = trial_losses(attached, batch, route, [slice(None)])
                loss.backward()
        else:
            (loss,) = trial_losses(attached, batch, route, [slice(None)])
            loss.backward()
        return loss.detach(), {name: p.grad for name, p in adapter.trainable().items() if p.grad is not None}
    finally:
        attached.detach()


@pytest.mark.parametrize("family", [*DECODERS, "t5", "bart"])
@pytest.mark.parametrize("method", ["lora(rank=2)", "prompt(tokens=3)", "prefix(tokens=3)", "bitfit", "full"])
def test_fast_passes_equal_plain_ones(family: str, method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_linear, "_WORTHWHILE", 0)
    monkeypatch.setattr(cpu_linear, "is_intel", lambda: False)
    backbone = tiny(family)
    plain, fast = losses(backbone, method, False), losses(backbone, method, True)
    torch.testing.assert_close(fast, plain, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", ["opt", "llama", "t5"])
def test_bf16_is_as_near_to_fp32_as_the_plain_path(family: str) -> None:
    expected, _ = losses(tiny(family), "lora(rank=2)", False)
    half = tiny(family, torch.bfloat16)
    plain, fast = (losses(half, "lora(rank=2)", way)[0] for way in (False, True))
    assert (fast - expected).abs() <= 2 * (plain - expected).abs() + 0.02 * expected.abs()


def test_the_model_is_as_before() -> None:
    backbone = tiny("opt")
    attached = Attached(backbone.model, backbone.anatomy)
    before = backbone.model.config._attn_implementation
    with fast_kernels(attached), fast_kernels(attached):
        assert attached.state.skip_unused
    assert not attached.state.skip_unused
    assert backbone.model.config._attn_implementation == before
    assert not any("forward" in module.__dict__ for module in backbone.model.modules())
    attached.detach()


def test_the_attention_is_in_use_in_bf16_only_within_the_block(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    plain = cpu_attention.attend
    monkeypatch.setattr(cpu_attention, "attend", lambda *args: calls.append(1) or plain(*args))
    backbone = tiny("opt", torch.bfloat16)
    attached = Attached(backbone.model, backbone.anatomy)
    ids = torch.arange(3, 9)[None]
    attached(input_ids=ids, attention_mask=torch.ones_like(ids))
    assert not calls
    with fast_kernels(attached):
        attached(input_ids=ids, attention_mask=torch.ones_like(ids))
    assert len(calls) == backbone.model.config.num_hidden_layers
