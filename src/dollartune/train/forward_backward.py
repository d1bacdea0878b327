"""Passes over the backbone that trials share: those that fill gradients, and those that measure a validation loss."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from dollartune.attachment.attached import Assignment, Attached
from dollartune.backbones.loading import Backbone
from dollartune.methods.edits import Rows
from dollartune.train.batching import Batch, Collator, side_by_side
from dollartune.train.cuda_graphs import Replays
from dollartune.train.distributed import processes
from dollartune.train.encoding import Encoded
from dollartune.train.frozen_prefix_cache import FrozenPrefixCache
from dollartune.train.loss import trial_losses
from dollartune.train.micro_batch import SavedBytes, overhead_tokens
from dollartune.train.trial import TrialState

_WIDTH = 16
"""Where passes may be replayed, rows are padded to a multiple of this many tokens, so that fewer shapes occur."""


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
        if seeds is not None:
            contexts = [replace(context, seed=seed) for context, seed in zip(contexts, seeds, strict=True)]
        losses = trial_losses(self.attached, batch, assignments(self.trials, self.rows, contexts), self.targets)
        terms = [share * loss for loss, share in zip(losses, self.weights, strict=True)]
        torch.stack([*terms, *self.penalties]).sum().backward()
        return torch.stack(losses).detach()

    def parameters(self) -> list[Tensor]:
        """What its backward pass gives gradients to."""
        return [p for trial in self.trials for p in trial.adapter.parameters() if p.requires_grad]


def assignments(trials: Sequence[TrialState], rows: Sequence[slice], contexts: Sequence[Rows]) -> list[Assignment]:
    """Which rows belong to which trial."""
    if len(trials) == 1:
        return [Assignment(trials[0].adapter, slice(None), contexts[0])]
    return [Assignment(t.adapter, r, c) for t, r, c in zip(trials, rows, contexts, strict=True)]


class Passes:
    """Runs trials through one backbone, each through its own adapter.

    Args:
        backbone, attached: the model, and the same model with every trial's adapter attached.
        trunk: what is known of its leading layers.
        replays: passes that come again; by default on a GPU, none elsewhere.
    """

    def __init__(
        self, backbone: Backbone, attached: Attached, trunk: FrozenPrefixCache, replays: Replays | None = None
    ) -> None:
        self.backbone, self.attached, self.trunk = backbone, attached, trunk
        self.processes = processes()
        self.replays = replays or Replays.on(backbone.device, overhead_tokens(backbone))
        self.collate = Collator(backbone)
        self._widest: dict[int, int] = {}
        """Of the rows at an address; no row is padded to more."""

    def gradients(self, trials: Sequence[TrialState]) -> list[float]:
        """Fills gradients with each trial's mean loss per target over its whole batch, in micro-batches where asked.

        Returns:
            That loss of each trial.
        """
        rows = [trial.next_rows() for trial in trials]
        totals = [0.0] * len(trials)
        counts = [sum(len(e.answer) or 1 for e in r) for r in rows]
        reused = self.trunk.reused_tokens
        group = self.processes
        passes = group.passes(max(len(r) for r in rows), trials[0].settings.micro_batch_size)
        for number, (start, stop, weight) in enumerate(passes):
            parts = [(i, r[start:stop]) for i, r in enumerate(rows) if r[start:stop]]
            batches = [self.collate(part, self._width(trials[i], part)) for i, part in parts]
            batch, row_slices, target_slices = side_by_side(batches, self.collate.pad)
            penalties = [trial.penalty() for trial in trials] if number == 0 and group.first else []
            shared = SharedPass(
                self.attached,
                [trials[i] for i, _ in parts],
                row_slices,
                target_slices,
                [weight / counts[i] for i, _ in parts],
                [penalty for penalty in penalties if penalty is not None],
                number * group.size + group.rank,
            )
            plain = len(passes) > 1 or self._differs_by_step(shared)
            losses = shared(batch.to(self.backbone.device)) if plain else self.replays.run(shared, batch)
            for (i, _), loss, share in zip(parts, losses.tolist(), shared.weights, strict=True):
                totals[i] += share * loss
        group.add_gradients(trial.adapter for trial in trials)
        totals = group.add(totals)
        for trial, own in zip(trials, rows, strict=True):
            tokens = sum(e.length for e in own)
            trial.progress.examples += len(own)
            trial.progress.tokens += tokens
            trial.progress.trunk_tokens += tokens if self.trunk.reused_tokens > reused else 0
        return totals

    @torch.no_grad()
    def validation_losses(self, trials: Sequence[TrialState], batches: Sequence[Batch]) -> list[float]:
        """Mean loss per target of each trial; every batch passes once, with a copy of its rows per trial."""
        self.backbone.model.eval()
        sums, count = [0.0] * len(trials), 0
        for batch in batches:
            joined, rows, targets = side_by_side([batch] * len(trials), self.collate.pad)
            joined = joined.to(self.backbone.device)
            routes = assignments(trials, rows, [Rows() for _ in trials])
            losses = torch.stack(trial_losses(self.attached, joined, routes, targets)).tolist()
            sums = [total + loss for total, loss in zip(sums, losses, strict=True)]
            count += batch.targets.shape[0]
        self.backbone.model.train(trials[0].settings.backbone_dropout)
        return [total / max(1, count) for total in sums]

    def saved_bytes(self, trial: TrialState) -> tuple[int, int]:
        """Bytes that training saves for a row of middle length, and its tokens; the row passes forwards alone."""
        row = sorted(trial.train, key=lambda e: e.length)[len(trial.train) // 2]
        batch = self.collate([row]).to(self.backbone.device)
        route = assignments([trial], [slice(0, 1)], [trial.context(0)])
        with SavedBytes(self.backbone.model.parameters()) as saved:
            trial_losses(self.attached, batch, route, [slice(None)])
        return saved.bytes, batch.tokens

    def _differs_by_step(self, shared: SharedPass) -> bool:
        """Whether Python does not do the same each time: penalties follow a schedule, a trunk's states are looked up."""
        if not self.replays.active or shared.penalties:
            return True
        return bool(
            self.trunk.depths(self.attached, assignments(shared.trials, shared.rows, [Rows()] * len(shared.rows)))
        )

    def _width(self, trial: TrialState, rows: Sequence[Encoded]) -> int:
        """Tokens to pad some rows of a trial to, at least."""
        if not self.replays.active:
            return 0
        key = id(trial.train)
        if key not in self._widest:
            self._widest[key] = self.collate.width(trial.train)
        return min(-(-self.collate.width(rows) // _WIDTH) * _WIDTH, self._widest[key])
