"""Outputs and gradients of LoRA and its kin, (IA)3 and norm tuning, against the peft library, in fp32 on tiny random
models."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dollartune.attachment import Adapter, Assignment, Attached
from dollartune.methods.adalora import AdaLoRA
from dollartune.methods.base import Method
from dollartune.methods.dora import DoRA
from dollartune.methods.edits import Edit, Rows, dropout
from dollartune.methods.ia3 import IA3
from dollartune.methods.lora import LoRA
from dollartune.methods.norm import Norm
from dollartune.methods.vera import VeRA
from dollartune.testing import TinyBackbone, tiny_backbone
from dollartune.testing.practice import loss, perturb

peft = pytest.importorskip("peft")

FAMILIES = ("opt", "gpt2", "llama", "t5", "bart", "bert", "vit")
Pairs = list[tuple[nn.Parameter, nn.Parameter, Callable[[Tensor], Tensor]]]
"""(ours, peft's, ours in peft's shape)."""


def where(family: str) -> str:
    """Linears that are not fused: peft treats GPT-2's q, k, v as one."""
    return "self_attn.o mlp.up mlp.down" if family == "gpt2" else "self_attn.q self_attn.v mlp.down"


def twin(
    backbone: TinyBackbone, method: Method[Any], config: Any, names: dict[str, str], noise: float = 0.05
) -> tuple[Adapter, Any, Pairs]:
    """Our adapter, peft's model, and their parameters in pairs with equal values.

    Args:
        names: our tensor's name in an edit -> peft's name after the module's path.
    """
    adapter = Adapter([method], backbone.anatomy, backbone.model, seed=3)
    model = peft.get_peft_model(copy.deepcopy(backbone.model), config).eval()
    perturb(adapter, noise, seed=5)
    theirs = dict(model.named_parameters())
    pairs: Pairs = []
    for site, edit in adapter.items():
        for own, suffix in names.items():
            other = theirs[f"base_model.model.{site.exit}.{suffix}"]
            ours = edit.get_parameter(own)

            def reshaped(tensor: Tensor, like: Tensor = other) -> Tensor:
                return tensor.reshape(like.shape)

            other.data.copy_(reshaped(ours.data))
            pairs.append((ours, other, reshaped))
    return adapter, model, pairs


def targets(method: Method[Any], backbone: TinyBackbone) -> list[str]:
    return [site.exit for site in method.sites(backbone.anatomy)]


def assert_agree(
    backbone: TinyBackbone,
    adapter: Adapter,
    model: Any,
    pairs: Pairs,
    context: Rows = Rows(),  # noqa: B008
) -> None:
    """Logits and every gradient to 1e-5."""
    inputs = backbone.inputs()
    attached = Attached(backbone.model, backbone.anatomy)
    attached.put("adapter", adapter)
    try:
        with attached.routed(Assignment(adapter, slice(None), context)):
            ours = backbone.logits(attached, inputs)
            loss(backbone, attached, inputs).backward()
    finally:
        attached.detach()
    reference = Attached(model.base_model.model, backbone.anatomy)
    for _, other, _ in pairs:
        other.requires_grad_(True)
    theirs = backbone.logits(reference, inputs)
    loss(backbone, reference, inputs).backward()
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    assert pairs
    for own, other, reshaped in pairs:
        assert own.grad is not None
        torch.testing.assert_close(reshaped(own.grad), other.grad, rtol=1e-5, atol=1e-5)
    assert max(float(own.grad.abs().max()) for own, _, _ in pairs if own.grad is not None) > 1e-3


LORA = {"A": "lora_A.default.weight", "B": "lora_B.default.weight"}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("stabilized", [False, True])
def test_lora(family: str, stabilized: bool) -> None:
    backbone = tiny_backbone(family)
    method = LoRA(rank=3, alpha=5.0, where=where(family), rank_stabilized=stabilized)
    config = peft.LoraConfig(r=3, lora_alpha=5, target_modules=targets(method, backbone), use_rslora=stabilized)
    assert_agree(backbone, *twin(backbone, method, config, LORA))


def test_lora_patterns() -> None:
    backbone = tiny_backbone("opt")
    method = LoRA(
        rank=3,
        alpha=5.0,
        where="self_attn.q mlp.down",
        rank_pattern={"mlp.*": 5, "decoder.0.self_attn.q": 2},
        alpha_pattern={"mlp.down": 2.0},
    )
    config = peft.LoraConfig(
        r=3,
        lora_alpha=5,
        target_modules=targets(method, backbone),
        rank_pattern={"fc2": 5, "layers.0.self_attn.q_proj": 2},
        alpha_pattern={"fc2": 2},
    )
    assert_agree(backbone, *twin(backbone, method, config, LORA))


