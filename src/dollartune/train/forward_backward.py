"""Forward and backward passes that trials share: those that fill gradients, and those that measure a validation loss."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dollartune.methods.edits import Rows
from dollartune.train.batching import Batch, Collator, side_by_side
from dollartune.train.calibrated_loss import calibrated_losses
from dollartune.train.cuda_graphs import CudaGraphs
from dollartune.train.distributed import processes
from dollartune.train.loss import trial_logits, trial_losses
from dollartune.train.micro_batch import SavedBytes, overhead_tokens
from dollartune.train.shared_pass import SharedPass, assignments

if TYPE_CHECKING:
    from dollartune.attachment.attached import Attached
    from dollartune.backbones.loading import Backbone
    from dollartune.train.encoding import Encoded
    from dollartune.train.frozen_prefix_cache import FrozenPrefixCache
    from dollartune.train.trial import TrialState

_WIDTH = 16
"""Where passes may be replayed, rows are padded to a multiple of this many tokens, so that fewer shapes occur: a recording is of
one shape, and 7 tokens of padding on average cost a small pass next to nothing."""


class ForwardBackward:
    """Runs trials through one backbone, each through its own adapter.

    Args:
        backbone, attached: the model, and the same model with every trial's adapter attached.
        frozen_prefix: what is known of its leading layers.
        cuda_graphs: recorded passes; by default on a GPU, none elsewhere.
    """

    def __init__(
        self,
        backbone: Backbone,
        attached: Attached,
        frozen_prefix: FrozenPrefixCache,
        cuda_graphs: CudaGraphs | None = None,
    ) -> None:
        self.backbone, self.attached, self.frozen_prefix = backbone, attached, frozen_prefix
        self.processes = processes()
        self.cuda_graphs = cuda_graphs or CudaGraphs.on(backbone.device, overhead_tokens(backbone))
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
        counts = [sum(e.targets or 1 for e in r) for r in rows]
        reused = self.frozen_prefix.reused_tokens
        group = self.processes
        passes = group.micro_batches(max(len(r) for r in rows), trials[0].settings.micro_batch_size)
        for number, (start, stop, weight) in enumerate(passes):
            parts = [(i, r[start:stop]) for i, r in enumerate(rows) if r[start:stop]]
            batches = [self.collate(part, self._width(trials[i], part)) for i, part in parts]
            batch, row_slices, target_slices = side_by_side(batches, self.collate.pad)
            # once per step and in one process: a penalty is the adapter's, not the rows'
            penalties = [trial.penalty() for trial in trials] if number == 0 and group.first else []
            shared = SharedPass(
                self.attached,
                [trials[i] for i, _ in parts],
                row_slices,
                target_slices,
                [
                    weight / counts[i] for i, _ in parts
                ],  # targets of the whole batch, so that micro-batches change nothing
                [penalty for penalty in penalties if penalty is not None],
                number * group.size + group.rank,
            )
            # a recorded pass writes gradients, so it cannot add to those of an earlier micro-batch
            plain = len(passes) > 1 or self._differs_by_step(shared)
            losses = shared(batch.to(self.backbone.device)) if plain else self.cuda_graphs.run(shared, batch)
            for (i, _), loss, share in zip(parts, losses.tolist(), shared.weights, strict=True):
                totals[i] += share * loss
        group.add_gradients(trial.adapter for trial in trials)
        totals = group.add(totals)
        for trial, batch_rows in zip(trials, rows, strict=True):
            tokens = sum(e.length for e in batch_rows)
            trial.progress.examples += len(batch_rows)
            trial.progress.tokens += tokens
            trial.progress.frozen_prefix_tokens += tokens if self.frozen_prefix.reused_tokens > reused else 0
        return totals

    @torch.no_grad()
    def validation_losses(
        self, trials: Sequence[TrialState], blocks: Sequence[Sequence[Batch]]
    ) -> list[list[tuple[float, int]]]:
        """(summed loss, targets) of each trial in each block; every batch passes once, with a copy of its rows per trial.

        Where a training's length comes from money and classes are scored, the loss is that at the best temperature, and every
        row is a block of its own: how much two states differ by luck can then be told (`early_stopping.end_wins`).
        """
        self.backbone.model.eval()
        losses: list[list[Tensor]] = [[] for _ in trials]  # of each batch: its summed loss, or (rows, classes)
        calibrated = trials[0].from_money and self.backbone.objective == "classification"
        for batch in chain(*blocks):
            joined, rows, targets = side_by_side([batch] * len(trials), self.collate.pad)
            joined = joined.to(self.backbone.device)
            routes = assignments(trials, rows, [Rows() for _ in trials])
            if calibrated:
                logits = trial_logits(self.attached, joined, routes)
                values = [logits[part].float().cpu() for part in targets]
            else:
                class_weights = [trial.class_weights_on(joined.targets.device) for trial in trials]
                summed = trial_losses(self.attached, joined, routes, targets, class_weights)
                # stacked, so that a GPU is waited for once and not per trial
                values = list(torch.stack(summed).cpu())
            for one, value in zip(losses, values, strict=True):
                one.append(value)
        self.backbone.model.train(trials[0].settings.backbone_dropout)
        if calibrated:
            labels = torch.cat([batch.targets for batch in chain(*blocks)])
            return [
                [(loss, 1) for loss in calibrated_losses(torch.cat(one), labels, trial.class_weights).tolist()]
                for trial, one in zip(trials, losses, strict=True)
            ]
        counts = [sum(len(batch.targets) for batch in block) for block in blocks]
        result = []
        for one in losses:
            sums = iter(one)
            result.append([(sum(float(next(sums)) for _ in block), n) for block, n in zip(blocks, counts, strict=True)])
        return result

    def saved_bytes(self, trial: TrialState) -> tuple[int, int]:
        """Bytes that training saves for a row of middle length, and its tokens; the row passes forwards alone."""
        # a middle one: bytes per token hardly depend on the length, and the longest might not fit
        row = sorted(trial.train, key=lambda e: e.length)[len(trial.train) // 2]
        batch = self.collate([row]).to(self.backbone.device)
        route = assignments([trial], [slice(0, 1)], [trial.context(0)])
        with SavedBytes(self.backbone.model.parameters()) as saved:
            # Forwards with gradients on: what is saved for the backward pass is saved here already.
            trial_losses(self.attached, batch, route, [slice(None)])
        return saved.bytes, batch.tokens

    @property
    def _records(self) -> bool:
        """Whether passes may be recorded. Of several processes one might record, which takes two passes, while another does not,
        and then each would wait for the other."""
        return self.cuda_graphs.active and self.processes.size == 1

    def _differs_by_step(self, shared: SharedPass) -> bool:
        """Whether Python does not do the same each time: penalties follow a schedule, a frozen prefix's states are looked up."""
        if not self._records or shared.penalties:
            return True
        return bool(
            self.frozen_prefix.layers(
                self.attached, assignments(shared.trials, shared.rows, [Rows()] * len(shared.rows))
            )
        )

    def _width(self, trial: TrialState, rows: Sequence[Encoded]) -> int:
        """Tokens to pad some rows of a trial to, at least."""
        if not self._records:
            return 0
        # Trials of one context share their list of rows.
        key = id(trial.train)
        if key not in self._widest:
            self._widest[key] = self.collate.width(trial.train)
        return min(-(-self.collate.width(rows) // _WIDTH) * _WIDTH, self._widest[key])
