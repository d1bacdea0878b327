"""Loss at answer positions, per trial of a batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional

if TYPE_CHECKING:
    from dollartune.attachment.attached import Assignment, Attached
    from dollartune.train.batching import Batch


def target_logits(output: Any, batch: Batch) -> Tensor:
    """Logits (targets, classes or vocabulary) that belong to `batch.targets`."""
    logits: Tensor = output.logits
    # With `keep` the head saw the chosen positions alone, as one row: (1, targets, vocabulary); else it is a
    # classifier's (rows, classes).
    return logits[0] if batch.keep is not None else logits


def trial_logits(attached: Attached, batch: Batch, assignments: Sequence[Assignment]) -> Tensor:
    """(targets, classes or vocabulary) from one pass over the backbone, each row through its trial's adapter."""
    with attached.routed(*assignments, batch_rows=batch.rows, layout=batch.layout):
        output = attached(keep=batch.keep, prompt_lengths=batch.prompt_lengths, **batch.inputs)
    return target_logits(output, batch)


def trial_losses(
    attached: Attached,
    batch: Batch,
    assignments: Sequence[Assignment],
    targets: Sequence[slice],
    class_weights: Sequence[Tensor | None] | None = None,
) -> list[Tensor]:
    """Summed cross-entropy of each trial's targets, in fp32, from one pass over the backbone.

    Args:
        targets: which of `batch.targets` belong to each assignment.
        class_weights: (classes,) of each assignment; None: all classes weigh 1.
    """
    logits = trial_logits(attached, batch, assignments)
    # The plain way where nothing is weighed: it can go in chunks.
    if class_weights is None or all(one is None for one in class_weights):
        return [cross_entropy_sum(logits[part], batch.targets[part]) for part in targets]
    weighed = zip(targets, class_weights, strict=True)
    return [cross_entropy_sum(logits[part], batch.targets[part], weights=weights) for part, weights in weighed]


def cross_entropy_sum(logits: Tensor, targets: Tensor, chunk: int = 1024, weights: Tensor | None = None) -> Tensor:
    """Summed cross-entropy in fp32; many positions are done in chunks, so that no second copy of all logits exists.

    Args:
        weights: (classes,); rows of a class count so often.
    """
    # in fp32 whatever the model's format: a sum of thousands of bf16 terms has two digits left
    if weights is not None:
        weights = weights.to(logits.device)
        # (rows, classes): a classification head's few classes need no chunks.
        return functional.cross_entropy(logits.float(), targets, weights, reduction="sum")
    if logits.shape[0] <= chunk:
        return functional.cross_entropy(logits.float(), targets, reduction="sum")
    # 1,024 rows of a vocabulary of 128,000 are half a gigabyte in fp32
    pieces = zip(logits.split(chunk), targets.split(chunk), strict=True)
    return torch.stack([functional.cross_entropy(piece.float(), part, reduction="sum") for piece, part in pieces]).sum()
