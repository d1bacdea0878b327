"""Compiled layers: the same losses and gradients as plain ones, whatever is attached, and the model as before at the end."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import nullcontext

import pytest
import torch
import torch._dynamo.testing
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from dollartune.attachment.attached import Attached
from dollartune.attachment.fast.compile import compiled_layers
from dollartune.attachment.fast.kernels import fast_kernels
from dollartune.attachment.routing import Assignment
from dollartune.backbones.loading import anatomy_of
from dollartune.methods.edits import Rows
from dollartune.methods.registry import build_method
from dollartune.testing.practice import loss, perturb
from dollartune.testing.tiny import TinyBackbone, tiny_backbone

METHODS = ("lora(dropout=0.2)", "ia3", "pfeiffer(reduction=8)", "prompt(tokens=2)")
FEWER = METHODS[::2]
"""Beside OPT: tracing takes seconds for each method, and what differs between families is where their layers are cut."""


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def passed(tiny: TinyBackbone, backend: str | None, batches: Sequence[int], methods: Sequence[str]) -> list[Tensor]:
    """Losses and gradients of batches of different lengths with adapters side by side."""
    attached = Attached(tiny.model, tiny.anatomy)
    adapters = []
    for seed, method in enumerate(methods):
        adapters.append(attached.add(str(seed), [build_method(method)], seed))
        perturb(adapters[-1], 0.05, seed)
    route = [
        Assignment(adapter, slice(row, row + 1), Rows(training=True, seed=row)) for row, adapter in enumerate(adapters)
    ]
    found = []
    try:
        with fast_kernels(attached), compiled_layers(attached, backend) if backend else nullcontext():
            for tokens in batches:
                with attached.routed(*route, batch_rows=len(route)):
                    value = loss(tiny, attached, tiny.inputs(len(route), tokens))
                value.backward()
                found.append(value.detach())
        return found + [p.grad.clone() for a in adapters for p in a.parameters() if p.grad is not None]
    finally:
        attached.detach()


def assert_same(name: str, backend: str, batches: Sequence[int], methods: Sequence[str] = METHODS) -> None:
    tiny = tiny_backbone(name)
    before = [set(module.__dict__) for module in tiny.model.modules()]
    plain = passed(tiny, None, batches, methods)
    compiled = passed(tiny, backend, batches, methods)
    assert len(plain) == len(compiled)
    for mine, other in zip(compiled, plain, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-3, atol=1e-5)
    assert [set(module.__dict__) for module in tiny.model.modules()] == before


@pytest.mark.slow
@pytest.mark.parametrize("name", ["opt", "llama", "t5", "bert/classification", "vit"])
def test_losses_and_gradients_are_those_of_plain_layers(name: str) -> None:
    # what may differ between families is where layers are cut; what traces the pieces' gradients, and traces them anew for
    # another length, is torch's
    assert_same(name, *(("aot_eager", (6, 9), METHODS) if name == "opt" else ("eager", (6,), FEWER)))


def test_with_generated_code() -> None:
    if shutil.which("g++") is None and shutil.which("clang++") is None:
        pytest.skip("no C++ compiler here")
    assert_same("opt", "inductor", (7,))


@pytest.mark.slow
def test_pieces_are_compiled_once_for_all_layers_and_trials() -> None:
    compiled = torch._dynamo.testing.CompileCounter()
    counts = []
    for layers in (3, 5):  # a first, a last, and some between
        torch.compiler.reset()
        compiled.clear()
        model = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=layers, num_attention_heads=4
            )
        )
        attached = Attached(model, anatomy_of(model))
        for name in "ab":
            attached.add(name, [build_method("lora(rank=2)")])
            with fast_kernels(attached), compiled_layers(attached, compiled), attached.routed(name):
                for tokens in (5, 8, 11):
                    attached(input_ids=torch.ones(2, tokens, dtype=torch.long)).logits.sum().backward()
        counts.append(compiled.frame_count)
        attached.detach()
    assert counts[0] == counts[1]