@pytest.mark.parametrize("family", FAMILIES)
def test_dora(family: str) -> None:
    backbone = tiny_backbone(family)
    method = DoRA(rank=3, alpha=5.0, where=where(family))
    config = peft.LoraConfig(r=3, lora_alpha=5, target_modules=targets(method, backbone), use_dora=True)
    assert_agree(
        backbone, *twin(backbone, method, config, {**LORA, "magnitude": "lora_magnitude_vector.default.weight"})
    )


@pytest.mark.parametrize("family", ["opt", "gpt2", "t5"])
def test_dora_starts_at_the_same_lengths(family: str) -> None:
    backbone = tiny_backbone(family)
    method = DoRA(rank=3, where=where(family))
    adapter = Adapter([method], backbone.anatomy, backbone.model)
    model = peft.get_peft_model(
        copy.deepcopy(backbone.model), peft.LoraConfig(r=3, target_modules=targets(method, backbone), use_dora=True)
    )
    theirs = dict(model.named_parameters())
    for site, edit in adapter.items():
        expected = theirs[f"base_model.model.{site.exit}.lora_magnitude_vector.default.weight"]
        torch.testing.assert_close(edit.get_parameter("magnitude")[0], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("family", FAMILIES)
def test_pissa(family: str) -> None:
    """The start is the same up to the signs of singular vectors, so it is copied from ours; what matters is the
    residual."""
    backbone = tiny_backbone(family)
    method = LoRA(rank=3, alpha=6.0, where=where(family), init="pissa")
    config = peft.LoraConfig(r=3, lora_alpha=6, target_modules=targets(method, backbone), init_lora_weights="pissa")
    adapter = Adapter([method], backbone.anatomy, backbone.model)
    model = peft.get_peft_model(copy.deepcopy(backbone.model), config)
    theirs = dict(model.named_parameters())
    for site, edit in adapter.items():
        a, b = (theirs[f"base_model.model.{site.exit}.{suffix}"] for suffix in LORA.values())
        torch.testing.assert_close(edit.get_parameter("B") @ edit.get_parameter("A"), b @ a, rtol=1e-4, atol=1e-5)
    assert_agree(backbone, *twin(backbone, method, config, LORA))


@pytest.mark.parametrize("family", FAMILIES)
def test_vera(family: str) -> None:
    backbone = tiny_backbone(family)
    method = VeRA(rank=16, where=where(family), projection_seed=7)
    config = peft.VeraConfig(r=16, target_modules=targets(method, backbone), projection_prng_key=7)
    adapter, model, pairs = twin(backbone, method, config, {"d": "vera_lambda_d.default", "b": "vera_lambda_b.default"})
    shared: Any = adapter.parts[0].shared
    assert torch.equal(shared.A, model.base_model.vera_A["default"])
    assert torch.equal(shared.B, model.base_model.vera_B["default"])
    assert_agree(backbone, adapter, model, pairs)


@pytest.mark.parametrize("family", FAMILIES)
def test_ia3(family: str) -> None:
    backbone = tiny_backbone(family)
    method = IA3(where="mlp.down" if family == "gpt2" else "self_attn.k self_attn.v cross_attn.k cross_attn.v mlp.down")
    down = [site.exit for site in backbone.anatomy.at("mlp.down")]
    config = peft.IA3Config(target_modules=targets(method, backbone), feedforward_modules=down)
    assert_agree(backbone, *twin(backbone, method, config, {"scale": "ia3_l.default"}))


@pytest.mark.parametrize("family", FAMILIES)
def test_norm(family: str) -> None:
    backbone = tiny_backbone(family)
    method = Norm()
    config = peft.LNTuningConfig(target_modules=targets(method, backbone))
    names = {"copies.weight": "ln_tuning_layers.default.weight"}
    if family not in ("llama", "t5"):
        names["copies.bias"] = "ln_tuning_layers.default.bias"
    assert_agree(backbone, *twin(backbone, method, config, names))


ADALORA = {"Q": "lora_A.default", "values": "lora_E.default", "P": "lora_B.default"}


@pytest.mark.parametrize("family", FAMILIES)
def test_adalora(family: str) -> None:
    backbone = tiny_backbone(family)
    method = AdaLoRA(rank=4, target_rank=2, alpha=6.0, where=where(family))
    config = peft.AdaLoraConfig(
        init_r=4, target_r=2, lora_alpha=6, target_modules=targets(method, backbone), total_step=10
    )
    assert_agree(backbone, *twin(backbone, method, config, ADALORA))


@pytest.mark.parametrize("every", [1, 3])
def test_adalora_over_a_training_run(every: int) -> None:
    """Thirty steps with penalty, importance and pruning: the same ranks survive and the same tensors come out."""
    backbone, steps = tiny_backbone("opt"), 30
    method = AdaLoRA(
        rank=4,
        target_rank=2,
        alpha=6.0,
        where="self_attn.q self_attn.v mlp.up",
        warmup=0.1,
        final=0.2,
        every=every,
        orthogonality=0.1,
    )
    config = peft.AdaLoraConfig(
        init_r=4,
        target_r=2,
        lora_alpha=6,
        target_modules=targets(method, backbone),
        tinit=3,
        tfinal=6,
        deltaT=every,
        total_step=steps,
        orth_reg_weight=0.1,
    )
    adapter, model, pairs = twin(backbone, method, config, ADALORA)
    inputs = backbone.inputs()
    ours = torch.optim.AdamW([own for own, _, _ in pairs], lr=0.02, weight_decay=0.0)
    theirs = torch.optim.AdamW([other for _, other, _ in pairs], lr=0.02, weight_decay=0.0)
    part: Any = adapter.parts[0]
    attached = Attached(backbone.model, backbone.anatomy)
    attached.put("adapter", adapter)
    reference = Attached(model.base_model.model, backbone.anatomy)
    for _, other, _ in pairs:
        other.requires_grad_(True)
    ranks = []
    try:
        for step in range(steps):
            with attached.routed("adapter"):
                (loss(backbone, attached, inputs) + method.penalty(part, step / steps)).backward()
            ours.step()
            method.after_step(part, step, steps)
            ours.zero_grad()
            (loss(backbone, reference, inputs) + 0.1 * peft_penalty(model)).backward()
            theirs.step()
            model.base_model.update_and_allocate(step)
            theirs.zero_grad()
            ranks.append(method.report(part)["mean_rank"])
    finally:
        attached.detach()
    assert ranks[0] == 4.0
    assert ranks[-1] == 2.0
    assert sorted(ranks, reverse=True) == ranks
    for own, other, reshaped in pairs:
        torch.testing.assert_close(reshaped(own), other, rtol=1e-3, atol=1e-4)
    method.finish(part)
    pattern = model.peft_config["default"].rank_pattern
    for site, edit in adapter.items():
        expected = pattern[f"{site.exit}.lora_E.default"]
        assert edit.kept.tolist() == [bool(kept) for kept in expected]  # type: ignore[operator, union-attr]
        assert edit.get_parameter("Q").shape[0] == sum(expected)
    assert len({int(edit.kept.sum()) for _, edit in adapter.items()}) > 1, "the budget went unevenly to the sites"  # type: ignore[operator, union-attr, arg-type]


def peft_penalty(model: Any) -> Tensor:
    """The orthogonality term as peft's model computes it when it is given labels."""
    terms = []
    for name, p in model.named_parameters():
        if "lora_A" in name or "lora_B" in name:
            gram = p @ p.T if "lora_A" in name else p.T @ p
            terms.append(torch.norm(gram - torch.eye(len(gram)), p="fro"))
    return torch.stack(terms).mean()


class SeededDropout(nn.Module):
    """Our dropout in the place of peft's, so that both drop the same inputs; OPT flattens rows before its feed-forward."""

    def __init__(self, edit: Edit, context: Rows, rows: int) -> None:
        super().__init__()
        self.edit, self.context, self.rows = [edit], context, rows

    def forward(self, x: Tensor) -> Tensor:
        batched = x.view(self.rows, -1, x.shape[-1])
        return dropout(batched, 0.3, self.context, self.edit[0].key).view(x.shape)


@pytest.mark.parametrize("use_dora", [False, True])
def test_dropout_acts_where_pefts_does(use_dora: bool) -> None:
    backbone = tiny_backbone("opt")
    method = (DoRA if use_dora else LoRA)(rank=3, where="self_attn.q mlp.down", dropout=0.3)
    config = peft.LoraConfig(
        r=3, lora_alpha=16, lora_dropout=0.3, target_modules=targets(method, backbone), use_dora=use_dora
    )
    names = {**LORA, "magnitude": "lora_magnitude_vector.default.weight"} if use_dora else LORA
    adapter, model, pairs = twin(backbone, method, config, names)
    context = Rows(training=True, seed=11)
    modules = dict(model.named_modules())
    for site, edit in adapter.items():
        linear = modules[f"base_model.model.{site.exit}"]
        linear.training = True
        linear.lora_dropout["default"] = SeededDropout(edit, context, backbone.inputs()["input_ids"].shape[0])
    assert_agree(backbone, adapter, model, pairs, context)
