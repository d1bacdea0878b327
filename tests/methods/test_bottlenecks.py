"""Bottleneck adapters against a few plain lines written from their papers' equations: outputs and gradients."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dollartune.attachment import Adapter, Attached, attach
from dollartune.backbones.anatomy import Site
from dollartune.errors import UserError
from dollartune.methods.adapter_bias import AdapterBias
from dollartune.methods.adapter_drop import AdapterDrop
from dollartune.methods.adapter_fusion import AdapterFusion
from dollartune.methods.base import Method
from dollartune.methods.bottleneck import kronecker_sum
from dollartune.methods.compacter import Compacter
from dollartune.methods.edits import Rows, Transform
from dollartune.methods.gates import Gated
from dollartune.methods.houlsby import Houlsby
from dollartune.methods.low_rank_adapter import LowRankAdapter
from dollartune.methods.parallel import Parallel
from dollartune.methods.pfeiffer import Pfeiffer
from dollartune.methods.phm_adapter import PHMAdapter
from dollartune.testing.tiny import TinyBackbone, tiny_backbone

D = 32
SITE = Site("encoder", 0, "mlp", "sublayer", "up", "down", D, D)


def edit_of(method: Method[Any], sites: tuple[Site, ...] = (SITE,)) -> Transform:
    """The method's edit at one sublayer, with all tensors away from their start."""
    torch.manual_seed(0)
    anatomy = tiny_backbone("bert").anatomy
    edit = method.edit(SITE, method.shared(sites, anatomy), nn.Identity())
    assert isinstance(edit, Transform)
    with torch.no_grad():
        for parameter in edit.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    return edit


def kron_sum(a: Tensor, b: Tensor) -> Tensor:
    return torch.stack([torch.kron(a[i], b[i]) for i in range(a.shape[0])]).sum(0)


def sequential(e: Any, x: Tensor, y: Tensor) -> Tensor:
    """Houlsby et al. 2019, figure 2: y + U f(D y)."""
    return y + torch.relu(y @ e.down.T + e.down_bias) @ e.up.T + e.up_bias


def parallel(e: Any, x: Tensor, y: Tensor) -> Tensor:
    """He et al. 2022, table 1, scaled parallel adapter: h + s f(x W_down) W_up."""
    return y + 4.0 * (torch.relu(x @ e.down.T + e.down_bias) @ e.up.T + e.up_bias)


def low_rank(e: Any, x: Tensor, y: Tensor) -> Tensor:
    down, up = e.down_left @ e.down_right, e.up_left @ e.up_right
    assert torch.linalg.matrix_rank(down) == 2
    return y + gelu(y @ down.T + e.down_bias) @ up.T + e.up_bias


def phm(e: Any, x: Tensor, y: Tensor) -> Tensor:
    """Karimi Mahabadi et al. 2021, equation 4: W = sum of A_i kron B_i."""
    down, up = kron_sum(e.down_rule.matrices, e.down_blocks), kron_sum(e.up_rule.matrices, e.up_blocks)
    return y + gelu(y @ down.T + e.down_bias) @ up.T + e.up_bias


def compacter(e: Any, x: Tensor, y: Tensor) -> Tensor:
    """Karimi Mahabadi et al. 2021, equation 5: B_i = s_i t_i, A_i shared."""
    assert e.down_rule is e.up_rule
    down = kron_sum(e.down_rule.matrices, torch.stack([s @ t for s, t in zip(e.down_left, e.down_right, strict=True)]))
    up = kron_sum(e.up_rule.matrices, torch.stack([s @ t for s, t in zip(e.up_left, e.up_right, strict=True)]))
    return y + gelu(y @ down.T + e.down_bias) @ up.T + e.up_bias


def token_shift(e: Any, x: Tensor, y: Tensor) -> Tensor:
    """Fu et al. 2022, equation 3: r + alpha v, alpha = L(r), a number per token."""
    return torch.stack([torch.stack([t + (t * e.a[0]).sum() * e.v[0] for t in row]) for row in y])


def gelu(x: Tensor) -> Tensor:
    return 0.5 * x * (1 + torch.erf(x / math.sqrt(2)))


CASES: list[tuple[Method[Any], Callable[[Any, Tensor, Tensor], Tensor]]] = [
    (Houlsby(reduction=4), sequential),
    (Pfeiffer(size=6), sequential),
    (AdapterDrop(reduction=4, drop=0), sequential),
    (Parallel(reduction=4), parallel),
    (LowRankAdapter(reduction=4, rank=2), low_rank),
    (PHMAdapter(reduction=4), phm),
    (Compacter(reduction=4), compacter),
    (AdapterBias(), token_shift),
]


