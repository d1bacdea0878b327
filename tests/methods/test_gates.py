"""Gates around other methods: closed is the backbone, open is the method, half open is in between; and combinations."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from dollartune.attachment import Attached
from dollartune.errors import UserError
from dollartune.methods.base import Method
from dollartune.methods.edits import Delta, Gate, Rows
from dollartune.methods.gates import Gated, GatedDelta
from dollartune.methods.parallel import Parallel
from dollartune.methods.prefix import Prefix
from dollartune.methods.registry import build_method
from dollartune.testing import MethodSuite
from dollartune.testing.tiny import TinyBackbone, tiny_backbone

INNER = [
    "lora(rank=2)",
    "ia3",
    "pfeiffer(reduction=4)",
    "parallel(reduction=4)",
    "prefix(tokens=3)",
    "bitfit(where='self_attn.q')",
]


def logits(backbone: TinyBackbone, method: Method[Any], open_by: float | None = None) -> torch.Tensor:
    """Outputs with a method whose tensors are away from their start, the same for the same inner method."""
    attached = Attached(backbone.model, backbone.anatomy)
    adapter = attached.add("a", [method])
    gates = {id(p) for module in adapter.modules() if isinstance(module, Gate) for p in module.parameters()}
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in adapter.parameters():
            if id(parameter) not in gates:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
        for module in adapter.modules():
            if isinstance(module, Gate) and open_by is not None:
                module.c.fill_(open_by)
    try:
        with torch.no_grad(), attached.routed("a"):
            return backbone.logits(attached, backbone.inputs())
    finally:
        attached.detach()


@pytest.mark.parametrize("inner", INNER)
@pytest.mark.parametrize("name", ["llama", "bart", "bert"])
def test_closed_is_the_backbone_and_open_is_the_method(name: str, inner: str) -> None:
    backbone = tiny_backbone(name)
    attached = Attached(backbone.model, backbone.anatomy)
    with torch.no_grad():
        bare = backbone.logits(attached, backbone.inputs())
    method = build_method(inner)
    whole = logits(backbone, method)
    if (
        not inner.startswith("prefix") or name == "bart"
    ):  # elsewhere even a closed prefix counts as places before the text
        torch.testing.assert_close(logits(backbone, Gated(inner=inner), -60.0), bare, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(logits(backbone, Gated(inner=inner), 60.0), whole, rtol=1e-4, atol=1e-4)
    half = logits(backbone, Gated(inner=inner), 0.0)
    assert not torch.allclose(half, bare, atol=1e-3)
    assert not torch.allclose(half, whole, atol=1e-3)


def test_a_gate_is_a_number_per_token() -> None:
    class Ones(Delta):
        def delta(self, x: torch.Tensor, rows: Rows) -> torch.Tensor:
            return torch.ones_like(x)

    gate = Gate(3, 0.5)
    with torch.no_grad():
        gate.w.copy_(torch.tensor([[1.0, -1.0, 0.0]]))
    x = torch.tensor([[[0.0, 0.0, 9.0], [2.0, 0.0, 0.0]]])
    found = GatedDelta(Ones(), gate).delta(x, Rows())
    torch.testing.assert_close(found, torch.tensor([[[0.5] * 3, [0.880797] * 3]]))


def test_a_gated_prefix_scales_its_share_of_attention() -> None:
    """softmax over [log g + q·P, q·K]: the odds of the prefix against the tokens are multiplied by g."""
    backbone = tiny_backbone("llama")
    model = copy.deepcopy(backbone.model)  # asking for attentions leaves hooks of the library's own
    model.set_attn_implementation("eager")
    attached = Attached(model, backbone.anatomy)
    shares = {}
    adapter = attached.add("a", [Gated(inner="prefix(tokens=2)")])
    for opening in (0.0, 60.0):
        for module in adapter.modules():
            if isinstance(module, Gate):
                module.c.data.fill_(opening)
        with torch.no_grad(), attached.routed("a"):
            weights = attached(output_attentions=True, **backbone.inputs()).attentions[0]
        prefix = weights[..., :2].sum(-1)
        shares[opening] = prefix / (1 - prefix)
    torch.testing.assert_close(shares[0.0], 0.5 * shares[60.0], rtol=1e-3, atol=1e-5)


def test_gates_have_a_learning_rate_of_their_own() -> None:
    backbone = tiny_backbone("opt")
    attached = Attached(backbone.model, backbone.anatomy)
    part = attached.add("a", [Gated(inner="lora(rank=2, lr=0.5, lr_ratio=2.0)", lr=0.25)]).parts[0]
    attached.detach()
    groups = part.method.parameter_groups(part)  # type: ignore[union-attr, operator]
    assert [group["lr"] for group in groups] == [0.5, 1.0, 0.25]
    counts = [sum(p.numel() for p in group["params"]) for group in groups]
    assert counts == [3 * 2 * 2 * 32, 3 * 2 * 32 * 2, 6 * 33]


@pytest.mark.parametrize(
    ("inner", "name", "why"),
    [
        ("prompt", "opt", "edits the input"),
        ("full", "opt", "edits the model"),
        ("prefix", "bloom", "attention code of its own"),
        ("nonsense", "opt", "unknown method"),
    ],
)
def test_what_cannot_be_gated_says_why(inner: str, name: str, why: str) -> None:
    backbone = tiny_backbone(name)
    with pytest.raises(UserError, match=why):
        Attached(backbone.model, backbone.anatomy).add("a", [Gated(inner=inner)])


class TestUniPELT(MethodSuite):
    """A gated LoRA, a gated prefix and a gated adapter on one backbone."""

    method = Gated(inner="lora(rank=2)")
    companions = (Gated(inner="prefix(tokens=2)"), Gated(inner="pfeiffer(reduction=4)"))


class TestMixAndMatch(MethodSuite):
    """He et al. 2022, MAM: a short prefix and a parallel adapter."""

    method = Prefix(tokens=3)
    companions = (Parallel(reduction=4),)
    overfit_lr = 0.05
