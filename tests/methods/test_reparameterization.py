"""LoRA and its kin, intrinsic dimension and (IA)3: what the conformance suite cannot know about each."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from scipy.linalg import hadamard as scipy_hadamard

from dollartune.attachment import Adapter
from dollartune.backbones.weights import site_bias, site_weight
from dollartune.errors import UserError
from dollartune.methods.adalora import AdaLoRA
from dollartune.methods.dora import DoRA
from dollartune.methods.edits import Rows
from dollartune.methods.ia3 import IA3
from dollartune.methods.intrinsic import Fastfood, Intrinsic, hadamard, hadamard_matrix
from dollartune.methods.lora import LoRA, by_pattern
from dollartune.methods.rank_allocation import SingularTriplets, allocate
from dollartune.testing import tiny_backbone
from dollartune.testing.practice import attached_to, finish, perturb, train


def adapter_of(method: Any, family: str = "opt", seed: int = 0) -> Adapter:
    backbone = tiny_backbone(family)
    return Adapter([method], backbone.anatomy, backbone.model, seed)


# LoRA


def test_pattern_prefers_site_to_role_to_glob() -> None:
    site = tiny_backbone("opt").anatomy.at("mlp.down")[1]
    assert by_pattern({"*": 1, "mlp.down": 2, "decoder.1.mlp.down": 3}, site, 0) == 3
    assert by_pattern({"*": 1, "mlp.down": 2}, site, 0) == 2
    assert by_pattern({"mlp.*": 4, "*": 1}, site, 0) == 4
    assert by_pattern({"decoder.0.*": 5}, site, 7) == 7


def test_lora_plus_gives_b_its_own_rate() -> None:
    method = LoRA(rank=2, lr=1e-3, lr_ratio=16.0)
    rest, fast = method.parameter_groups(adapter_of(method).parts[0])
    assert {p.shape[0] for p in rest["params"]} == {2}
    assert {p.shape[1] for p in fast["params"]} == {2}
    assert (rest["lr"], fast["lr"]) == (1e-3, pytest.approx(1.6e-2))


# DoRA


def test_dora_rows_have_the_trained_length() -> None:
    """Each row of the merged weight is m long, whatever A and B are."""
    backbone = tiny_backbone("opt")
    adapter = adapter_of(DoRA(rank=3))
    perturb(adapter, 0.2, 0)
    for site, edit in adapter.items():
        module = backbone.model.get_submodule(site.exit)
        weight, _ = edit.merge(site_weight(module, site), site_bias(module, site))  # type: ignore[operator]
        torch.testing.assert_close(weight.norm(dim=1), edit.get_parameter("magnitude")[0].abs(), rtol=1e-4, atol=1e-5)


# AdaLoRA


def test_adalora_budget_is_cubic_between_flat_ends() -> None:
    method = AdaLoRA(rank=12, target_rank=4, warmup=0.1, final=0.3)
    budgets = [method.budget(step, 100, sites=2) for step in range(100)]
    assert budgets[:11] == [24] * 11
    assert budgets[70:] == [8] * 30
    assert budgets[40] == int(16 * 0.5**3 + 8)
    assert sorted(budgets, reverse=True) == budgets


def test_adalora_keeps_the_most_important_triplets_of_all_sites() -> None:
    edits = [SingularTriplets(4, 4, 3, 6.0, 0.0) for _ in range(2)]
    for edit, importance in zip(edits, ([5.0, 0.1, 4.0], [0.2, 0.3, 3.0]), strict=True):
        edit.get_buffer("sensitivity_values").copy_(torch.tensor(importance)[:, None])
        edit.get_buffer("uncertainty_values").fill_(1.0)
    allocate(edits, 3)
    assert [edit.kept.tolist() for edit in edits] == [[True, False, True], [False, False, True]]
    allocate(edits, 6)
    assert all(edit.kept.all() for edit in edits)


@pytest.mark.parametrize("target", [0, 1])
def test_adalora_prunes_the_stored_tensors(target: int) -> None:
    backbone, method = tiny_backbone("opt"), AdaLoRA(rank=4, target_rank=target, where="attention")
    adapter = adapter_of(method)
    before = sum(t.numel() for t in adapter.tensors().values())
    with attached_to(backbone, adapter) as attached:
        train(backbone, attached, adapter, 10, 0.02)
        expected = backbone.logits(attached, backbone.inputs()).detach()
    finish(adapter)
    assert method.report(adapter.parts[0]) == {"mean_rank": float(target)}
    assert adapter.count() == target * sum(site.in_features + site.out_features + 1 for site, _ in adapter.items())
    assert sum(t.numel() for t in adapter.tensors().values()) < before / 2
    with attached_to(backbone, adapter) as attached:
        torch.testing.assert_close(backbone.logits(attached, backbone.inputs()), expected, rtol=1e-5, atol=1e-5)


def test_adalora_settings_that_contradict_each_other() -> None:
    anatomy = tiny_backbone("opt").anatomy
    with pytest.raises(UserError, match="above the starting rank"):
        AdaLoRA(rank=4, target_rank=8).check(anatomy)
    with pytest.raises(UserError, match="more than 1"):
        AdaLoRA(warmup=0.6, final=0.6).check(anatomy)


# Intrinsic dimension


@pytest.mark.parametrize("n", [2, 8, 32, 64])
def test_hadamard_product(n: int) -> None:
    x = torch.randn(3, n)
    torch.testing.assert_close(
        hadamard(x), x @ torch.tensor(scipy_hadamard(n), dtype=torch.float32), rtol=1e-5, atol=1e-4
    )


def test_fastfood_is_linear_with_columns_of_about_length_one() -> None:
    projection = Fastfood(100, 5000, seed=3)
    matrix = projection(torch.eye(100)).T  # (D, d), written down here and nowhere else
    assert matrix.shape == (5000, 100)
    gram = matrix.T @ matrix
    assert gram.diagonal().mean() == pytest.approx(1.0, abs=0.05)
    assert (gram - torch.diag(gram.diagonal())).abs().mean() < 0.02
    x = torch.randn(2, 100)
    torch.testing.assert_close(projection(x), x @ matrix.T, rtol=1e-4, atol=1e-5)
    stored = sum(b.numel() * b.element_size() for b in projection.buffers())
    assert stored < 4 * 5000 + 8 * 128


def test_projection_is_drawn_again_not_saved() -> None:
    adapter = adapter_of(Intrinsic(dimension=50))
    assert sum(t.numel() for t in adapter.tensors().values()) == 50
    other = adapter_of(Intrinsic(dimension=50, projection_seed=1))
    site = next(iter(adapter.items()))[0]
    with torch.no_grad():
        for found in (adapter, other):
            found.get_parameter("parts.0.shared.theta").fill_(0.1)
    edits = [next(edit for at, edit in found.items() if at == site) for found in (adapter, other)]
    assert not torch.allclose(edits[0].change(), edits[1].change())  # type: ignore[operator]


def test_said_scales_whole_layers() -> None:
    adapter = adapter_of(Intrinsic(dimension=50, where="attention"))
    with torch.no_grad():
        adapter.get_parameter("parts.0.shared.theta").normal_()
        adapter.get_parameter("parts.0.shared.scales.decoder/1").zero_()
    for site, edit in adapter.items():
        assert (edit.change().abs().max() == 0) == (site.layer == 1)  # type: ignore[operator]


def test_dimension_must_leave_room_for_the_scales() -> None:
    with pytest.raises(UserError, match="used up by the scales of 3 layers"):
        adapter_of(Intrinsic(dimension=3))


# (IA)3


def test_t_fews_two_vectors_scale_input_and_output() -> None:
    backbone = tiny_backbone("opt")
    adapter = adapter_of(IA3(two_vectors=True, where="self_attn.k"))
    perturb(adapter, 0.3, 0)
    site, edit = next(iter(adapter.items()))
    module = backbone.model.get_submodule(site.exit)
    x = torch.randn(2, 5, site.in_features)
    scaled_in, scaled_out = edit.get_parameter("input_scale"), edit.get_parameter("output_scale")
    with torch.no_grad():
        found = edit.transform(x, module(x), Rows())  # type: ignore[operator]
        torch.testing.assert_close(found, module(x * scaled_in) * scaled_out, rtol=1e-5, atol=1e-5)


def test_intrinsic_trains_after_a_prediction_has_made_its_matrices() -> None:
    hadamard_matrix.cache_clear()
    with torch.inference_mode():
        hadamard(torch.ones(1, 64))
    theta = torch.ones(1, 64, requires_grad=True)
    hadamard(theta).square().sum().backward()
    assert theta.grad is not None