@pytest.mark.parametrize(("method", "reference"), CASES, ids=[type(m).__name__ for m, _ in CASES])
def test_equals_the_equation(method: Method[Any], reference: Callable[[Any, Tensor, Tensor], Tensor]) -> None:
    edit = edit_of(method)
    torch.manual_seed(1)
    x, y = torch.randn(2, 5, D, requires_grad=True), torch.randn(2, 5, D, requires_grad=True)
    weights = torch.randn(2, 5, D)
    wanted = [x, y, *edit.parameters()] if isinstance(method, Parallel) else [y, *edit.parameters()]
    found, expected = edit.transform(x, y, Rows()), reference(edit, x, y)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    mine, theirs = (torch.autograd.grad((out * weights).sum(), wanted) for out in (found, expected))
    for a, b in zip(mine, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5 * float(b.abs().max()))


def test_kronecker_sum_takes_leading_rows() -> None:
    a, b = torch.randn(3, 4, 2, 2), torch.randn(3, 4, 5, 6)
    expected = torch.stack([kron_sum(*pair) for pair in zip(a, b, strict=True)])
    torch.testing.assert_close(kronecker_sum(a, b), expected)


def test_the_order_must_divide_the_width() -> None:
    with pytest.raises(UserError, match="order 3 must divide the hidden size, which is 32"):
        edit_of(Compacter(order=3))
    assert Compacter(order=4, reduction=32).config.width(192) == 8  # 6, rounded up


def inside(backbone: TinyBackbone, method: Method[Any], apart: float = 0.3) -> tuple[Attached, Adapter]:
    attached = attach(backbone.model, method)
    adapter = attached.adapters["default"]
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter.add_(
                torch.randn(parameter.shape, generator=torch.Generator().manual_seed(parameter.numel())) * apart
            )
    return attached, adapter


@pytest.mark.parametrize("role", ["self_attn", "mlp"])
def test_sequential_adapters_sit_before_the_residual(role: str) -> None:
    """BERT written out around one sublayer: LayerNorm(residual + adapter(sublayer output))."""
    backbone = tiny_backbone("bert")
    attached, adapter = inside(backbone, Houlsby(reduction=4, where=role, layers="0"))
    seen: dict[str, Tensor] = {}
    layer = backbone.model.bert.encoder.layer[0]
    output = layer.attention.output if role == "self_attn" else layer.output
    handles = [
        output.register_forward_hook(lambda m, args, out: seen.update(hidden=args[0], residual=args[1], out=out))
    ]
    try:
        with torch.no_grad():
            attached(**backbone.inputs())
            edit: Any = next(iter(adapter.items()))[1]
            y = nn.functional.linear(seen["hidden"], output.dense.weight, output.dense.bias)
            expected = output.LayerNorm(seen["residual"] + sequential(edit, y, y))
        torch.testing.assert_close(seen["out"], expected, rtol=1e-5, atol=1e-5)
    finally:
        handles[0].remove()
        attached.detach()


def test_parallel_adapters_read_what_the_sublayer_reads() -> None:
    backbone = tiny_backbone("t5")
    attached, adapter = inside(backbone, Parallel(reduction=4, layers="1", stacks="encoder"))
    seen: dict[str, Tensor] = {}
    block = backbone.model.encoder.block[1].layer[1]
    handle = block.register_forward_hook(lambda m, args, out: seen.update(hidden=args[0], out=out))
    try:
        with torch.no_grad():
            attached(**backbone.inputs())
            edit: Any = next(iter(adapter.items()))[1]
            with attached.changed(route=()):
                x = block.layer_norm(seen["hidden"])
                expected = seen["hidden"] + parallel(edit, x, block.DenseReluDense(x))
        torch.testing.assert_close(seen["out"], expected, rtol=1e-5, atol=1e-5)
    finally:
        handle.remove()
        attached.detach()


# AdapterDrop


def test_dropped_layers_have_no_adapter() -> None:
    anatomy = tiny_backbone("opt").anatomy
    assert [site.layer for site in AdapterDrop(drop=2).sites(anatomy)] == [2]
    with pytest.raises(UserError, match="leaves no layer"):
        AdapterDrop(drop=3).sites(anatomy)
    with pytest.raises(UserError, match="nothing to train"):
        AdapterDrop(drop=3, robust=True).sites(anatomy)


def test_robust_dropping_changes_with_the_step_and_is_the_same_in_all_layers() -> None:
    backbone = tiny_backbone("opt")
    adapter = Adapter(
        [AdapterDrop(drop=2, robust=True, drop_at_inference=1, reduction=4)], backbone.anatomy, backbone.model
    )
    edits: list[Any] = [edit for _, edit in adapter.items()]
    with torch.no_grad():
        for edit in edits:
            edit.up_bias.fill_(1.0)
    y = torch.zeros(1, 2, D)

    def active(rows: Rows) -> list[bool]:
        return [bool(edit.transform(y, y, rows).any()) for edit in edits]

    seen = {tuple(active(Rows(training=True, seed=seed))) for seed in range(40)}
    assert seen == {(True, True, True), (False, True, True), (False, False, True)}
    assert active(Rows()) == [False, True, True]


# AdapterFusion


