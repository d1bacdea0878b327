"""What the conformance suite and tests of the package do with an adapter on a tiny backbone: attach, move, train a little."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional

from dollartune.attachment.attached import Assignment, Attached
from dollartune.attachment.pooling import pooled_states
from dollartune.errors import UserError
from dollartune.methods.edits import Readout, Rows
from dollartune.methods.features import LabelledFeatures

if TYPE_CHECKING:
    from dollartune.attachment.adapter import Adapter
    from dollartune.methods.base import Method
    from dollartune.testing.tiny import TinyBackbone


def refusal(method: Method[Any], backbone: TinyBackbone) -> str | None:
    """Why the method has no meaning on a backbone, in its own words; None if it has one."""
    try:
        method.check(backbone.anatomy)
        if method.capabilities.trains:
            method.sites(backbone.anatomy)
    except UserError as error:
        return str(error)
    return None if method.capabilities.trains else f"{method.name} trains nothing"


@contextmanager
def attached_to(backbone: TinyBackbone, adapter: Adapter, context: Rows | None = None) -> Iterator[Attached]:
    """The adapter on every row, detached afterwards."""
    attached = Attached(backbone.model, backbone.anatomy)
    try:
        attached.put("adapter", adapter)
        with attached.routed(Assignment(adapter, slice(None), context or Rows())):
            yield attached
    finally:
        attached.detach()


@torch.no_grad()
def perturb(adapter: Adapter, noise: float, seed: int) -> None:
    """Moves every trained tensor by normal noise."""
    # Apart from the seeds of adapters, whose numbers the noise must not repeat.
    generator = torch.Generator().manual_seed(1000 + seed)
    for part in solved_parts(adapter):
        solve_rows(part, torch.randn(12, _width(part), generator=generator), seed)
    for parameter in adapter.trainable().values():
        parameter.add_(torch.randn(parameter.shape, generator=generator) * noise)


def solved_parts(adapter: Adapter) -> list[Any]:
    """Parts that are solved at once, not trained by steps."""
    return [part for part in adapter.parts if part.method.capabilities.solved]  # type: ignore[union-attr]


def solve_rows(part: Any, features: Tensor, seed: int = 0) -> None:
    """Solves a part on features of rows whose labels alternate, as `loss` has them."""
    rows = LabelledFeatures(features, torch.arange(len(features)) % 2, part.sites[0].out_features, seed)
    part.method.solve(part, rows)


def _width(part: Any) -> int:
    readout = next(module for module in part.modules() if isinstance(module, Readout))
    return int(part.sites[0].in_features) * len(readout.pooling)


def by_site(adapter: Adapter) -> dict[str, Tensor]:
    """An adapter's tensors without the number of their part: an import may make several parts of one, by stack or layer."""
    # `parts.NUMBER.rest`.
    return {name.split(".", 2)[2]: tensor for name, tensor in adapter.tensors().items()}


def loss(backbone: TinyBackbone, attached: Attached, inputs: dict[str, Tensor]) -> Tensor:
    """Cross-entropy towards labels that alternate from row to row (from token to token in language models)."""
    logits = backbone.logits(attached, inputs)
    return functional.cross_entropy(
        logits, 5 + torch.arange(len(logits)) % 2 if backbone.objective == "language" else torch.arange(len(logits)) % 2
    )


def train(
    backbone: TinyBackbone, attached: Attached, adapter: Adapter, steps: int, lr: float, until: float = -math.inf
) -> list[float]:
    """A few steps of Adam with all of a method's own hooks, at a learning rate fit for tiny models; a solved method is
    solved. Returns the loss before each step, and after a solution.

    Args:
        until: a part (0 to 1) of the first loss; training ends once a loss is below it.
    """
    if solved := solved_parts(adapter):
        inputs = backbone.inputs()
        before = loss(backbone, attached, inputs).item()
        for part in solved:
            readout = next(module for module in part.modules() if isinstance(module, Readout))
            solve_rows(part, pooled_states(attached, inputs, readout.pooling))
        return [before, loss(backbone, attached, inputs).item()]
    groups = [
        # Groups keep their ratios (LoRA+).
        {**group, "lr": group["lr"] / part.method.config.lr * lr}  # type: ignore[union-attr]
        for part in adapter.parts
        for group in part.method.parameter_groups(part)  # type: ignore[operator, union-attr]
    ]
    grouped = {id(p) for group in groups for p in group["params"]}
    assert grouped == {id(p) for p in adapter.trainable().values()}, "parameter_groups() must hold every trained tensor"
    # Without decay, which in few steps would hide a small gradient.
    optimizer = torch.optim.Adam(groups)
    losses = []
    inputs = backbone.inputs()
    for step in range(steps):
        value = loss(backbone, attached, inputs)
        losses.append(value.item())
        if losses[-1] < until * losses[0]:
            break
        with_penalties(adapter, value, step / steps).backward()
        for part in adapter.parts:
            part.method.after_backward(part, step, steps)  # type: ignore[operator, union-attr]
        optimizer.step()
        for part in adapter.parts:
            part.method.after_step(part, step, steps)  # type: ignore[operator, union-attr]
        optimizer.zero_grad()
    return losses


def with_penalties(adapter: Adapter, value: Tensor, progress: float) -> Tensor:
    """A loss with the terms that methods add to it."""
    for part in adapter.parts:
        penalty = part.method.penalty(part, progress)  # type: ignore[operator, union-attr]
        value = value if penalty is None else value + penalty
    return value


def finish(adapter: Adapter) -> None:
    """Ends training, as the training loop does."""
    for part in adapter.parts:
        part.method.finish(part)  # type: ignore[operator, union-attr]


def split_by_rows(backbone: TinyBackbone, logits: Tensor, inputs: dict[str, Tensor]) -> list[Tensor]:
    """Logits of each row: (1, classes) or (its real tokens, vocabulary)."""
    if backbone.objective == "classification":
        return list(logits.split(1))
    if "decoder_input_ids" in inputs:
        return list(logits.split(inputs["decoder_input_ids"].shape[1]))
    return list(logits.split(inputs["attention_mask"].sum(-1).tolist()))
