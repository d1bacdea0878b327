"""One forward and backward pass that several trials share: each brings rows, and each row goes through its trial's adapter."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dollartune.attachment.routing import Assignment
from dollartune.train.loss import trial_losses

if TYPE_CHECKING:
    from dollartune.attachment.attached import Attached
    from dollartune.methods.edits import Rows
    from dollartune.train.batching import Batch
    from dollartune.train.trial import TrialState


@dataclass(frozen=True)
class SharedPass:
    """One pass that fills the gradients of several trials. Called with its batch, on the backbone's device."""

    attached: Attached
    trials: Sequence[TrialState]
    rows: Sequence[slice]
    """Of the batch, each trial's own."""
    targets: Sequence[slice]
    weights: Sequence[float]
    """What each trial's summed loss is multiplied by."""
    penalties: Sequence[Tensor]
    """Added to the weighted losses."""
    micro: int
    """Its number within the step."""

    def __call__(self, batch: Batch, seeds: Sequence[int] | None = None) -> Tensor:
        """(trials,) summed losses; gradients are added to what the parameters hold.

        Args:
            seeds: what edits draw from, in place of the trials' own seeds for this step.
        """
        contexts = [trial.context(self.micro) for trial in self.trials]
        # Only a recording gives its own: objects that raise when read, which shows that no edit draws.
        if seeds is not None:
            contexts = [replace(context, seed=seed) for context, seed in zip(contexts, seeds, strict=True)]
        routes = assignments(self.trials, self.rows, contexts)
        class_weights = [trial.class_weights_on(batch.targets.device) for trial in self.trials]
        losses = trial_losses(self.attached, batch, routes, self.targets, class_weights)
        terms = [share * loss for loss, share in zip(losses, self.weights, strict=True)]
        # one backward pass for all: a trial's loss has no gradient in another's adapter, so the sum mixes nothing
        torch.stack([*terms, *self.penalties]).sum().backward()
        # (trials,) on the device: reading them as floats here would wait for the GPU at every pass.
        return torch.stack(losses).detach()

    def parameters(self) -> list[Tensor]:
        """What its backward pass gives gradients to."""
        return [p for trial in self.trials for p in trial.adapter.parameters() if p.requires_grad]


def assignments(trials: Sequence[TrialState], rows: Sequence[slice], contexts: Sequence[Rows]) -> list[Assignment]:
    """Which rows belong to which trial."""
    # every row without saying how many: recorded passes and hooks then take their shortest way
    if len(trials) == 1:
        return [Assignment(trials[0].adapter, slice(None), contexts[0])]
    return [Assignment(t.adapter, r, c) for t, r, c in zip(trials, rows, contexts, strict=True)]