def fusion(e: Any, x: Tensor, y: Tensor) -> Tensor:
    """Pfeiffer et al. 2021, section 3.2: s = softmax(h Q (x) z_n K), o = s (z V)."""
    z = torch.stack([sequential(a, x, y) - y for a in e.adapters], dim=2)  # (rows, tokens, adapters, d)
    scores = torch.einsum("btd,btnd->btn", y @ e.query.T + e.query_bias, z @ e.key_matrix.T + e.key_bias)
    return y + torch.einsum("btn,btnd->btd", scores.softmax(-1), z @ e.value.T)


def test_fusion_equals_the_equation() -> None:
    edit = edit_of(AdapterFusion(parts=["pfeiffer(reduction=4)", "pfeiffer(reduction=8)", "houlsby(where='mlp')"]))
    y = torch.randn(2, 5, D, requires_grad=True)
    trained = [p for p in edit.parameters() if p.requires_grad]
    assert sum(p.numel() for p in trained) == 3 * D * D + 2 * D
    weights = torch.randn(2, 5, D)
    found, expected = edit.transform(y, y, Rows()), fusion(edit, y, y)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    mine, theirs = (torch.autograd.grad((out * weights).sum(), [y, *trained]) for out in (found, expected))
    for a, b in zip(mine, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5 * max(1.0, float(b.abs().max())))  # that of b_K is zero


def test_two_stages(tmp_path: Path) -> None:
    """Train two adapters, store them, fuse them: outputs come from the stored tensors, which stay as they are."""
    from dollartune.export.directory import save_adapter

    backbone = tiny_backbone("bert/classification")
    stored = []
    for number, method in enumerate((Pfeiffer(reduction=4), Compacter(reduction=4, plus_plus=True))):
        attached, adapter = inside(backbone, method)
        save_adapter(tmp_path / str(number), adapter, {})
        stored.append(adapter.tensors())
        attached.detach()
    attached = attach(backbone.model, AdapterFusion(adapters=[str(tmp_path / "0"), str(tmp_path / "1")]))
    fused = attached.adapters["default"]
    try:
        tensors = fused.tensors()
        first = "encoder/0/mlp"
        assert torch.equal(tensors[f"parts.0.edits.{first}.adapters.0.down"], stored[0][f"parts.0.edits.{first}.down"])
        assert torch.equal(
            tensors[f"parts.0.edits.{first}.adapters.1.up_left"], stored[1][f"parts.0.edits.{first}.up_left"]
        )
        rule = next(name for name in tensors if name.endswith("matrices"))
        assert torch.equal(tensors[rule], next(t for name, t in stored[1].items() if name.endswith("matrices")))
        optimizer = torch.optim.AdamW([p for p in fused.parameters() if p.requires_grad], lr=1e-2)
        attached(**backbone.inputs()).logits.pow(2).sum().backward()
        optimizer.step()
        assert all(torch.equal(fused.tensors()[name], t) for name, t in tensors.items() if ".adapters." in name)
        with torch.no_grad():
            expected = attached(**backbone.inputs()).logits
        trained = fused.tensors()
    finally:
        attached.detach()
    settings = {"method": "adapter_fusion", "adapters": [str(tmp_path / "0"), str(tmp_path / "1")]}
    planned = AdapterFusion(adapters=settings["adapters"])  # a study looks for its places before anything is read
    assert [site.name for site in planned.sites(backbone.anatomy)] == [
        site.name for site in fused.methods[0].sites(backbone.anatomy)
    ]
    gated = Adapter([Gated(inner=settings)], backbone.anatomy, backbone.model).tensors()
    assert torch.equal(gated[f"parts.0.edits.{first}.inner.adapters.0.down"], stored[0][f"parts.0.edits.{first}.down"])
    for folder in tmp_path.iterdir():  # the stored fusion needs the two directories no more
        for file in folder.iterdir():
            file.unlink()
        folder.rmdir()
    again = attach(backbone.model, type(fused.methods[0])(fused.methods[0].config), seed=5)
    again.adapters["default"].load(trained)
    try:
        with torch.no_grad():
            assert torch.equal(again(**backbone.inputs()).logits, expected)
    finally:
        again.detach()


def test_fusion_says_what_it_needs(tmp_path: Path) -> None:
    from dollartune.export.directory import save_adapter
    from dollartune.methods.lora import LoRA

    backbone = tiny_backbone("bert")
    with pytest.raises(UserError, match="at least two trained adapters to fuse, got 0"):
        attach(backbone.model, AdapterFusion())
    with pytest.raises(UserError, match="is not an adapter"):
        attach(backbone.model, AdapterFusion(adapters=[str(tmp_path)]))
    with pytest.raises(UserError, match="must be at the same ones"):
        attach(backbone.model, AdapterFusion(parts=["pfeiffer", "houlsby"]))
    adapter = Adapter([LoRA(rank=2)], backbone.anatomy, backbone.model)
    save_adapter(tmp_path, adapter, {})
    with pytest.raises(UserError, match="exactly one bottleneck adapter"):
        attach(backbone.model, AdapterFusion(adapters=[str(tmp_path)]))
