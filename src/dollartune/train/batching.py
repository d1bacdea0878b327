"""Batches of similar length, in an order that a seed decides; batches of several trials side by side."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional

from dollartune.attachment.batch_layout import Layout
from dollartune.backbones.marks import decoder_start

if TYPE_CHECKING:
    from dollartune.backbones.loading import Backbone
    from dollartune.train.encoding import Encoded

VALIDATION_ROWS_AT_ONCE = 32
"""Rows of a validation batch at least, also where training takes fewer: nothing is kept for a backward pass then, and a
processor's products are no faster with more."""
WINDOW_BATCHES = 16
"""Batches within which rows are sorted by length: rows of a batch then differ by a sixteenth of the window's lengths, and rows
still meet at random."""


@dataclass(frozen=True)
class Batch:
    """Rows for one forward pass.

    Language: `keep` = (row, position) of every place whose next token counts, and `targets` those tokens.
    Classification: `keep` is None and `targets` the class of each row.
    """

    inputs: dict[str, Tensor]
    targets: Tensor
    keep: tuple[Tensor, Tensor] | None = None
    prompt_lengths: Tensor | None = None
    counts: tuple[int, ...] = field(default=())
    """Targets per row, in row order."""
    layout: Layout | None = None
    """Known once the batch has left the host."""

    @property
    def rows(self) -> int:
        return next(iter(self.inputs.values())).shape[0]

    @property
    def tokens(self) -> int:
        """Places that are computed, padding included."""
        return (
            sum(t.shape[0] * t.shape[1] for n, t in self.inputs.items() if n in ("input_ids", "decoder_input_ids"))
            or self.rows  # images have no tokens: each counts as one
        )

    def to(self, device: torch.device) -> Batch:
        """The batch on a device."""
        keep = None if self.keep is None else (self.keep[0].to(device), self.keep[1].to(device))
        lengths = None if self.prompt_lengths is None else self.prompt_lengths.to(device)
        inputs = {name: tensor.to(device) for name, tensor in self.inputs.items()}
        # before the tensors go: on a GPU each look would wait for everything asked of it before
        layout = self.layout or Layout.of(self.inputs, self.keep)
        return Batch(inputs, self.targets.to(device), keep, lengths, self.counts, layout)


def typical_rows(lengths: Sequence[int], count: int) -> list[int]:
    """Indices of rows whose length is about the mean: what a few take tells what all take, with little padding between them.

    The mean, as long rows take most of the time; rows as they come would be padded to the longest of them, which batches
    sorted by length are not.
    """
    mean = sum(lengths) / max(1, len(lengths))
    return sorted(range(len(lengths)), key=lambda index: abs(lengths[index] - mean))[:count]


def epoch_order(lengths: Sequence[int], batch_size: int, seed: int, epoch: int, group: bool = True) -> list[list[int]]:
    """Batches of indices for one epoch: shuffled, sorted by length within windows of 16 batches, shuffled again.

    Every example occurs once. The same (seed, epoch) gives the same order, whatever happened before.
    """
    # Python's generator on a text: the same numbers on every platform and version, and no state to save
    rng = random.Random(f"{seed}/{epoch}")
    order = list(range(len(lengths)))
    rng.shuffle(order)
    window = batch_size * WINDOW_BATCHES if group else len(order) or 1
    batches: list[list[int]] = []
    for start in range(0, len(order), window):
        chunk = order[start : start + window]
        if group:
            chunk.sort(key=lambda index: lengths[index])
        batches.extend(chunk[i : i + batch_size] for i in range(0, len(chunk), batch_size))
    # else every epoch would go from short rows to long ones
    rng.shuffle(batches)
    return batches


def by_length(
    lengths: Sequence[int], batch_size: int, spare: float = math.inf, most_tokens: float = math.inf
) -> list[list[int]]:
    """Batches of indices sorted by length, for evaluation.

    Args:
        spare: padding, in tokens, that costs less than a batch more; one that pads further ends before it is full.
        most_tokens: of a batch, padding included; a row may have more alone.
    """
    order = sorted(range(len(lengths)), key=lambda index: lengths[index])
    batches: list[list[int]] = []
    padding = 0
    for index in order:
        more = len(batches[-1]) * (lengths[index] - lengths[batches[-1][-1]]) if batches else 0
        full = not batches or len(batches[-1]) == batch_size or (len(batches[-1]) + 1) * lengths[index] > most_tokens
        if full or padding + more > spare:
            batches.append([])
            more = padding = 0
        batches[-1].append(index)
        padding += more
    return batches


