"""LoReFT against its equation, at the positions that it names."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from dollartune.attachment import Attached
from dollartune.errors import UserError
from dollartune.methods.edits import Rows
from dollartune.methods.prompt import PromptTuning
from dollartune.methods.reft import PromptIntervention, ReFT, orthonormal_rows
from dollartune.testing.tiny import tiny_backbone

D, RANK = 12, 3


def trained(method: ReFT, stack: str = "decoder") -> PromptIntervention:
    torch.manual_seed(0)
    edit = PromptIntervention(D, method.config, stack)
    with torch.no_grad():
        for parameter in edit.parameters():
            parameter.add_(torch.randn_like(parameter))
    return edit


def equation(part: Any, h: torch.Tensor) -> torch.Tensor:
    """Wu et al. 2024, equation 2, for one vector, with R from a QR decomposition."""
    q, upper = torch.linalg.qr(part.R.T)
    r = (q * upper.diagonal().sign()).T  # the decomposition with a positive diagonal is unique
    return h + r.T @ (part.W @ h + part.b[0] - r @ h)


def test_equals_the_equation_with_gradients() -> None:
    edit = trained(ReFT(rank=RANK, first=2, last=1, share=False))
    h = torch.randn(2, 6, D, requires_grad=True)
    prompt = torch.tensor(
        [[1, 1, 1, 1, 0, 0], [0, 1, 1, 1, 1, 1]]
    ).bool()  # answers follow in row 0, padding leads row 1
    rows = Rows(prompt_mask={"decoder": prompt})
    places = {
        (0, 0): "at_first",
        (0, 1): "at_first",
        (0, 3): "at_last",
        (1, 1): "at_first",
        (1, 2): "at_first",
        (1, 5): "at_last",
    }
    expected = torch.stack([
        torch.stack([equation(getattr(edit, places[b, t]), h[b, t]) if (b, t) in places else h[b, t] for t in range(6)])
        for b in range(2)
    ])  # fmt: skip
    found = edit.transform(h, h, rows)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    weights = torch.randn_like(h)
    wanted = [h, *edit.parameters()]
    mine, theirs = (torch.autograd.grad((out * weights).sum(), wanted) for out in (found, expected))
    for a, b in zip(mine, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5 * max(1.0, float(b.abs().max())))


def test_short_prompts_are_changed_once() -> None:
    edit = trained(ReFT(rank=RANK, first=3, last=3))
    h = torch.randn(1, 4, D)
    found = edit.transform(h, h, Rows(prompt_mask={"decoder": torch.tensor([[True, True, False, False]])}))
    torch.testing.assert_close(found[0, 1], equation(edit.at_first, h[0, 1]), rtol=1e-5, atol=1e-5)
    assert torch.equal(found[0, 2:], h[0, 2:])


def test_without_a_prompt() -> None:
    h = torch.randn(1, 4, D)
    decoder, encoder = (trained(ReFT(rank=RANK, first=1, last=0), stack) for stack in ("decoder", "encoder"))
    assert torch.equal(decoder.transform(h, h, Rows()), h)  # tokens that are being written
    assert not torch.equal(encoder.transform(h, h, Rows())[0, 0], h[0, 0])  # images are all prompt


def test_rows_stay_orthonormal() -> None:
    for shape in ((4, 64), (2, 4, 64)):
        rows = orthonormal_rows(torch.randn(*shape) * 3)
        torch.testing.assert_close(rows @ rows.mT, torch.eye(4).expand(*shape[:-2], 4, 4), rtol=0, atol=1e-5)
    already = torch.linalg.qr(torch.randn(64, 4)).Q.T
    torch.testing.assert_close(orthonormal_rows(already), already, rtol=0, atol=1e-6)


def test_prompts_of_adapters_before_it_are_no_prompt_of_the_user() -> None:
    """With virtual tokens in front, the first token of the prompt is still the first real one."""
    backbone = tiny_backbone("opt")
    attached = Attached(backbone.model, backbone.anatomy)
    adapter = attached.add("both", [PromptTuning(tokens=3), ReFT(rank=2, first=1, last=0, layers="0")])
    edit: Any = adapter.parts[1].edits["decoder/0/layer"]
    with torch.no_grad():
        edit.at_first.b.fill_(5.0)
    seen = []
    inputs = backbone.inputs(rows=2)
    handle = backbone.model.get_submodule("model.decoder.layers.1").register_forward_pre_hook(
        lambda m, args, kwargs: seen.append(args[0]), with_kwargs=True
    )
    try:
        with torch.no_grad(), attached.routed("both"):
            attached(prompt_lengths=torch.tensor([2, 2]), **inputs)
            edit.at_first.b.zero_()
            attached(prompt_lengths=torch.tensor([2, 2]), **inputs)
    finally:
        handle.remove()
        attached.detach()
    changed = (seen[0] - seen[1]).abs().amax(-1) > 1e-3
    assert changed.tolist() == [[False] * 3 + [True] + [False] * 6] * 2


def test_where_it_has_no_meaning_it_says_so() -> None:
    with pytest.raises(UserError, match="no position is changed"):
        ReFT(first=0, last=0).sites(tiny_backbone("opt").anatomy)
    with pytest.raises(UserError, match="reads in its encoder"):
        ReFT(stacks="decoder").sites(tiny_backbone("t5").anatomy)
    assert {site.stack for site in ReFT().sites(tiny_backbone("bart").anatomy)} == {"encoder"}


def test_rows_that_depend_on_each_other_give_nan_and_no_wait() -> None:
    R = torch.eye(2, 4)
    assert torch.equal(orthonormal_rows(R), R)
    assert orthonormal_rows(torch.zeros(2, 4)).isnan().all()