class Collator:
    """Puts encoded examples into padded tensors for one backbone."""

    def __init__(self, backbone: Backbone) -> None:
        config = backbone.model.config
        self.kind, self.objective = backbone.kind, backbone.objective
        pad = getattr(backbone.processor, "pad_token_id", None)
        self.pad = int(pad if pad is not None else getattr(config, "pad_token_id", None) or 0)
        self.start = decoder_start(backbone.model)
        self.dtype: torch.dtype = backbone.model.dtype

    def width(self, rows: Sequence[Encoded]) -> int:
        """Tokens of the longest input; 0 for images."""
        if rows[0].pixels is not None:
            return 0
        with_answer = self.objective != "classification" and self.kind != "encoder_decoder"
        return max(len(e.prompt) + (len(e.answer) - 1 if with_answer else 0) for e in rows)

    def __call__(self, rows: Sequence[Encoded], width: int = 0) -> Batch:
        """Collates rows of one trial, padded to `width` tokens at least."""
        if rows[0].pixels is not None:
            # In the weights' format: ViT casts its input itself, ConvNeXt, ResNet and Swin do not.
            pixels = torch.stack([e.pixels for e in rows if e.pixels is not None]).to(self.dtype)
            return Batch({"pixel_values": pixels}, torch.tensor([e.label for e in rows]), counts=(1,) * len(rows))
        if self.objective == "classification":
            ids, mask = self._pad([e.prompt for e in rows], width)
            inputs = {"input_ids": ids, "attention_mask": mask}
            if any(e.token_types for e in rows):
                inputs["token_type_ids"] = self._pad([e.token_types or (0,) * len(e.prompt) for e in rows], width, 0)[0]
            return Batch(inputs, torch.tensor([e.label for e in rows]), counts=(1,) * len(rows))
        lengths = torch.tensor([len(e.prompt) for e in rows])
        counts = tuple(e.targets for e in rows)
        targets = torch.tensor([t for e in rows for t in (*(e.prompt[i] for i in e.spoken), *e.answer)])
        keep_rows = torch.tensor([row for row, e in enumerate(rows) for _ in range(e.targets)])
        if self.kind == "encoder_decoder":
            ids, mask = self._pad([e.prompt for e in rows], width)
            decoder_ids, decoder_mask = self._pad([(self.start, *e.answer[:-1]) for e in rows])
            positions = torch.tensor([i for e in rows for i in range(len(e.answer))])
            inputs = {
                "input_ids": ids,
                "attention_mask": mask,
                "decoder_input_ids": decoder_ids,
                "decoder_attention_mask": decoder_mask,
            }
            return Batch(inputs, targets, (keep_rows, positions), lengths, counts)
        # nothing is predicted from the last token of an answer
        ids, mask = self._pad([e.prompt + e.answer[:-1] for e in rows], width)
        # logits at position t say what token t + 1 is
        positions = torch.tensor(
            [i for e in rows for i in (*(p - 1 for p in e.spoken), *range(len(e.prompt) - 1, e.length - 1))]
        )
        return Batch({"input_ids": ids, "attention_mask": mask}, targets, (keep_rows, positions), lengths, counts)

    def _pad(self, rows: Sequence[Sequence[int]], width: int = 0, value: int | None = None) -> tuple[Tensor, Tensor]:
        """Right-padded ids and mask, (rows, longest)."""
        longest = max(1, width, *(len(row) for row in rows))
        ids = torch.full((len(rows), longest), self.pad if value is None else value, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for index, row in enumerate(rows):
            ids[index, : len(row)] = torch.tensor(row, dtype=torch.long)
            mask[index, : len(row)] = 1
        return ids, mask


def side_by_side(batches: Sequence[Batch], pad: int) -> tuple[Batch, list[slice], list[slice]]:
    """Joins the batches of several trials into one.

    Returns:
        The batch, and for each trial its rows and its targets.
    """
    if len(batches) == 1:
        only = batches[0]
        return only, [slice(0, only.rows)], [slice(0, only.targets.shape[0])]
    inputs = {}
    for name in batches[0].inputs:
        tensors = [b.inputs[name] for b in batches]
        if tensors[0].dim() == 2:
            longest = max(t.shape[1] for t in tensors)
            fill = pad if name.endswith("input_ids") else 0
            # to the right, where a decoder's tokens never look
            tensors = [functional.pad(t, (0, longest - t.shape[1]), value=fill) for t in tensors]
        inputs[name] = torch.cat(tensors)
    rows, targets, row_at, target_at = [], [], 0, 0
    for batch in batches:
        rows.append(slice(row_at, row_at + batch.rows))
        targets.append(slice(target_at, target_at + batch.targets.shape[0]))
        row_at, target_at = rows[-1].stop, targets[-1].stop
    keep = None
    if batches[0].keep is not None:
        keep_rows = torch.cat([b.keep[0] + r.start for b, r in zip(batches, rows, strict=True) if b.keep is not None])
        keep = (keep_rows, torch.cat([b.keep[1] for b in batches if b.keep is not None]))
    lengths = (
        torch.cat([b.prompt_lengths for b in batches if b.prompt_lengths is not None]) if keep is not None else None
    )
    counts = tuple(count for batch in batches for count in batch.counts)
    return Batch(inputs, torch.cat([b.targets for b in batches]), keep, lengths, counts), rows, targets
